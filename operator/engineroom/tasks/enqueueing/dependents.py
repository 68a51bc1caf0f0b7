"""Dependent jobs in RQ's form, written and cancelled by scripts.

In RQ a dependent job is *deferred*. Each of its dependencies has the job's id in its set of
dependents, and the job has theirs in its set of dependencies. The worker that runs the last
dependency, ours or a stock RQ worker, puts the job on its queue.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engineroom.core.errors import JobMissingError
from engineroom.core.redis_replies import text
from engineroom.queue import keys
from engineroom.queue.priority import PUT
from engineroom.tasks.errors import JobEndedError, ParentCanceledError
from engineroom.tasks.redis_steps import BatchStep, LuaScript, ScriptStep, Steps

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

    from engineroom.tasks.enqueueing.encode import EncodedJob
    from engineroom.tasks.enqueueing.task import Unique

#: Jobs that one step cancels; a step blocks Redis for less than 5 ms.
STEP = 50
#: Dependents that one round trip reads.
_SCAN = 500


@dataclass(frozen=True, slots=True)
class EncodedFlow:
    """A flow ready to be written: its jobs, parents first."""

    flow_id: str
    jobs: Sequence[EncodedJob]
    unique: Unique | None = None


@dataclass(frozen=True, slots=True)
class Canceled:
    """The result of ``cancel``: ids of the cancelled jobs, and of those that already run.

    ``running`` includes jobs with RQ's own rate limit, which only RQ can remove. ``skipped`` holds
    dependents on queues that the caller excluded; they never run.
    """

    canceled: tuple[str, ...]
    running: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()


def invocation(
    jobs: Sequence[EncodedJob],
    unique: Unique | None = None,
    unique_key: str = "",
    mark: tuple[str, int] | None = None,
) -> ScriptStep:
    """Return the script invocation that writes all of the dependent jobs or none.

    ``unique`` applies to all of them, and the last job holds its key. ``mark`` is a relay's key and
    its window in seconds.
    """
    arguments: list[Any] = [
        unique.until if unique is not None else "",
        max(1, round(unique.window * 1000)) if unique is not None else "",
        mark[1] if mark is not None else "",
        len(jobs),
    ]
    for job in jobs:
        fields = [*job.fields, *key_fields(unique, unique_key)] if job is jobs[-1] else job.fields
        arguments += [
            job.job_id,
            job.queue,
            "" if job.due is None else repr(job.due),
            "LPUSH" if job.at_front else "",
            job.priority,
            job.ttl or "",
            "1" if job.named else "",
            "1" if job.allow_failure else "",
            len(job.depends_on),
            *job.depends_on,
            len(fields),
            *fields,
        ]
    return ScriptStep(_WRITE, ["rq:queues", unique_key, mark[0] if mark else ""], arguments)


def key_fields(unique: Unique | None, unique_key: str) -> list[str]:
    """Return the fields with which requeueing finds the unique key of a failed job.

    They are needed only for ``until="end"``, where another job may hold the key by then.
    """
    return ["er_unique", unique_key] if unique is not None and unique.until == "end" else []


def parent_canceled(reply: Sequence[Any]) -> ParentCanceledError:
    """Return the error for the script's status 3."""
    return ParentCanceledError(
        f"depends_on: job {text(reply[1])} is {text(reply[2])} and never finishes; leave it out"
    )


def cancel(
    job_id: str, now: datetime, *, stop: bool = False, queues: Collection[str] | None = None
) -> Steps[Canceled]:
    """Cancel the job and, step by step, all its dependents; see Tasks.cancel.

    With ``queues``, jobs on other queues and their dependents stay unchanged. RQ never starts a
    dependent of a cancelled job, so none of them runs after the first step. If a call is killed,
    the same call cancels the rest.
    """
    outcomes = yield from _cascade([job_id], now, stop=stop, queues=queues)
    if outcomes[job_id] in ("gone", "foreign"):
        raise JobMissingError(f"job_id: no job {job_id[:50]!r}; see the list of jobs")
    if outcomes[job_id] == "finished":
        raise JobEndedError(f"job_id: {job_id} has finished; nothing is left to cancel")
    canceled, running, skipped = (
        tuple(job for job, outcome in outcomes.items() if outcome == wanted)
        for wanted in ("canceled", "running", "foreign")
    )
    return Canceled(canceled, running, skipped)


def cancel_dependents(job_id: str, now: datetime) -> Steps[None]:
    """Cancel all dependents of the job, but not the job itself."""
    waiting = yield from _dependents(job_id)
    yield from _cascade(waiting, now, stop=False)


def _cascade(
    waiting: list[str], now: datetime, *, stop: bool, queues: Collection[str] | None = None
) -> Steps[dict[str, str]]:
    """Cancel jobs and their dependents, breadth first; return ``_CANCEL``'s outcome for each."""
    outcomes: dict[str, str] = {}
    visited = set(waiting)
    allowed = [""] if queues is None else [str(len(queues)), *queues]
    while waiting:
        step = waiting[:STEP]
        rows = yield ScriptStep(_CANCEL, [], [repr(now.timestamp()), *allowed, *step])
        # On a long queue the script handles one job at a time.
        waiting = waiting[len(rows) :]
        stops: list[list[Any]] = []
        for job_id, row in zip(step, rows, strict=False):
            outcomes[job_id], worker = text(row[0]), text(row[1])
            if outcomes[job_id] == "running" and stop and worker:
                command = json.dumps({"command": "stop-job", "job_id": job_id})
                stops.append(["PUBLISH", keys.worker_channel(worker), command])
        if stops:
            yield BatchStep(stops)
        for job_id in step[: len(rows)]:
            # Including jobs that were cancelled before: that call may have been killed.
            if outcomes[job_id] not in ("gone", "finished", "foreign"):
                children = yield from _dependents(job_id)
                waiting += [child for child in children if child not in visited]
                visited.update(children)
    return outcomes


def _dependents(job_id: str) -> Steps[list[str]]:
    job_ids: dict[str, None] = {}
    cursor: Any = 0
    while True:
        key = f"{keys.job(job_id)}:dependents"
        [(cursor, members)] = yield BatchStep([["SSCAN", key, cursor, "COUNT", _SCAN]])
        job_ids.update(dict.fromkeys(map(text, members)))
        if not int(cursor):
            return list(job_ids)


#: Lua: ``wrong_type(key, expected)`` returns an error reply if the key exists with another type,
#: else false.
WRONG_TYPE = """
local function wrong_type(key, expected)
  local actual = redis.call('TYPE', key).ok
  if actual == 'none' or actual == expected then return false end
  return redis.error_reply('WRONGTYPE ' .. key .. ' is a ' .. actual .. ' and no ' .. expected)
end
"""

#: KEYS: set of queues, unique key or '', relay's mark or ''. ARGV: until, window in ms, relay's
#: window, number of jobs, then for each: id, queue, due or '', LPUSH or '', priority, ttl, named,
#: allow failure, number of parents, their ids, number of words of its hash, and those.
#: Returns {status, id, queue}: 1 written, 0 an earlier job holds the unique key, 2 the named job
#: exists, or a relay wrote it before, 3 the dependency with this id is cancelled or stopped (its
#: status replaces the queue). A relay, whose transaction has committed, writes such a job cancelled
#: and returns 4. A dependency that no longer exists counts as finished, as in RQ.
_WRITE = LuaScript(
    PUT
    + WRONG_TYPE
    + """
local queues, unique, mark = unpack(KEYS)
local count, jobs, among, at = tonumber(ARGV[4]), {}, {}, 5
local now = redis.call('TIME')[1]
for number = 1, count do
  local job = {id = ARGV[at], queue = ARGV[at + 1], due = ARGV[at + 2], push = ARGV[at + 3],
               priority = ARGV[at + 4], ttl = ARGV[at + 5], named = ARGV[at + 6],
               allow = ARGV[at + 7], parents = {}}
  local parents = tonumber(ARGV[at + 8])
  for parent = 1, parents do job.parents[parent] = ARGV[at + 8 + parent] end
  at = at + 9 + parents
  job.first, job.last = at + 1, at + tonumber(ARGV[at])
  at = job.last + 1
  jobs[number], among[job.id] = job, true
end
local last = jobs[count]
if mark ~= '' then
  if redis.call('EXISTS', mark) == 1 then return {2, last.id, last.queue} end
  -- Check all keys first: Redis must not refuse a flow that is half written.
  local problem = wrong_type(queues, 'set')
  for _, job in ipairs(jobs) do
    local key = 'rq:job:' .. job.id
    problem = problem or wrong_type(key, 'hash') or wrong_type('rq:queue:' .. job.queue, 'list')
              or wrong_type('rq:job::' .. job.id .. ':dependencies', 'set')
    for _, state in ipairs({'scheduled', 'deferred', 'canceled'}) do
      problem = problem or wrong_type('rq:' .. state .. ':' .. job.queue, 'zset')
    end
    for _, parent in ipairs(job.parents) do
      problem = problem or wrong_type('rq:job:' .. parent, 'hash')
                or wrong_type('rq:job:' .. parent .. ':dependents', 'set')
    end
  end
  if problem then return problem end
end
if unique ~= '' then
  local first = redis.call('GET', unique)
  if first then
    local state = redis.call('HMGET', 'rq:job:' .. first, 'status', 'origin')
    local status = state[1]
    local ended = not status or status == 'finished' or status == 'failed'
                  or status == 'stopped' or status == 'canceled'
    if ARGV[1] == 'window' or not ended then
      if mark ~= '' then redis.call('SET', mark, '1', 'EX', ARGV[3]) end
      return {0, first, state[2] or last.queue}
    end
  end
end
local states, result = {}, 1
for _, job in ipairs(jobs) do
  if job.named ~= '' and redis.call('EXISTS', 'rq:job:' .. job.id) == 1 then
    if mark ~= '' then redis.call('SET', mark, '1', 'EX', ARGV[3]) end
    return {2, job.id, job.queue}
  end
  for _, parent in ipairs(job.parents) do
    if not among[parent] and states[parent] == nil then
      local status = redis.call('HGET', 'rq:job:' .. parent, 'status') or 'finished'
      if (status == 'canceled' or status == 'stopped') and mark == '' then
        return {3, parent, status}
      end
      states[parent] = status
    end
  end
end
for _, job in ipairs(jobs) do
  local key, list = 'rq:job:' .. job.id, 'rq:queue:' .. job.queue
  local waits, dead = false, false
  for _, parent in ipairs(job.parents) do
    local status = states[parent]
    local met = status == 'finished' or (status == 'failed' and job.allow ~= '')
    waits = waits or not met
    dead = dead or status == 'canceled' or status == 'stopped'
  end
  redis.call('HSET', key, unpack(ARGV, job.first, job.last))
  redis.call('SADD', queues, list)
  if dead then
    -- Parents come before their children in this list.
    states[job.id], result = 'canceled', 4
    redis.call('HSET', key, 'status', 'canceled')
    redis.call('HDEL', key, 'enqueued_at')
    redis.call('ZADD', 'rq:canceled:' .. job.queue, now, job.id)
  elseif waits then
    redis.call('HSET', key, 'status', 'deferred')
    redis.call('HDEL', key, 'enqueued_at')
    redis.call('ZADD', 'rq:deferred:' .. job.queue, now, job.id)
    for _, parent in ipairs(job.parents) do
      redis.call('SADD', 'rq:job:' .. parent .. ':dependents', job.id)
      -- RQ's own name has two colons.
      redis.call('SADD', 'rq:job::' .. job.id .. ':dependencies', parent)
    end
  elseif job.due ~= '' then
    redis.call('ZADD', 'rq:scheduled:' .. job.queue, job.due, job.id)
  else
    -- The time to live bounds the wait on the queue: RQ sets it for deferred jobs later.
    if job.ttl ~= '' then redis.call('EXPIRE', key, job.ttl) end
    if job.push ~= '' then
      redis.call(job.push, list, job.id)
    else
      put(list, job.id, job.priority, redis.call('HGET', key, 'enqueued_at'))
    end
  end
end
if unique ~= '' then redis.call('SET', unique, last.id, 'PX', ARGV[2]) end
if mark ~= '' then redis.call('SET', mark, '1', 'EX', ARGV[3]) end
return {result, last.id, last.queue}
"""
)

#: ARGV: time, number of allowed queues or '' for all, their names, then job ids. Returns {outcome,
#: worker} for each job that it reached: canceled (now or before), running, finished, gone, or
#: foreign (on a queue that is not allowed). Searching a long queue is slow, so the script stops
#: after such a job.
_CANCEL = LuaScript("""
local now, rows, allowed, first = ARGV[1], {}, false, 3
if ARGV[2] ~= '' then
  allowed, first = {}, 3 + ARGV[2]
  for at = 3, first - 1 do allowed[ARGV[at]] = true end
end
for at = first, #ARGV do
  local id = ARGV[at]
  local job, long = 'rq:job:' .. id, false
  local hash = redis.call('HMGET', job, 'status', 'origin', 'worker_name', 'rate_limit_key')
  local status, queue = hash[1], hash[2] or ''
  local limited = hash[4] and hash[4] ~= '' and status ~= 'deferred'
  local outcome = 'canceled'
  if not status then
    outcome = 'gone'
  elseif allowed and not allowed[queue] then
    outcome = 'foreign'
  elseif status == 'finished' then
    outcome = status
  elseif status == 'started' or (limited and status ~= 'canceled') then
    outcome = 'running'
  elseif status ~= 'canceled' then
    if status == 'queued' then
      local list = 'rq:queue:' .. queue
      long = redis.call('LLEN', list) > 10000
      redis.call('LREM', list, 1, id)
      redis.call('LREM', list .. ':intermediate', 1, id)
    elseif status == 'failed' or status == 'stopped' then
      redis.call('ZREM', 'rq:failed:' .. queue, id)
    elseif status == 'ready_to_enqueue' then
      redis.call('ZREM', 'rq:ready:' .. queue, id)
    else
      redis.call('ZREM', 'rq:' .. status .. ':' .. queue, id)
    end
    redis.call('HSET', job, 'status', 'canceled')
    redis.call('ZADD', 'rq:canceled:' .. queue, now, id)
  end
  rows[#rows + 1] = {outcome, hash[3] or ''}
  if long then break end
end
return rows
""")
