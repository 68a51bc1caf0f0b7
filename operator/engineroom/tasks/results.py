"""Progress that jobs report, and results that they return."""

from __future__ import annotations

import json
import zlib
from base64 import b64decode
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from engineroom.core import key_prefixes
from engineroom.core.clock import Clock, SystemClock
from engineroom.core.redis_replies import text
from engineroom.queue import keys
from engineroom.tasks.errors import InvalidTaskError
from engineroom.tasks.redis_steps import BatchStep, Steps, run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis import Redis

    from engineroom.tasks.serializers import Serializer

#: Shortest time between two writes of a job's progress (seconds).
REPORT_SECONDS = 0.5
#: Time to live of the progress after the last report (seconds).
REPORT_TTL = 86400
MAX_MESSAGE = 500


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a job; ``total`` is None if it is unknown."""

    count: float
    total: float | None
    message: str
    at: datetime

    @property
    def fraction(self) -> float | None:
        """The part that is done, from 0 to 1; None without a total."""
        return None if not self.total else min(1.0, max(0.0, self.count / self.total))


@dataclass(frozen=True, slots=True)
class JobResult:
    """The outcome of a job; ``status`` is RQ's status, empty if the job no longer exists."""

    job_id: str
    status: str
    value: Any = None
    traceback: str = ""


class Reporter:
    """Reports the progress of a job; reports in quick succession cause one write."""

    def __init__(
        self, redis: Redis, job_id: str, clock: Clock | None = None, every: float = REPORT_SECONDS
    ) -> None:
        self._redis = redis
        self._key = progress_key(job_id)
        self._clock = clock or SystemClock()
        self._every = every
        self._written = float("-inf")
        self._pending: tuple[float, float | None, str] | None = None

    def report(self, count: float, total: float | None = None, message: str = "") -> bool:
        """Report the progress; return whether it was written now.

        A report is written if the last write is at least ``every`` seconds ago, and always if
        ``count`` has reached ``total``. Raises InvalidTaskError, TasksUnavailableError.
        """
        if total is not None and total < 0:
            raise InvalidTaskError("total", f"{total:g}", "use 0 or more")
        self._pending = (count, total, message)
        ended = total is not None and count >= total
        if not ended and self._clock.monotonic() - self._written < self._every:
            return False
        return self.flush()

    def flush(self) -> bool:
        """Write the last report unless it is written already; return whether it was written now."""
        if self._pending is None:
            return False
        count, total, message = self._pending
        value = {
            "count": count,
            "total": total,
            "message": message[:MAX_MESSAGE],
            "at": self._clock.now().timestamp(),
        }
        run(self._redis, _write(self._key, json.dumps(value)))
        self._pending = None
        self._written = self._clock.monotonic()
        return True


def reporter() -> Reporter:
    """Return the Reporter of the current job. Raises InvalidTaskError outside of a job."""
    from rq import get_current_job

    job = get_current_job()
    if job is None:
        raise InvalidTaskError("job", "no job runs here", "call this inside a job")
    return Reporter(job.connection, job.id)


def progress_key(job_id: str) -> str:
    """Return the key that holds the job's last report."""
    return f"{key_prefixes.PROGRESS}{job_id}"


def progress_of(job_id: str) -> Steps[Progress | None]:
    """Return the job's last report; None if there is none, or if it has expired."""
    [value] = yield BatchStep([["GET", progress_key(job_id)]])
    if value is None:
        return None
    report = json.loads(value)
    at = datetime.fromtimestamp(report["at"], UTC)
    return Progress(report["count"], report["total"], report["message"], at)


def result_of(job_id: str, serializer: Serializer) -> Steps[JobResult]:
    """Return the status, and the value or the traceback of the last run that has one."""
    [result] = yield from results_of([job_id], serializer)
    return result


def results_of(job_ids: Sequence[str], serializer: Serializer) -> Steps[list[JobResult]]:
    """Return the results of several jobs, as ``result_of`` does, in one round trip."""
    commands: list[list[Any]] = []
    for job_id in job_ids:
        commands.append(["HGET", keys.job(job_id), "status"])
        commands.append(["XREVRANGE", f"rq:results:{job_id}", "+", "-", "COUNT", 1])
    replies = (yield BatchStep(commands)) if commands else []
    return [
        _result(job_id, status, entries, serializer)
        for job_id, status, entries in zip(job_ids, replies[::2], replies[1::2], strict=True)
    ]


def _result(job_id: str, status: Any, entries: Any, serializer: Serializer) -> JobResult:
    if not entries:
        return JobResult(job_id, text(status))
    fields = entries[0][1]
    value, traceback = fields.get(b"return_value"), fields.get(b"exc_string")
    return JobResult(
        job_id,
        text(status),
        None if value is None else serializer.loads(b64decode(value)),
        "" if traceback is None else zlib.decompress(b64decode(traceback)).decode(),
    )


def _write(key: str, value: str) -> Steps[None]:
    yield BatchStep([["SET", key, value, "EX", REPORT_TTL]])
