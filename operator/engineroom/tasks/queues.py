"""Queues: seen without side effects, paused one by one, emptied and moved in bounded steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engineroom.queue import keys
from engineroom.tasks.errors import NotConfirmedError
from engineroom.tasks.steps import Batch, Invoke, Script, Steps, text
from engineroom.tasks.task import Rules, check_queue

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

#: Jobs that are moved or dropped in one step; Redis serves nobody else meanwhile, below 5 ms.
STEP = 200
#: Queues that are read in one round trip.
CHUNK = 200

_QUEUES = "rq:queues"
_WAKE = '{"command": "engineroom-wake"}'
_ANY = Rules()


@dataclass(frozen=True, slots=True)
class QueueCounts:
    """One queue at one moment, in jobs; ``due`` are those of ``scheduled`` whose time has come."""

    name: str
    waiting: int = 0
    intermediate: int = 0
    running: int = 0
    scheduled: int = 0
    due: int = 0
    deferred: int = 0
    finished: int = 0
    failed: int = 0
    canceled: int = 0
    paused: bool = False
    #: Why it is paused, as whoever paused it said.
    reason: str = ""


def count(names: Sequence[str], now: datetime) -> Steps[list[QueueCounts]]:
    """The counts of queues by name; one that does not exist counts nothing."""
    at = repr(now.timestamp())
    counts: list[QueueCounts] = []
    for start in range(0, len(names), CHUNK):
        chunk = names[start : start + CHUNK]
        rows = yield Batch([_COUNT.words([], [name, at]) for name in chunk])
        counts += [_counts(name, row) for name, row in zip(chunk, rows, strict=True)]
    return counts


def names() -> Steps[list[str]]:
    """All queues that RQ knows, sorted."""
    found: set[str] = set()
    cursor: Any = 0
    while True:
        [(cursor, members)] = yield Batch([["SSCAN", _QUEUES, cursor, "COUNT", 500]])
        found |= {text(member).removeprefix("rq:queue:") for member in members}
        if not int(cursor):
            return sorted(found)


def create(name: str, rules: Rules) -> Steps[bool]:
    """Make the queue known to RQ; False if it was."""
    check_queue(name, rules)
    [added] = yield Batch([["SADD", _QUEUES, keys.queue(name)]])
    return bool(added)


def pause(name: str, reason: str) -> Steps[bool]:
    """Have our workers take no job from the queue; False if it was paused, reason renewed."""
    check_queue(name, _ANY)
    [before] = yield Batch([["SET", keys.paused(name), reason[:500], "GET"]])
    return before is None


def resume(name: str) -> Steps[bool]:
    """Let workers take jobs again, and wake those that wait; False if it was not paused."""
    check_queue(name, _ANY)
    resumed = yield Invoke(_RESUME, [keys.paused(name), f"rq:workers:{name}"], [_WAKE])
    return bool(resumed)


def empty(name: str, confirm: str) -> Steps[int]:
    """Delete the jobs that wait now, and only those; returns how many.

    ``confirm`` has to be the queue's name once more: what waits is not deleted by a slip. Jobs
    that come in meanwhile stay. Raises NotConfirmedError.
    """
    check_queue(name, _ANY)
    if confirm != name:
        raise NotConfirmedError(
            f"confirm: is not {name!r}; repeat the queue's name to delete its waiting jobs"
        )
    [left] = yield Batch([["LLEN", keys.queue(name)]])
    dropped = 0
    while left > 0:
        taken, gone = yield Invoke(_EMPTY, [keys.queue(name)], [min(STEP, left)])
        dropped += gone
        left -= taken
        if not taken:
            break
    return dropped


def move(source: str, target: str, rules: Rules, limit: int | None) -> Steps[int]:
    """Move what waits now, oldest first, to the end of ``target``; returns how many.

    Each step is atomic: killed in between, every job is in one of the two. ``limit`` at most.
    """
    check_queue(source, _ANY)
    check_queue(target, rules)
    if source == target:
        return 0
    [left] = yield Batch([["LLEN", keys.queue(source)]])
    left = left if limit is None else min(left, max(0, limit))
    moved = 0
    while left > 0:
        step = min(STEP, left)
        taken, placed = yield Invoke(
            _MOVE,
            [keys.queue(source), keys.queue(target), _QUEUES],
            [step, target],
        )
        moved += placed
        left -= taken
        if not taken:
            break
    return moved


def _counts(name: str, row: Sequence[Any]) -> QueueCounts:
    fields = dict(zip(_COUNTED, map(int, row[: len(_COUNTED)]), strict=True))
    return QueueCounts(name, paused=row[-1] is not None, reason=text(row[-1]), **fields)


_COUNTED = (
    "waiting", "intermediate", "running", "scheduled", "due", "deferred", "finished", "failed",
    "canceled",
)  # fmt: skip

_COUNT = Script("""
local name, at = ARGV[1], ARGV[2]
local list, scheduled = 'rq:queue:' .. name, 'rq:scheduled:' .. name
return {
  redis.call('LLEN', list), redis.call('LLEN', list .. ':intermediate'),
  redis.call('ZCOUNT', 'rq:wip:' .. name, at, '+inf'), redis.call('ZCARD', scheduled),
  redis.call('ZCOUNT', scheduled, '-inf', at), redis.call('ZCARD', 'rq:deferred:' .. name),
  redis.call('ZCARD', 'rq:finished:' .. name), redis.call('ZCARD', 'rq:failed:' .. name),
  redis.call('ZCARD', 'rq:canceled:' .. name), redis.call('GET', 'engineroom:paused:' .. name)
}
""")

_RESUME = Script("""
local was = redis.call('DEL', KEYS[1])
for _, key in ipairs(redis.call('SMEMBERS', KEYS[2])) do
  -- Workers of stock RQ never heeded the pause and would warn of a command that they do not know.
  if redis.call('HEXISTS', key, 'er_pool') == 1 then
    redis.call('PUBLISH', 'rq:pubsub:' .. string.sub(key, 11), ARGV[1])
  end
end
return was
""")

#: A job that stands in the list twice, or is running under the same id, keeps its hash.
_EMPTY = Script("""
local gone = 0
local ids = redis.call('LRANGE', KEYS[1], 0, ARGV[1] - 1)
for _, id in ipairs(ids) do
  redis.call('LPOP', KEYS[1])
  if redis.call('HGET', 'rq:job:' .. id, 'status') == 'queued' then
    local job = 'rq:job:' .. id
    gone = gone + redis.call('DEL', job)
    redis.call('DEL', job .. ':dependents', 'rq:job::' .. id .. ':dependencies',
               'rq:results:' .. id)
  end
end
return {#ids, gone}
""")

_MOVE = Script("""
local placed, taken = 0, 0
redis.call('SADD', KEYS[3], KEYS[2])
for _ = 1, ARGV[1] do
  local id = redis.call('LPOP', KEYS[1])
  if not id then break end
  taken = taken + 1
  local job = 'rq:job:' .. id
  if redis.call('EXISTS', job) == 1 then
    redis.call('HSET', job, 'origin', ARGV[2])
    redis.call('RPUSH', KEYS[2], id)
    placed = placed + 1
  end
end
return {taken, placed}
""")
