"""Failed jobs: page by page, filtered, and put back in bounded steps that survive a kill.

Nothing here unpickles: the name of the function is read off the bytes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING
from uuid import uuid4

from engineroom.queue import keys
from engineroom.queue.priority import PUT
from engineroom.tasks.enqueueing.task import Rules, check_queue, timestamp
from engineroom.tasks.errors import (
    InvalidTaskError,
    NotFailedError,
    NothingMatchesError,
    SupersededError,
)
from engineroom.tasks.inspection.scan import Row, exception_of, rows, unpacked, walk
from engineroom.tasks.redis_steps import Batch, Invoke, Script, Steps, text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: Jobs that are read or put back in one step; Redis serves nobody else meanwhile (about 0.5 ms).
STEP = 25
#: Where Redis took longer over a step than this (seconds), the next one is half of it.
SLOW_STEP = 0.003
_LEAST_STEP = 5
MAX_PAGE = 500
#: With a filter one page looks at no more than so many jobs, however few match.
MAX_SCANNED = 1000
#: What is known of an operation is kept so long (seconds).
OPERATION_TTL = 7 * 86400

_ANY = Rules()


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed job as it is listed. ``category`` is empty where nobody classified the failure."""

    job_id: str
    queue: str
    function: str
    description: str
    exception: str
    message: str
    category: str
    failed_at: datetime | None
    worker: str
    #: How often it took its worker down.
    crashes: int


@dataclass(frozen=True, slots=True)
class Attempt:
    """One run of a job that did not succeed."""

    at: datetime
    exception: str
    message: str
    category: str = ""
    traceback: str = ""


@dataclass(frozen=True, slots=True)
class Where:
    """Which failed jobs: all that is given has to hold. Names are shell patterns (``mail.*``).

    ``text`` is sought in the exception's message and in the job's description; ``prefix`` is what
    the job's id begins with.
    """

    function: str | None = None
    exception: str | None = None
    category: str | None = None
    text: str | None = None
    before: datetime | None = None
    after: datetime | None = None
    prefix: str | None = None

    def __post_init__(self) -> None:
        for name in ("function", "exception", "category", "text", "prefix"):
            value = getattr(self, name)
            if value is not None and not 0 < len(value) <= 200:
                raise InvalidTaskError(name, f"{len(value)} characters", "use 1 to 200")
        for name in ("before", "after"):
            value = getattr(self, name)
            if value is not None and value.tzinfo is None:
                raise InvalidTaskError(name, "has no time zone", "use datetime.now(UTC) and such")

    def matches(self, failure: Failure) -> bool:
        """Whether the job is one of them; without a known time it has no age to go by."""
        return self.fits(
            failure.job_id, failure.function, failure.exception, failure.category,
            (failure.message, failure.description), failure.failed_at,
        )  # fmt: skip

    def fits(
        self,
        job_id: str,
        function: str,
        exception: str,
        category: str,
        texts: Sequence[str],
        at: datetime | None,
    ) -> bool:
        """The same of a job in any state; ``at`` is the time that counts in that state."""
        return (
            (self.function is None or fnmatchcase(function, self.function))
            and (self.exception is None or fnmatchcase(exception, self.exception))
            and (self.category is None or category == self.category)
            and (self.text is None or any(self.text in each for each in texts))
            and (self.prefix is None or job_id.startswith(self.prefix))
            and (self.before is None or (at is not None and at < self.before))
            and (self.after is None or (at is not None and at > self.after))
        )

    def dumps(self) -> str:
        """As JSON."""
        moments = {"before": self.before, "after": self.after}
        said = {name: at and at.isoformat() for name, at in moments.items()}
        return json.dumps({**asdict(self), **said})

    @classmethod
    def loads(cls, said: str) -> Where:
        """What ``dumps`` wrote."""
        fields = json.loads(said)
        for name in ("before", "after"):
            fields[name] = fields[name] and datetime.fromisoformat(fields[name])
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class Page:
    """Failed jobs in order, and where the next page begins; None after the last.

    With a filter a page may be short, or empty, and not the last.
    """

    failures: tuple[Failure, ...]
    cursor: str | None
    scanned: int


@dataclass(frozen=True, slots=True)
class Requeueing:
    """An operation that puts failed jobs back, and how far it is."""

    operation: str
    queue: str
    total: int
    scanned: int = 0
    requeued: int = 0
    #: Matched and left: a job with a rate limit of RQ, which RQ itself has to admit again, or one
    #: whose unique key another job has by now.
    skipped: int = 0
    done: bool = False


def page(
    queue: str, where: Where, cursor: str | None, limit: int, *, oldest_first: bool = False
) -> Steps[Page]:
    """Up to ``limit`` failed jobs after ``cursor``; newest first by when they would expire.

    The cursor is a place, not a number: jobs that come and go do not shift what follows.
    """
    check_queue(queue, _ANY)
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidTaskError("limit", f"{limit}", f"use 1 to {MAX_PAGE}")
    found: list[Failure] = []
    scanned = 0
    plain = where == Where()
    while True:
        # Without a filter no more is read than is shown.
        count = min(STEP, limit - len(found)) if plain else STEP
        read, ended = rows((yield _read(queue, cursor, count, oldest_first=oldest_first)))
        for row in read:
            scanned += 1
            cursor = row.place
            failure = failure_of(queue, row)
            if where.matches(failure):
                found.append(failure)
                if len(found) == limit:
                    return Page(tuple(found), cursor, scanned)
        if ended:
            return Page(tuple(found), None, scanned)
        if scanned >= MAX_SCANNED:
            return Page(tuple(found), cursor, scanned)


def attempts(job_id: str) -> Steps[list[Attempt]]:
    """Why the job failed each time, oldest first, as far as it is known; at most 30.

    Tries in between are known of jobs that use ``retrying``; RQ keeps the last run only.
    """
    told, entries = yield Batch(
        [
            ["HGET", keys.job(job_id), "er_failures"],
            ["XRANGE", f"rq:results:{job_id}", "-", "+", "COUNT", 10],
        ]
    )
    history = [
        Attempt(
            datetime.fromisoformat(each["at"]),
            each["exception"],
            each["message"],
            each["category"],
        )
        for each in json.loads(told or "[]")
    ]
    for entry_id, fields in entries:
        if fields.get(b"exc_string") is None:
            continue
        at = datetime.fromtimestamp(int(text(entry_id).partition("-")[0]) / 1000, UTC)
        traceback = unpacked(fields[b"exc_string"])
        exception, message = exception_of(traceback)
        latest = history[-1] if history else None
        # RQ's entry and ours of the same run are made within a moment.
        if (
            latest is not None
            and latest.exception == exception
            and abs((at - latest.at).total_seconds()) < 5
        ):
            history[-1] = replace(latest, traceback=traceback)
        else:
            history.append(Attempt(at, exception, message, traceback=traceback))
    return sorted(history, key=lambda each: each.at)


def requeue_one(job_id: str, now: datetime) -> Steps[str]:
    """Put one failed job back at the end of its queue, whose name is returned.

    Raises NotFailedError, SupersededError.
    """
    [origin] = yield Batch([["HGET", keys.job(job_id), "origin"]])
    queue = text(origin)
    reply = [0, 0, 0]
    if queue:
        reply = yield Invoke(
            _REQUEUE,
            [keys.failed(queue), keys.queue(queue), "", "rq:queues"],
            ["", "", 0, 0, timestamp(now), "", job_id],
        )
    if reply[2]:
        raise SupersededError(
            f"job_id: another job has its unique key by now; leave {job_id} where it is"
        )
    if reply[1]:
        raise NotFailedError(f"job_id: {job_id} has a rate limit of RQ; use rq's own job.requeue()")
    if not reply[0]:
        raise NotFailedError(f"job_id: {job_id} is no failed job; look with failures()")
    return queue


def start(queue: str, where: Where, now: datetime) -> Steps[Requeueing]:
    """Note down that the failed jobs ``where`` are to be put back; nothing is moved yet."""
    check_queue(queue, _ANY)
    operation = str(uuid4())
    total, newest = yield Batch(
        [
            ["ZCARD", keys.failed(queue)],
            ["EVAL", _NEWEST, 1, keys.failed(queue)],
        ]
    )
    fields = {
        "queue": queue, "where": where.dumps(), "cursor": "", "scanned": 0, "requeued": 0,
        "skipped": 0, "total": total, "state": "running", "started": timestamp(now),
        "bound": text(newest),
    }  # fmt: skip
    flat = [word for pair in fields.items() for word in pair]
    key = operation_key(operation)
    yield Batch([["HSET", key, *flat], ["EXPIRE", key, OPERATION_TTL]], atomic=True)
    return Requeueing(operation, queue, total)


def carry_on(
    operation: str, now: Callable[[], datetime], told: Callable[[Requeueing], object]
) -> Steps[Requeueing]:
    """Put back step by step until done; ``told`` hears of each step.

    Each step moves its jobs and notes its place in one script, so whoever was killed in between
    left nothing undone and nothing uncounted: carry on. Of two at work on one operation, each
    step is taken by one. A job that fails again after the start stays where it is. Raises
    InvalidTaskError for an operation that does not exist, NothingMatchesError at the end.
    """
    key = operation_key(operation)
    step = STEP
    while True:
        began = now()
        [row] = yield Batch([["HMGET", key, *_OPERATION]])
        # What asking for next to nothing takes is the way there and back, which may be long.
        way = now() - began
        said = dict(zip(_OPERATION, map(text, row), strict=True))
        if not said["queue"]:
            raise InvalidTaskError("operation", f"{operation[:50]!r} is not known", "start anew")
        known = Requeueing(
            operation, said["queue"], int(said["total"]), int(said["scanned"]),
            int(said["requeued"]), int(said["skipped"]), said["state"] == "done",
        )  # fmt: skip
        told(known)
        if known.done:
            if not known.requeued and not known.skipped:
                raise NothingMatchesError(
                    f"where: matches none of the {known.scanned} failed jobs of {known.queue!r}; "
                    "look with failures()"
                )
            return known
        where, cursor = Where.loads(said["where"]), said["cursor"]
        reply = yield _read(known.queue, cursor, step, oldest_first=True, bound=said["bound"])
        read, ended = rows(reply)
        chosen = [row.job_id for row in read if where.matches(failure_of(known.queue, row))]
        began = now()
        yield Invoke(
            _REQUEUE,
            [keys.failed(known.queue), keys.queue(known.queue), key, "rq:queues"],
            [
                cursor, read[-1].place if read else cursor, len(read),
                "1" if ended else "0", timestamp(now()), said["started"], *chosen,
            ],
        )  # fmt: skip
        step = next_step(step, (now() - began - way).total_seconds())


def next_step(step: int, seconds: float) -> int:
    """How many jobs the next step takes after one of ``step`` jobs that held Redis so long."""
    if seconds > SLOW_STEP:
        return max(min(STEP, _LEAST_STEP), step // 2)
    return min(STEP, step + _LEAST_STEP)


def operation_key(operation: str) -> str:
    """Holds how far an operation is."""
    return f"engineroom:requeue:{operation}"


def _read(
    queue: str, cursor: str | None, count: int, *, oldest_first: bool, bound: str = ""
) -> Invoke:
    return walk(
        keys.failed(queue), cursor, count, oldest_first=oldest_first, failed=True, bound=bound
    )


def failure_of(queue: str, row: Row) -> Failure:
    """A row of a walk through failed jobs as a Failure."""
    exception, message = exception_of(row.traceback)
    ended = row.fields["ended_at"]
    return Failure(
        job_id=row.job_id,
        queue=queue,
        function=row.function,
        description=row.fields["description"][:500],
        exception=exception,
        message=message[:500],
        category=row.fields["er_category"],
        failed_at=datetime.fromisoformat(ended) if ended else None,
        worker=row.ran_by,
        crashes=row.crashes,
    )


_OPERATION = (
    "queue", "where", "cursor", "scanned", "requeued", "skipped", "total", "state", "started",
    "bound",
)  # fmt: skip

_NEWEST = """
return redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')[2] or ''
"""

#: KEYS: failed set, waiting list, operation or '', set of queues. ARGV: the place expected and the
#: new one, how many were looked at, whether that was the last, the time, when the operation began,
#: then the ids. Returns {requeued, skipped for a limit, skipped for a key}. A unique key whose
#: holder has ended is the job's again for what is left of its window.
_REQUEUE = Script(
    PUT
    + """
local failed, list, operation = KEYS[1], KEYS[2], KEYS[3]
local now, started = ARGV[5], ARGV[6]
if operation ~= '' then
  local state = redis.call('HMGET', operation, 'cursor', 'state')
  if state[1] ~= ARGV[1] or state[2] ~= 'running' then return {0, 0, 0} end
end
local requeued, skipped, superseded = 0, 0, 0
local function holder(unique)
  local first = redis.call('GET', unique)
  local status = first and redis.call('HGET', 'rq:job:' .. first, 'status')
  local ended = not status or status == 'finished' or status == 'failed'
                or status == 'stopped' or status == 'canceled'
  return first, ended
end
for at = 7, #ARGV do
  local id = ARGV[at]
  local job = 'rq:job:' .. id
  local hash = redis.call('HMGET', job, 'status', 'ended_at', 'ttl', 'rate_limit_key',
                          'er_priority', 'er_unique')
  -- RQ's times are of one format: their order is that of their text, digit by digit.
  local since = started == '' or not hash[2] or hash[2] == '' or hash[2] <= started
  if hash[1] == 'failed' and since then
    local first, ended = false, true
    if hash[6] then first, ended = holder(hash[6]) end
    if hash[4] and hash[4] ~= '' then
      skipped = skipped + 1
    elseif first and first ~= id and not ended then
      superseded = superseded + 1
    elseif redis.call('ZREM', failed, id) == 1 then
      redis.call('HSET', job, 'status', 'queued', 'enqueued_at', now, 'started_at', '',
                 'ended_at', '', 'worker_name', '')
      redis.call('HDEL', job, 'exc_info', 'er_category', 'er_tried')
      local ttl = tonumber(hash[3] or '')
      if ttl and ttl > 0 then redis.call('EXPIRE', job, ttl) else redis.call('PERSIST', job) end
      redis.call('DEL', 'engineroom:crashes:' .. id)
      -- What hangs on it waits for as long as it takes.
      redis.call('PERSIST', job .. ':dependents')
      redis.call('PERSIST', 'rq:job::' .. id .. ':dependencies')
      put(list, id, hash[5], now)
      if first then redis.call('SET', hash[6], id, 'KEEPTTL') end
      requeued = requeued + 1
    end
  end
end
if requeued > 0 then redis.call('SADD', KEYS[4], list) end
if operation ~= '' then
  redis.call('HINCRBY', operation, 'scanned', ARGV[3])
  redis.call('HINCRBY', operation, 'requeued', requeued)
  redis.call('HINCRBY', operation, 'skipped', skipped + superseded)
  redis.call('HSET', operation, 'cursor', ARGV[2])
  if ARGV[4] == '1' then redis.call('HSET', operation, 'state', 'done') end
end
return {requeued, skipped, superseded}
"""
)
