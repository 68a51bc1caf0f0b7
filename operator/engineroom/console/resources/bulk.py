"""Many jobs by a filter: counted first, then retried or cancelled by an operation with progress."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AwareDatetime, Field

from engineroom.auth.permissions import Permission
from engineroom.console.background.operation_store import Action, Operation
from engineroom.console.cursors import decode_cursor, encode_cursor
from engineroom.console.resources.queues import owned
from engineroom.console.rest.errors import ImpactError
from engineroom.console.rest.pagination import Paged
from engineroom.console.rest.routing import BASE, Answer, Call, Model, Route
from engineroom.core.errors import InvalidInputError, MissingError, Problem
from engineroom.tasks.inspection.job_filter import JobFilter
from engineroom.tasks.inspection.jobs import State

if TYPE_CHECKING:
    from collections.abc import Sequence

_Text = Annotated[str, Field(min_length=1, max_length=200)]
_FILTERS = ("function", "exception", "category", "text", "prefix", "before", "after")


class Selection(Model):
    """Which jobs: all that is given has to hold. Names are shell patterns (`mail.*`).

    Without any filter `all` has to be true. `queue` is one of the namespace; without it all are
    meant. With `dryRun` they are counted only. `atMost` is what was seen by whoever decided: if
    more match, nothing is done.
    """

    queue: _Text | None = None
    function: _Text | None = None
    exception: _Text | None = None
    category: _Text | None = None
    text: _Text | None = None
    prefix: Annotated[str, Field(min_length=1, max_length=200, description="Of the id.")] | None = (
        None
    )
    before: AwareDatetime | None = None
    after: AwareDatetime | None = None
    all: bool = False
    at_most: Annotated[int, Field(ge=0)] | None = None
    dry_run: bool = False


class BulkCancel(Selection):
    """Which jobs, of one state: and with `stop` those that they find running meanwhile."""

    state: Literal["waiting", "scheduled", "deferred"]
    stop: bool = False


class OperationView(Model):
    """How far a bulk change is; counts are jobs, `started` is Unix seconds.

    `id` is null for one that was only counted. Where `complete` is false there were more jobs than
    were looked at, and `matched` is what matched of the first.
    """

    id: str | None
    action: str
    state: str
    queues: list[str]
    by: str
    status: str = Field(description="counted, running, done, stopped or failed.")
    started: float
    matched: int
    complete: bool
    done: int
    skipped: int
    problem: str


class OperationList(Model):
    """A page of operations, the newest first."""

    items: list[OperationView]
    next_cursor: str | None


async def retry_jobs(call: Call) -> Answer:
    """Put failed jobs back on their queues."""
    return await _begin(call, Action.RETRY, State.FAILED)


async def cancel_jobs(call: Call) -> Answer:
    """Cancel jobs, and what waits for them."""
    wanted: BulkCancel = call.body
    return await _begin(call, Action.CANCEL, State(wanted.state), stop=wanted.stop)


async def _begin(call: Call, action: Action, state: State, *, stop: bool = False) -> Answer:
    wanted: Selection = call.body
    where, queues = _where(wanted), _queues(call, wanted)
    impact = await call.services.tasks.count_jobs(state, where, queues=queues)
    now = call.services.clock.now().timestamp()
    operation = Operation(
        id=call.idempotent_id or secrets.token_hex(16),
        namespace=call.namespace, action=action, state=state, queues=tuple(queues),
        where=where, by=call.principal.subject, started=now, total=impact.matched, stop=stop,
        allowed=tuple(sorted(call.services.hub.queues(call.namespace))),
    )  # fmt: skip
    if wanted.dry_run:
        shown = _view(operation, counted=True, complete=impact.complete)
        return Answer(shown, details={"dryRun": True})
    if wanted.at_most is not None and (impact.matched > wanted.at_most or not impact.complete):
        raise ImpactError(
            f"atMost: {impact.matched} jobs match{'' if impact.complete else ' and maybe more'}, "
            f"more than {wanted.at_most}; count them again and decide anew",
            context={"matched": impact.matched},
        )
    begun = await call.services.operation_runner.start(operation)
    details: dict[str, Any] = {"operation": begun.id, "matched": impact.matched}
    return Answer(_view(begun, complete=impact.complete), details=details)


async def list_operations(call: Call) -> Answer:
    """A page of the namespace's bulk changes."""
    limit, after = call.query.limit, decode_cursor(call.query.cursor)
    found = await call.services.operations.list(call.namespace, after, limit)
    cursor = found[-1].id if len(found) == limit else None
    items = [_view(each) for each in found]
    return Answer(OperationList(items=items, next_cursor=encode_cursor(cursor)))


async def show_operation(call: Call) -> Answer:
    """One bulk change."""
    return Answer(_view(await _here(call)))


async def stop_operation(call: Call) -> Answer:
    """End it after the step it is at; what is done stays done."""
    found = await _here(call)
    await call.services.operations.stop(found.id)
    return Answer(_view(await _here(call)))


async def _here(call: Call) -> Operation:
    found = await call.services.operations.get(call.path["operation"])
    if found is None or found.namespace != call.namespace:
        raise MissingError("operation: there is none of that id here; look at the list")
    return found


def _where(wanted: Selection) -> JobFilter:
    given = {name: getattr(wanted, name) for name in _FILTERS}
    if not wanted.all and all(value is None for value in given.values()):
        told = Problem("body", "has no filter", "send one, or all: true")
        raise InvalidInputError([told])
    return JobFilter(**given)


def _queues(call: Call, wanted: Selection) -> Sequence[str]:
    """Raises MissingError where there is nothing to choose from."""
    if wanted.queue is not None:
        return [owned(call, wanted.queue)]
    names = sorted(call.services.hub.queues(call.namespace))
    if not names:
        raise MissingError("queue: no pool of this namespace reads one")
    return names


def _view(known: Operation, *, counted: bool = False, complete: bool = True) -> OperationView:
    return OperationView(
        id=None if counted else known.id,
        action=known.action.value,
        state=known.state.value,
        queues=list(known.queues),
        by=known.by,
        status="counted" if counted else known.status.value,
        started=known.started,
        matched=known.total,
        complete=complete,
        done=known.done,
        skipped=known.skipped,
        problem=known.problem,
    )


_OPERATIONS = f"{BASE}/namespaces/{{namespace}}/operations"
_OPERATION = f"{_OPERATIONS}/{{operation}}"
ROUTES = (
    Route(
        method="POST", path=f"{_OPERATIONS}/retry", needs=Permission.NAMESPACE_JOBS_RETRY,
        handler=retry_jobs, summary="Put failed jobs back by a filter", tag="operations",
        body=Selection, answer=OperationView, action="jobs.retry", cost=20, errors=(404, 409),
    ),
    Route(
        method="POST", path=f"{_OPERATIONS}/cancel", needs=Permission.NAMESPACE_JOBS_CANCEL,
        handler=cancel_jobs, summary="Cancel jobs by a filter", tag="operations",
        body=BulkCancel, answer=OperationView, action="jobs.cancel", cost=20, errors=(404, 409),
    ),
    Route(
        method="GET", path=_OPERATIONS, needs=Permission.NAMESPACE_JOBS_READ,
        handler=list_operations, summary="Bulk changes, the newest first", tag="operations",
        query=Paged, answer=OperationList, cost=2,
    ),
    Route(
        method="GET", path=_OPERATION, needs=Permission.NAMESPACE_JOBS_READ,
        handler=show_operation, summary="How far a bulk change is", tag="operations",
        answer=OperationView, errors=(404,),
    ),
    Route(
        method="DELETE", path=_OPERATION, needs=Permission.NAMESPACE_JOBS_CANCEL,
        handler=stop_operation, summary="Stop a bulk change", tag="operations",
        answer=OperationView, action="operation.stop", errors=(404,),
    ),
)  # fmt: skip
