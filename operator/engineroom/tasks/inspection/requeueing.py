"""Requeueing failed jobs: one by id, or all that match a filter, in bounded resumable steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

from engineroom.core import key_prefixes
from engineroom.core.redis_replies import text
from engineroom.queue import keys
from engineroom.queue.priority import PUT
from engineroom.tasks.enqueueing.encode import timestamp
from engineroom.tasks.enqueueing.task import EnqueueRules, check_queue
from engineroom.tasks.errors import (
    InvalidTaskError,
    NotFailedError,
    NothingMatchesError,
    SupersededError,
)
from engineroom.tasks.inspection.failures import STEP, matches, read_failed, to_failure
from engineroom.tasks.inspection.job_filter import JobFilter
from engineroom.tasks.inspection.scan import rows
from engineroom.tasks.redis_steps import BatchStep, LuaScript, ScriptStep, Steps

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

#: After a step that took Redis longer than this (seconds), the next step is half as large.
SLOW_STEP = 0.003
_MIN_STEP = 5
#: Time to live of an operation's state (seconds).
OPERATION_TTL = 7 * 86400

_NO_RULES = EnqueueRules()


@dataclass(frozen=True, slots=True)
class Requeueing:
    """An operation that requeues failed jobs, and its progress in jobs."""

    operation: str
    queue: str
    total: int
    scanned: int = 0
    requeued: int = 0
    #: Jobs that match and stay failed: they have RQ's own rate limit, so only RQ can admit them
    #: again, or another job now holds their unique key.
    skipped: int = 0
    done: bool = False


def requeue_one(job_id: str, now: datetime) -> Steps[str]:
    """Requeue one failed job at the end of its queue; return the queue's name.

    Raises NotFailedError, SupersededError.
    """
    [origin] = yield BatchStep([["HGET", keys.job(job_id), "origin"]])
    queue = text(origin)
    reply = [0, 0, 0]
    if queue:
        reply = yield ScriptStep(
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


def start(queue: str, where: JobFilter, now: datetime) -> Steps[Requeueing]:
    """Store an operation that requeues the failed jobs that match; move no job yet."""
    check_queue(queue, _NO_RULES)
    operation = str(uuid4())
    total, newest = yield BatchStep(
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
    yield BatchStep([["HSET", key, *flat], ["EXPIRE", key, OPERATION_TTL]], atomic=True)
    return Requeueing(operation, queue, total)


def carry_on(
    operation: str, now: Callable[[], datetime], on_step: Callable[[Requeueing], object]
) -> Steps[Requeueing]:
    """Requeue step by step until the operation is done; call ``on_step`` before each step
    and at the end.

    One script both moves a step's jobs and stores the position, so a killed call can be repeated,
    and of two concurrent calls only one performs each step. A job that fails again after the start
    stays failed. Raises InvalidTaskError for an unknown operation, and NothingMatchesError at the
    end if no job matched.
    """
    key = operation_key(operation)
    step = STEP
    while True:
        began = now()
        [row] = yield BatchStep([["HMGET", key, *_OPERATION]])
        # Reading a few fields takes little more than the network's round trip.
        round_trip = now() - began
        state = dict(zip(_OPERATION, map(text, row), strict=True))
        if not state["queue"]:
            raise InvalidTaskError("operation", f"{operation[:50]!r} is not known", "start anew")
        progress = Requeueing(
            operation, state["queue"], int(state["total"]), int(state["scanned"]),
            int(state["requeued"]), int(state["skipped"]), state["state"] == "done",
        )  # fmt: skip
        on_step(progress)
        if progress.done:
            return _check_matched(progress)
        where, cursor, queue = JobFilter.loads(state["where"]), state["cursor"], progress.queue
        reply = yield read_failed(queue, cursor, step, oldest_first=True, bound=state["bound"])
        read, ended = rows(reply)
        matching = [row.job_id for row in read if matches(where, to_failure(queue, row))]
        began = now()
        yield ScriptStep(
            _REQUEUE,
            [keys.failed(queue), keys.queue(queue), key, "rq:queues"],
            [
                cursor, read[-1].place if read else cursor, len(read),
                "1" if ended else "0", timestamp(now()), state["started"], *matching,
            ],
        )  # fmt: skip
        step = next_step(step, (now() - began - round_trip).total_seconds())


def _check_matched(done: Requeueing) -> Requeueing:
    if not done.requeued and not done.skipped:
        raise NothingMatchesError(
            f"where: matches none of the {done.scanned} failed jobs of {done.queue!r}; "
            "look with failures()"
        )
    return done


def next_step(step: int, seconds: float) -> int:
    """Return the size of the next step, after a step of ``step`` jobs took Redis ``seconds``."""
    if seconds > SLOW_STEP:
        return max(min(STEP, _MIN_STEP), step // 2)
    return min(STEP, step + _MIN_STEP)


def operation_key(operation: str) -> str:
    """Return the key that holds an operation's state."""
    return f"{key_prefixes.REQUEUE}{operation}"


_OPERATION = (
    "queue", "where", "cursor", "scanned", "requeued", "skipped", "total", "state", "started",
    "bound",
)  # fmt: skip

_NEWEST = """
return redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')[2] or ''
"""

#: KEYS: failed set, waiting list, operation or '', set of queues. ARGV: expected and new position,
#: number of scanned jobs, whether they were the last, time, start of the operation, then job ids.
#: Returns the numbers {requeued, skipped for a rate limit, skipped for a unique key}. The job gets
#: its unique key back, for the rest of the window, if the key's holder has ended.
_REQUEUE = LuaScript(
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
  -- RQ's timestamps have one format, so their text sorts by time.
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
      -- Its dependents wait without a time limit.
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
