"""Queues: counted without side effects, paused, and emptied and moved in bounded steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from engineroom.core.redis_replies import text
from engineroom.queue import keys
from engineroom.queue.priority import PUT
from engineroom.tasks import limits
from engineroom.tasks.enqueueing import dependents
from engineroom.tasks.enqueueing.encode import timestamp
from engineroom.tasks.enqueueing.task import EnqueueRules, check_queue
from engineroom.tasks.errors import NotConfirmedError
from engineroom.tasks.redis_steps import BatchStep, LuaScript, ScriptStep, Steps

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

#: Jobs that one step moves or deletes; a step blocks Redis for less than 5 ms.
STEP = 200
#: Lists of jobs held by limits that one step handles.
LISTS = 200
#: Queues that one round trip reads.
CHUNK = 200

_QUEUES = "rq:queues"
_WAKE = '{"command": "engineroom-wake"}'
_NO_RULES = EnqueueRules()


@dataclass(frozen=True, slots=True)
class QueueCounts:
    """The jobs of one queue by state; ``due`` counts the ``scheduled`` jobs whose time has come."""

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
    #: The reason that was given for the pause.
    reason: str = ""
    #: Jobs that wait until the limit of their key has room; of the first 1,000 keys.
    held: int = 0
    limit: limits.QueueLimit | None = None
    #: Jobs that ``empty`` took out and has yet to delete; call it again if it was killed.
    emptying: int = 0


def count(names: Sequence[str], now: datetime) -> Steps[list[QueueCounts]]:
    """Return the counts of the queues; a queue that does not exist has zeros."""
    at = repr(now.timestamp())
    counts: list[QueueCounts] = []
    for start in range(0, len(names), CHUNK):
        chunk = names[start : start + CHUNK]
        rows = yield BatchStep([_COUNT.words([], [name, at]) for name in chunk])
        counts += [_counts(name, row) for name, row in zip(chunk, rows, strict=True)]
    return counts


def names() -> Steps[list[str]]:
    """Return the names of all queues of RQ, sorted."""
    queues: set[str] = set()
    cursor: Any = 0
    while True:
        [(cursor, members)] = yield BatchStep([["SSCAN", _QUEUES, cursor, "COUNT", 500]])
        queues |= {text(member).removeprefix("rq:queue:") for member in members}
        if not int(cursor):
            return sorted(queues)


def create(name: str, rules: EnqueueRules) -> Steps[bool]:
    """Register the queue with RQ; return False if it existed."""
    check_queue(name, rules)
    [added] = yield BatchStep([["SADD", _QUEUES, keys.queue(name)]])
    return bool(added)


def pause(name: str, reason: str) -> Steps[bool]:
    """Stop our workers from taking the queue's jobs; return False if it was paused already."""
    check_queue(name, _NO_RULES)
    [before] = yield BatchStep([["SET", keys.paused(name), reason[:500], "GET"]])
    return before is None


def resume(name: str) -> Steps[bool]:
    """Resume the queue and wake idle workers; return False if it was not paused."""
    check_queue(name, _NO_RULES)
    resumed = yield ScriptStep(_RESUME, [keys.paused(name), f"rq:workers:{name}"], [_WAKE])
    return bool(resumed)


def empty(name: str, confirm: str, now: datetime) -> Steps[int]:
    """Delete the jobs that wait now and cancel their dependents; return the number of deleted jobs.

    ``confirm`` has to repeat the queue's name. Jobs that arrive meanwhile stay, and so do jobs that
    workers have taken. The first step takes all waiting jobs out of the queue, so none of them runs
    afterwards. If a call is killed, the same call deletes the rest. Raises NotConfirmedError.
    """
    check_queue(name, _NO_RULES)
    if confirm != name:
        raise NotConfirmedError(
            f"confirm: is not {name!r}; repeat the queue's name to delete its waiting jobs"
        )
    yield from _take_out(name, now)
    [lists] = yield BatchStep([["HKEYS", keys.emptying(name)]])
    deleted = 0
    for key in lists:
        deleted += yield from _delete(name, text(key), now)
    return deleted


def _take_out(name: str, now: datetime) -> Steps[None]:
    """Move the waiting jobs, including those held by limits, to lists that only ``empty`` reads."""
    keys_of_queue = [keys.queue(name), keys.limited(name), keys.emptying(name)]

    def step(first: str) -> ScriptStep:
        # A new list per step, because RENAME overwrites its target.
        mine = f"{keys.emptying(name)}:{uuid4()}"
        return ScriptStep(_TAKE_OUT, keys_of_queue, [name, mine, timestamp(now), LISTS, first])

    left = yield step("1")
    # With more lists, later steps may include jobs that arrive meanwhile; their number is bounded.
    for _ in range(0, left, LISTS):
        yield step("")


def _delete(name: str, taken_out: str, now: datetime) -> Steps[int]:
    """Delete the jobs of one list; return their number. Concurrent calls are safe."""
    deleted = 0
    cancelled: list[str] = []
    while True:
        count, parents, left = yield ScriptStep(
            _DELETE,
            [taken_out, keys.emptying(name), keys.queue(name), keys.intermediate(name)],
            [STEP, *cancelled],
        )
        deleted += int(count)
        if not left:
            return deleted
        # The parents are cancelled by now, so they get no new dependents.
        cancelled = [text(parent) for parent in parents]
        for parent in cancelled:
            yield from dependents.cancel_dependents(parent, now)


def move(
    source: str, target: str, rules: EnqueueRules, limit: int | None, now: datetime
) -> Steps[int]:
    """Move the jobs that wait now, oldest first, as if they were enqueued to ``target`` now.

    Jobs held by limits move first. Each step is atomic: after a kill every job is in exactly one of
    the queues. Moves at most ``limit`` jobs; returns their number.
    """
    check_queue(source, _NO_RULES)
    check_queue(target, rules)
    if source == target:
        return 0
    [left] = yield BatchStep([["LLEN", keys.queue(source)]])
    left += yield from _count_held(source)
    moved, most = 0, left if limit is None else min(left, max(0, limit))
    while left > 0 and most > 0:
        scanned, taken, placed = yield ScriptStep(
            _MOVE,
            [keys.queue(source), keys.queue(target), _QUEUES, keys.limited(source)],
            [min(STEP, left, most), target, timestamp(now), source],
        )
        moved += placed
        left -= scanned
        most -= taken
        if not scanned:
            break
    return moved


def _count_held(name: str) -> Steps[int]:
    """Return the number of the queue's jobs that limits hold."""
    jobs = scanned = 0
    while True:
        lists, count = yield ScriptStep(_COUNT_HELD, [keys.limited(name)], [name, scanned, LISTS])
        jobs += int(count)
        scanned += lists
        if lists < LISTS:
            return jobs


def _counts(name: str, row: Sequence[Any]) -> QueueCounts:
    fields = dict(zip(_COUNTED, map(int, row[: len(_COUNTED)]), strict=True))
    paused, limit = row[len(_COUNTED) :]
    return QueueCounts(
        name, paused=paused is not None, reason=text(paused), limit=limits.read(limit), **fields
    )


_COUNTED = (
    "waiting", "intermediate", "running", "scheduled", "due", "deferred", "finished", "failed",
    "canceled", "held", "emptying",
)  # fmt: skip

_COUNT = LuaScript("""
local name, at = ARGV[1], ARGV[2]
local list, scheduled = 'rq:queue:' .. name, 'rq:scheduled:' .. name
local held, emptying = 0, 0
for _, key in ipairs(redis.call('ZRANGE', 'engineroom:limited:' .. name, 0, 999)) do
  held = held + redis.call('LLEN', 'engineroom:held:' .. #name .. ':' .. name .. ':' .. key)
end
for at, taken_out in ipairs(redis.call('HKEYS', 'engineroom:emptying:' .. name)) do
  if at > 1000 then break end
  emptying = emptying + redis.call('LLEN', taken_out)
end
return {
  redis.call('LLEN', list), redis.call('LLEN', list .. ':intermediate'),
  redis.call('ZCOUNT', 'rq:wip:' .. name, at, '+inf'), redis.call('ZCARD', scheduled),
  redis.call('ZCOUNT', scheduled, '-inf', at), redis.call('ZCARD', 'rq:deferred:' .. name),
  redis.call('ZCARD', 'rq:finished:' .. name), redis.call('ZCARD', 'rq:failed:' .. name),
  redis.call('ZCARD', 'rq:canceled:' .. name), held, emptying,
  redis.call('GET', 'engineroom:paused:' .. name),
  redis.call('HMGET', 'engineroom:limit:' .. name, 'concurrency', 'rate')
}
""")

_RESUME = LuaScript("""
local was = redis.call('DEL', KEYS[1])
for _, key in ipairs(redis.call('SMEMBERS', KEYS[2])) do
  -- Stock RQ workers ignore the pause, and would log a warning about an unknown command.
  if redis.call('HEXISTS', key, 'er_pool') == 1 then
    redis.call('PUBLISH', 'rq:pubsub:' .. string.sub(key, 11), ARGV[1])
  end
end
return was
""")

#: KEYS: list, index of held jobs, the queue's hash of lists to delete. ARGV: queue, key for such a
#: list, time, maximum of lists, whether to include the queue itself. Returns the number of lists
#: left. RENAME takes the same time for any length of a list.
_TAKE_OUT = LuaScript("""
local list, limited, lists = KEYS[1], KEYS[2], KEYS[3]
local name, mine = ARGV[1], ARGV[2]
if ARGV[5] ~= '' and redis.call('EXISTS', list) == 1 then
  redis.call('RENAME', list, mine)
  redis.call('HSET', lists, mine, ARGV[3])
end
for _, key in ipairs(redis.call('ZRANGE', limited, 0, ARGV[4] - 1)) do
  local held = 'engineroom:held:' .. #name .. ':' .. name .. ':' .. key
  if redis.call('EXISTS', held) == 1 then
    redis.call('RENAME', held, mine .. ':' .. key)
    redis.call('HSET', lists, mine .. ':' .. key, '')
  end
  redis.call('ZREM', limited, key)
end
return redis.call('ZCARD', limited)
""")

#: KEYS: list of jobs to delete, the queue's hash of such lists, the queue's list and intermediate
#: list. ARGV: maximum of jobs, then ids of jobs whose dependents are cancelled. Returns {number of
#: deleted jobs, ids of jobs with dependents, whether jobs are left}. The script cancels the jobs
#: with dependents, so that they get no new ones; a later call deletes them.
_DELETE = LuaScript("""
local mine, lists, list, intermediate = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local since = redis.call('HGET', lists, mine) or ''
local cancelled, deleted, parents = {}, 0, {}
for at = 2, #ARGV do cancelled[ARGV[at]] = true end
for _ = 1, ARGV[1] do
  local id, long = redis.call('LPOP', mine), false
  if not id then break end
  local job = 'rq:job:' .. id
  local hash = redis.call('HMGET', job, 'status', 'enqueued_at', 'er_held', 'er_emptied')
  local ours = hash[4] and hash[1] == 'canceled'
  if hash[1] == 'queued' and since == '' then
    -- If the job was enqueued again while it was held, the new entry must stay.
    ours = hash[3] and hash[3] == hash[2]
  elseif hash[1] == 'queued' then
    -- The hash may have expired, and a job with the same id may have been enqueued since.
    long = (hash[2] or '') > since
    ours = not (long and (redis.call('LPOS', list, id) or redis.call('LPOS', intermediate, id)))
  end
  if ours and not cancelled[id] and redis.call('EXISTS', job .. ':dependents') == 1 then
    redis.call('HSET', job, 'status', 'canceled', 'er_emptied', '1')
    parents[#parents + 1] = id
  elseif ours then
    deleted = deleted + redis.call('UNLINK', job)
    redis.call('UNLINK', job .. ':dependents', 'rq:job::' .. id .. ':dependencies',
               'rq:results:' .. id)
  end
  if long and redis.call('LLEN', list) > 10000 then break end
end
for at = #parents, 1, -1 do redis.call('LPUSH', mine, parents[at]) end
local left = redis.call('EXISTS', mine)
if left == 0 then redis.call('HDEL', lists, mine) end
return {deleted, parents, left}
""")

#: KEYS: index of held jobs. ARGV: queue, first list, maximum of lists. Returns the number of lists
#: and the number of jobs in them.
_COUNT_HELD = LuaScript("""
local jobs = 0
local limited = redis.call('ZRANGE', KEYS[1], ARGV[2], ARGV[2] + ARGV[3] - 1)
for _, key in ipairs(limited) do
  jobs = jobs + redis.call('LLEN', 'engineroom:held:' .. #ARGV[1] .. ':' .. ARGV[1] .. ':' .. key)
end
return {#limited, jobs}
""")

#: KEYS: source list, target list, set of queues, the source's index of held jobs. ARGV: maximum of
#: jobs, target's name, time, source's name. Returns the numbers of jobs scanned, taken and moved.
_MOVE = LuaScript(
    PUT
    + """
local placed, taken, scanned = 0, 0, 0
redis.call('SADD', KEYS[3], KEYS[2])
local function take_held()
  local key = redis.call('ZRANGE', KEYS[4], 0, 0)[1]
  while key do
    local held = 'engineroom:held:' .. #ARGV[4] .. ':' .. ARGV[4] .. ':' .. key
    local id = redis.call('LPOP', held)
    if redis.call('EXISTS', held) == 0 then redis.call('ZREM', KEYS[4], key) end
    if id then return id end
    key = redis.call('ZRANGE', KEYS[4], 0, 0)[1]
  end
end
for _ = 1, ARGV[1] do
  local was_held = take_held()
  local id = was_held or redis.call('LPOP', KEYS[1])
  if not id then break end
  scanned = scanned + 1
  local job = 'rq:job:' .. id
  local hash = redis.call('HMGET', job, 'er_priority', 'enqueued_at', 'status', 'er_held')
  local valid = redis.call('EXISTS', job) == 1
  -- Skip a held job that was enqueued again, cancelled or deleted meanwhile.
  if was_held then valid = hash[3] == 'queued' and hash[4] and hash[4] == hash[2] end
  if valid or not was_held then taken = taken + 1 end
  if valid then
    redis.call('HSET', job, 'origin', ARGV[2])
    redis.call('HDEL', job, 'er_held')
    put(KEYS[2], id, hash[1], hash[2], ARGV[3])
    placed = placed + 1
  end
end
return {scanned, taken, placed}
"""
)
