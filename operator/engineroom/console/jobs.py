"""Queues, jobs and schedules of a namespace: those of the queues that its pools read.

A queue belongs to a namespace where a WorkerPool there reads it in the installation's Redis. What
is of another namespace is answered like what does not exist. Pools with a Redis of their own are
seen to by the command line, which has their owner's rights.
"""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - pydantic needs it at run time
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from engineroom.auth.permissions import Permission
from engineroom.console.pages import Paged
from engineroom.console.routes import BASE, Answer, Call, Model, Route
from engineroom.core.errors import JobMissingError, MissingError
from engineroom.tasks.failures import Where
from engineroom.tasks.jobs import State

if TYPE_CHECKING:
    from engineroom.tasks.failures import Attempt
    from engineroom.tasks.jobs import JobDetail, JobSummary
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


_Filter = Annotated[str, Field(max_length=200)]


class JobsQuery(Paged):
    """Which jobs: of all states and queues unless said otherwise. Names are shell patterns."""

    state: Literal[
        "", "running", "waiting", "scheduled", "deferred", "failed", "finished", "canceled"
    ] = ""
    queue: _Filter = ""
    function: _Filter = ""
    exception: _Filter = ""
    text: _Filter = ""


class JobView(Model):
    """A job as it is listed."""

    id: str
    queue: str
    state: str
    function: str
    description: str
    created_at: datetime | None
    enqueued_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    due_at: datetime | None
    worker: str
    exception: str
    message: str
    category: str
    crashes: int
    retries_left: int | None


class JobList(Model):
    """A page of jobs. With a filter it may be short and not the last."""

    items: list[JobView]
    next_cursor: str | None


class AttemptView(Model):
    """One run that did not succeed."""

    at: datetime
    exception: str
    message: str
    category: str
    traceback: str


class MomentView(Model):
    """Something that happened, or will."""

    at: datetime
    what: str
    note: str


class LinkView(Model):
    """A job that this one waits for, or that waits for it."""

    id: str
    status: str


class JobShown(Model):
    """All that is known of one job; arguments are read, never run. Durations are seconds."""

    job: JobView
    status: str
    args: list[Any]
    kwargs: dict[str, Any]
    unreadable: str = Field(description="Why there are no arguments; empty where there are.")
    timeline: list[MomentView]
    attempts: list[AttemptView]
    progress: float | None
    progress_message: str
    depends_on: list[LinkView]
    dependents: list[LinkView]
    ahead: int | None
    timeout: int | None
    schedule: str
    expires_at: datetime | None


class Retried(Model):
    """Where a failed job went."""

    id: str
    queue: str


class Cancel(Model):
    """What to cancel: with `stop` a job that runs as well."""

    stop: bool = False


class Canceled(Model):
    """Ids of the jobs that will not run: the job, and those that waited for it.

    `running` are those that run already, or that only RQ itself can take out.
    """

    canceled: list[str]
    running: list[str]


#: Schedules that are looked at for one list.
MAX_SCHEDULES = 5_000


async def list_queues(call: Call) -> Answer:
    """The queues with their counts."""
    names = sorted(call.services.hub.queues(call.namespace))
    counts = await call.services.tasks.counts(names) if names else []
    return Answer(QueueList(items=[_queue(each) for each in counts]))


async def list_jobs(call: Call) -> Answer:
    """A page of jobs, state by state, queue by queue."""
    wanted: JobsQuery = call.query
    names = call.services.hub.queues(call.namespace)
    if wanted.queue:
        names &= {wanted.queue}
    if not names:
        return Answer(JobList(items=[], next_cursor=None))
    where = Where(
        function=wanted.function or None,
        exception=wanted.exception or None,
        text=wanted.text or None,
    )
    page = await call.services.tasks.jobs(
        [State(wanted.state)] if wanted.state else list(State),
        where,
        queues=sorted(names),
        cursor=wanted.cursor or None,
        limit=wanted.limit,
    )
    return Answer(JobList(items=[_job(each) for each in page.jobs], next_cursor=page.cursor))


async def show_job(call: Call) -> Answer:
    """One job with all that is known of it."""
    return Answer(_shown(await _here(call)))


async def retry_job(call: Call) -> Answer:
    """Put a failed job back on its queue."""
    found = await _here(call)
    queue = await call.services.tasks.requeue(found.job.job_id)
    return Answer(Retried(id=found.job.job_id, queue=queue), details={"queue": queue})


async def cancel_job(call: Call) -> Answer:
    """Cancel a job, and those that wait for it."""
    found = await _here(call)
    done = await call.services.tasks.cancel(found.job.job_id, stop=call.body.stop)
    return Answer(
        Canceled(canceled=list(done.canceled), running=list(done.running)),
        details={"jobs": len(done.canceled)},
    )


async def _here(call: Call) -> JobDetail:
    """The job of the path, if its queue is one of the namespace. Raises JobMissingError."""
    queues = call.services.hub.queues(call.namespace)
    gone = JobMissingError("job: there is none of that id here; look at the list")
    try:
        found = await call.services.tasks.job(call.path["job"])
    except JobMissingError as error:
        raise gone from error
    if found.job.queue not in queues:
        raise gone
    return found


def _job(job: JobSummary) -> JobView:
    return JobView(
        id=job.job_id,
        queue=job.queue,
        state=job.state.value,
        function=job.function,
        description=job.description,
        created_at=job.created_at,
        enqueued_at=job.enqueued_at,
        started_at=job.started_at,
        ended_at=job.ended_at,
        due_at=job.due_at,
        worker=job.worker,
        exception=job.exception,
        message=job.message,
        category=job.category,
        crashes=job.crashes,
        retries_left=job.retries_left,
    )


def _shown(found: JobDetail) -> JobShown:
    progress = found.progress
    return JobShown(
        job=_job(found.job),
        status=found.status,
        args=list(found.call.args),
        kwargs=found.call.kwargs or {},
        unreadable=found.call.problem,
        timeline=[MomentView(at=m.at, what=m.what, note=m.note) for m in found.timeline],
        attempts=[_attempt(each) for each in found.attempts],
        progress=None if progress is None else progress.fraction,
        progress_message="" if progress is None else progress.message,
        depends_on=[LinkView(id=each.job_id, status=each.status) for each in found.depends_on],
        dependents=[LinkView(id=each.job_id, status=each.status) for each in found.dependents],
        ahead=found.ahead,
        timeout=found.timeout,
        schedule=found.schedule,
        expires_at=found.expires_at,
    )


def _attempt(attempt: Attempt) -> AttemptView:
    return AttemptView(
        at=attempt.at,
        exception=attempt.exception,
        message=attempt.message,
        category=attempt.category,
        traceback=attempt.traceback,
    )


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
        method="GET", path=f"{_HERE}/jobs", needs=Permission.NAMESPACE_JOBS_READ,
        handler=list_jobs, summary="Jobs in any state", tag="jobs", query=JobsQuery,
        answer=JobList, cost=5,
    ),
    Route(
        method="GET", path=f"{_HERE}/jobs/{{job}}", needs=Permission.NAMESPACE_JOBS_READ,
        handler=show_job, summary="One job", tag="jobs", answer=JobShown, errors=(404,),
    ),
    Route(
        method="POST", path=f"{_HERE}/jobs/{{job}}/retry", needs=Permission.NAMESPACE_JOBS_RETRY,
        handler=retry_job, summary="Put a failed job back", tag="jobs", answer=Retried,
        action="job.retry", errors=(404,),
    ),
    Route(
        method="POST",
        path=f"{_HERE}/jobs/{{job}}/cancel",
        needs=Permission.NAMESPACE_JOBS_CANCEL,
        handler=cancel_job,
        summary="Cancel a job and those that wait for it",
        tag="jobs",
        body=Cancel,
        answer=Canceled,
        action="job.cancel",
        errors=(404,),
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
