"""Queues of a namespace: count their jobs, pause and limit them.

A queue belongs to the namespace that owns it on the installation's Redis; the operator records the
owner. Queues of a pool with a Redis of its own are not served here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from engineroom.auth.permissions import Permission
from engineroom.console.cursors import decode_cursor, encode_cursor
from engineroom.console.rest.pagination import Cursor, Limit, PageQuery
from engineroom.console.rest.routing import BASE, Answer, Call, Model, Route
from engineroom.core.errors import MissingError
from engineroom.tasks.limits import MAX_CONCURRENCY

if TYPE_CHECKING:
    from engineroom.tasks.inspection.queues import QueueCounts


class QueueLimitView(Model):
    """A queue's limit; null means no limit."""

    concurrency: int | None
    rate: str | None


class QueueView(Model):
    """The number of a queue's jobs in each state."""

    name: str
    waiting: int
    running: int
    scheduled: int
    due: int
    deferred: int
    finished: int
    failed: int
    canceled: int
    held: int = Field(description="Waiting until the limit of their key has room.")
    paused: bool
    reason: str
    limit: QueueLimitView | None


class QueuesQuery(PageQuery):
    """The requested page."""

    limit: Limit = 200
    cursor: Cursor = ""


class QueueList(Model):
    """A page of the queues of a namespace, sorted by name."""

    items: list[QueueView]
    next_cursor: str | None


class QueuePause(Model):
    """The reason for the pause, shown with the queue."""

    reason: Annotated[str, Field(max_length=500)] = ""


class QueueLimit(Model):
    """The queue's new limit; at least one field is needed."""

    concurrency: (
        Annotated[int, Field(ge=1, le=MAX_CONCURRENCY, description="Jobs that run at once.")] | None
    ) = None
    rate: (
        Annotated[str, Field(max_length=20, description="Jobs that start, such as 10/s.")] | None
    ) = None


def require_queue(call: Call, name: str) -> str:
    """Return ``name``. Raises MissingError unless the namespace owns that queue."""
    if name not in call.services.hub.queues(call.namespace):
        raise MissingError("queue: this namespace owns no queue of that name")
    return name


async def list_queues(call: Call) -> Answer:
    """Return a page of queues with their counts."""
    after, limit = decode_cursor(call.query.cursor), call.query.limit
    names = sorted(n for n in call.services.hub.queues(call.namespace) if n > after)
    counts = await call.services.tasks.counts(names[:limit]) if names else []
    cursor = names[limit - 1] if len(names) > limit else None
    return Answer(
        QueueList(items=[_queue(queue) for queue in counts], next_cursor=encode_cursor(cursor))
    )


async def show_queue(call: Call) -> Answer:
    """Return one queue."""
    return Answer(await _read_queue(call, require_queue(call, call.path["queue"])))


async def pause_queue(call: Call) -> Answer:
    """Pause a queue: the workers of pools take no jobs from it."""
    name = require_queue(call, call.path["queue"])
    await call.services.tasks.pause_queue(name, call.body.reason)
    return Answer(await _read_queue(call, name))


async def resume_queue(call: Call) -> Answer:
    """Resume a queue."""
    name = require_queue(call, call.path["queue"])
    await call.services.tasks.resume_queue(name)
    return Answer(await _read_queue(call, name))


async def limit_queue(call: Call) -> Answer:
    """Limit a queue; the workers of pools enforce the limit."""
    limit: QueueLimit = call.body
    name = require_queue(call, call.path["queue"])
    await call.services.tasks.limit_queue(name, concurrency=limit.concurrency, rate=limit.rate)
    details: dict[str, Any] = {"concurrency": limit.concurrency, "rate": limit.rate}
    return Answer(await _read_queue(call, name), details=details)


async def unlimit_queue(call: Call) -> Answer:
    """Remove the limit of a queue."""
    name = require_queue(call, call.path["queue"])
    await call.services.tasks.unlimit_queue(name)
    return Answer(await _read_queue(call, name))


async def _read_queue(call: Call, name: str) -> QueueView:
    (counts,) = await call.services.tasks.counts([name])
    return _queue(counts)


def _queue(counts: QueueCounts) -> QueueView:
    limit = counts.limit
    return QueueView(
        name=counts.name,
        waiting=counts.waiting,
        running=counts.running,
        scheduled=counts.scheduled,
        due=counts.due,
        deferred=counts.deferred,
        finished=counts.finished,
        failed=counts.failed,
        canceled=counts.canceled,
        held=counts.held,
        paused=counts.paused,
        reason=counts.reason,
        limit=None
        if limit is None
        else QueueLimitView(concurrency=limit.concurrency, rate=limit.rate),
    )


_QUEUES = f"{BASE}/namespaces/{{namespace}}/queues"
_QUEUE = f"{_QUEUES}/{{queue}}"
ROUTES = (
    Route(
        method="GET", path=_QUEUES, needs=Permission.NAMESPACE_QUEUES_READ,
        handler=list_queues, summary="List queues with their counts", tag="queues",
        query=QueuesQuery, answer=QueueList,
    ),
    Route(
        method="GET", path=_QUEUE, needs=Permission.NAMESPACE_QUEUES_READ, handler=show_queue,
        summary="Read one queue", tag="queues", answer=QueueView, errors=(404,),
    ),
    Route(
        method="POST", path=f"{_QUEUE}/pause", needs=Permission.NAMESPACE_QUEUES_PAUSE,
        handler=pause_queue, summary="Pause a queue", tag="queues",
        body=QueuePause, answer=QueueView, action="queue.pause", errors=(404,),
    ),
    Route(
        method="POST", path=f"{_QUEUE}/resume", needs=Permission.NAMESPACE_QUEUES_PAUSE,
        handler=resume_queue, summary="Resume a queue", tag="queues",
        answer=QueueView, action="queue.resume", errors=(404,),
    ),
    Route(
        method="PUT", path=f"{_QUEUE}/limit", needs=Permission.NAMESPACE_QUEUES_LIMIT,
        handler=limit_queue, summary="Limit the jobs of a queue that run or start", tag="queues",
        body=QueueLimit, answer=QueueView, action="queue.limit", errors=(404,),
    ),
    Route(
        method="DELETE", path=f"{_QUEUE}/limit", needs=Permission.NAMESPACE_QUEUES_LIMIT,
        handler=unlimit_queue, summary="Remove the limit of a queue", tag="queues",
        answer=QueueView, action="queue.unlimit", errors=(404,),
    ),
)  # fmt: skip
