"""Everything that Redis holds about one job, read without side effects and without unpickling."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from engineroom.core.errors import JobMissingError
from engineroom.core.redis_replies import text
from engineroom.queue import keys
from engineroom.tasks.inspection.arguments import JobCall, read_call
from engineroom.tasks.inspection.failures import Attempt, attempts
from engineroom.tasks.inspection.jobs import (
    JobSummary,
    State,
    check_job_id,
    state_of,
    to_int,
    to_summary,
)
from engineroom.tasks.inspection.scan import read_rows, rows
from engineroom.tasks.redis_steps import BatchStep, Steps
from engineroom.tasks.results import Progress, progress_of

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Dependencies, and dependents, that are listed of one job.
MAX_LINKED = 100
#: Compressed arguments that are read of one job (bytes).
MAX_DATA = 1 << 20
#: Length of the queue in which a job's position is searched for (jobs).
MAX_POSITION = 100_000


@dataclass(frozen=True, slots=True)
class TimelineEvent:
    """A past or future event of a job; ``what`` is a short label."""

    at: datetime
    what: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class LinkedJob:
    """A dependency or a dependent of a job; ``status`` is RQ's, empty if the job does not exist."""

    job_id: str
    status: str


@dataclass(frozen=True, slots=True)
class JobDetail:
    """One job with everything that Redis holds about it; durations are seconds, None if not set."""

    job: JobSummary
    #: RQ's job status.
    status: str
    call: JobCall
    timeline: tuple[TimelineEvent, ...]
    attempts: tuple[Attempt, ...]
    progress: Progress | None
    depends_on: tuple[LinkedJob, ...]
    dependents: tuple[LinkedJob, ...]
    #: Whether there are more than MAX_LINKED of either.
    more_linked: bool
    #: Jobs before it in its queue; None if it does not wait, or is beyond MAX_POSITION.
    ahead: int | None
    timeout: int | None
    ttl: int | None
    result_ttl: int | None
    failure_ttl: int | None
    retry_intervals: tuple[int, ...]
    #: The schedule that enqueued it.
    schedule: str
    #: The time at which Redis deletes it; None without an expiry.
    expires_at: datetime | None


def detail(job_id: str, now: datetime) -> Steps[JobDetail]:
    """Return everything about one job. Raises JobMissingError."""
    check_job_id(job_id)
    reply = yield read_rows([job_id])
    [row] = rows(reply)[0]
    if not row.exists:
        raise JobMissingError(
            f"job_id: there is no job {job_id[:100]!r}; it expired, was deleted, or is of another "
            "Redis"
        )
    queue, status = row.fields["origin"], row.fields["status"]
    raw = yield from _read_fields(job_id, queue)
    call = yield from _read_call(job_id, raw.data_size)
    state = state_of(status)
    ahead = None
    if state is State.WAITING:
        [ahead] = yield BatchStep([["LPOS", keys.queue(queue), job_id, "MAXLEN", MAX_POSITION]])
    history = yield from attempts(job_id)
    summary = to_summary(queue, state, row, due=raw.due, attempt=history[-1:], crashes=raw.crashes)
    depends_on = _read_list(raw.fields["dependency_ids"], str)[:MAX_LINKED]
    links = yield from _read_links([*depends_on, *raw.dependents])
    expires = None
    if raw.expires_in >= 0:
        expires = datetime.fromtimestamp(now.timestamp() + raw.expires_in / 1000, UTC)
    progress = yield from progress_of(job_id)
    return JobDetail(
        job=summary,
        status=status,
        call=call,
        timeline=_timeline(summary, status, history, raw.fields["er_schedule"], expires),
        attempts=tuple(history),
        progress=progress,
        depends_on=tuple(links[: len(depends_on)]),
        dependents=tuple(links[len(depends_on) :]),
        more_linked=raw.dependent_count > len(raw.dependents),
        ahead=ahead,
        timeout=to_int(raw.fields["timeout"]),
        ttl=to_int(raw.fields["ttl"]),
        result_ttl=to_int(raw.fields["result_ttl"]),
        failure_ttl=to_int(raw.fields["failure_ttl"]),
        retry_intervals=tuple(_read_list(raw.fields["retry_intervals"], int)),
        schedule=raw.fields["er_schedule"],
        expires_at=expires,
    )


@dataclass(frozen=True, slots=True)
class _RawDetail:
    """Values of a job beside its row; ``expires_in`` is milliseconds, as of PTTL."""

    fields: dict[str, str]
    data_size: int
    expires_in: int
    dependent_count: int
    dependents: tuple[str, ...]
    due: float | None
    crashes: Any


def _read_fields(job_id: str, queue: str) -> Steps[_RawDetail]:
    key = keys.job(job_id)
    values, size, expires_in, dependent_count, scanned, due, crashes = yield BatchStep(
        [
            ["HMGET", key, *_FIELDS],
            ["HSTRLEN", key, "data"],
            ["PTTL", key],
            ["SCARD", f"{key}:dependents"],
            ["SSCAN", f"{key}:dependents", 0, "COUNT", MAX_LINKED],
            ["ZSCORE", keys.scheduled(queue), job_id],
            ["GET", keys.crashes(job_id)],
        ]
    )
    return _RawDetail(
        fields=dict(zip(_FIELDS, map(text, values), strict=True)),
        data_size=size,
        expires_in=expires_in,
        dependent_count=dependent_count,
        dependents=tuple(sorted(map(text, scanned[1]))[:MAX_LINKED]),
        due=None if due is None else float(due),
        crashes=crashes,
    )


def _read_call(job_id: str, size: int) -> Steps[JobCall]:
    if size > MAX_DATA:
        return JobCall(problem=f"{size} bytes are too many to be shown")
    [data] = yield BatchStep([["HGET", keys.job(job_id), "data"]])
    return read_call(data or b"")


def _read_links(job_ids: Sequence[str]) -> Steps[list[LinkedJob]]:
    if not job_ids:
        return []
    statuses = yield BatchStep([["HGET", keys.job(job_id), "status"] for job_id in job_ids])
    return [
        LinkedJob(job_id, text(status)) for job_id, status in zip(job_ids, statuses, strict=True)
    ]


def _timeline(
    job: JobSummary,
    status: str,
    history: Sequence[Attempt],
    schedule: str,
    expires: datetime | None,
) -> tuple[TimelineEvent, ...]:
    moments = [
        (job.created_at, "created", f"by schedule {schedule}" if schedule else ""),
        (job.enqueued_at, "enqueued", f"on {job.queue}"),
        (job.due_at if job.state is State.SCHEDULED else None, "due", ""),
        (job.started_at, "started", f"by {job.worker}" if job.worker else ""),
        (expires, "expires", ""),
    ]
    ended = job.ended_at if status not in ("queued", "started", "scheduled", "deferred") else None
    if status != "failed" or not history:
        moments.append((ended, status, ""))
    moments += [
        (attempt.at, "failed", f"{attempt.exception}: {attempt.message}"[:300])
        for attempt in history
    ]
    events = [TimelineEvent(at, what, note) for at, what, note in moments if at is not None]
    return tuple(sorted(events, key=lambda event: event.at))


_FIELDS = (
    "timeout", "ttl", "result_ttl", "failure_ttl", "retry_intervals", "dependency_ids",
    "er_schedule",
)  # fmt: skip


def _read_list(stored: str, item_type: type) -> list[Any]:
    """Return the items of that type in a JSON list; empty if the text is none."""
    try:
        value = json.loads(stored or "[]")
    except ValueError:
        return []
    return (
        [item for item in value if isinstance(item, item_type)] if isinstance(value, list) else []
    )
