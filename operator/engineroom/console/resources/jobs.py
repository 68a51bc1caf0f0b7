"""Jobs of a namespace: those of the queues that its pools read.

A queue belongs to each namespace in which a pool reads it from the installation's Redis. A job of
another namespace is reported as missing. The command line manages the jobs of pools with their own
Redis, with the rights of its user.
"""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - pydantic needs it at run time
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AwareDatetime, Field

from engineroom.auth.permissions import Permission
from engineroom.console.idempotency import MARK_SECONDS
from engineroom.console.resources.job_request import JobRequest
from engineroom.console.resources.queues import require_queue
from engineroom.console.rest.pagination import PageQuery
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
    from engineroom.tasks.inspection.job_detail import JobDetail, LinkedJob
    from engineroom.tasks.inspection.jobs import JobSummary


_Filter = Annotated[str, Field(max_length=200)]


class JobsQuery(PageQuery):
    """A filter for jobs; empty fields match all. Function and exception are shell patterns."""

    state: Literal[
        "", "running", "waiting", "scheduled", "deferred", "failed", "finished", "canceled"
    ] = ""
    queue: _Filter = ""
    function: _Filter = ""
    exception: _Filter = ""
    text: _Filter = ""


class JobView(Model):
    """A job in a list."""

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
    """A page of jobs. A filtered page may be short without being the last."""

    items: list[JobView]
    next_cursor: str | None


class AttemptView(Model):
    """A failed attempt to run the job."""

    at: datetime
    exception: str
    message: str
    category: str
    traceback: str


class TimelineEntry(Model):
    """A past or expected event in the life of the job."""

    at: datetime
    what: str
    note: str


class RelatedJob(Model):
    """A dependency or a dependent of the job."""

    id: str
    status: str


class JobDetailView(Model):
    """A job in full; its arguments are decoded without running code. Durations are seconds."""

    job: JobView
    status: str
    args: list[Any]
    kwargs: dict[str, Any]
    unreadable: str = Field(description="The reason why the arguments cannot be decoded, or empty.")
    timeline: list[TimelineEntry]
    attempts: list[AttemptView]
    progress: float | None = Field(description="From 0 to 1; null if the job reports no total.")
    progress_count: float | None
    progress_total: float | None
    progress_message: str
    progress_at: datetime | None
    depends_on: list[RelatedJob]
    dependents: list[RelatedJob]
    ahead: int | None
    timeout: int | None
    schedule: str
    expires_at: datetime | None


class Enqueue(JobRequest):
    """A job to enqueue now, after `delay` seconds, or `at` a time.

    Requests with the same `uniqueKey` within `uniqueWindow` seconds get the same job. Keys apply to
    the namespace; jobs that applications enqueue directly are not compared.
    """

    delay: Annotated[float, Field(ge=0, le=MAX_SECONDS)] | None = None
    at: AwareDatetime | None = None
    job_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,200}$")] | None = None
    unique_key: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    unique_window: Annotated[float, Field(ge=0.001, le=MAX_SECONDS)] = 3600.0


class EnqueuedJob(Model):
    """The enqueued job; `created` is false if an earlier job has the same `uniqueKey`."""

    id: str
    queue: str
    created: bool


class RetriedJob(Model):
    """A requeued job and its queue."""

    id: str
    queue: str


class Cancel(Model):
    """Options for cancelling a job; `stop` also stops a running one."""

    stop: bool = False


class Canceled(Model):
    """The ids of cancelled jobs: the job and its dependents.

    `running` are jobs that run already or that only RQ itself can remove. `skipped` counts
    dependents on queues of other namespaces; they are not cancelled and will never run.
    """

    canceled: list[str]
    running: list[str]
    skipped: int


async def list_jobs(call: Call) -> Answer:
    """Return a page of jobs, by state, then by queue."""
    query: JobsQuery = call.query
    names = call.services.hub.queues(call.namespace)
    if query.queue:
        names &= {query.queue}
    if not names:
        return Answer(JobList(items=[], next_cursor=None))
    where = JobFilter(
        function=query.function or None,
        exception=query.exception or None,
        text=query.text or None,
    )
    page = await call.services.tasks.jobs(
        [State(query.state)] if query.state else list(State),
        where,
        queues=sorted(names),
        cursor=query.cursor or None,
        limit=query.limit,
    )
    return Answer(JobList(items=[_job(job) for job in page.jobs], next_cursor=page.cursor))


async def enqueue_job(call: Call) -> Answer:
    """Enqueue a job; its worker logs the ids of this request."""
    request: Enqueue = call.body
    require_queue(call, request.queue)
    unique = None
    if request.unique_key is not None:
        # Per namespace: a guessed key of another namespace must not reveal or block its job.
        unique = Unique(f"api:{call.namespace}:{request.unique_key}", request.unique_window)
    task = Task(
        request.function, request.args, request.kwargs, delay=request.delay, at=request.at,
        job_id=request.job_id, unique=unique, **request.options(),
    )  # fmt: skip
    tasks, job_id = request.tasks(call), call.idempotent_id
    if job_id is None or request.job_id is not None:
        enqueued = await tasks.enqueue(task)
    else:
        now = call.services.clock.now()
        steps = idempotent.enqueue(task, job_id, tasks.rules, now, MARK_SECONDS)
        enqueued = await run_async(call.services.redis, steps)
    if enqueued.queue not in call.services.hub.queues(call.namespace):
        raise JobExistsError("unique_key: a job of another namespace has this key; use another one")
    return Answer(
        EnqueuedJob(id=enqueued.job_id, queue=enqueued.queue, created=enqueued.created),
        details={"job": enqueued.job_id, "queue": enqueued.queue, "function": request.function},
    )


async def show_job(call: Call) -> Answer:
    """Return one job in full."""
    return Answer(_detail(await _read_job(call)))


async def retry_job(call: Call) -> Answer:
    """Requeue a failed job."""
    detail = await _read_job(call)
    queue = await call.services.tasks.requeue(detail.job.job_id)
    return Answer(RetriedJob(id=detail.job.job_id, queue=queue), details={"queue": queue})


async def cancel_job(call: Call) -> Answer:
    """Cancel a job and its dependents."""
    detail = await _read_job(call)
    queues = call.services.hub.queues(call.namespace)
    result = await call.services.tasks.cancel(detail.job.job_id, stop=call.body.stop, queues=queues)
    return Answer(
        Canceled(
            canceled=list(result.canceled),
            running=list(result.running),
            skipped=len(result.skipped),
        ),
        details={"jobs": len(result.canceled)},
    )


async def _read_job(call: Call) -> JobDetail:
    """Return the job of the path. Raises JobMissingError unless the namespace has its queue."""
    queues = call.services.hub.queues(call.namespace)
    missing = JobMissingError("job: no job of this namespace has that id; list the jobs")
    try:
        detail = await call.services.tasks.job(call.path["job"])
    except JobMissingError as error:
        raise missing from error
    if detail.job.queue not in queues:
        raise missing
    return detail


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


def _detail(detail: JobDetail) -> JobDetailView:
    progress = detail.progress
    return JobDetailView(
        job=_job(detail.job),
        status=detail.status,
        args=list(detail.call.args),
        kwargs=detail.call.kwargs or {},
        unreadable=detail.call.problem,
        timeline=[TimelineEntry(at=m.at, what=m.what, note=m.note) for m in detail.timeline],
        attempts=[_attempt(attempt) for attempt in detail.attempts],
        progress=None if progress is None else progress.fraction,
        progress_count=None if progress is None else progress.count,
        progress_total=None if progress is None else progress.total,
        progress_message="" if progress is None else progress.message,
        progress_at=None if progress is None else progress.at,
        depends_on=[_related_job(link) for link in detail.depends_on],
        dependents=[_related_job(link) for link in detail.dependents],
        ahead=detail.ahead,
        timeout=detail.timeout,
        schedule=detail.schedule,
        expires_at=detail.expires_at,
    )


def _related_job(link: LinkedJob) -> RelatedJob:
    return RelatedJob(id=link.job_id, status=link.status)


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
        handler=list_jobs, summary="List jobs", tag="jobs", query=JobsQuery,
        answer=JobList, cost=5,
    ),
    Route(
        method="POST", path=f"{_HERE}/jobs", needs=Permission.NAMESPACE_JOBS_ENQUEUE,
        handler=enqueue_job, summary="Enqueue a job", tag="jobs", body=Enqueue,
        answer=EnqueuedJob, action="job.enqueue", errors=(404, 409),
    ),
    Route(
        method="GET", path=f"{_HERE}/jobs/{{job}}", needs=Permission.NAMESPACE_JOBS_READ,
        handler=show_job, summary="Read one job", tag="jobs", answer=JobDetailView, errors=(404,),
    ),
    Route(
        method="POST", path=f"{_HERE}/jobs/{{job}}/retry", needs=Permission.NAMESPACE_JOBS_RETRY,
        handler=retry_job, summary="Requeue a failed job", tag="jobs", answer=RetriedJob,
        action="job.retry", errors=(404,),
    ),
    Route(
        method="POST",
        path=f"{_HERE}/jobs/{{job}}/cancel",
        needs=Permission.NAMESPACE_JOBS_CANCEL,
        handler=cancel_job,
        summary="Cancel a job and its dependents",
        tag="jobs",
        body=Cancel,
        answer=Canceled,
        action="job.cancel",
        errors=(404,),
    ),
)  # fmt: skip
