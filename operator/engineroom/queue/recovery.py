"""What becomes of the jobs of a worker that died.

The operator calls ``recover`` when it has established that a worker is dead; everything is decided
and done in one script, which first looks whether the worker is still silent and the job still its.
So two operators, a worker that comes back, and RQ's own maintenance find the job settled or settle
it themselves, and never both:

- A started job is whose entry stands in the registry of started jobs; removing the entry decides.
- RQ's maintenance takes entries that have expired, in several steps. An expired entry is therefore
  first renewed, which hides it from RQ, and decided on only when anybody who had read it before
  must have finished; until then ``recover`` says DEFERRED.
- A job that was taken and not started stands in its queue's intermediate list; the entry is the
  right to start it, so putting it back takes that right from a worker that was only slow.

The operator runs nobody's code and reads no payload: failure callbacks, dependents, webhooks and
rate-limit slots of a job that is failed here are left to the next living worker (``keys.settle``).
"""

from __future__ import annotations

import zlib
from base64 import b64encode
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, cast

from engineroom.queue import keys

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from redis.asyncio import Redis

#: An expired entry that was renewed is decided on so many seconds later.
SETTLING_SECONDS = 2
#: A job that was taken and not started for so long is put back.
STRAY_SECONDS = 15

_RENEWAL_SECONDS = 100


class Action(StrEnum):
    """What ``recover`` found or did."""

    ALIVE = "alive"  # the worker has been heard of since: nothing was done
    DEFERRED = "deferred"  # look again, and call again in SETTLING_SECONDS or later
    NOTHING = "nothing"  # it held no job
    SETTLED = "settled"  # its job had ended, or another had decided
    RETURNED = "returned"  # taken and not started: back at the head of its queue
    REQUEUED = "requeued"
    SCHEDULED = "scheduled"  # its Retry has an interval
    FAILED = "failed"
    POISONED = "poisoned"  # took down too many workers: failed, whatever its Retry says


#: The actions that changed what becomes of a job.
DECISIVE = frozenset(
    {Action.RETURNED, Action.REQUEUED, Action.SCHEDULED, Action.FAILED, Action.POISONED}
)


@dataclass(frozen=True, slots=True)
class DeadWorker:
    """A worker as the operator last read it.

    ``heartbeat`` is in Unix seconds, None when its record has expired; ``why`` is how it is known
    to be dead, as the middle of a sentence. What it held is read in the moment of deciding.
    """

    name: str
    pool: str
    heartbeat: float | None
    queues: tuple[str, ...]
    why: str = "its pod is gone"

    @property
    def pod(self) -> str:
        """The pod's name, by how workers name themselves."""
        return self.name.rsplit(".", 2)[0]


@dataclass(frozen=True, slots=True)
class Policy:
    """The pool's ``recovery`` and ``deadLetter``; durations in seconds.

    ``requeue_orphans`` is one of the spec's words: FollowRetry, Always, Never.
    """

    requeue_orphans: str = "FollowRetry"
    poison_threshold: int = 3
    poison_window: float = 72 * 3600
    dead_letter_ttl: float = 30 * 86400


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was done; ``job`` and ``queue`` are empty unless the action is DECISIVE.

    ``crashes`` counts the workers that the job has taken down within the poison window.
    """

    action: Action
    job: str = ""
    queue: str = ""
    crashes: int = 0


async def recover(redis: Redis, worker: DeadWorker, policy: Policy, at: float) -> Outcome:
    """Settle the job of a dead worker and remove all traces of the worker; ``at`` is now.

    Idempotent: called again, by whomever, it finds nothing left to do.
    """
    held = ("", "", "")
    if worker.heartbeat is None:
        held = await _held_by(redis, worker)
    died = f"Worker {worker.name} of pod {worker.pod} died ({worker.why})."
    poison = (
        f"{died} The job is set aside: it has taken down {policy.poison_threshold} workers or more "
        f"within {policy.poison_window:.0f} s."
    )
    reply = await _run(
        redis,
        _RECOVER,
        (
            keys.worker(worker.name),
            keys.executions_of_worker(worker.name),
            keys.pool_workers(worker.pool),
            keys.drain(worker.name),
        ),
        (
            worker.name,
            _stamp(worker.heartbeat) if worker.heartbeat is not None else "",
            repr(at),
            _stamp(at),
            policy.requeue_orphans,
            policy.poison_threshold,
            round(policy.poison_window),
            round(policy.dead_letter_ttl),
            _packed(died),
            _packed(poison),
            *held,
            _RENEWAL_SECONDS,
            SETTLING_SECONDS,
            *worker.queues,
        ),
    )
    action = Action(_text(reply[0]))
    if action not in DECISIVE:
        return Outcome(action)
    return Outcome(action, _text(reply[1]), _text(reply[2]), int(reply[3]))


async def return_strays(
    redis: Redis, queues: Sequence[str], at: float, age: float = STRAY_SECONDS
) -> dict[str, list[str]]:
    """Put back jobs that have been taken and not started for ``age`` seconds.

    Finds those whose taker died before it could say what it took. Must be called repeatedly: the
    first call that sees an entry starts its clock. Returns the ids that were put back, by queue.
    """
    returned: dict[str, list[str]] = {}
    for name in queues:
        reply = await _run(
            redis,
            _RETURN_STRAYS,
            (keys.queue(name), keys.intermediate(name), keys.strays(name), keys.started(name)),
            (repr(at), repr(age), keys.job("")),
        )
        if reply:
            returned[name] = [_text(job_id) for job_id in reply]
    return returned


async def _held_by(redis: Redis, worker: DeadWorker) -> tuple[str, str, str]:
    """(job, execution, queue) of a worker whose record has expired, by the started jobs."""
    for name in worker.queues:
        members = [_text(each) for each in await redis.zrange(keys.started(name), 0, -1)]
        async with redis.pipeline(transaction=False) as pipeline:
            for member in members:
                pipeline.hget(keys.job(member.rpartition(":")[0]), "worker_name")
            names = await pipeline.execute() if members else []
        for member, holder in zip(members, names, strict=True):
            if _text(holder) == worker.name:
                job_id, _, execution_id = member.rpartition(":")
                return job_id, execution_id, name
    return "", "", ""


async def _run(
    redis: Redis, script: str, script_keys: Sequence[str], args: Sequence[str | int]
) -> list[Any]:
    pending = cast(
        "Awaitable[list[Any]]", redis.eval(script, len(script_keys), *script_keys, *map(str, args))
    )
    return await pending


def _stamp(seconds: float) -> str:
    """As RQ writes a time; microseconds survive the way through a float."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _packed(text: str) -> str:
    """As RQ stores an exception's text in a result."""
    return b64encode(zlib.compress(text.encode())).decode()


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")


_RECOVER = """
local worker_key, worker_executions, pool_workers, drain_key = unpack(KEYS)
local name, expected, now, iso = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local requeue, threshold, window = ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])
local dead_letter_ttl, died, poison = tonumber(ARGV[8]), ARGV[9], ARGV[10]
local renewal, settling = tonumber(ARGV[14]), tonumber(ARGV[15])
local queues = {}
for at = 16, #ARGV do queues[#queues + 1] = ARGV[at] end

local record = redis.call('HMGET', worker_key, 'last_heartbeat', 'er_job', 'er_execution',
                          'er_queue', 'er_taken', 'er_taken_from', 'queues')
if record[1] and record[1] ~= expected then return {'alive', '', '', 0} end
-- Expired since it was read: look again, for what it held must be found another way.
if not record[1] and expected ~= '' then return {'deferred', '', '', 0} end
local job, execution, queue = ARGV[11], ARGV[12], ARGV[13]
if record[1] then job, execution, queue = record[2] or '', record[3] or '', record[4] or '' end
if record[7] then
  for each in string.gmatch(record[7], '[^,]+') do queues[#queues + 1] = each end
end

local outcome, crashes = 'nothing', 0
local told_job, told_queue = job, queue

if job ~= '' then
  local job_key, started = 'rq:job:' .. job, 'rq:wip:' .. queue
  local member = job .. ':' .. execution
  local score = redis.call('ZSCORE', started, member)
  outcome = 'settled'
  if score then
    local left = (tonumber(score) or now + 60) - now
    if left < 5 then
      -- Somebody running RQ's maintenance may have read it: hide it, and come back.
      redis.call('ZADD', started, 'XX', now + renewal, member)
      return {'deferred', job, queue, 0}
    elseif left <= renewal and left > renewal - settling then
      return {'deferred', job, queue, 0}
    end
    local hash = redis.call('HMGET', job_key, 'status', 'retries_left', 'retry_intervals', 'ttl',
                            'failure_ttl', 'started_at')
    redis.call('ZREM', started, member)
    redis.call('DEL', 'rq:execution:' .. member)
    redis.call('ZREM', 'rq:executions:' .. job, execution)
    local scheduled = 'rq:scheduled:' .. queue
    -- RQ says scheduled a moment before it schedules: without the entry the job was running still.
    if hash[1] == 'started'
       or (hash[1] == 'scheduled' and not redis.call('ZSCORE', scheduled, job)) then
      local crash_key = 'engineroom:crashes:' .. job
      crashes = redis.call('INCR', crash_key)
      redis.call('EXPIRE', crash_key, window)
      local retries = tonumber(hash[2] or '') or 0
      local again = requeue == 'Always' or (requeue == 'FollowRetry' and retries > 0)
      if crashes >= threshold then
        outcome = 'poisoned'
      elseif again then
        outcome = 'requeued'
      else
        outcome = 'failed'
      end
      if outcome == 'requeued' then
        local interval = 0
        if requeue == 'FollowRetry' then
          redis.call('HSET', job_key, 'retries_left', retries - 1)
          if hash[3] and hash[3] ~= '' then
            local intervals = cjson.decode(hash[3])
            if type(intervals) == 'table' and #intervals > 0 then
              interval = intervals[math.min(math.max(#intervals - retries, 0) + 1, #intervals)]
            end
          end
        end
        redis.call('HSET', job_key, 'worker_name', '', 'started_at', '', 'ended_at', '')
        redis.call('SADD', 'rq:queues', 'rq:queue:' .. queue)
        if interval > 0 then
          outcome = 'scheduled'
          redis.call('HSET', job_key, 'status', 'scheduled')
          redis.call('ZADD', scheduled, math.floor(now) + interval, job)
        else
          redis.call('HSET', job_key, 'status', 'queued', 'enqueued_at', iso)
          -- It has waited before: to the head.
          redis.call('LPUSH', 'rq:queue:' .. queue, job)
          local ttl = tonumber(hash[4] or '') or 0
          if ttl > 0 then redis.call('EXPIRE', job_key, ttl) end
        end
      else
        local ttl = tonumber(hash[5] or '') or dead_letter_ttl
        redis.call('HSET', job_key, 'status', 'failed', 'ended_at', iso)
        if outcome == 'poisoned' then redis.call('HSET', job_key, 'er_category', 'poison') end
        redis.call('ZADD', 'rq:failed:' .. queue, ttl < 0 and ttl or math.floor(now) + ttl, job)
        local results = 'rq:results:' .. job
        local text = outcome == 'poisoned' and poison or died
        redis.call('XADD', results, 'MAXLEN', 10, '*', 'type', 2, 'worker_name', name,
                   'exc_string', text, 'execution_id', execution, 'execution_ended_at', now)
        if ttl > 0 then
          for _, key in ipairs({job_key, job_key .. ':dependents',
                                'rq:job::' .. job .. ':dependencies', results}) do
            redis.call('EXPIRE', key, ttl)
          end
        end
        redis.call('HINCRBY', 'engineroom:stats:' .. queue, 'failed', 1)
        redis.call('RPUSH', 'engineroom:settle:' .. queue, job)
      end
    end
  end
end

local taken, taken_from = record[5] or '', record[6] or ''
if taken ~= '' and redis.call('LREM', taken_from .. ':intermediate', 1, taken) > 0 then
  if redis.call('HGET', 'rq:job:' .. taken, 'status') == 'queued' then
    redis.call('LPUSH', taken_from, taken)
    outcome, told_job = 'returned', taken
    told_queue = string.gsub(taken_from, '^rq:queue:', '')
  end
end

redis.call('DEL', worker_key, worker_executions, drain_key, 'rq:scheduler:' .. name)
redis.call('SREM', 'rq:workers', worker_key)
redis.call('SREM', pool_workers, name)
for _, each in ipairs(queues) do
  redis.call('SREM', 'rq:workers:' .. each, worker_key)
  -- It may have promoted scheduled jobs: free the lock for another.
  local lock = 'rq:scheduler-lock:' .. each
  if redis.call('GET', lock) == name then redis.call('DEL', lock) end
end
return {outcome, told_job, told_queue, crashes}
"""

#: The same script as the runtime's (engineroom_worker.housekeeping), which imports nothing of ours.
_RETURN_STRAYS = """
local seen, present, returned = {}, {}, {}
local flat = redis.call('HGETALL', KEYS[3])
for at = 1, #flat, 2 do seen[flat[at]] = tonumber(flat[at + 1]) end
for _, job in ipairs(redis.call('LRANGE', KEYS[2], 0, -1)) do
  present[job] = true
  if not seen[job] then
    redis.call('HSET', KEYS[3], job, ARGV[1])
  elseif tonumber(ARGV[1]) - seen[job] >= tonumber(ARGV[2]) then
    local started = false
    for _, member in ipairs(redis.call('ZRANGE', KEYS[4], 0, -1)) do
      if string.sub(member, 1, #job + 1) == job .. ':' then started = true end
    end
    if not started and redis.call('LREM', KEYS[2], 1, job) > 0 then
      redis.call('HDEL', KEYS[3], job)
      redis.call('DEL', KEYS[2] .. ':first_seen:' .. job)
      if redis.call('HGET', ARGV[3] .. job, 'status') == 'queued' then
        redis.call('LPUSH', KEYS[1], job)
        returned[#returned + 1] = job
      end
    end
  end
end
for job in pairs(seen) do
  if not present[job] then redis.call('HDEL', KEYS[3], job) end
end
return returned
"""
