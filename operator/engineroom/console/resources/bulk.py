"""Bulk changes: count the jobs that match a filter, then retry or cancel them in the background."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AwareDatetime, Field

from engineroom.auth.permissions import Permission
from engineroom.console.background.operation_store import Operation, OperationAction
from engineroom.console.cursors import decode_cursor, encode_cursor
from engineroom.console.resources.queues import require_queue
from engineroom.console.rest.errors import ImpactError
from engineroom.console.rest.pagination import PageQuery
from engineroom.console.rest.routing import BASE, Answer, Call, Model, Route
from engineroom.core.errors import InvalidInputError, MissingError, Problem
from engineroom.tasks.inspection.job_filter import JobFilter
from engineroom.tasks.inspection.jobs import State

if TYPE_CHECKING:
    from collections.abc import Sequence

_Text = Annotated[str, Field(min_length=1, max_length=200)]
_FILTERS = ("function", "exception", "category", "text", "prefix", "before", "after")


class Selection(Model):
    """A filter for jobs; all given fields must match. Names are shell patterns (`mail.*`).

    Without any filter, `all` must be true. Without `queue`, all queues of the namespace are
    searched. `dryRun` only counts the jobs. If more than `atMost` jobs match, nothing is changed.
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
    """A filter for jobs of one state; `stop` also stops jobs that have started meanwhile."""

    state: Literal["waiting", "scheduled", "deferred"]
    stop: bool = False


class OperationView(Model):
    """A bulk change and its progress; counts are jobs, `started` is Unix seconds.

    `id` is null for a dry run. If `complete` is false, there were more jobs than were searched, and
    `matched` counts the matches among the first of them.
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
    """A page of operations, newest first."""

    items: list[OperationView]
    next_cursor: str | None


async def retry_jobs(call: Call) -> Answer:
    """Requeue failed jobs."""
    return await _begin(call, OperationAction.RETRY, State.FAILED)


async def cancel_jobs(call: Call) -> Answer:
    """Cancel jobs and their dependents."""
    request: BulkCancel = call.body
    return await _begin(call, OperationAction.CANCEL, State(request.state), stop=request.stop)


async def _begin(
    call: Call, action: OperationAction, state: State, *, stop: bool = False
) -> Answer:
    request: Selection = call.body
    where, queues = _job_filter(request), _queues(call, request)
    impact = await call.services.tasks.count_jobs(state, where, queues=queues)
    now = call.services.clock.now().timestamp()
    operation = Operation(
        id=call.idempotent_id or secrets.token_hex(16),
        namespace=call.namespace, action=action, state=state, queues=tuple(queues),
        where=where, by=call.principal.subject, started=now, total=impact.matched, stop=stop,
        allowed=tuple(sorted(call.services.hub.queues(call.namespace))),
    )  # fmt: skip
    if request.dry_run:
        view = _view(operation, counted=True, complete=impact.complete)
        return Answer(view, details={"dryRun": True})
    if request.at_most is not None and (impact.matched > request.at_most or not impact.complete):
        raise ImpactError(
            f"atMost: {impact.matched} jobs match{'' if impact.complete else ' and maybe more'}, "
            f"more than {request.at_most}; count them again",
            context={"matched": impact.matched},
        )
    begun = await call.services.operation_runner.start(operation)
    details: dict[str, Any] = {"operation": begun.id, "matched": impact.matched}
    return Answer(_view(begun, complete=impact.complete), details=details)


async def list_operations(call: Call) -> Answer:
    """Return a page of the namespace's bulk changes."""
    limit, after = call.query.limit, decode_cursor(call.query.cursor)
    operations = await call.services.operations.list(call.namespace, after, limit)
    cursor = operations[-1].id if len(operations) == limit else None
    items = [_view(operation) for operation in operations]
    return Answer(OperationList(items=items, next_cursor=encode_cursor(cursor)))


async def show_operation(call: Call) -> Answer:
    """Return one bulk change."""
    return Answer(_view(await _read_operation(call)))


async def stop_operation(call: Call) -> Answer:
    """Stop a bulk change after its current step; completed steps are not undone."""
    operation = await _read_operation(call)
    await call.services.operations.stop(operation.id)
    return Answer(_view(await _read_operation(call)))


async def _read_operation(call: Call) -> Operation:
    operation = await call.services.operations.get(call.path["operation"])
    if operation is None or operation.namespace != call.namespace:
        raise MissingError("operation: no operation of this namespace has that id; list them")
    return operation


def _job_filter(request: Selection) -> JobFilter:
    filters = {name: getattr(request, name) for name in _FILTERS}
    if not request.all and all(value is None for value in filters.values()):
        problem = Problem("body", "has no filter", "send one, or all: true")
        raise InvalidInputError([problem])
    return JobFilter(**filters)


def _queues(call: Call, request: Selection) -> Sequence[str]:
    """Return the queues to search. Raises MissingError if there are none."""
    if request.queue is not None:
        return [require_queue(call, request.queue)]
    names = sorted(call.services.hub.queues(call.namespace))
    if not names:
        raise MissingError("queue: this namespace owns no queue")
    return names


def _view(operation: Operation, *, counted: bool = False, complete: bool = True) -> OperationView:
    return OperationView(
        id=None if counted else operation.id,
        action=operation.action.value,
        state=operation.state.value,
        queues=list(operation.queues),
        by=operation.by,
        status="counted" if counted else operation.status.value,
        started=operation.started,
        matched=operation.total,
        complete=complete,
        done=operation.done,
        skipped=operation.skipped,
        problem=operation.problem,
    )


_OPERATIONS = f"{BASE}/namespaces/{{namespace}}/operations"
_OPERATION = f"{_OPERATIONS}/{{operation}}"
ROUTES = (
    Route(
        method="POST", path=f"{_OPERATIONS}/retry", needs=Permission.NAMESPACE_JOBS_RETRY,
        handler=retry_jobs, summary="Requeue failed jobs by a filter", tag="operations",
        body=Selection, answer=OperationView, action="jobs.retry", cost=20, errors=(404, 409),
    ),
    Route(
        method="POST", path=f"{_OPERATIONS}/cancel", needs=Permission.NAMESPACE_JOBS_CANCEL,
        handler=cancel_jobs, summary="Cancel jobs by a filter", tag="operations",
        body=BulkCancel, answer=OperationView, action="jobs.cancel", cost=20, errors=(404, 409),
    ),
    Route(
        method="GET", path=_OPERATIONS, needs=Permission.NAMESPACE_JOBS_READ,
        handler=list_operations, summary="List bulk changes", tag="operations",
        query=PageQuery, answer=OperationList, cost=2,
    ),
    Route(
        method="GET", path=_OPERATION, needs=Permission.NAMESPACE_JOBS_READ,
        handler=show_operation, summary="Read one bulk change", tag="operations",
        answer=OperationView, errors=(404,),
    ),
    Route(
        method="DELETE", path=_OPERATION, needs=Permission.NAMESPACE_JOBS_CANCEL,
        handler=stop_operation, summary="Stop a bulk change", tag="operations",
        answer=OperationView, action="operation.stop", errors=(404,),
    ),
)  # fmt: skip
