"""Queues: seen without side effects, paused one by one, emptied and moved in bounded steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from engineroom.queue import keys
from engineroom.queue.priority import PUT
from engineroom.tasks import limits
from engineroom.tasks.enqueueing import dependents
from engineroom.tasks.enqueueing.task import Rules, check_queue, timestamp
from engineroom.tasks.errors import NotConfirmedError
from engineroom.tasks.redis_steps import Batch, Invoke, Script, Steps, text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

#: Jobs that are moved or dropped in one step; Redis serves nobody else meanwhile, below 5 ms.
STEP = 200
#: Lists of jobs set aside by limits that are dealt with in one step.
LISTS = 200
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
    #: Set aside until the limit of their key has room; of the first 1,000 keys.
    held: int = 0
    limit: limits.QueueLimit | None = None
    #: Taken out to be deleted; where nobody does so any more, ``empty`` once more does.
    emptying: int = 0


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


def empty(name: str, confirm: str, now: datetime) -> Steps[int]:
    """Delete the jobs that wait now, and only those; returns how many.

    ``confirm`` has to be the queue's name once more: what waits is not deleted by a slip. Jobs
    that come in meanwhile stay, those that workers have taken too. What hangs on the others is
    cancelled: it would wait for ever. The first step takes all out of the queue, so none of them
    runs after it; whoever was killed later left jobs to be deleted, and the same call takes them
    too. Raises NotConfirmedError.
    """
    check_queue(name, _ANY)
    if confirm != name:
        raise NotConfirmedError(
            f"confirm: is not {name!r}; repeat the queue's name to delete its waiting jobs"
        )
    yield from _take_out(name, now)
    [lists] = yield Batch([["HKEYS", keys.emptying(name)]])
    gone = 0
    for each in lists:
        gone += yield from _delete(name, text(each), now)
    return gone


def _take_out(name: str, now: datetime) -> Steps[None]:
    """Have nobody find the jobs that wait, in the queue and aside, but who deletes them."""
    named = [keys.queue(name), keys.limited(name), keys.emptying(name)]

    def step(first: str) -> Invoke:
        # A list for each step: what is there already must not be written over.
        mine = f"{keys.emptying(name)}:{uuid4()}"
        return Invoke(_TAKE_OUT, named, [name, mine, timestamp(now), LISTS, first])

    left = yield step("1")
    # Beyond so many keys what comes between two steps may go too; but there is an end.
    for _ in range(0, left, LISTS):
        yield step("")


def _delete(name: str, taken_out: str, now: datetime) -> Steps[int]:
    """Delete the jobs of one list; how many. Several may do so at once."""
    gone = 0
    cancelled: list[str] = []
    while True:
        some, parents, left = yield Invoke(
            _DELETE,
            [taken_out, keys.emptying(name), keys.queue(name), keys.intermediate(name)],
            [STEP, *cancelled],
        )
        gone += int(some)
        if not left:
            return gone
        # Cancelled themselves by now, so nothing more can come to hang on them.
        cancelled = [text(parent) for parent in parents]
        for parent in cancelled:
            yield from dependents.cancel_dependents(parent, now)


def move(source: str, target: str, rules: Rules, limit: int | None, now: datetime) -> Steps[int]:
    """Move as many jobs as wait now, oldest first, to where ``target`` has jobs that come now.

    Those that limits keep aside go first. Each step is atomic: killed in between, every job is in
    one of the two. ``limit`` at most; returns how many.
    """
    check_queue(source, _ANY)
    check_queue(target, rules)
    if source == target:
        return 0
    [left] = yield Batch([["LLEN", keys.queue(source)]])
    left += yield from _aside(source)
    moved, most = 0, left if limit is None else min(left, max(0, limit))
    while left > 0 and most > 0:
        seen, taken, placed = yield Invoke(
            _MOVE,
            [keys.queue(source), keys.queue(target), _QUEUES, keys.limited(source)],
            [min(STEP, left, most), target, timestamp(now), source],
        )
        moved += placed
        left -= seen
        most -= taken
        if not seen:
            break
    return moved


def _aside(name: str) -> Steps[int]:
    """How many jobs of the queue limits keep aside."""
    jobs = looked_at = 0
    while True:
        lists, some = yield Invoke(_ASIDE, [keys.limited(name)], [name, looked_at, LISTS])
        jobs += int(some)
        looked_at += lists
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

_COUNT = Script("""
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

#: KEYS: list, index of what is aside, the queue's lists of jobs to be deleted. ARGV: the queue,
#: name for such a list, the time, how many lists, whether the queue's own is one of them. Returns
#: how many lists are left. RENAME takes no longer for a long list than for a short one.
_TAKE_OUT = Script("""
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

#: KEYS: list of jobs to be deleted, the queue's lists of such, its own list and the intermediate
#: one. ARGV: how many, then those of which all that hung on them is cancelled. Returns {deleted,
#: ids that others wait for, whether any are left}. Those ids are cancelled here, which keeps others
#: from coming to wait for them, and deleted once their dependents are cancelled.
_DELETE = Script("""
local mine, lists, list, intermediate = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local since = redis.call('HGET', lists, mine) or ''
local cancelled, gone, parents = {}, 0, {}
for at = 2, #ARGV do cancelled[ARGV[at]] = true end
for _ = 1, ARGV[1] do
  local id, long = redis.call('LPOP', mine), false
  if not id then break end
  local job = 'rq:job:' .. id
  local hash = redis.call('HMGET', job, 'status', 'enqueued_at', 'er_held', 'er_emptied')
  local ours = hash[4] and hash[1] == 'canceled'
  if hash[1] == 'queued' and since == '' then
    -- Whoever has enqueued it anew did not know that it was aside.
    ours = hash[3] and hash[3] == hash[2]
  elseif hash[1] == 'queued' then
    -- The hash may have expired since, and the same id have come again.
    long = (hash[2] or '') > since
    ours = not (long and (redis.call('LPOS', list, id) or redis.call('LPOS', intermediate, id)))
  end
  if ours and not cancelled[id] and redis.call('EXISTS', job .. ':dependents') == 1 then
    redis.call('HSET', job, 'status', 'canceled', 'er_emptied', '1')
    parents[#parents + 1] = id
  elseif ours then
    gone = gone + redis.call('UNLINK', job)
    redis.call('UNLINK', job .. ':dependents', 'rq:job::' .. id .. ':dependencies',
               'rq:results:' .. id)
  end
  if long and redis.call('LLEN', list) > 10000 then break end
end
for at = #parents, 1, -1 do redis.call('LPUSH', mine, parents[at]) end
local left = redis.call('EXISTS', mine)
if left == 0 then redis.call('HDEL', lists, mine) end
return {gone, parents, left}
""")

#: KEYS: index of what is aside. ARGV: queue, where to begin, how many lists. Returns how many lists
#: these are, and how many jobs are in them.
_ASIDE = Script("""
local jobs = 0
local limited = redis.call('ZRANGE', KEYS[1], ARGV[2], ARGV[2] + ARGV[3] - 1)
for _, key in ipairs(limited) do
  jobs = jobs + redis.call('LLEN', 'engineroom:held:' .. #ARGV[1] .. ':' .. ARGV[1] .. ':' .. key)
end
return {#limited, jobs}
""")

#: KEYS: list, the other one, set of queues, index of what is aside. ARGV: how many, the other
#: queue's name, the time, the queue's own name. Returns how many it looked at, took and moved.
_MOVE = Script(
    PUT
    + """
local placed, taken, seen = 0, 0, 0
redis.call('SADD', KEYS[3], KEYS[2])
local function from_aside()
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
  local aside = from_aside()
  local id = aside or redis.call('LPOP', KEYS[1])
  if not id then break end
  seen = seen + 1
  local job = 'rq:job:' .. id
  local hash = redis.call('HMGET', job, 'er_priority', 'enqueued_at', 'status', 'er_held')
  local there = redis.call('EXISTS', job) == 1
  -- Whoever has enqueued it anew, cancelled or deleted it did not know that it was aside.
  if aside then there = hash[3] == 'queued' and hash[4] and hash[4] == hash[2] end
  if there or not aside then taken = taken + 1 end
  if there then
    redis.call('HSET', job, 'origin', ARGV[2])
    redis.call('HDEL', job, 'er_held')
    put(KEYS[2], id, hash[1], hash[2], ARGV[3])
    placed = placed + 1
  end
end
return {seen, taken, placed}
"""
)
