"""Queues, jobs and schedules of a namespace: those of the queues that its pools read.

A queue belongs to a namespace where a WorkerPool there reads it in the installation's Redis. What
is of another namespace is answered like what does not exist. Pools with a Redis of their own are
seen to by the command line, which has their owner's rights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engineroom.auth.permissions import Permission
from engineroom.console.routes import BASE, Answer, Call, Model, Route
from engineroom.core.errors import MissingError

if TYPE_CHECKING:
    from engineroom.tasks.queues import QueueCounts
    from engineroom.tasks.schedules import Known


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
    paused: bool
    reason: str


class QueueList(Model):
    """The queues of a namespace, by name."""

    items: list[QueueView]


class ScheduleView(Model):
    """A schedule; times are Unix seconds."""

    name: str
    queue: str
    description: str
    trigger: str
    missed: str
    grace: float
    next: float | None
    last: float | None


class ScheduleList(Model):
    """Schedules by their next tick."""

    items: list[ScheduleView]


#: Schedules that are looked at for one list.
MAX_SCHEDULES = 5_000


async def list_queues(call: Call) -> Answer:
    """The queues with their counts."""
    names = sorted(call.services.hub.queues(call.namespace))
    counts = await call.services.tasks.counts(names) if names else []
    return Answer(QueueList(items=[_queue(each) for each in counts]))


async def list_schedules(call: Call) -> Answer:
    """The schedules that enqueue to the namespace's queues."""
    found = [_schedule(each) for each in await _schedules(call)]
    return Answer(ScheduleList(items=found))


async def remove_schedule(call: Call) -> Answer:
    """Forget a schedule; jobs that it has made stay."""
    name = call.path["schedule"]
    if not any(each.name == name for each in await _schedules(call)):
        raise MissingError("schedule: there is none of that name here; look at the list")
    await call.services.tasks.remove_schedule(name)
    return Answer()


async def _schedules(call: Call) -> list[Known]:
    queues = call.services.hub.queues(call.namespace)
    if not queues:
        return []
    seen, after = 0, ""
    found: list[Known] = []
    while seen < MAX_SCHEDULES:
        page = await call.services.tasks.schedules(after=after, limit=1000)
        found += [each for each in page if each.queue in queues]
        seen += len(page)
        if len(page) < 1000:
            break
        after = page[-1].name
    return found


def _queue(counts: QueueCounts) -> QueueView:
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
        paused=counts.paused,
        reason=counts.reason,
    )


def _schedule(known: Known) -> ScheduleView:
    return ScheduleView(
        name=known.name,
        queue=known.queue,
        description=known.description,
        trigger=str(known.trigger),
        missed=known.missed.value,
        grace=known.grace,
        next=known.next,
        last=known.last,
    )


_HERE = f"{BASE}/namespaces/{{namespace}}"
ROUTES = (
    Route(
        method="GET", path=f"{_HERE}/queues", needs=Permission.NAMESPACE_QUEUES_READ,
        handler=list_queues, summary="Queues with their counts", tag="queues", answer=QueueList,
    ),
    Route(
        method="GET", path=f"{_HERE}/schedules", needs=Permission.NAMESPACE_SCHEDULES_READ,
        handler=list_schedules, summary="Schedules", tag="schedules", answer=ScheduleList, cost=2,
    ),
    Route(
        method="DELETE", path=f"{_HERE}/schedules/{{schedule}}",
        needs=Permission.NAMESPACE_SCHEDULES_WRITE, handler=remove_schedule,
        summary="Forget a schedule", tag="schedules", status=204, action="schedule.remove",
        cost=2, errors=(404,),
    ),
)  # fmt: skip
