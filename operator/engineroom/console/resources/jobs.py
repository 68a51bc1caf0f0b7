"""Jobs of a namespace: those of the queues that its pools read.

A queue belongs to a namespace where a WorkerPool there reads it in the installation's Redis. What
is of another namespace is answered like what does not exist. Pools with a Redis of their own are
seen to by the command line, which has their owner's rights.
"""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - pydantic needs it at run time
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AwareDatetime, Field

from engineroom.auth.permissions import Permission
from engineroom.console.idempotency import MARK_SECONDS
from engineroom.console.resources.job_request import Work
from engineroom.console.resources.queues import owned
from engineroom.console.rest.pagination import Paged
from engineroom.console.rest.routing import BASE, Answer, Call, Model, Route
from engineroom.core.errors import JobMissingError
from engineroom.tasks import idempotent
from engineroom.tasks.enqueueing.task import MAX_SECONDS, Task, Unique
from engineroom.tasks.errors import JobExistsError
from engineroom.tasks.inspection.job_filter import JobFilter
from engineroom.tasks.inspection.jobs import State
from engineroom.tasks.redis_steps import run_async

if TYPE_CHECKING:
    from engineroom.tasks.inspection.failures import Attempt
    from engineroom.tasks.inspection.job_detail import JobDetail
    from engineroom.tasks.inspection.jobs import JobSummary


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
    progress: float | None = Field(description="From 0 to 1; null without a total.")
    progress_count: float | None
    progress_total: float | None
    progress_message: str
    progress_at: datetime | None
    depends_on: list[LinkView]
    dependents: list[LinkView]
    ahead: int | None
    timeout: int | None
    schedule: str
    expires_at: datetime | None


class Enqueue(Work):
    """A job: now, or `delay` seconds from now, or `at` a time.

    With `uniqueKey` a second one of that key within `uniqueWindow` seconds is the same job. Keys
    are the namespace's: what applications enqueue by themselves is not compared.
    """

    delay: Annotated[float, Field(ge=0, le=MAX_SECONDS)] | None = None
    at: AwareDatetime | None = None
    job_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,200}$")] | None = None
    unique_key: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    unique_window: Annotated[float, Field(ge=0.001, le=MAX_SECONDS)] = 3600.0


class EnqueuedJob(Model):
    """The job that does the work; `created` is false where an earlier one stands for it."""

    id: str
    queue: str
    created: bool


class Retried(Model):
    """Where a failed job went."""

    id: str
    queue: str


class Cancel(Model):
    """What to cancel: with `stop` a job that runs as well."""

    stop: bool = False


class Canceled(Model):
    """Ids of the jobs that will not run: the job, and those that waited for it.

    `running` are those that run already, or that only RQ itself can take out. `skipped` is how many
    of other namespaces' queues wait for it; they stay, in vain.
    """

    canceled: list[str]
    running: list[str]
    skipped: int


async def list_jobs(call: Call) -> Answer:
    """A page of jobs, state by state, queue by queue."""
    wanted: JobsQuery = call.query
    names = call.services.hub.queues(call.namespace)
    if wanted.queue:
        names &= {wanted.queue}
    if not names:
        return Answer(JobList(items=[], next_cursor=None))
    where = JobFilter(
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


async def enqueue_job(call: Call) -> Answer:
    """Enqueue a job; its worker logs under the ids of this request."""
    wanted: Enqueue = call.body
    owned(call, wanted.queue)
    unique = None
    if wanted.unique_key is not None:
        # Of the namespace: else whoever guesses another's key learns of his job, or keeps it away.
        unique = Unique(f"api:{call.namespace}:{wanted.unique_key}", wanted.unique_window)
    task = Task(
        wanted.function, wanted.args, wanted.kwargs, delay=wanted.delay, at=wanted.at,
        job_id=wanted.job_id, unique=unique, **wanted.options(),
    )  # fmt: skip
    tasks, job_id = wanted.tasks(call), call.idempotent_id
    if job_id is None or wanted.job_id is not None:
        done = await tasks.enqueue(task)
    else:
        now = call.services.clock.now()
        steps = idempotent.enqueue(task, job_id, tasks.rules, now, MARK_SECONDS)
        done = await run_async(call.services.redis, steps)
    if done.queue not in call.services.hub.queues(call.namespace):
        raise JobExistsError("unique_key: another job stands for this work; use another key")
    return Answer(
        EnqueuedJob(id=done.job_id, queue=done.queue, created=done.created),
        details={"job": done.job_id, "queue": done.queue, "function": wanted.function},
    )


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
    queues = call.services.hub.queues(call.namespace)
    done = await call.services.tasks.cancel(found.job.job_id, stop=call.body.stop, queues=queues)
    return Answer(
        Canceled(
            canceled=list(done.canceled), running=list(done.running), skipped=len(done.skipped)
        ),
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
        progress_count=None if progress is None else progress.count,
        progress_total=None if progress is None else progress.total,
        progress_message="" if progress is None else progress.message,
        progress_at=None if progress is None else progress.at,
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


_HERE = f"{BASE}/namespaces/{{namespace}}"
ROUTES = (
    Route(
        method="GET", path=f"{_HERE}/jobs", needs=Permission.NAMESPACE_JOBS_READ,
        handler=list_jobs, summary="Jobs in any state", tag="jobs", query=JobsQuery,
        answer=JobList, cost=5,
    ),
    Route(
        method="POST", path=f"{_HERE}/jobs", needs=Permission.NAMESPACE_JOBS_ENQUEUE,
        handler=enqueue_job, summary="Enqueue a job", tag="jobs", body=Enqueue,
        answer=EnqueuedJob, action="job.enqueue", errors=(404, 409),
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
)  # fmt: skip
