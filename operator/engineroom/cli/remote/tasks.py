"""Queues, jobs and schedules by the API's routes, in the form of ``engineroom.tasks.Tasks``."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

from engineroom.cli.errors import NotFoundError, UsageError
from engineroom.cli.link import Link
from engineroom.cli.remote.cluster import refuse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from engineroom.cli.model import Document
    from engineroom.cli.remote.api import Api
    from engineroom.cli.session import Session
    from engineroom.tasks import Canceled, JobDetail, JobPage, JobSummary, QueueCounts, State, Where
    from engineroom.tasks.schedules import Known

_COUNTS = (
    "name", "waiting", "running", "scheduled", "due", "deferred", "finished", "failed", "canceled",
    "paused", "reason",
)  # fmt: skip


@contextmanager
def api_link(session: Session) -> Iterator[Link]:
    """The queues of a namespace through the API, for as long as the block runs."""
    if session.shared.pool:
        raise UsageError(
            "--pool says which Redis, and the API has one",
            fix="leave it out; pools with a Redis of their own are reached by the kubeconfig alone",
        )
    tasks = ApiTasks(session.api, session.namespace)
    # Only what it has is called by its name; the rest is refused by ApiTasks.__getattr__.
    yield Link(cast("Any", tasks), frozenset(), f"namespace {session.namespace} of the API")


class ApiTasks:
    """What of ``Tasks`` the API has routes for; anything else is refused with the way round."""

    def __init__(self, api: Api, namespace: str) -> None:
        self._api = api
        self._here = f"/namespaces/{namespace}"

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """For every other method of Tasks: one that refuses."""

        def refused(*_: object, **__: object) -> None:
            refuse(f"this ({name.replace('_', ' ')})")

        return refused

    @property
    def redis(self) -> Any:
        """Refused: the API gives no connection to its Redis."""
        refuse("working on Redis itself")

    def queue_names(self) -> list[str]:
        """The queues of the namespace."""
        return [one["name"] for one in self._queues()]

    def counts(self, names: Sequence[str] | None = None) -> list[QueueCounts]:
        """Their counts."""
        from engineroom.tasks import QueueCounts

        wanted = None if names is None else set(names)
        return [
            QueueCounts(**{key: one[key] for key in _COUNTS})
            for one in self._queues()
            if wanted is None or one["name"] in wanted
        ]

    def jobs(
        self,
        states: Sequence[State],
        where: Where,
        *,
        queues: Sequence[str],
        cursor: str | None = None,
        limit: int = 50,
    ) -> JobPage:
        """A page of jobs in one state or in all, of one queue or of all."""
        from engineroom.tasks import JobPage, State

        if where.category or where.after or where.before or where.prefix:
            refuse("filtering by category, time or id")
        if len(states) not in (1, len(State)):
            refuse("asking for several states at once")
        known = self.queue_names()
        if len(queues) != 1 and set(queues) != set(known):
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
        found = tuple(_summary(one) for one in page["items"])
        return JobPage(found, page["nextCursor"], len(found))

    def job(self, job_id: str) -> JobDetail:
        """All that the API tells of one job."""
        return _detail(self._api.get(self._job(job_id)))

    def requeue(self, job_id: str) -> str:
        """Put a failed job back; the queue."""
        return str(self._api.post(f"{self._job(job_id)}/retry")["queue"])

    def cancel(self, job_id: str, *, stop: bool = False) -> Canceled:
        """Cancel a job, and what waits for it."""
        from engineroom.tasks import Canceled

        done = self._api.post(f"{self._job(job_id)}/cancel", {"stop": stop})
        return Canceled(tuple(done["canceled"]), tuple(done["running"]))

    def schedules(self, *, after: str = "", limit: int = 100) -> list[Known]:
        """Schedules by their next tick; all of them, whatever the API has on a page."""
        if after:
            return []
        del limit
        found: list[Known] = []
        cursor: str | None = None
        while True:
            page = self._api.get(f"{self._here}/schedules", cursor=cursor)
            found += map(_known, page["items"])
            cursor = page.get("nextCursor")
            if cursor is None:
                return found

    def schedule(self, name: str) -> Known:
        """One schedule. Raises NotFoundError."""
        for one in self.schedules():
            if one.name == name:
                return one
        raise NotFoundError(
            f"schedule {name[:100]} is not there", fix="`schedules list` shows those that are"
        )

    def remove_schedule(self, name: str) -> None:
        """Forget a schedule."""
        self._api.delete(f"{self._here}/schedules/{quote(name, safe='')}")

    def _job(self, job_id: str) -> str:
        return f"{self._here}/jobs/{quote(job_id, safe='')}"

    def _queues(self) -> list[Document]:
        return list(self._api.get(f"{self._here}/queues")["items"])


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _summary(one: Document) -> JobSummary:
    from engineroom.tasks import JobSummary, State

    return JobSummary(
        job_id=one["id"],
        queue=one["queue"],
        state=State(one["state"]),
        function=one["function"],
        description=one["description"],
        created_at=_time(one["createdAt"]),
        enqueued_at=_time(one["enqueuedAt"]),
        started_at=_time(one["startedAt"]),
        ended_at=_time(one["endedAt"]),
        due_at=_time(one["dueAt"]),
        worker=one["worker"],
        exception=one["exception"],
        message=one["message"],
        category=one["category"],
        crashes=one["crashes"],
        retries_left=one["retriesLeft"],
    )


def _detail(said: Document) -> JobDetail:
    from engineroom.tasks.arguments import Call
    from engineroom.tasks.failures import Attempt
    from engineroom.tasks.jobs import JobDetail, Linked, Moment

    job = _summary(said["job"])
    call = Call(job.function, tuple(said["args"]), dict(said["kwargs"]), said["unreadable"])
    return JobDetail(
        job=job,
        status=said["status"],
        call=call,
        timeline=tuple(Moment(_moment(m["at"]), m["what"], m["note"]) for m in said["timeline"]),
        attempts=tuple(
            Attempt(_moment(a["at"]), a["exception"], a["message"], a["category"], a["traceback"])
            for a in said["attempts"]
        ),
        # The API tells the fraction alone, not how much of what.
        progress=None,
        depends_on=tuple(Linked(one["id"], one["status"]) for one in said["dependsOn"]),
        dependents=tuple(Linked(one["id"], one["status"]) for one in said["dependents"]),
        more_linked=False,
        ahead=said["ahead"],
        timeout=said["timeout"],
        ttl=None,
        result_ttl=None,
        failure_ttl=None,
        retry_intervals=(),
        schedule=said["schedule"],
        expires_at=_time(said["expiresAt"]),
    )


def _known(one: Document) -> Known:
    from engineroom.tasks.schedules import Known
    from engineroom.tasks.triggers import Missed

    return Known(
        name=one["name"],
        # Its text: the API tells no more of it.
        trigger=one["trigger"],
        queue=one["queue"],
        description=one["description"],
        missed=Missed(one["missed"]),
        grace=one["grace"],
        next=one["next"],
        last=one["last"],
    )
