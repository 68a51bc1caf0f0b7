"""Schedules that enqueue to a namespace's queues: read, write, pause, run and delete them.

Schedules that pools declare can be read here; they are changed in the pool's ``spec.schedules``.
Names are unique in the installation: a name that another namespace uses is taken.
"""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - pydantic needs it at run time
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AwareDatetime, Field

from engineroom.auth.permissions import Permission
from engineroom.console.idempotency import MARK_SECONDS
from engineroom.console.resources.job_request import JobRequest
from engineroom.console.resources.queues import require_queue
from engineroom.console.rest.errors import PreconditionFailedError
from engineroom.console.rest.pagination import PageQuery, check_match, etag
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

#: Schedules that one page reads at most, of all namespaces; and schedules read at a time.
MAX_SCANNED, CHUNK = 5_000, 1_000
_YEAR = 366 * 86_400


class ScheduleView(Model):
    """A schedule; times are Unix seconds. `owner` is the pool that declares it, or empty."""

    name: str
    queue: str
    description: str
    trigger: str
    missed: str
    grace: float
    next: float | None
    last: float | None
    last_job: str
    dropped: int = Field(description="Missed ticks that were not run, by the policy `missed`.")
    paused: bool
    owner: str
    version: int


class ScheduleList(Model):
    """A page of schedules, sorted by next tick. It may be short without being the last."""

    items: list[ScheduleView]
    next_cursor: str | None


class ScheduleRequest(JobRequest):
    """A job and its times: exactly one of `cron`, `every` (seconds) and `at`.

    A tick that is more than `grace` seconds late counts as missed.
    """

    cron: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    zone: Annotated[str, Field(min_length=1, max_length=64, description="Of `cron`.")] = "UTC"
    every: Annotated[float, Field(ge=1, le=_YEAR)] | None = None
    at: AwareDatetime | None = None
    jitter: Annotated[float, Field(ge=0, le=MAX_JITTER)] = 0.0
    missed: Literal["skip", "run_once", "run_all"] = "run_once"
    grace: Annotated[float, Field(ge=0, le=_YEAR)] = 60.0


class ScheduleRun(Model):
    """The enqueued job."""

    id: str


async def list_schedules(call: Call) -> Answer:
    """Return a page of the schedules that enqueue to the namespace's queues."""
    queues, cursors = call.services.hub.queues(call.namespace), call.services.cursors
    limit, after = call.query.limit, cursors.decode(call.query.cursor)
    schedules: list[ScheduleInfo] = []
    scanned = 0
    while queues and scanned < MAX_SCANNED:
        page = await call.services.tasks.schedules(after=after, limit=CHUNK)
        for schedule in page:
            scanned, after = scanned + 1, schedule.name
            if schedule.queue in queues:
                schedules.append(schedule)
                if len(schedules) == limit:
                    return _page(schedules, cursors.encode(after))
        if len(page) < CHUNK:
            return _page(schedules, None)
    return _page(schedules, cursors.encode(after) if queues else None)


def _page(schedules: list[ScheduleInfo], cursor: str | None) -> Answer:
    items = [_view(schedule) for schedule in schedules]
    return Answer(ScheduleList(items=items, next_cursor=cursor))


async def show_schedule(call: Call) -> Answer:
    """Return one schedule."""
    return _answer(await _read_schedule(call))


async def put_schedule(call: Call) -> Answer:
    """Create or replace a schedule; an identical request changes nothing."""
    request: ScheduleRequest = call.body
    require_queue(call, request.queue)
    name = call.path["schedule"]
    task = Task(request.function, request.args, request.kwargs, **request.options())
    schedule = Schedule(name, _trigger(request), task, Missed(request.missed), request.grace)
    existing = await _find(call)
    if existing is not None and existing.queue not in call.services.hub.queues(call.namespace):
        # Another namespace's: its owner is not disclosed.
        raise ScheduleOwnedError(name, "")
    if existing is None and "if-match" in call.request.headers:
        raise PreconditionFailedError("if-match: no schedule has that name; leave the header out")
    conditional = existing is not None and check_match(call.request, str(existing.version))
    expected = 0 if existing is None else existing.version
    try:
        await request.tasks(call).put_schedule(schedule, expected=expected)
    except ScheduleChangedError as error:
        if not conditional:
            raise
        raise _version_error() from error
    details = {"queue": request.queue, "function": request.function}
    return _answer(await _read_schedule(call), **details)


async def remove_schedule(call: Call) -> Answer:
    """Delete a schedule; jobs that it has enqueued stay."""
    schedule = await _read_schedule(call)
    conditional = check_match(call.request, str(schedule.version))
    try:
        await call.services.tasks.remove_schedule(schedule.name, expected=schedule.version)
    except ScheduleNotFoundError as error:
        raise _missing() from error
    except ScheduleChangedError as error:
        if not conditional:
            raise
        raise _version_error() from error
    return Answer()


async def pause_schedule(call: Call) -> Answer:
    """Pause a schedule; ticks that it misses are not made up for."""
    schedule = await _read_schedule(call)
    await call.services.tasks.pause_schedule(schedule.name)
    return _answer(await _read_schedule(call))


async def resume_schedule(call: Call) -> Answer:
    """Resume a schedule."""
    schedule = await _read_schedule(call)
    await call.services.tasks.resume_schedule(schedule.name)
    return _answer(await _read_schedule(call))


async def run_schedule(call: Call) -> Answer:
    """Enqueue the schedule's job now, also if it is paused; its ticks are unaffected."""
    schedule = await _read_schedule(call)
    run, services = call.idempotent_id, call.services
    if run is None:
        job = await services.tasks.run_schedule(schedule.name)
    else:
        steps = idempotent.run_schedule(schedule.name, run, services.clock.now(), MARK_SECONDS)
        job = await run_async(services.redis, steps)
    return Answer(ScheduleRun(id=job), details={"job": job})


def _trigger(request: ScheduleRequest) -> Trigger:
    times = (request.cron, request.every, request.at)
    if sum(time is not None for time in times) != 1:
        problem = Problem("body", "needs exactly one time", "send cron, every or at")
        raise InvalidInputError([problem])
    if request.cron is not None:
        return Cron(request.cron, request.zone, request.jitter)
    if request.every is not None:
        return Every(request.every, request.jitter)
    at: datetime | None = request.at
    assert at is not None  # noqa: S101 - exactly one of the three is set
    return Once(at.timestamp())


async def _find(call: Call) -> ScheduleInfo | None:
    try:
        return await call.services.tasks.schedule(call.path["schedule"])
    except ScheduleNotFoundError:
        return None


async def _read_schedule(call: Call) -> ScheduleInfo:
    """Return the schedule of the path. Raises MissingError unless the namespace has its queue."""
    schedule = await _find(call)
    if schedule is None or schedule.queue not in call.services.hub.queues(call.namespace):
        raise _missing()
    return schedule


def _missing() -> MissingError:
    return MissingError("schedule: no schedule of this namespace has that name; list the schedules")


def _version_error() -> PreconditionFailedError:
    return PreconditionFailedError("if-match: the schedule has changed; read it again")


def _answer(schedule: ScheduleInfo, **details: str) -> Answer:
    tag = {"etag": etag(str(schedule.version))}
    return Answer(_view(schedule), headers=tag, details=dict(details))


def _view(schedule: ScheduleInfo) -> ScheduleView:
    return ScheduleView(
        name=schedule.name,
        queue=schedule.queue,
        description=schedule.description,
        trigger=str(schedule.trigger),
        missed=schedule.missed.value,
        grace=schedule.grace,
        next=schedule.next,
        last=schedule.last,
        last_job=schedule.last_job,
        dropped=schedule.dropped,
        paused=schedule.paused,
        owner=schedule.owner,
        version=schedule.version,
    )


_SCHEDULES = f"{BASE}/namespaces/{{namespace}}/schedules"
_SCHEDULE = f"{_SCHEDULES}/{{schedule}}"
_WRITE = Permission.NAMESPACE_SCHEDULES_WRITE
ROUTES = (
    Route(
        method="GET", path=_SCHEDULES, needs=Permission.NAMESPACE_SCHEDULES_READ,
        handler=list_schedules, summary="List schedules", tag="schedules", query=PageQuery,
        answer=ScheduleList, cost=2,
    ),
    Route(
        method="GET", path=_SCHEDULE, needs=Permission.NAMESPACE_SCHEDULES_READ,
        handler=show_schedule, summary="Read one schedule", tag="schedules", answer=ScheduleView,
        conditional=True, errors=(404,),
    ),
    Route(
        method="PUT", path=_SCHEDULE, needs=_WRITE, handler=put_schedule,
        summary="Create or replace a schedule", tag="schedules", body=ScheduleRequest,
        answer=ScheduleView, action="schedule.put", conditional=True, errors=(404, 409, 412),
    ),
    Route(
        method="DELETE", path=_SCHEDULE, needs=_WRITE, handler=remove_schedule,
        summary="Delete a schedule", tag="schedules", status=204, action="schedule.remove",
        conditional=True, errors=(404, 409, 412),
    ),
    Route(
        method="POST", path=f"{_SCHEDULE}/pause", needs=_WRITE, handler=pause_schedule,
        summary="Pause a schedule", tag="schedules", answer=ScheduleView,
        action="schedule.pause", errors=(404, 409),
    ),
    Route(
        method="POST", path=f"{_SCHEDULE}/resume", needs=_WRITE, handler=resume_schedule,
        summary="Resume a schedule", tag="schedules", answer=ScheduleView,
        action="schedule.resume", errors=(404, 409),
    ),
    Route(
        method="POST", path=f"{_SCHEDULE}/run", needs=Permission.NAMESPACE_JOBS_ENQUEUE,
        handler=run_schedule, summary="Enqueue a schedule's job now", tag="schedules",
        answer=ScheduleRun, action="schedule.run", errors=(404,),
    ),
)  # fmt: skip
