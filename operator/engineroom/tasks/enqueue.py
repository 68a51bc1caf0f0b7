"""Enqueueing: one job in one atomic script, many in transactions of bounded size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engineroom.queue import keys
from engineroom.tasks import dependents
from engineroom.tasks.errors import InvalidTaskError, JobExistsError, TasksUnavailableError
from engineroom.tasks.steps import Batch, Invoke, Script, Steps, text
from engineroom.tasks.task import Encoded, Rules, Task, encode

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

#: Jobs in one transaction; Redis serves nobody else meanwhile, for less than 5 ms.
CHUNK = 250
#: Tasks in one enqueue_many.
MAX_BATCH = 100_000

#: A relay that was killed has to be back within this, or it may write a job again (seconds).
RELAY_WINDOW = 30 * 86400

_QUEUES = "rq:queues"


@dataclass(frozen=True, slots=True)
class Enqueued:
    """The job that does the work: ``created`` is False where an earlier one stood for it."""

    job_id: str
    queue: str
    created: bool = True


def unique_key(key: str) -> str:
    """Holds the id of the job that stands for the work ``key``."""
    return f"engineroom:unique:{key}"


def enqueue_one(task: Task, rules: Rules, now: datetime) -> Steps[Enqueued]:
    """One round trip, all or nothing."""
    job = encode(task, rules, now)
    reply = yield invocation(job)
    return _enqueued(job, reply)


def enqueue_many(tasks: Iterable[Task], rules: Rules, now: datetime) -> Steps[list[Enqueued]]:
    """All are checked before the first is written; each CHUNK is written whole or not at all."""
    jobs: list[Encoded] = []
    named: set[str] = set()
    awaited: dict[str, int] = {}
    for at, task in enumerate(tasks):
        if at >= MAX_BATCH:
            raise InvalidTaskError("tasks", f"more than {MAX_BATCH}", "enqueue them in parts")
        try:
            job = encode(task, rules, now)
        except InvalidTaskError as error:
            error.args = (f"tasks[{at}].{error}",)
            raise
        if job.named:
            if job.job_id in named:
                raise InvalidTaskError(f"tasks[{at}].job_id", "is there twice", "use it once")
            if job.job_id in awaited:
                raise InvalidTaskError(
                    f"tasks[{awaited[job.job_id]}].depends_on",
                    f"names tasks[{at}], which comes later",
                    "put it first; for whatever is more than a list use a flow",
                )
            named.add(job.job_id)
        for parent in job.depends_on:
            awaited.setdefault(parent, at)
        jobs.append(job)

    done: list[Enqueued] = []
    for start in range(0, len(jobs), CHUNK):
        chunk = jobs[start : start + CHUNK]
        commands, answers = _commands(chunk)
        try:
            replies = yield Batch(commands, atomic=True)
        except TasksUnavailableError as error:
            error.done = len(done)
            raise
        for job, answer in zip(chunk, answers, strict=True):
            reply = None if answer is None else replies[answer]
            done.append(_enqueued(job, reply, refuse=False))
    return done


def invocation(job: Encoded, relay_window: int | None = None) -> Invoke:
    """The script that writes one job; with a window, by a relay that may have done so before."""
    if job.depends_on:
        unique = "" if job.unique is None else unique_key(job.unique.key)
        mark = None if relay_window is None else (relayed_key(job.job_id), relay_window)
        return dependents.invocation([job], job.unique, unique, mark)
    marks = [] if relay_window is None else [relayed_key(job.job_id)]
    return Invoke(_ENQUEUE, [*_keys(job), *marks], _arguments(job, relay_window))


def relay(jobs: Sequence[Encoded]) -> Steps[list[Enqueued]]:
    """Write jobs that may have been written before: each id once within RELAY_WINDOW."""
    scripts = [invocation(job, RELAY_WINDOW) for job in jobs]
    commands = [each.script.words(each.keys, each.arguments) for each in scripts]
    replies = yield Batch(commands)
    return [_enqueued(job, reply, refuse=False) for job, reply in zip(jobs, replies, strict=True)]


def relayed_key(job_id: str) -> str:
    """Exists once the job has been written by a relay."""
    return f"engineroom:relayed:{job_id}"


def _commands(jobs: Sequence[Encoded]) -> tuple[list[Sequence[Any]], list[int | None]]:
    """Commands for the jobs in order, and for each job the number of the reply that tells of it."""
    commands: list[Sequence[Any]] = []
    answers: list[int | None] = []
    waiting: list[Any] = []
    queues = {keys.queue(job.queue) for job in jobs}
    commands.append(["SADD", _QUEUES, *sorted(queues)])

    def push() -> None:
        if waiting:
            commands.append(list(waiting))
            waiting.clear()

    for job in jobs:
        if (
            job.unique is not None
            or job.named
            or job.due is not None
            or job.at_front
            or job.depends_on
        ):
            push()
            answers.append(len(commands))
            one = invocation(job)
            commands.append(one.script.words(one.keys, one.arguments))
            continue
        answers.append(None)
        key = keys.job(job.job_id)
        commands.append(["HSET", key, *job.fields])
        if job.ttl is not None:
            commands.append(["EXPIRE", key, job.ttl])
        if not waiting or waiting[1] != keys.queue(job.queue):
            push()
            waiting += ["RPUSH", keys.queue(job.queue)]
        waiting.append(job.job_id)
    push()
    return commands, answers


def _keys(job: Encoded) -> list[str]:
    named = [
        keys.job(job.job_id), keys.queue(job.queue), keys.scheduled(job.queue), _QUEUES,
    ]  # fmt: skip
    named.append(unique_key(job.unique.key) if job.unique is not None else "")
    return named


def _arguments(job: Encoded, relay_window: int | None = None) -> list[Any]:
    unique = job.unique
    return [
        job.job_id,
        "" if job.due is None else repr(job.due),
        "LPUSH" if job.at_front else "RPUSH",
        job.ttl or "",
        "1" if job.named else "",
        unique.until if unique is not None else "",
        max(1, round(unique.window * 1000)) if unique is not None else "",
        relay_window or "",
        *job.fields,
    ]


def _enqueued(job: Encoded, reply: Any, *, refuse: bool = True) -> Enqueued:
    if reply is None:
        return Enqueued(job.job_id, job.queue)
    verdict, first, queue = reply
    if verdict == 3:
        if refuse:
            raise dependents.parent_canceled(reply)
        return Enqueued(job.job_id, job.queue, created=False)
    if verdict == 2 and refuse:
        raise JobExistsError(f"job_id: {job.job_id} exists; use another id, or a unique key")
    return Enqueued(text(first), text(queue), created=verdict == 1)


#: KEYS: job, waiting list, scheduled set, set of queues, unique key or ''[, relay's mark].
#: ARGV: id, due or '', push command, ttl, named, until, window in ms, relay's window, the hash.
#: Returns {verdict, id, queue}: 1 written, 0 an earlier job stands for the work, 2 the named job
#: exists.
_ENQUEUE = Script("""
local job, list, scheduled, queues, unique, mark = unpack(KEYS)
local id, due, push, ttl, named = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local queue = string.sub(list, 10)
if mark and not redis.call('SET', mark, '1', 'NX', 'EX', ARGV[8]) then return {0, id, queue} end
if unique ~= '' then
  local first = redis.call('GET', unique)
  if first then
    local state = redis.call('HMGET', 'rq:job:' .. first, 'status', 'origin')
    local status = state[1]
    local ended = not status or status == 'finished' or status == 'failed'
                  or status == 'stopped' or status == 'canceled'
    if ARGV[6] == 'window' or not ended then return {0, first, state[2] or queue} end
  end
end
if named ~= '' and redis.call('EXISTS', job) == 1 then return {2, id, queue} end
redis.call('HSET', job, unpack(ARGV, 9))
-- A time to live is for waiting: of what is put off, RQ sets it when its time has come.
if ttl ~= '' and due == '' then redis.call('EXPIRE', job, ttl) end
redis.call('SADD', queues, list)
if due == '' then redis.call(push, list, id) else redis.call('ZADD', scheduled, due, id) end
if unique ~= '' then redis.call('SET', unique, id, 'PX', ARGV[7]) end
return {1, id, queue}
""")
