"""What was done: the audit log and the log of transactions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from engineroom.auth.audit.log import AuditHead
from engineroom.auth.permissions import Permission
from engineroom.console.rest.pagination import Cursor, Limit, Paged
from engineroom.console.rest.routing import BASE, Answer, Call, Model, Route
from engineroom.core.errors import InvalidInputError, MissingError, Problem

if TYPE_CHECKING:
    from engineroom.core.transactions.journal import SagaRecord

#: Transactions that one page looks at, however few are of its namespace.
MAX_SCANNED = 400


class AuditQuery(Model):
    """From where on."""

    after: Annotated[int, Field(ge=0, le=2**53, description="Number of the record before.")] = 0
    limit: Limit = 100


class AuditRecord(Model):
    """One record; `at` is Unix seconds, `mac` chains it to the one before."""

    sequence: int
    at: float
    body: dict[str, Any]
    mac: str


class AuditPage(Model):
    """Records in order; `nextAfter` leads on."""

    items: list[AuditRecord]
    next_after: int | None


class AnchorQuery(Model):
    """A record noted earlier, with which a log that was set back is found."""

    sequence: Annotated[int, Field(ge=0, le=2**53, description="Its number; 0: none.")] = 0
    mac: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$", description="Its `mac`.")] = ""


class AuditCheck(Model):
    """What reading the whole log found."""

    intact: bool
    records: int
    sequence: int
    mac: str
    problems: list[str]


class TransactionsQuery(Paged):
    """Which page."""

    limit: Limit = 50
    cursor: Cursor = ""


class TransactionStep(Model):
    """A line of the log; `at` is Unix seconds."""

    kind: str
    step: str
    at: float
    detail: str | None


class Transaction(Model):
    """Who did what when, and how each step went. `duration` is seconds."""

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
    """A page of transactions, the newest first. May be short and not the last."""

    items: list[Transaction]
    next_cursor: str | None


async def audit(call: Call) -> Answer:
    """A page of the audit log."""
    wanted: AuditQuery = call.query
    found = await call.services.audit.read(wanted.after, wanted.limit)
    items = [AuditRecord(sequence=r.sequence, at=r.at, body=dict(r.body), mac=r.mac) for r in found]
    after = items[-1].sequence if len(items) == wanted.limit else None
    return Answer(AuditPage(items=items, next_after=after))


async def check_audit(call: Call) -> Answer:
    """Read the whole audit log and say whether it is as it was written."""
    wanted: AnchorQuery = call.query
    if bool(wanted.sequence) is not bool(wanted.mac):
        told = Problem("query.mac", "does not stand with sequence", "send both or neither")
        raise InvalidInputError([told])
    anchor = AuditHead(wanted.sequence, wanted.mac) if wanted.sequence else None
    found = await call.services.audit.verify(anchor)
    return Answer(
        AuditCheck(
            intact=found.intact,
            records=found.records,
            sequence=found.head.sequence,
            mac=found.head.mac,
            problems=list(found.problems),
        )
    )


async def list_transactions(call: Call) -> Answer:
    """A page of a namespace's transactions."""
    cursors = call.services.cursors
    limit, cursor = call.query.limit, cursors.decode(call.query.cursor) or None
    items: list[Transaction] = []
    scanned = 0
    while True:
        # No more than still fit: where the log's page ends, ours may end.
        page = await call.services.sagas.page(cursor=cursor, count=limit - len(items))
        scanned += len(page.records)
        here = [r for r in page.records if _namespace(r) == call.namespace]
        items += map(_transaction, here)
        cursor = page.cursor
        if cursor is None or len(items) == limit or scanned >= MAX_SCANNED:
            return Answer(Transactions(items=items, next_cursor=cursors.encode(cursor)))


async def show_transaction(call: Call) -> Answer:
    """One transaction."""
    record = await call.services.sagas.read(call.path["transaction"])
    if record is None or _namespace(record) != call.namespace:
        raise MissingError("transaction: there is none of that id here; look at the list")
    return Answer(_transaction(record))


def _namespace(record: SagaRecord) -> str:
    said = record.input.get("namespace") if isinstance(record.input, dict) else None
    return said if isinstance(said, str) else ""


def _transaction(record: SagaRecord) -> Transaction:
    said = record.input if isinstance(record.input, dict) else {}
    objects = said.get("objects")
    return Transaction(
        id=record.id,
        name=record.name,
        by=record.by,
        namespace=_namespace(record),
        status=record.status,
        started=record.started,
        duration=record.duration,
        objects=[
            f"{each.get('action')} {each.get('kind')}/{each.get('name')}"
            for each in (objects if isinstance(objects, list) else ())
            if isinstance(each, dict)
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
        summary="The audit log", tag="audit", query=AuditQuery, answer=AuditPage,
    ),
    Route(
        method="GET", path=f"{BASE}/audit/check", needs=Permission.CLUSTER_AUDIT_READ,
        handler=check_audit, summary="Whether the audit log is as it was written", tag="audit",
        query=AnchorQuery, answer=AuditCheck, cost=50,
    ),
    Route(
        method="GET", path=_TRANSACTIONS, needs=Permission.NAMESPACE_TRANSACTIONS_READ,
        handler=list_transactions, summary="Transactions of a namespace", tag="transactions",
        query=TransactionsQuery, answer=Transactions, cost=5,
    ),
    Route(
        method="GET", path=f"{_TRANSACTIONS}/{{transaction}}",
        needs=Permission.NAMESPACE_TRANSACTIONS_READ, handler=show_transaction,
        summary="One transaction", tag="transactions", answer=Transaction, errors=(404,),
    ),
)  # fmt: skip
