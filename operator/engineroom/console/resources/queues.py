"""Queues of a namespace: seen, paused, limited. Which those are, ``jobs`` says.

A queue that pools of several namespaces read is one queue, and what is said of it holds for all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from engineroom.auth.permissions import Permission
from engineroom.console.cursors import decode_cursor, encode_cursor
from engineroom.console.rest.pagination import Cursor, Limit, Paged
from engineroom.console.rest.routing import BASE, Answer, Call, Model, Route
from engineroom.core.errors import MissingError
from engineroom.tasks.limits import MAX_CONCURRENCY

if TYPE_CHECKING:
    from engineroom.tasks.inspection.queues import QueueCounts


class QueueLimitView(Model):
    """A queue's limit; either is null where there is none."""

    concurrency: int | None
    rate: str | None


class QueueView(Model):
    """How many jobs of a queue are where."""

    name: str
    waiting: int
    running: int
    scheduled: int
    due: int
    deferred: int
    finished: int
    failed: int
    canceled: int
    held: int = Field(description="Set aside until the limit of their key has room.")
    paused: bool
    reason: str
    limit: QueueLimitView | None


class QueuesQuery(Paged):
    """Which page."""

    limit: Limit = 200
    cursor: Cursor = ""


class QueueList(Model):
    """A page of the queues of a namespace, by name."""

    items: list[QueueView]
    next_cursor: str | None


class QueuePause(Model):
    """Why; whoever looks at the queue is told."""

    reason: Annotated[str, Field(max_length=500)] = ""


class QueueLimit(Model):
    """At least one of the two, and instead of any limit that the queue has."""

    concurrency: (
        Annotated[int, Field(ge=1, le=MAX_CONCURRENCY, description="Jobs that run at once.")] | None
    ) = None
    rate: (
        Annotated[str, Field(max_length=20, description="Jobs that begin, as in 10/s.")] | None
    ) = None


def owned(call: Call, name: str) -> str:
    """The queue's name, if a pool of the namespace reads it. Raises MissingError."""
    if name not in call.services.hub.queues(call.namespace):
        raise MissingError("queue: no pool of this namespace reads one of that name")
    return name


async def list_queues(call: Call) -> Answer:
    """A page of queues with their counts."""
    after, limit = decode_cursor(call.query.cursor), call.query.limit
    names = sorted(n for n in call.services.hub.queues(call.namespace) if n > after)
    counts = await call.services.tasks.counts(names[:limit]) if names else []
    cursor = names[limit - 1] if len(names) > limit else None
    return Answer(
        QueueList(items=[_queue(each) for each in counts], next_cursor=encode_cursor(cursor))
    )


async def show_queue(call: Call) -> Answer:
    """One queue."""
    return Answer(await _look(call, owned(call, call.path["queue"])))


async def pause_queue(call: Call) -> Answer:
    """Have the workers of pools take no job from it."""
    name = owned(call, call.path["queue"])
    await call.services.tasks.pause_queue(name, call.body.reason)
    return Answer(await _look(call, name))


async def resume_queue(call: Call) -> Answer:
    """Let them take jobs again."""
    name = owned(call, call.path["queue"])
    await call.services.tasks.resume_queue(name)
    return Answer(await _look(call, name))


async def limit_queue(call: Call) -> Answer:
    """Have the workers of pools keep to a limit."""
    wanted: QueueLimit = call.body
    name = owned(call, call.path["queue"])
    await call.services.tasks.limit_queue(name, concurrency=wanted.concurrency, rate=wanted.rate)
    details: dict[str, Any] = {"concurrency": wanted.concurrency, "rate": wanted.rate}
    return Answer(await _look(call, name), details=details)


async def unlimit_queue(call: Call) -> Answer:
    """Take the limit away."""
    name = owned(call, call.path["queue"])
    await call.services.tasks.unlimit_queue(name)
    return Answer(await _look(call, name))


async def _look(call: Call, name: str) -> QueueView:
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
        handler=list_queues, summary="Queues with their counts", tag="queues", query=QueuesQuery,
        answer=QueueList,
    ),
    Route(
        method="GET", path=_QUEUE, needs=Permission.NAMESPACE_QUEUES_READ, handler=show_queue,
        summary="One queue", tag="queues", answer=QueueView, errors=(404,),
    ),
    Route(
        method="POST", path=f"{_QUEUE}/pause", needs=Permission.NAMESPACE_QUEUES_PAUSE,
        handler=pause_queue, summary="Have workers take no job from a queue", tag="queues",
        body=QueuePause, answer=QueueView, action="queue.pause", errors=(404,),
    ),
    Route(
        method="POST", path=f"{_QUEUE}/resume", needs=Permission.NAMESPACE_QUEUES_PAUSE,
        handler=resume_queue, summary="Let workers take jobs again", tag="queues",
        answer=QueueView, action="queue.resume", errors=(404,),
    ),
    Route(
        method="PUT", path=f"{_QUEUE}/limit", needs=Permission.NAMESPACE_QUEUES_LIMIT,
        handler=limit_queue, summary="Limit how many of its jobs run and begin", tag="queues",
        body=QueueLimit, answer=QueueView, action="queue.limit", errors=(404,),
    ),
    Route(
        method="DELETE", path=f"{_QUEUE}/limit", needs=Permission.NAMESPACE_QUEUES_LIMIT,
        handler=unlimit_queue, summary="Take a queue's limit away", tag="queues",
        answer=QueueView, action="queue.unlimit", errors=(404,),
    ),
)  # fmt: skip
