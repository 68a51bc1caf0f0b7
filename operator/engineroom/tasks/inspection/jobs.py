"""Jobs in every state, page by page, and all that is known of one; reads that change nothing.

RQ's registries clean up as they count and list, and so write and call users' callbacks; this reads
the keys instead. Nothing here unpickles.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from engineroom.core.errors import JobMissingError
from engineroom.core.redaction import redact_text
from engineroom.queue import keys
from engineroom.tasks.enqueueing.task import Rules, check_queue
from engineroom.tasks.errors import InvalidTaskError
from engineroom.tasks.inspection.arguments import Call, call_of
from engineroom.tasks.inspection.failures import (
    MAX_PAGE,
    MAX_SCANNED,
    STEP,
    Attempt,
    Where,
    attempts,
)
from engineroom.tasks.inspection.scan import Row, exception_of, read_rows, rows, walk, walk_list
from engineroom.tasks.redis_steps import Batch, Steps, text
from engineroom.tasks.results import Progress, progress_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: Queues of one look at most.
MAX_QUEUES = 1000
#: Jobs that a count with a filter looks at, unless told otherwise.
COUNT_SCANNED = 20_000
#: Jobs that another waits for, or that wait for it, as far as they are told.
MAX_LINKED = 100
#: Compressed arguments that are read of one job (bytes).
MAX_DATA = 1 << 20
#: A place in a queue is looked for so far (jobs).
MAX_POSITION = 100_000

_EVERY = Where()
_ANY = Rules()


class State(StrEnum):
    """Where a job is; the words are those of ``QueueCounts``."""

    RUNNING = "running"
    WAITING = "waiting"
    SCHEDULED = "scheduled"
    DEFERRED = "deferred"
    FAILED = "failed"
    FINISHED = "finished"
    CANCELED = "canceled"


#: The states in the order in which they are listed.
ALL = tuple(State)

_KEYS = {
    State.WAITING: keys.queue,
    State.RUNNING: keys.started,
    State.SCHEDULED: keys.scheduled,
    State.FAILED: keys.failed,
    State.DEFERRED: "rq:deferred:{}".format,
    State.FINISHED: "rq:finished:{}".format,
    State.CANCELED: "rq:canceled:{}".format,
}
#: The soonest first; of what is over the latest.
_OLDEST_FIRST = frozenset({State.SCHEDULED, State.DEFERRED})
#: RQ's words for a job's status.
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
    """A job as it is listed; times are UTC, None where they are not known."""

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
    #: Who runs it, or ran it last.
    worker: str = ""
    #: Of failed jobs only: class, first line and category of what it failed of.
    exception: str = ""
    message: str = ""
    category: str = ""
    #: How often it took its worker down.
    crashes: int = 0
    retries_left: int | None = None

    @property
    def at(self) -> datetime | None:
        """The time that counts in its state: enqueued, begun, due, made or ended."""
        return {
            State.WAITING: self.enqueued_at or self.created_at,
            State.RUNNING: self.started_at,
            State.SCHEDULED: self.due_at,
            State.DEFERRED: self.created_at,
            # RQ does not write down when a job was cancelled.
            State.CANCELED: self.ended_at or self.enqueued_at or self.created_at,
        }.get(self.state, self.ended_at)


@dataclass(frozen=True, slots=True)
class JobPage:
    """Jobs in order, and where the next page begins; None after the last.

    With a filter a page may be short, or empty, and not the last.
    """

    jobs: tuple[JobSummary, ...]
    cursor: str | None
    scanned: int


@dataclass(frozen=True, slots=True)
class Impact:
    """How many jobs a filter matches: ``matched`` of ``scanned``, where ``total`` are in the state.

    ``complete`` is False where there are more than were looked at.
    """

    matched: int
    scanned: int
    total: int

    @property
    def complete(self) -> bool:
        """Whether all were looked at."""
        return self.scanned >= self.total


@dataclass(frozen=True, slots=True)
class Moment:
    """Something that happened, or will: ``what`` is a word or two."""

    at: datetime
    what: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Linked:
    """A job that this one waits for, or that waits for it; ``status`` is RQ's word, or empty."""

    job_id: str
    status: str


@dataclass(frozen=True, slots=True)
class JobDetail:
    """All that is known of one job; durations are seconds, None where the job says nothing."""

    job: JobSummary
    #: RQ's own word.
    status: str
    call: Call
    timeline: tuple[Moment, ...]
    attempts: tuple[Attempt, ...]
    progress: Progress | None
    depends_on: tuple[Linked, ...]
    dependents: tuple[Linked, ...]
    #: Whether there are more than MAX_LINKED of either.
    more_linked: bool
    #: Jobs before it in its queue; None unless it waits, or beyond MAX_POSITION.
    ahead: int | None
    timeout: int | None
    ttl: int | None
    result_ttl: int | None
    failure_ttl: int | None
    retry_intervals: tuple[int, ...]
    #: The schedule that made it, and for which of its ticks.
    schedule: str
    #: When nothing is left of it; None for never, as far as is known.
    expires_at: datetime | None


def page(
    queues: Sequence[str],
    states: Sequence[State],
    where: Where,
    cursor: str | None,
    limit: int,
) -> Steps[JobPage]:
    """Up to ``limit`` jobs beyond ``cursor``: state by state in the order given, queue by queue.

    Waiting and scheduled jobs stand in the order in which they are taken, running ones by id, the
    rest by age. Raises InvalidTaskError.
    """
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidTaskError("limit", f"{limit}", f"use 1 to {MAX_PAGE}")
    segments = _segments(queues, states)
    first, place = _unwrapped(cursor, segments)
    found: list[JobSummary] = []
    scanned = 0
    for start in range(first, len(segments), 200):
        chunk = segments[start : start + 200]
        there = yield Batch([["EXISTS", _KEYS[state](queue)] for state, queue in chunk])
        for (state, queue), exists in zip(chunk, there, strict=True):
            walked, place = place, None
            ended = not exists
            while not ended:
                left = MAX_SCANNED - scanned
                count = min(STEP, left if where != _EVERY else limit - len(found))
                read, ended = yield from _step(state, queue, walked, count)
                for row in read:
                    scanned += 1
                    walked = row.place
                    job = _summary(queue, state, row)
                    if _fits(where, job):
                        found.append(job)
                        if len(found) == limit:
                            return JobPage(tuple(found), _wrapped(state, queue, walked), scanned)
                if scanned >= MAX_SCANNED and not ended:
                    return JobPage(tuple(found), _wrapped(state, queue, walked or ""), scanned)
    return JobPage(tuple(found), None, scanned)


def count(
    queues: Sequence[str], state: State, where: Where, most: int = COUNT_SCANNED
) -> Steps[Impact]:
    """How many jobs ``where`` matches, looking at ``most`` of them at most; changes nothing."""
    _segments(queues, [state])
    command = "LLEN" if state is State.WAITING else "ZCARD"
    sizes = yield Batch([[command, _KEYS[state](queue)] for queue in queues])
    total = sum(sizes)
    if where == _EVERY:
        return Impact(total, total, total)
    matched = scanned = 0
    cursor = None
    while scanned < most:
        part = yield from page(queues, [state], where, cursor, MAX_PAGE)
        matched, scanned, cursor = matched + len(part.jobs), scanned + part.scanned, part.cursor
        if cursor is None:
            return Impact(matched, scanned, scanned)
    return Impact(matched, scanned, max(total, scanned + 1))


def detail(job_id: str, now: datetime) -> Steps[JobDetail]:
    """Everything about one job. Raises JobMissingError."""
    check_job_id(job_id)
    key = keys.job(job_id)
    reply = yield read_rows([job_id])
    [row] = rows(reply)[0]
    if not row.exists:
        raise JobMissingError(
            f"job_id: there is no job {job_id[:100]!r}; it expired, was deleted, or is of another "
            "Redis"
        )
    queue = row.fields["origin"]
    more, size, left, depended, dependents, due, crashes = yield Batch(
        [
            ["HMGET", key, *_MORE],
            ["HSTRLEN", key, "data"],
            ["PTTL", key],
            ["SCARD", f"{key}:dependents"],
            ["SSCAN", f"{key}:dependents", 0, "COUNT", MAX_LINKED],
            ["ZSCORE", keys.scheduled(queue), job_id],
            ["GET", keys.crashes(job_id)],
        ]
    )
    said = dict(zip(_MORE, map(text, more), strict=True))
    call, ahead = Call(problem=f"{size} bytes are too many to be shown"), None
    if size <= MAX_DATA:
        [data] = yield Batch([["HGET", key, "data"]])
        call = call_of(data or b"")
    status = row.fields["status"]
    state = state_of(status)
    if state is State.WAITING:
        [ahead] = yield Batch([["LPOS", keys.queue(queue), job_id, "MAXLEN", MAX_POSITION]])
    history = yield from attempts(job_id)
    summary = _summary(queue, state, row, due=_number(due), attempt=history[-1:], crashes=crashes)
    names = _listed(said["dependency_ids"], str)[:MAX_LINKED]
    waiting = sorted(map(text, dependents[1]))[:MAX_LINKED]
    linked = [*names, *waiting]
    known: list[Any] = []
    if linked:
        known = yield Batch([["HGET", keys.job(each), "status"] for each in linked])
    links = [Linked(each, text(is_)) for each, is_ in zip(linked, known, strict=True)]
    expires = None if left < 0 else datetime.fromtimestamp(now.timestamp() + left / 1000, UTC)
    progress = yield from progress_of(job_id)
    return JobDetail(
        job=summary,
        status=status,
        call=call,
        timeline=_timeline(summary, status, history, said, expires),
        attempts=tuple(history),
        progress=progress,
        depends_on=tuple(links[: len(names)]),
        dependents=tuple(links[len(names) :]),
        more_linked=depended > len(waiting),
        ahead=ahead,
        timeout=_whole(said["timeout"]),
        ttl=_whole(said["ttl"]),
        result_ttl=_whole(said["result_ttl"]),
        failure_ttl=_whole(said["failure_ttl"]),
        retry_intervals=tuple(_listed(said["retry_intervals"], int)),
        schedule=said["er_schedule"],
        expires_at=expires,
    )


def state_of(status: str) -> State:
    """The state for RQ's word; FINISHED for one that is not known."""
    if status in _STATES:
        return _STATES[status]
    return State(status) if status in ALL else State.FINISHED


def check_job_id(job_id: str) -> None:
    """Raises InvalidTaskError for what can be no job's id."""
    if not 0 < len(job_id) <= 1000 or not job_id.isprintable():
        raise InvalidTaskError("job_id", "is no id", "use 1 to 1000 printable characters")


def _segments(queues: Sequence[str], states: Sequence[State]) -> list[tuple[State, str]]:
    if len(queues) > MAX_QUEUES:
        raise InvalidTaskError("queues", f"{len(queues)}", f"use {MAX_QUEUES} at most")
    for queue in queues:
        check_queue(queue, _ANY)
    return [(state, queue) for state in dict.fromkeys(states) for queue in dict.fromkeys(queues)]


def _step(state: State, queue: str, place: str | None, count: int) -> Steps[tuple[list[Row], bool]]:
    key = _KEYS[state](queue)
    if state is State.RUNNING:
        return (yield from _running(key, place, count))
    if state is State.WAITING:
        return rows((yield walk_list(key, place, count)))
    oldest_first = state in _OLDEST_FIRST
    failed = state is State.FAILED
    return rows((yield walk(key, place, count, oldest_first=oldest_first, failed=failed)))


def _running(key: str, place: str | None, count: int) -> Steps[tuple[list[Row], bool]]:
    """By id: the scores of what runs change with each heartbeat. There are few, one a worker."""
    members: set[str] = set()
    cursor: Any = 0
    while True:
        [(cursor, part)] = yield Batch([["ZSCAN", key, cursor, "COUNT", 500]])
        members |= {text(member).rpartition(":")[0] for member, _ in _pairs(part)}
        if not int(cursor):
            break
    after = (place or "").partition(":")[2]
    left = sorted(member for member in members if member > after)
    if not left:
        return [], True
    read, _ = rows((yield read_rows(left[:count])))
    return read, len(read) == len(left)


def _pairs(flat: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Members with scores, as Redis or redis-py gives them."""
    if flat and isinstance(flat[0], tuple):
        yield from flat
    else:
        yield from zip(flat[::2], flat[1::2], strict=True)


def _wrapped(state: State, queue: str, place: str) -> str:
    said = json.dumps([state.value, queue, place], separators=(",", ":"))
    return urlsafe_b64encode(said.encode()).decode().rstrip("=")


def _unwrapped(cursor: str | None, segments: list[tuple[State, str]]) -> tuple[int, str | None]:
    if not cursor:
        return 0, None
    try:
        packed = cursor[:4000].encode() + b"=="
        state, queue, place = json.loads(urlsafe_b64decode(packed))
        return segments.index((State(state), queue)), str(place) or None
    except (ValueError, TypeError):
        raise InvalidTaskError(
            "cursor", f"{cursor[:50]!r}", "use the cursor of the page before, with the same filter"
        ) from None


def _fits(where: Where, job: JobSummary) -> bool:
    texts = (job.message, job.description)
    return where.fits(job.job_id, job.function, job.exception, job.category, texts, job.at)


def _summary(
    queue: str,
    state: State,
    row: Row,
    *,
    due: float | None = None,
    attempt: Sequence[Attempt] = (),
    crashes: Any = None,
) -> JobSummary:
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
        retries_left=_whole(fields["retries_left"]),
    )


def _timeline(
    job: JobSummary,
    status: str,
    history: Sequence[Attempt],
    said: dict[str, str],
    expires: datetime | None,
) -> tuple[Moment, ...]:
    moments = [
        (
            job.created_at,
            "created",
            f"by schedule {said['er_schedule']}" * bool(said["er_schedule"]),
        ),
        (job.enqueued_at, "enqueued", f"on {job.queue}"),
        (job.due_at if job.state is State.SCHEDULED else None, "due", ""),
        (job.started_at, "started", f"by {job.worker}" if job.worker else ""),
        (expires, "expires", ""),
    ]
    ended = job.ended_at if status not in ("queued", "started", "scheduled", "deferred") else None
    if status != "failed" or not history:
        moments.append((ended, status, ""))
    moments += [(each.at, "failed", f"{each.exception}: {each.message}"[:300]) for each in history]
    found = [Moment(at, what, note) for at, what, note in moments if at is not None]
    return tuple(sorted(found, key=lambda moment: moment.at))


_MORE = (
    "timeout", "ttl", "result_ttl", "failure_ttl", "retry_intervals", "dependency_ids",
    "er_schedule",
)  # fmt: skip


def _time(said: str) -> datetime | None:
    if not said:
        return None
    try:
        moment = datetime.fromisoformat(said)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _whole(said: str) -> int | None:
    try:
        return int(said)
    except ValueError:
        return None


def _number(score: Any) -> float | None:
    return None if score is None else float(score)


def _listed(said: str, kind: type) -> list[Any]:
    """A list in JSON of which everything else is left out."""
    try:
        value = json.loads(said or "[]")
    except ValueError:
        return []
    return [each for each in value if isinstance(each, kind)] if isinstance(value, list) else []
