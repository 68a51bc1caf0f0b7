"""Queues, jobs and schedules through the API, with the methods of ``engineroom.tasks.Tasks``."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

from engineroom.cli.connections.remote.cluster import refuse
from engineroom.cli.connections.tasks_connection import TasksConnection
from engineroom.cli.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engineroom.cli.connections.model import Document
    from engineroom.cli.connections.remote.api import Api
    from engineroom.core.clock import Clock
    from engineroom.tasks import (
        Canceled,
        Enqueued,
        JobDetail,
        JobFilter,
        JobPage,
        JobSummary,
        Progress,
        QueueCounts,
        QueueLimit,
        Schedule,
        State,
        Task,
        Worker,
    )
    from engineroom.tasks.schedules.model import ScheduleInfo
    from engineroom.tasks.serializers import Serializer

_COUNTS = (
    "name", "waiting", "running", "scheduled", "due", "deferred", "finished", "failed", "canceled",
    "held", "paused", "reason",
)  # fmt: skip
#: Largest size of a job's function and arguments that the API accepts, in bytes.
MAX_WORK = 256 * 1024


def api_tasks(api: Api, namespace: str, clock: Clock) -> TasksConnection:
    """Return the tasks of a namespace through the API process."""
    tasks = ApiTasks(api, namespace, clock)
    # ApiTasks.__getattr__ refuses the methods of Tasks that the API has no route for.
    return TasksConnection(
        cast("Any", tasks),
        frozenset(),
        f"namespace {namespace} of the API",
        lambda serializer, max_bytes: cast("Any", tasks.writer(serializer, max_bytes)),
        server_operations=True,
    )


class ApiTasks:
    """The methods of ``Tasks`` that the API has routes for; any other raises UsageError."""

    def __init__(
        self,
        api: Api,
        namespace: str,
        clock: Clock,
        *,
        serializer: Serializer | None = None,
        max_bytes: int = MAX_WORK,
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._clock = clock
        self._here = f"/namespaces/{namespace}"
        self._serializer = serializer
        self._max_bytes = min(max_bytes, MAX_WORK)

    def writer(self, serializer: Serializer, max_bytes: int) -> ApiTasks:
        """Return the same tasks with another serializer and a size limit in bytes."""
        return ApiTasks(
            self._api, self._namespace, self._clock, serializer=serializer, max_bytes=max_bytes
        )

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return a function that refuses, for every other method of Tasks."""

        def refused(*_: object, **__: object) -> None:
            refuse(f"this ({name.replace('_', ' ')})")

        return refused

    @property
    def redis(self) -> Any:
        """Refused: the API gives no connection to its Redis."""
        refuse("working on Redis itself")

    def queue_names(self) -> list[str]:
        """Return the names of the namespace's queues."""
        return [queue["name"] for queue in self._queues()]

    def counts(self, names: Sequence[str] | None = None) -> list[QueueCounts]:
        """Return the counts of the given queues, by default of all."""
        from engineroom.tasks import QueueCounts

        wanted = None if names is None else set(names)
        return [
            QueueCounts(**{key: queue[key] for key in _COUNTS}, limit=_limit(queue["limit"]))
            for queue in self._queues()
            if wanted is None or queue["name"] in wanted
        ]

    def pause_queue(self, name: str, reason: str = "") -> bool:
        """Pause a queue; returns False if it was paused already."""
        before = self._api.get(self._queue(name))
        self._api.post(f"{self._queue(name)}/pause", {"reason": reason})
        return not before["paused"]

    def resume_queue(self, name: str) -> bool:
        """Resume a queue; returns False if it was not paused."""
        before = self._api.get(self._queue(name))
        self._api.post(f"{self._queue(name)}/resume")
        return bool(before["paused"])

    def limit_queue(
        self, name: str, *, concurrency: int | None = None, rate: str | None = None
    ) -> None:
        """Limit the jobs of a queue that run at once, and the rate at which they start."""
        body = {"concurrency": concurrency, "rate": rate}
        self._api.request("PUT", f"{self._queue(name)}/limit", body=body)

    def unlimit_queue(self, name: str) -> bool:
        """Remove the limit of a queue; returns False if it had none."""
        before = self._api.get(self._queue(name))
        self._api.delete(f"{self._queue(name)}/limit")
        return before["limit"] is not None

    def workers(self, queue: str | None = None) -> list[Worker]:
        """Return the workers of the namespace's pools, sorted by name."""
        workers = self._api.items(f"{self._here}/workers", queue=queue)
        return [_worker(entry, self._namespace) for entry in workers]

    def enqueue(self, task: Task) -> Enqueued:
        """Enqueue a job. Raises InvalidTaskError before anything is sent."""
        from engineroom.tasks import Enqueued, Reason

        if task.depends_on:
            refuse("a job with dependencies")
        if task.unique is not None and task.unique.until != "window":
            refuse("a unique key that is free once its job has ended")
        delay = task.delay
        body = self._work(task) | {
            "delay": delay.total_seconds() if isinstance(delay, timedelta) else delay,
            "at": None if task.at is None else task.at.isoformat(),
            "jobId": task.job_id,
        }
        if task.unique is not None:
            body |= {"uniqueKey": task.unique.key, "uniqueWindow": task.unique.window}
        created = self._api.post(f"{self._here}/jobs", body)
        reason = Reason.CREATED if created["created"] else Reason.UNIQUE
        return Enqueued(created["id"], created["queue"], reason)

    def jobs(
        self,
        states: Sequence[State],
        where: JobFilter,
        *,
        queues: Sequence[str],
        cursor: str | None = None,
        limit: int = 50,
    ) -> JobPage:
        """Return a page of jobs, in one state or all states, of one queue or all queues."""
        from engineroom.tasks import JobPage, State

        if where.category or where.after or where.before or where.prefix:
            refuse("filtering by category, time or id")
        if len(states) not in (1, len(State)):
            refuse("asking for several states at once")
        names = self.queue_names()
        if len(queues) != 1 and set(queues) != set(names):
            refuse("asking for several queues at once")
        page = self._api.get(
            f"{self._here}/jobs",
            state=states[0].value if len(states) == 1 else "",
            queue=queues[0] if len(queues) == 1 else "",
            function=where.function,
            exception=where.exception,
            text=where.text,
            cursor=cursor,
            limit=min(limit, 200),
        )
        jobs = tuple(_summary(item) for item in page["items"])
        return JobPage(jobs, page["nextCursor"], len(jobs))

    def job(self, job_id: str) -> JobDetail:
        """Return all details of one job that the API has."""
        return _detail(self._api.get(self._job(job_id)))

    def requeue(self, job_id: str) -> str:
        """Put a failed job back on its queue; returns the queue's name."""
        return str(self._api.post(f"{self._job(job_id)}/retry")["queue"])

    def cancel(self, job_id: str, *, stop: bool = False) -> Canceled:
        """Cancel a job and its dependents; with ``stop`` also if it runs."""
        from engineroom.tasks import Canceled

        result = self._api.post(f"{self._job(job_id)}/cancel", {"stop": stop})
        return Canceled(tuple(result["canceled"]), tuple(result["running"]))

    def schedules(self, *, after: str = "", limit: int = 100) -> list[ScheduleInfo]:
        """Return all schedules by their next tick in one page; ``limit`` is ignored."""
        if after:
            return []
        del limit
        schedules: list[ScheduleInfo] = []
        cursor: str | None = None
        while True:
            page = self._api.get(f"{self._here}/schedules", cursor=cursor)
            schedules += map(_schedule_info, page["items"])
            cursor = page.get("nextCursor")
            if cursor is None:
                return schedules

    def schedule(self, name: str) -> ScheduleInfo:
        """Return one schedule. Raises NotFoundError."""
        try:
            return _schedule_info(self._api.get(self._schedule(name)))
        except NotFoundError as error:
            raise NotFoundError(
                f"schedule {name[:100]} does not exist", fix="`schedules list` shows all schedules"
            ) from error

    def put_schedule(self, schedule: Schedule) -> bool:
        """Create or change a schedule; return whether it is new.

        Raises RefusedError if another client changes it at the same time.
        """
        try:
            before = self._api.get(self._schedule(schedule.name))
        except NotFoundError:
            before = None
        body = self._work(schedule.task) | _trigger_document(schedule)
        headers = {} if before is None else {"If-Match": f'"{before["version"]}"'}
        self._api.request("PUT", self._schedule(schedule.name), body=body, headers=headers)
        return before is None

    def pause_schedule(self, name: str) -> None:
        """Pause a schedule."""
        self._api.post(f"{self._schedule(name)}/pause")

    def resume_schedule(self, name: str) -> None:
        """Resume a schedule."""
        self._api.post(f"{self._schedule(name)}/resume")

    def run_schedule(self, name: str) -> str:
        """Enqueue the schedule's job now; returns the job's id."""
        return str(self._api.post(f"{self._schedule(name)}/run")["id"])

    def remove_schedule(self, name: str) -> None:
        """Delete a schedule."""
        self._api.delete(self._schedule(name))

    def _work(self, task: Task) -> Document:
        """Return the task in the form of the API. Raises InvalidTaskError."""
        from engineroom.tasks import JSONSerializer
        from engineroom.tasks.enqueueing.encode import encode, resolve
        from engineroom.tasks.enqueueing.task import EnqueueRules
        from engineroom.tasks.serializers import PickleSerializer

        serializer = self._serializer or PickleSerializer
        # Validated here too, for the same errors as without the API.
        encode(
            task, EnqueueRules(max_bytes=self._max_bytes, serializer=serializer), self._clock.now()
        )
        if task.timeout < 0:
            refuse("a job without a time-out")
        if task.limit is not None:
            refuse("a limit shared by a key")
        retry = task.retry
        return {
            "function": resolve(task.function)[1],
            "args": list(task.args),
            "kwargs": dict(task.kwargs),
            "queue": task.queue,
            "timeout": task.timeout,
            "ttl": task.ttl,
            "resultTtl": task.result_ttl,
            "failureTtl": task.failure_ttl,
            "priority": task.priority,
            "serializer": "json" if serializer is JSONSerializer else "pickle",
            "retry": retry and {"maximum": retry.maximum, "intervals": list(retry.intervals)},
        }

    def _queue(self, name: str) -> str:
        return f"{self._here}/queues/{quote(name, safe='')}"

    def _schedule(self, name: str) -> str:
        return f"{self._here}/schedules/{quote(name, safe='')}"

    def _job(self, job_id: str) -> str:
        return f"{self._here}/jobs/{quote(job_id, safe='')}"

    def _queues(self) -> list[Document]:
        return list(self._api.items(f"{self._here}/queues"))


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _summary(job: Document) -> JobSummary:
    from engineroom.tasks import JobSummary, State

    return JobSummary(
        job_id=job["id"],
        queue=job["queue"],
        state=State(job["state"]),
        function=job["function"],
        description=job["description"],
        created_at=_time(job["createdAt"]),
        enqueued_at=_time(job["enqueuedAt"]),
        started_at=_time(job["startedAt"]),
        ended_at=_time(job["endedAt"]),
        due_at=_time(job["dueAt"]),
        worker=job["worker"],
        exception=job["exception"],
        message=job["message"],
        category=job["category"],
        crashes=job["crashes"],
        retries_left=job["retriesLeft"],
    )


def _detail(document: Document) -> JobDetail:
    from engineroom.tasks.inspection.arguments import JobCall
    from engineroom.tasks.inspection.failures import Attempt
    from engineroom.tasks.inspection.job_detail import JobDetail, LinkedJob, TimelineEvent

    job = _summary(document["job"])
    call = JobCall(
        job.function, tuple(document["args"]), dict(document["kwargs"]), document["unreadable"]
    )
    return JobDetail(
        job=job,
        status=document["status"],
        call=call,
        timeline=tuple(
            TimelineEvent(_moment(m["at"]), m["what"], m["note"]) for m in document["timeline"]
        ),
        attempts=tuple(
            Attempt(_moment(a["at"]), a["exception"], a["message"], a["category"], a["traceback"])
            for a in document["attempts"]
        ),
        progress=_progress(document),
        depends_on=tuple(
            LinkedJob(entry["id"], entry["status"]) for entry in document["dependsOn"]
        ),
        dependents=tuple(
            LinkedJob(dependent["id"], dependent["status"]) for dependent in document["dependents"]
        ),
        more_linked=False,
        ahead=document["ahead"],
        timeout=document["timeout"],
        ttl=None,
        result_ttl=None,
        failure_ttl=None,
        retry_intervals=(),
        schedule=document["schedule"],
        expires_at=_time(document["expiresAt"]),
    )


def _progress(job: Document) -> Progress | None:
    from engineroom.tasks import Progress

    at = _time(job.get("progressAt"))
    if at is None:
        return None
    return Progress(job["progressCount"], job["progressTotal"], job["progressMessage"], at)


def _schedule_info(schedule: Document) -> ScheduleInfo:
    from engineroom.tasks.schedules.model import ScheduleInfo
    from engineroom.tasks.triggers import Missed

    return ScheduleInfo(
        name=schedule["name"],
        # Its text: the API does not return the trigger's fields.
        trigger=schedule["trigger"],
        queue=schedule["queue"],
        description=schedule["description"],
        missed=Missed(schedule["missed"]),
        grace=schedule["grace"],
        next=schedule["next"],
        last=schedule["last"],
        paused=schedule["paused"],
        owner=schedule["owner"],
        last_job=schedule["lastJob"],
        dropped=schedule["dropped"],
        version=schedule["version"],
    )


def _limit(limit: Document | None) -> QueueLimit | None:
    from engineroom.tasks import QueueLimit

    return None if limit is None else QueueLimit(limit["concurrency"], limit["rate"])


def _worker(worker: Document, namespace: str) -> Worker:
    from engineroom.tasks import Worker
    from engineroom.tasks.inspection.workers import Health

    return Worker(
        name=worker["name"],
        health=Health(worker["health"]),
        state=worker["state"],
        queues=tuple(worker["queues"]),
        job=worker["job"],
        job_started=_time(worker["jobStarted"]),
        heartbeat=_time(worker["heartbeat"]),
        memory=worker["memory"],
        cpu=worker["cpu"],
        pool=f"{namespace}/{worker['pool']}",
        pod=worker["pod"],
        rq_version=worker["rqVersion"],
        finished=worker["finished"],
        failed=worker["failed"],
    )


def _trigger_document(schedule: Schedule) -> Document:
    """Return the trigger of a schedule in the form of the API."""
    from engineroom.tasks.triggers import Cron, Every

    document: Document = {"missed": schedule.missed.value, "grace": schedule.grace}
    match schedule.trigger:
        case Cron(line, zone, jitter):
            return document | {"cron": line, "zone": zone, "jitter": jitter}
        case Every(seconds, jitter):
            return document | {"every": seconds, "jitter": jitter}
        case once:
            return document | {"at": datetime.fromtimestamp(once.at, UTC).isoformat()}
