"""The audit log and the log of transactions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from engineroom.auth.audit.log import AuditHead
from engineroom.auth.permissions import Permission
from engineroom.console.rest.pagination import Cursor, Limit, PageQuery
from engineroom.console.rest.routing import BASE, Answer, Call, Model, Route
from engineroom.core.errors import InvalidInputError, MissingError, Problem

if TYPE_CHECKING:
    from engineroom.core.transactions.journal import SagaRecord

#: Transactions that one page reads at most, of all namespaces.
MAX_SCANNED = 400


class AuditQuery(Model):
    """The start and size of a page."""

    after: Annotated[int, Field(ge=0, le=2**53, description="Number of the previous record.")] = 0
    limit: Limit = 100


class AuditRecord(Model):
    """One record; `at` is Unix seconds, `mac` chains it to the previous record."""

    sequence: int
    at: float
    body: dict[str, Any]
    mac: str


class AuditPage(Model):
    """Records in order; `nextAfter` is the `after` of the next page."""

    items: list[AuditRecord]
    next_after: int | None


class AnchorQuery(Model):
    """A record that was saved earlier, to detect a log that was reset to an older state."""

    sequence: Annotated[int, Field(ge=0, le=2**53, description="Its number; 0: none.")] = 0
    mac: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$", description="Its `mac`.")] = ""


class AuditCheck(Model):
    """The result of a check of the whole log."""

    intact: bool
    records: int
    sequence: int
    mac: str
    problems: list[str]


class TransactionsQuery(PageQuery):
    """The requested page."""

    limit: Limit = 50
    cursor: Cursor = ""


class TransactionStep(Model):
    """A line of the log; `at` is Unix seconds."""

    kind: str
    step: str
    at: float
    detail: str | None


class Transaction(Model):
    """A transaction with its author, objects and steps. `duration` is seconds."""

    id: str
    name: str
    by: str
    namespace: str
    status: str
    started: float
    duration: float | None
    objects: list[str]
    steps: list[TransactionStep]


class Transactions(Model):
    """A page of transactions, newest first. It may be short without being the last."""

    items: list[Transaction]
    next_cursor: str | None


async def audit(call: Call) -> Answer:
    """Return a page of the audit log."""
    query: AuditQuery = call.query
    records = await call.services.audit.read(query.after, query.limit)
    items = [
        AuditRecord(sequence=record.sequence, at=record.at, body=dict(record.body), mac=record.mac)
        for record in records
    ]
    after = items[-1].sequence if len(items) == query.limit else None
    return Answer(AuditPage(items=items, next_after=after))


async def check_audit(call: Call) -> Answer:
    """Verify the chain of the whole audit log."""
    query: AnchorQuery = call.query
    if bool(query.sequence) is not bool(query.mac):
        problem = Problem("query.mac", "needs sequence, and sequence needs it", "send both or none")
        raise InvalidInputError([problem])
    anchor = AuditHead(query.sequence, query.mac) if query.sequence else None
    result = await call.services.audit.verify(anchor)
    return Answer(
        AuditCheck(
            intact=result.intact,
            records=result.records,
            sequence=result.head.sequence,
            mac=result.head.mac,
            problems=list(result.problems),
        )
    )


async def list_transactions(call: Call) -> Answer:
    """Return a page of a namespace's transactions."""
    cursors = call.services.cursors
    limit, cursor = call.query.limit, cursors.decode(call.query.cursor) or None
    items: list[Transaction] = []
    scanned = 0
    while True:
        # No more than fit into this page, because its cursor is that of the log's page.
        page = await call.services.sagas.page(cursor=cursor, count=limit - len(items))
        scanned += len(page.records)
        items += [_transaction(r) for r in page.records if _namespace(r) == call.namespace]
        cursor = page.cursor
        if cursor is None or len(items) == limit or scanned >= MAX_SCANNED:
            return Answer(Transactions(items=items, next_cursor=cursors.encode(cursor)))


async def show_transaction(call: Call) -> Answer:
    """Return one transaction."""
    record = await call.services.sagas.read(call.path["transaction"])
    if record is None or _namespace(record) != call.namespace:
        raise MissingError("transaction: no transaction of this namespace has that id; list them")
    return Answer(_transaction(record))


def _namespace(record: SagaRecord) -> str:
    namespace = record.input.get("namespace") if isinstance(record.input, dict) else None
    return namespace if isinstance(namespace, str) else ""


def _transaction(record: SagaRecord) -> Transaction:
    arguments = record.input if isinstance(record.input, dict) else {}
    objects = arguments.get("objects")
    return Transaction(
        id=record.id,
        name=record.name,
        by=record.by,
        namespace=_namespace(record),
        status=record.status,
        started=record.started,
        duration=record.duration,
        objects=[
            f"{obj.get('action')} {obj.get('kind')}/{obj.get('name')}"
            for obj in (objects if isinstance(objects, list) else ())
            if isinstance(obj, dict)
        ],
        steps=[
            TransactionStep(
                kind=line.kind.value,
                step=line.step,
                at=line.at,
                detail=line.detail if isinstance(line.detail, str) else None,
            )
            for line in record.entries
        ],
    )


_TRANSACTIONS = f"{BASE}/namespaces/{{namespace}}/transactions"
ROUTES = (
    Route(
        method="GET", path=f"{BASE}/audit", needs=Permission.CLUSTER_AUDIT_READ, handler=audit,
        summary="List the audit log", tag="audit", query=AuditQuery, answer=AuditPage,
    ),
    Route(
        method="GET", path=f"{BASE}/audit/check", needs=Permission.CLUSTER_AUDIT_READ,
        handler=check_audit, summary="Verify the audit log", tag="audit",
        query=AnchorQuery, answer=AuditCheck, cost=50,
    ),
    Route(
        method="GET", path=_TRANSACTIONS, needs=Permission.NAMESPACE_TRANSACTIONS_READ,
        handler=list_transactions, summary="List the transactions of a namespace",
        tag="transactions", query=TransactionsQuery, answer=Transactions, cost=5,
    ),
    Route(
        method="GET", path=f"{_TRANSACTIONS}/{{transaction}}",
        needs=Permission.NAMESPACE_TRANSACTIONS_READ, handler=show_transaction,
        summary="Read one transaction", tag="transactions", answer=Transaction, errors=(404,),
    ),
)  # fmt: skip
