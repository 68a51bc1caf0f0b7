"""Recovery of the jobs of dead workers.

The operator calls ``recover`` for a worker that it has found dead. One script decides and writes
everything, after a check that the worker is still silent and still holds the job. A second
operator, a worker that returns, and RQ's own maintenance therefore either find the job settled or
settle it themselves, but never both:

- A worker holds a started job by its entry in the registry of started jobs; removing the entry is
  the right to decide.
- RQ's maintenance handles expired entries in several steps. The script therefore first renews an
  expired entry, which hides it from RQ, and decides only after any process that had read the entry
  must have finished. Until then ``recover`` returns DEFERRED.
- A job that was taken and not started has an entry in its queue's intermediate list. The entry is
  the right to start the job, so putting the job back takes that right from a worker that is slow.

The operator runs no users' code and reads no payload: the next living worker runs failure
callbacks, dependents and webhooks of a failed job, and releases its rate-limit slot
(``keys.settle``).
"""

from __future__ import annotations

import zlib
from base64 import b64encode
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, cast

from engineroom.core.redis_replies import text
from engineroom.queue import keys

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from redis.asyncio import Redis

#: Time between the renewal of an expired entry and the decision (seconds).
SETTLING_SECONDS = 2
#: Time after which a job that was taken and not started is put back (seconds).
STRAY_SECONDS = 15

_RENEWAL_SECONDS = 100


class RecoveryAction(StrEnum):
    """The result of ``recover``."""

    ALIVE = "alive"  # the worker has sent a heartbeat since: nothing was done
    DEFERRED = "deferred"  # observe again, and call again after SETTLING_SECONDS
    NOTHING = "nothing"  # it held no job
    SETTLED = "settled"  # its job had ended, or another process had settled it
    RETURNED = "returned"  # taken and not started: back at the head of its queue
    REQUEUED = "requeued"
    SCHEDULED = "scheduled"  # its Retry has an interval
    FAILED = "failed"
    POISONED = "poisoned"  # crashed too many workers: failed, regardless of its Retry


#: The actions that decided a job's outcome.
DECISIVE = frozenset(
    {
        RecoveryAction.RETURNED,
        RecoveryAction.REQUEUED,
        RecoveryAction.SCHEDULED,
        RecoveryAction.FAILED,
        RecoveryAction.POISONED,
    }
)


@dataclass(frozen=True, slots=True)
class DeadWorker:
    """A dead worker, as the operator last read it.

    ``heartbeat`` is in Unix seconds, None if the record has expired. ``why`` is the evidence of the
    death, as a part of a sentence. The script itself reads which job the worker held.
    """

    name: str
    pool: str
    heartbeat: float | None
    queues: tuple[str, ...]
    why: str = "its pod is gone"

    @property
    def pod(self) -> str:
        """The pod's name, which is the first part of the worker's name."""
        return self.name.rsplit(".", 2)[0]


@dataclass(frozen=True, slots=True)
class RecoveryPolicy:
    """The pool's ``recovery`` and ``deadLetter``; durations in seconds.

    ``requeue_orphans`` is a value of the spec: FollowRetry, Always or Never.
    """

    requeue_orphans: str = "FollowRetry"
    poison_threshold: int = 3
    poison_window: float = 72 * 3600
    dead_letter_ttl: float = 30 * 86400


@dataclass(frozen=True, slots=True)
class RecoveryOutcome:
    """The result of a recovery; ``job`` and ``queue`` are empty unless the action is DECISIVE.

    ``crashes`` counts the workers that the job has crashed within the poison window.
    """

    action: RecoveryAction
    job: str = ""
    queue: str = ""
    crashes: int = 0


async def recover(
    redis: Redis, worker: DeadWorker, policy: RecoveryPolicy, at: float
) -> RecoveryOutcome:
    """Settle the job of a dead worker and remove the worker; ``at`` is the time in Unix seconds.

    Idempotent, also for concurrent callers.
    """
    held_job = ("", "", "")
    if worker.heartbeat is None:
        held_job = await _find_held_job(redis, worker)
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
            _compress(died),
            _compress(poison),
            *held_job,
            _RENEWAL_SECONDS,
            SETTLING_SECONDS,
            *worker.queues,
        ),
    )
    action = RecoveryAction(text(reply[0]))
    if action not in DECISIVE:
        return RecoveryOutcome(action)
    return RecoveryOutcome(action, text(reply[1]), text(reply[2]), int(reply[3]))


async def return_strays(
    redis: Redis, queues: Sequence[str], at: float, age: float = STRAY_SECONDS
) -> dict[str, list[str]]:
    """Put back jobs that were taken and not started for ``age`` seconds; return ids by queue.

    This finds jobs of workers that died before they could record the job. Call it repeatedly: the
    first call that sees an entry starts its age.
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
            returned[name] = [text(job_id) for job_id in reply]
    return returned


async def _find_held_job(redis: Redis, worker: DeadWorker) -> tuple[str, str, str]:
    """Return job, execution and queue of a worker without a record, from the started jobs."""
    for name in worker.queues:
        members = [text(member) for member in await redis.zrange(keys.started(name), 0, -1)]
        async with redis.pipeline(transaction=False) as pipeline:
            for member in members:
                pipeline.hget(keys.job(member.rpartition(":")[0]), "worker_name")
            names = await pipeline.execute() if members else []
        for member, holder in zip(members, names, strict=True):
            if text(holder) == worker.name:
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
    """Return the time as RQ writes it; a float preserves its microseconds."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _compress(text: str) -> str:
    """Return the text as RQ stores an exception in a result."""
    return b64encode(zlib.compress(text.encode())).decode()


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
-- The record has expired since: the operator has to find the held job another way.
if not record[1] and expected ~= '' then return {'deferred', '', '', 0} end
local job, execution, queue = ARGV[11], ARGV[12], ARGV[13]
if record[1] then job, execution, queue = record[2] or '', record[3] or '', record[4] or '' end
if record[7] then
  for queue_name in string.gmatch(record[7], '[^,]+') do queues[#queues + 1] = queue_name end
end

-- Release the slot of the job's limit.
local function free_slot(job_key, id)
  local limit = redis.call('HGET', job_key, 'er_limit')
  if not limit then return end
  redis.call('ZREM', 'engineroom:slots:' .. limit, id)
  for _, holding in ipairs(redis.call('SMEMBERS', 'engineroom:holding:' .. limit)) do
    redis.call('ZADD', 'engineroom:limited:' .. holding, 'XX', 0, limit)
  end
end

local outcome, crashes = 'nothing', 0
local result_job, result_queue = job, queue

if job ~= '' then
  local job_key, started = 'rq:job:' .. job, 'rq:wip:' .. queue
  local member = job .. ':' .. execution
  local score = redis.call('ZSCORE', started, member)
  outcome = 'settled'
  if score then
    local left = (tonumber(score) or now + 60) - now
    if left < 5 then
      -- A worker that runs RQ's maintenance may have read the entry: hide it, and decide later.
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
    free_slot(job_key, job)
    local scheduled = 'rq:scheduled:' .. queue
    -- RQ writes this status before it schedules the job: without the entry, the job was running.
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
          -- The job has waited before, so it goes to the head.
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
  free_slot('rq:job:' .. taken, taken)
  if redis.call('HGET', 'rq:job:' .. taken, 'status') == 'queued' then
    redis.call('LPUSH', taken_from, taken)
    outcome, result_job = 'returned', taken
    result_queue = string.gsub(taken_from, '^rq:queue:', '')
  end
end

redis.call('DEL', worker_key, worker_executions, drain_key, 'rq:scheduler:' .. name)
redis.call('SREM', 'rq:workers', worker_key)
redis.call('SREM', pool_workers, name)
for _, queue_name in ipairs(queues) do
  redis.call('SREM', 'rq:workers:' .. queue_name, worker_key)
  -- Release the scheduler lock, which the worker may have held.
  local lock = 'rq:scheduler-lock:' .. queue_name
  if redis.call('GET', lock) == name then redis.call('DEL', lock) end
end
return {outcome, result_job, result_queue, crashes}
"""

#: A copy of the script in ``engineroom_worker.housekeeping``, which must not import ``engineroom``.
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
