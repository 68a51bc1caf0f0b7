"""Progress that a job reports and results that it leaves, readable by others."""

from __future__ import annotations

import json
import zlib
from base64 import b64decode
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from engineroom.core.clock import Clock, SystemClock
from engineroom.queue import keys
from engineroom.tasks.errors import InvalidTaskError
from engineroom.tasks.redis_steps import Batch, Steps, run, text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis import Redis

    from engineroom.tasks.enqueueing.task import Serializer

#: A report is written at most so often (seconds); the last one of a job always is.
REPORT_SECONDS = 0.5
#: What was reported is kept so long after the last report (seconds).
REPORT_TTL = 86400
MAX_MESSAGE = 500


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is; ``total`` is None where nobody knows."""

    count: float
    total: float | None
    message: str
    at: datetime

    @property
    def fraction(self) -> float | None:
        """From 0 to 1; None without a total."""
        return None if not self.total else min(1.0, max(0.0, self.count / self.total))


@dataclass(frozen=True, slots=True)
class JobResult:
    """What became of a job: ``status`` is RQ's word, empty when nothing is left of the job."""

    job_id: str
    status: str
    value: Any = None
    traceback: str = ""


class Reporter:
    """What a job reports its progress with; reports that come too fast are folded into one."""

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
        """Say how far the job is; True if it was written now.

        Written at once when the last was written long enough ago, and always when ``count`` has
        reached ``total``. Raises InvalidTaskError, TasksUnavailableError.
        """
        if total is not None and total < 0:
            raise InvalidTaskError("total", f"{total:g}", "use 0 or more")
        self._pending = (count, total, message)
        ended = total is not None and count >= total
        if not ended and self._clock.monotonic() - self._written < self._every:
            return False
        return self.flush()

    def flush(self) -> bool:
        """Write what was reported last and not written; False if there is nothing."""
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
    """The Reporter of the job that runs in this process; raises InvalidTaskError outside of one."""
    from rq import get_current_job

    job = get_current_job()
    if job is None:
        raise InvalidTaskError("job", "no job runs here", "call this inside a job")
    return Reporter(job.connection, job.id)


def progress_key(job_id: str) -> str:
    """Holds what the job reported last."""
    return f"engineroom:progress:{job_id}"


def progress_of(job_id: str) -> Steps[Progress | None]:
    """What the job reported last; None if nothing, or too long ago."""
    [value] = yield Batch([["GET", progress_key(job_id)]])
    if value is None:
        return None
    said = json.loads(value)
    at = datetime.fromtimestamp(said["at"], UTC)
    return Progress(said["count"], said["total"], said["message"], at)


def result_of(job_id: str, serializer: Serializer) -> Steps[JobResult]:
    """Status, and the value or the traceback of the last run that left one."""
    [result] = yield from results_of([job_id], serializer)
    return result


def results_of(job_ids: Sequence[str], serializer: Serializer) -> Steps[list[JobResult]]:
    """``result_of`` for several jobs, in one round trip."""
    commands: list[list[Any]] = []
    for job_id in job_ids:
        commands.append(["HGET", keys.job(job_id), "status"])
        commands.append(["XREVRANGE", f"rq:results:{job_id}", "+", "-", "COUNT", 1])
    replies = (yield Batch(commands)) if commands else []
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
    yield Batch([["SET", key, value, "EX", REPORT_TTL]])
