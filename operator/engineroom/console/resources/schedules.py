"""Schedules that enqueue to a namespace's queues: listed, made, changed, paused, run, forgotten.

Those that pools declare are shown, and changed in the pool's ``spec.schedules`` only. Names are of
the whole installation: one that another namespace's queue has is taken, and no more is said of it.
"""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - pydantic needs it at run time
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AwareDatetime, Field

from engineroom.auth.permissions import Permission
from engineroom.console.idempotency import MARK_SECONDS
from engineroom.console.resources.job_request import Work
from engineroom.console.resources.queues import owned
from engineroom.console.rest.errors import PreconditionFailedError
from engineroom.console.rest.pagination import Paged, check_match, etag
from engineroom.console.rest.routing import BASE, Answer, Call, Model, Route
from engineroom.core.errors import InvalidInputError, MissingError, Problem
from engineroom.core.triggers.triggers import MAX_JITTER
from engineroom.tasks import idempotent
from engineroom.tasks.enqueueing.task import Task
from engineroom.tasks.errors import (
    ScheduleChangedError,
    ScheduleNotFoundError,
    ScheduleOwnedError,
)
from engineroom.tasks.redis_steps import run_async
from engineroom.tasks.schedules.model import Schedule
from engineroom.tasks.triggers import Cron, Every, Missed, Once

if TYPE_CHECKING:
    from engineroom.tasks.schedules.model import ScheduleInfo
    from engineroom.tasks.triggers import Trigger

#: Schedules that one page looks at, however few are of its namespace; and at a time.
MAX_SCANNED, CHUNK = 5_000, 1_000
_YEAR = 366 * 86_400


class ScheduleView(Model):
    """A schedule; times are Unix seconds. `owner` is the pool that declares it, if one does."""

    name: str
    queue: str
    description: str
    trigger: str
    missed: str
    grace: float
    next: float | None
    last: float | None
    last_job: str
    dropped: int = Field(description="Ticks that the policy for missed ones did not run.")
    paused: bool
    owner: str
    version: int


class ScheduleList(Model):
    """A page of schedules by their next tick. May be short and not the last."""

    items: list[ScheduleView]
    next_cursor: str | None


class ScheduleWanted(Work):
    """What is run, and when: by exactly one of `cron`, `every` (seconds) and `at`.

    A tick that is later than `grace` seconds counts as missed.
    """

    cron: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    zone: Annotated[str, Field(min_length=1, max_length=64, description="Of a cron line.")] = "UTC"
    every: Annotated[float, Field(ge=1, le=_YEAR)] | None = None
    at: AwareDatetime | None = None
    jitter: Annotated[float, Field(ge=0, le=MAX_JITTER)] = 0.0
    missed: Literal["skip", "run_once", "run_all"] = "run_once"
    grace: Annotated[float, Field(ge=0, le=_YEAR)] = 60.0


class ScheduleRun(Model):
    """The job that was enqueued."""

    id: str


async def list_schedules(call: Call) -> Answer:
    """A page of the schedules that enqueue to the namespace's queues."""
    queues, cursors = call.services.hub.queues(call.namespace), call.services.cursors
    limit, after = call.query.limit, cursors.decode(call.query.cursor)
    found: list[ScheduleInfo] = []
    scanned = 0
    while queues and scanned < MAX_SCANNED:
        page = await call.services.tasks.schedules(after=after, limit=CHUNK)
        for each in page:
            scanned, after = scanned + 1, each.name
            if each.queue in queues:
                found.append(each)
                if len(found) == limit:
                    return _listed(found, cursors.encode(after))
        if len(page) < CHUNK:
            return _listed(found, None)
    return _listed(found, cursors.encode(after) if queues else None)


def _listed(found: list[ScheduleInfo], cursor: str | None) -> Answer:
    return Answer(ScheduleList(items=[_schedule(each) for each in found], next_cursor=cursor))


async def show_schedule(call: Call) -> Answer:
    """One schedule."""
    return _shown(await _here(call))


async def put_schedule(call: Call) -> Answer:
    """Make it, or change it; the same again changes nothing."""
    wanted: ScheduleWanted = call.body
    owned(call, wanted.queue)
    name = call.path["schedule"]
    task = Task(wanted.function, wanted.args, wanted.kwargs, **wanted.options())
    schedule = Schedule(name, _trigger(wanted), task, Missed(wanted.missed), wanted.grace)
    known = await _known(call)
    if known is not None and known.queue not in call.services.hub.queues(call.namespace):
        # Whose it is, and what, is not for this namespace to know.
        raise ScheduleOwnedError(name, "")
    if known is None and "if-match" in call.request.headers:
        raise PreconditionFailedError("if-match: there is no schedule of that name; send none")
    asked = known is not None and check_match(call.request, str(known.version))
    expected = 0 if known is None else known.version
    try:
        await wanted.tasks(call).put_schedule(schedule, expected=expected)
    except ScheduleChangedError as error:
        if not asked:
            raise
        raise _moved() from error
    details = {"queue": wanted.queue, "function": wanted.function}
    return _shown(await _here(call), **details)


async def remove_schedule(call: Call) -> Answer:
    """Forget a schedule; jobs that it has made stay."""
    known = await _here(call)
    asked = check_match(call.request, str(known.version))
    try:
        await call.services.tasks.remove_schedule(known.name, expected=known.version)
    except ScheduleNotFoundError as error:
        raise _missing() from error
    except ScheduleChangedError as error:
        if not asked:
            raise
        raise _moved() from error
    return Answer()


async def pause_schedule(call: Call) -> Answer:
    """Have it not tick; what it misses meanwhile is not made up for."""
    known = await _here(call)
    await call.services.tasks.pause_schedule(known.name)
    return _shown(await _here(call))


async def resume_schedule(call: Call) -> Answer:
    """Let it tick again."""
    known = await _here(call)
    await call.services.tasks.resume_schedule(known.name)
    return _shown(await _here(call))


async def run_schedule(call: Call) -> Answer:
    """Enqueue its job now, beside its ticks, paused or not."""
    known = await _here(call)
    run, services = call.idempotent_id, call.services
    if run is None:
        job = await services.tasks.run_schedule(known.name)
    else:
        steps = idempotent.run_schedule(known.name, run, services.clock.now(), MARK_SECONDS)
        job = await run_async(services.redis, steps)
    return Answer(ScheduleRun(id=job), details={"job": job})


def _trigger(wanted: ScheduleWanted) -> Trigger:
    ways = (wanted.cron, wanted.every, wanted.at)
    if sum(each is not None for each in ways) != 1:
        told = Problem("body", "says not one time", "send cron, every or at")
        raise InvalidInputError([told])
    if wanted.cron is not None:
        return Cron(wanted.cron, wanted.zone, wanted.jitter)
    if wanted.every is not None:
        return Every(wanted.every, wanted.jitter)
    at: datetime | None = wanted.at
    assert at is not None  # noqa: S101 - one of the three is there
    return Once(at.timestamp())


async def _known(call: Call) -> ScheduleInfo | None:
    try:
        return await call.services.tasks.schedule(call.path["schedule"])
    except ScheduleNotFoundError:
        return None


async def _here(call: Call) -> ScheduleInfo:
    """The schedule of the path, if its queue is one of the namespace. Raises MissingError."""
    known = await _known(call)
    if known is None or known.queue not in call.services.hub.queues(call.namespace):
        raise _missing()
    return known


def _missing() -> MissingError:
    return MissingError("schedule: there is none of that name here; look at the list")


def _moved() -> PreconditionFailedError:
    return PreconditionFailedError("if-match: the schedule has just changed; read it")


def _shown(known: ScheduleInfo, **details: str) -> Answer:
    tag = {"etag": etag(str(known.version))}
    return Answer(_schedule(known), headers=tag, details=dict(details))


def _schedule(known: ScheduleInfo) -> ScheduleView:
    return ScheduleView(
        name=known.name,
        queue=known.queue,
        description=known.description,
        trigger=str(known.trigger),
        missed=known.missed.value,
        grace=known.grace,
        next=known.next,
        last=known.last,
        last_job=known.last_job,
        dropped=known.dropped,
        paused=known.paused,
        owner=known.owner,
        version=known.version,
    )


_SCHEDULES = f"{BASE}/namespaces/{{namespace}}/schedules"
_SCHEDULE = f"{_SCHEDULES}/{{schedule}}"
_WRITE = Permission.NAMESPACE_SCHEDULES_WRITE
ROUTES = (
    Route(
        method="GET", path=_SCHEDULES, needs=Permission.NAMESPACE_SCHEDULES_READ,
        handler=list_schedules, summary="Schedules", tag="schedules", query=Paged,
        answer=ScheduleList, cost=2,
    ),
    Route(
        method="GET", path=_SCHEDULE, needs=Permission.NAMESPACE_SCHEDULES_READ,
        handler=show_schedule, summary="One schedule", tag="schedules", answer=ScheduleView,
        conditional=True, errors=(404,),
    ),
    Route(
        method="PUT", path=_SCHEDULE, needs=_WRITE, handler=put_schedule,
        summary="Make or change a schedule", tag="schedules", body=ScheduleWanted,
        answer=ScheduleView, action="schedule.put", conditional=True, errors=(404, 409, 412),
    ),
    Route(
        method="DELETE", path=_SCHEDULE, needs=_WRITE, handler=remove_schedule,
        summary="Forget a schedule", tag="schedules", status=204, action="schedule.remove",
        conditional=True, errors=(404, 409, 412),
    ),
    Route(
        method="POST", path=f"{_SCHEDULE}/pause", needs=_WRITE, handler=pause_schedule,
        summary="Have a schedule not tick", tag="schedules", answer=ScheduleView,
        action="schedule.pause", errors=(404, 409),
    ),
    Route(
        method="POST", path=f"{_SCHEDULE}/resume", needs=_WRITE, handler=resume_schedule,
        summary="Let a schedule tick again", tag="schedules", answer=ScheduleView,
        action="schedule.resume", errors=(404, 409),
    ),
    Route(
        method="POST", path=f"{_SCHEDULE}/run", needs=Permission.NAMESPACE_JOBS_ENQUEUE,
        handler=run_schedule, summary="Enqueue a schedule's job now", tag="schedules",
        answer=ScheduleRun, action="schedule.run", errors=(404,),
    ),
)  # fmt: skip
