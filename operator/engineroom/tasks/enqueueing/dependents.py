"""Jobs that wait for jobs, as RQ keeps them, written and cancelled by scripts.

RQ's form: such a job is *deferred*; its id stands in the set of dependents of each job that it
waits for, and theirs in its set of dependencies. Whoever runs the last of them, any worker of RQ,
puts it on its queue.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engineroom.core.errors import JobMissingError
from engineroom.queue import keys
from engineroom.queue.priority import PUT
from engineroom.tasks.errors import JobEndedError, ParentCanceledError
from engineroom.tasks.redis_steps import Batch, Invoke, Script, Steps, text

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

    from engineroom.tasks.enqueueing.task import Encoded, Unique

#: Jobs that are cancelled in one step; Redis serves nobody else meanwhile, below 5 ms.
STEP = 50
#: Dependents that are asked for in one round trip.
_SCAN = 500


@dataclass(frozen=True, slots=True)
class EncodedFlow:
    """A flow ready to be written: its jobs, parents first."""

    flow_id: str
    jobs: Sequence[Encoded]
    unique: Unique | None = None


@dataclass(frozen=True, slots=True)
class Canceled:
    """What ``cancel`` did: ids of the jobs that will not run, and of those that run already.

    ``running`` also holds jobs with a rate limit of RQ, which only RQ itself can take out. Those in
    ``skipped`` are of queues that were not to be touched; they wait in vain.
    """

    canceled: tuple[str, ...]
    running: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()


def invocation(
    jobs: Sequence[Encoded],
    unique: Unique | None = None,
    unique_key: str = "",
    mark: tuple[str, int] | None = None,
) -> Invoke:
    """The script that writes jobs which wait for each other, or for others, all or none of them.

    ``unique`` stands for all of them, by the last one. ``mark`` is a relay's, with its window.
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
    return Invoke(_WRITE, ["rq:queues", unique_key, mark[0] if mark else ""], arguments)


def key_fields(unique: Unique | None, unique_key: str) -> list[str]:
    """In the hash of the job that stands for the work, for whoever puts it back when it has failed.

    Until the window is over nobody else gets the key; until the end others may have it by then.
    """
    return ["er_unique", unique_key] if unique is not None and unique.until == "end" else []


def parent_canceled(reply: Sequence[Any]) -> ParentCanceledError:
    """The error of the script's verdict 3."""
    return ParentCanceledError(
        f"depends_on: job {text(reply[1])} is {text(reply[2])} and never finishes; leave it out"
    )


def cancel(
    job_id: str, now: datetime, *, stop: bool = False, queues: Collection[str] | None = None
) -> Steps[Canceled]:
    """Cancel the job and, step by step, all that hangs on it; see Tasks.cancel.

    With ``queues`` jobs of other queues, and what hangs on them, stay as they are.
    Nothing of it runs once the first step is done: RQ starts no dependent of a cancelled job. So
    whoever was killed in between left jobs that wait in vain, and the same call takes them too.
    """
    found = yield from _cascade([job_id], now, stop=stop, queues=queues)
    if found[job_id] in ("gone", "foreign"):
        raise JobMissingError(f"job_id: no job {job_id[:50]!r}; see the list of jobs")
    if found[job_id] == "finished":
        raise JobEndedError(f"job_id: {job_id} has finished; nothing is left to cancel")
    canceled, running, skipped = (
        tuple(each for each, verdict in found.items() if verdict == wanted)
        for wanted in ("canceled", "running", "foreign")
    )
    return Canceled(canceled, running, skipped)


def cancel_dependents(job_id: str, now: datetime) -> Steps[None]:
    """Cancel all that hangs on the job, and not the job itself."""
    waiting = yield from _dependents(job_id)
    yield from _cascade(waiting, now, stop=False)


def _cascade(
    waiting: list[str], now: datetime, *, stop: bool, queues: Collection[str] | None = None
) -> Steps[dict[str, str]]:
    """Cancel jobs and what hangs on them, breadth first; the verdict of ``_CANCEL`` on each."""
    found: dict[str, str] = {}
    seen = set(waiting)
    allowed = [""] if queues is None else [str(len(queues)), *queues]
    while waiting:
        step = waiting[:STEP]
        rows = yield Invoke(_CANCEL, [], [repr(now.timestamp()), *allowed, *step])
        # It says what it did: beside a long queue it does one job at a time.
        waiting = waiting[len(rows) :]
        stops: list[list[Any]] = []
        for each, row in zip(step, rows, strict=False):
            found[each], worker = text(row[0]), text(row[1])
            if found[each] == "running" and stop and worker:
                command = json.dumps({"command": "stop-job", "job_id": each})
                stops.append(["PUBLISH", keys.worker_channel(worker), command])
        if stops:
            yield Batch(stops)
        for each in step[: len(rows)]:
            # Through those that were cancelled before, too: whoever did that may have been killed.
            if found[each] not in ("gone", "finished", "foreign"):
                children = yield from _dependents(each)
                waiting += [child for child in children if child not in seen]
                seen.update(children)
    return found


def _dependents(job_id: str) -> Steps[list[str]]:
    found: dict[str, None] = {}
    cursor: Any = 0
    while True:
        key = f"{keys.job(job_id)}:dependents"
        [(cursor, members)] = yield Batch([["SSCAN", key, cursor, "COUNT", _SCAN]])
        found.update(dict.fromkeys(map(text, members)))
        if not int(cursor):
            return list(found)


#: Lua: ``unfit(key, kind)`` is an error if the key is there and of another kind, else false.
UNFIT = """
local function unfit(key, kind)
  local found = redis.call('TYPE', key).ok
  if found == 'none' or found == kind then return false end
  return redis.error_reply('WRONGTYPE ' .. key .. ' is a ' .. found .. ' and no ' .. kind)
end
"""

#: KEYS: set of queues, unique key or '', relay's mark or ''. ARGV: until, window in ms, relay's
#: window, number of jobs, then for each: id, queue, due or '', LPUSH or '', priority, ttl, named,
#: allow failure, number of parents, their ids, number of words of its hash, and those.
#: Returns {verdict, id, queue}: 1 written, 0 earlier ones stand for the work, 2 the named job
#: exists, 3 a parent (the id) is cancelled or stopped (instead of the queue); a relay, whose
#: transaction has committed, then writes the job cancelled, verdict 4. Of a parent that is gone RQ
#: says that it has finished, and so is it here. 2 is also what a relay has written before.
_WRITE = Script(
    PUT
    + UNFIT
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
  -- Half of a flow must not be written before the other half is refused.
  local problem = unfit(queues, 'set')
  for _, job in ipairs(jobs) do
    local key = 'rq:job:' .. job.id
    problem = problem or unfit(key, 'hash') or unfit('rq:queue:' .. job.queue, 'list')
              or unfit('rq:job::' .. job.id .. ':dependencies', 'set')
    for _, state in ipairs({'scheduled', 'deferred', 'canceled'}) do
      problem = problem or unfit('rq:' .. state .. ':' .. job.queue, 'zset')
    end
    for _, parent in ipairs(job.parents) do
      problem = problem or unfit('rq:job:' .. parent, 'hash')
                or unfit('rq:job:' .. parent .. ':dependents', 'set')
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
local states, verdict = {}, 1
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
    -- Parents come before their children here.
    states[job.id], verdict = 'canceled', 4
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
    -- A time to live is for waiting on the queue: for what is deferred RQ sets it later.
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
return {verdict, last.id, last.queue}
"""
)

#: ARGV: the time, the number of queues that may be touched or '' for all, those, then ids. Returns
#: for each, as far as it got, {verdict, worker}: canceled (now or before), running, finished, gone
#: or foreign. Finding a job in a long queue takes long: after one such it
#: stops.
_CANCEL = Script("""
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
  local verdict = 'canceled'
  if not status then
    verdict = 'gone'
  elseif allowed and not allowed[queue] then
    verdict = 'foreign'
  elseif status == 'finished' then
    verdict = status
  elseif status == 'started' or (limited and status ~= 'canceled') then
    verdict = 'running'
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
  rows[#rows + 1] = {verdict, hash[3] or ''}
  if long then break end
end
return rows
""")
