"""Jobs in all states, page by page, read without side effects.

RQ's registries clean up while they count and list, which writes to Redis and calls users'
callbacks. This module reads the keys instead, and unpickles nothing.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from engineroom.core.redaction import redact_text
from engineroom.core.redis_replies import text
from engineroom.queue import keys
from engineroom.tasks.enqueueing.task import EnqueueRules, check_queue
from engineroom.tasks.errors import InvalidTaskError
from engineroom.tasks.inspection.failures import MAX_PAGE, MAX_SCANNED, STEP
from engineroom.tasks.inspection.job_filter import JobFilter
from engineroom.tasks.inspection.scan import JobRow, exception_of, read_rows, rows, walk, walk_list
from engineroom.tasks.redis_steps import BatchStep, Steps

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from engineroom.tasks.inspection.failures import Attempt

#: Queues in one request.
MAX_QUEUES = 1000
#: Default of the jobs that a count with a filter reads.
COUNT_SCANNED = 20_000
#: Queues whose keys one round trip looks up.
_CHUNK = 200

_NO_FILTER = JobFilter()
_NO_RULES = EnqueueRules()


class State(StrEnum):
    """The state of a job; the names are those of ``QueueCounts``."""

    RUNNING = "running"
    WAITING = "waiting"
    SCHEDULED = "scheduled"
    DEFERRED = "deferred"
    FAILED = "failed"
    FINISHED = "finished"
    CANCELED = "canceled"


#: The states in the order of lists.
ALL_STATES = tuple(State)

_KEYS = {
    State.WAITING: keys.queue,
    State.RUNNING: keys.started,
    State.SCHEDULED: keys.scheduled,
    State.FAILED: keys.failed,
    State.DEFERRED: "rq:deferred:{}".format,
    State.FINISHED: "rq:finished:{}".format,
    State.CANCELED: "rq:canceled:{}".format,
}
#: States whose jobs are listed oldest first; all others are listed newest first.
_OLDEST_FIRST = frozenset({State.SCHEDULED, State.DEFERRED})
#: States of RQ's job statuses that have another name.
_STATES = {
    "queued": State.WAITING,
    "started": State.RUNNING,
    "stopped": State.FAILED,
    "rate_limited": State.DEFERRED,
    "ready_to_enqueue": State.DEFERRED,
    "created": State.WAITING,
}


@dataclass(frozen=True, slots=True)
class JobSummary:
    """A job in a list; times are UTC, and None if unknown."""

    job_id: str
    queue: str
    state: State
    function: str
    description: str
    created_at: datetime | None = None
    enqueued_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    #: When a scheduled job is due.
    due_at: datetime | None = None
    #: The worker that runs it, or ran it last.
    worker: str = ""
    #: Class, first line and category of a failed job's exception.
    exception: str = ""
    message: str = ""
    category: str = ""
    #: How many workers it crashed.
    crashes: int = 0
    retries_left: int | None = None

    @property
    def at(self) -> datetime | None:
        """The relevant time in its state: of enqueueing, start, due time, creation or end."""
        return {
            State.WAITING: self.enqueued_at or self.created_at,
            State.RUNNING: self.started_at,
            State.SCHEDULED: self.due_at,
            State.DEFERRED: self.created_at,
            # RQ does not store the time of a cancellation.
            State.CANCELED: self.ended_at or self.enqueued_at or self.created_at,
        }.get(self.state, self.ended_at)


@dataclass(frozen=True, slots=True)
class JobPage:
    """A page of jobs; ``cursor`` starts the next page and is None on the last.

    With a filter, a page before the last may be short or empty.
    """

    jobs: tuple[JobSummary, ...]
    cursor: str | None
    scanned: int


@dataclass(frozen=True, slots=True)
class Impact:
    """The number of jobs that a filter matches: ``matched`` of ``scanned``.

    ``total`` is the number of jobs in the state.
    """

    matched: int
    scanned: int
    total: int

    @property
    def complete(self) -> bool:
        """True if all jobs in the state were scanned."""
        return self.scanned >= self.total


def page(
    queues: Sequence[str],
    states: Sequence[State],
    where: JobFilter,
    cursor: str | None,
    limit: int,
) -> Steps[JobPage]:
    """Return up to ``limit`` jobs after ``cursor``, state by state and queue by queue.

    Waiting and scheduled jobs have the order in which workers take them. Running jobs are sorted by
    id, all others by age. Raises InvalidTaskError.
    """
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidTaskError("limit", f"{limit}", f"use 1 to {MAX_PAGE}")
    segments = _segments(queues, states)
    first, position = _read_cursor(cursor, segments)
    jobs: list[JobSummary] = []
    scanned = 0
    for start in range(first, len(segments), _CHUNK):
        chunk = segments[start : start + _CHUNK]
        present = yield BatchStep([["EXISTS", _KEYS[state](queue)] for state, queue in chunk])
        for (state, queue), exists in zip(chunk, present, strict=True):
            current, position = position, None
            ended = not exists
            while not ended:
                left = MAX_SCANNED - scanned
                count = min(STEP, left if where != _NO_FILTER else limit - len(jobs))
                read, ended = yield from _read(state, queue, current, count)
                for row in read:
                    scanned += 1
                    current = row.place
                    job = to_summary(queue, state, row)
                    if _matches(where, job):
                        jobs.append(job)
                        if len(jobs) == limit:
                            return JobPage(tuple(jobs), _cursor(state, queue, current), scanned)
                if scanned >= MAX_SCANNED and not ended:
                    return JobPage(tuple(jobs), _cursor(state, queue, current or ""), scanned)
    return JobPage(tuple(jobs), None, scanned)


def count(
    queues: Sequence[str], state: State, where: JobFilter, most: int = COUNT_SCANNED
) -> Steps[Impact]:
    """Count the jobs that match; a filter reads at most ``most`` jobs."""
    _segments(queues, [state])
    command = "LLEN" if state is State.WAITING else "ZCARD"
    sizes = yield BatchStep([[command, _KEYS[state](queue)] for queue in queues])
    total = sum(sizes)
    if where == _NO_FILTER:
        return Impact(total, total, total)
    matched = scanned = 0
    cursor = None
    while scanned < most:
        part = yield from page(queues, [state], where, cursor, MAX_PAGE)
        matched, scanned, cursor = matched + len(part.jobs), scanned + part.scanned, part.cursor
        if cursor is None:
            return Impact(matched, scanned, scanned)
    return Impact(matched, scanned, max(total, scanned + 1))


def state_of(status: str) -> State:
    """Return the state of RQ's job status; FINISHED for an unknown status."""
    if status in _STATES:
        return _STATES[status]
    return State(status) if status in ALL_STATES else State.FINISHED


def check_job_id(job_id: str) -> None:
    """Raise InvalidTaskError unless the text may be a job id."""
    if not 0 < len(job_id) <= 1000 or not job_id.isprintable():
        raise InvalidTaskError("job_id", "is no id", "use 1 to 1000 printable characters")


def _segments(queues: Sequence[str], states: Sequence[State]) -> list[tuple[State, str]]:
    if len(queues) > MAX_QUEUES:
        raise InvalidTaskError("queues", f"{len(queues)}", f"use {MAX_QUEUES} at most")
    for queue in queues:
        check_queue(queue, _NO_RULES)
    return [(state, queue) for state in dict.fromkeys(states) for queue in dict.fromkeys(queues)]


def _read(
    state: State, queue: str, position: str | None, count: int
) -> Steps[tuple[list[JobRow], bool]]:
    key = _KEYS[state](queue)
    if state is State.RUNNING:
        return (yield from _read_running(key, position, count))
    if state is State.WAITING:
        return rows((yield walk_list(key, position, count)))
    oldest_first = state in _OLDEST_FIRST
    failed = state is State.FAILED
    return rows((yield walk(key, position, count, oldest_first=oldest_first, failed=failed)))


def _read_running(key: str, position: str | None, count: int) -> Steps[tuple[list[JobRow], bool]]:
    """Read running jobs by id, because each heartbeat changes their scores.

    There are few of them: one per worker.
    """
    members: set[str] = set()
    cursor: Any = 0
    while True:
        [(cursor, part)] = yield BatchStep([["ZSCAN", key, cursor, "COUNT", 500]])
        members |= {text(member).rpartition(":")[0] for member, _ in _pairs(part)}
        if not int(cursor):
            break
    after = (position or "").partition(":")[2]
    left = sorted(member for member in members if member > after)
    if not left:
        return [], True
    read, _ = rows((yield read_rows(left[:count])))
    return read, len(read) == len(left)


def _pairs(flat: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Yield members with scores from a reply of Redis or of redis-py."""
    if flat and isinstance(flat[0], tuple):
        yield from flat
    else:
        yield from zip(flat[::2], flat[1::2], strict=True)


def _cursor(state: State, queue: str, position: str) -> str:
    document = json.dumps([state.value, queue, position], separators=(",", ":"))
    return urlsafe_b64encode(document.encode()).decode().rstrip("=")


def _read_cursor(cursor: str | None, segments: list[tuple[State, str]]) -> tuple[int, str | None]:
    if not cursor:
        return 0, None
    try:
        packed = cursor[:4000].encode() + b"=="
        state, queue, position = json.loads(urlsafe_b64decode(packed))
        return segments.index((State(state), queue)), str(position) or None
    except (ValueError, TypeError):
        raise InvalidTaskError(
            "cursor", f"{cursor[:50]!r}", "use the cursor of the page before, with the same filter"
        ) from None


def _matches(where: JobFilter, job: JobSummary) -> bool:
    texts = (job.message, job.description)
    return where.matches(job.job_id, job.function, job.exception, job.category, texts, job.at)


def to_summary(
    queue: str,
    state: State,
    row: JobRow,
    *,
    due: float | None = None,
    attempt: Sequence[Attempt] = (),
    crashes: Any = None,
) -> JobSummary:
    """Return the row of a job in ``state`` as a JobSummary.

    ``due`` (Unix seconds) and ``crashes`` replace what the row lacks, and the last ``attempt``
    replaces a missing traceback.
    """
    fields = row.fields
    exception, message = exception_of(row.traceback) if state is State.FAILED else ("", "")
    if state is State.FAILED and not exception and attempt:
        exception, message = attempt[-1].exception, attempt[-1].message
    if state is State.SCHEDULED and due is None:
        due = row.score or None
    return JobSummary(
        job_id=row.job_id,
        queue=queue,
        state=state,
        function=row.function,
        description=redact_text(fields["description"][:500]),
        created_at=_time(fields["created_at"]),
        enqueued_at=_time(fields["enqueued_at"]),
        started_at=_time(fields["started_at"]),
        ended_at=_time(fields["ended_at"]),
        due_at=None if due is None else datetime.fromtimestamp(due, UTC),
        worker=row.ran_by or fields["worker_name"],
        exception=exception,
        message=redact_text(message[:500]),
        category=fields["er_category"] if state is State.FAILED else "",
        crashes=row.crashes or int(crashes or 0),
        retries_left=to_int(fields["retries_left"]),
    )


def _time(stamp: str) -> datetime | None:
    if not stamp:
        return None
    try:
        moment = datetime.fromisoformat(stamp)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def to_int(value: str) -> int | None:
    """Return the text as an integer; None if it is none."""
    try:
        return int(value)
    except ValueError:
        return None
