"""Enqueueing one job by an atomic script, and many jobs in transactions of bounded size."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from redis.exceptions import ResponseError

from engineroom.core import key_prefixes, tracing
from engineroom.core.redis_replies import text
from engineroom.queue import keys
from engineroom.queue.priority import PUT, WALK
from engineroom.tasks.enqueueing import dependents
from engineroom.tasks.enqueueing.encode import EncodedJob, encode, size
from engineroom.tasks.errors import InvalidTaskError, JobExistsError, TasksUnavailableError
from engineroom.tasks.redis_steps import BatchStep, LuaScript, ScriptStep, Steps, YieldStep
from engineroom.tasks.type_checks import check_type

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from engineroom.tasks.enqueueing.task import EnqueueRules, Task

#: Jobs in one transaction, which blocks Redis for less than 5 ms.
CHUNK = 250
#: Jobs with a priority in one transaction, which share its limit of list entries to walk over.
URGENT_CHUNK = 10
#: Bytes of the jobs in one transaction, which Redis buffers. A single job may be larger.
CHUNK_BYTES = 1 << 20
#: Tasks that are serialised before other coroutines run: each takes about 50 us, a task of a
#: mebibyte 10 ms.
TURN = 10
#: Tasks in one enqueue_many.
MAX_BATCH = 100_000

#: A killed relay has to restart within this time, or it may write a job a second time (seconds).
RELAY_WINDOW = 30 * 86400

_QUEUES = "rq:queues"


class Reason(StrEnum):
    """The reason why ``enqueue`` returned this job."""

    CREATED = "created"
    #: An earlier job holds the ``unique`` key and does the work.
    UNIQUE = "unique"
    #: A job with this id exists; it is unchanged.
    EXISTS = "exists"
    #: A dependency is cancelled or stopped, so the job can never run. ``enqueue_many`` does not
    #: write it; a relay writes it cancelled, because its transaction has committed.
    PARENT_CANCELED = "parent canceled"


@dataclass(frozen=True, slots=True)
class Enqueued:
    """The result of enqueueing a task.

    ``created`` is True if this call created the job. Otherwise ``reason`` says why it did not, and
    ``job_id`` is the id of the job that does the work, or of the job that was not created.
    """

    job_id: str
    queue: str
    reason: Reason = Reason.CREATED
    created: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "created", self.reason is Reason.CREATED)


def unique_key(key: str) -> str:
    """Return the Redis key that holds the id of the job with the unique key ``key``."""
    # Concatenated: an f-string would format a member of a StrEnum as its name.
    return key_prefixes.UNIQUE + key


def enqueue_one(task: Task, rules: EnqueueRules, now: datetime) -> Steps[Enqueued]:
    """Enqueue one job in one round trip, whole or not at all."""
    with tracing.span("enqueue", kind="producer", messaging__destination__name=task.queue) as span:
        job = encode(task, rules, now)
        span.note(messaging__message__id=job.job_id)
        reply = yield invocation(job)
        return _read_reply(job, reply)


def enqueue_many(
    tasks: Iterable[Task], rules: EnqueueRules, now: datetime
) -> Steps[list[Enqueued]]:
    """Check all tasks, then write them in chunks, each of them whole or not at all."""
    with tracing.span("enqueue many", kind="producer") as span:
        check_type("tasks", tasks, Iterable, "use a list of tasks")
        batch = JobBatch()
        for index, task in enumerate(tasks):
            if index % TURN == TURN - 1:
                yield YieldStep()
            try:
                job = encode(task, rules, now)
            except InvalidTaskError as error:
                error.args = (f"tasks[{index}].{error}",)
                raise
            batch.add(job)
        span.note(messaging__batch__message_count=len(batch.jobs))
        return (yield from write(batch.jobs))


class JobBatch:
    """Jobs to write in their order; each is checked against those before it."""

    def __init__(self, jobs: Iterable[EncodedJob] = ()) -> None:
        self.jobs: list[EncodedJob] = []
        self._named: set[str] = set()
        self._awaited: dict[str, int] = {}
        for job in jobs:
            self.add(job)

    def add(self, job: EncodedJob) -> None:
        """Add the job, or raise InvalidTaskError if it conflicts with the jobs before it.

        Error messages call the jobs ``tasks[0]``, ``tasks[1]`` and so on.
        """
        index = len(self.jobs)
        if index >= MAX_BATCH:
            raise InvalidTaskError("tasks", f"more than {MAX_BATCH}", "enqueue them in parts")
        if job.named:
            if job.job_id in self._named:
                raise InvalidTaskError(f"tasks[{index}].job_id", "is there twice", "use it once")
            if job.job_id in self._awaited:
                raise InvalidTaskError(
                    f"tasks[{self._awaited[job.job_id]}].depends_on",
                    f"names tasks[{index}], which comes later",
                    "put it first; for whatever is more than a list use a flow",
                )
            self._named.add(job.job_id)
        for parent in job.depends_on:
            self._awaited.setdefault(parent, index)
        self.jobs.append(job)


def write(jobs: Sequence[EncodedJob]) -> Steps[list[Enqueued]]:
    """Write a checked batch in chunks, each of them whole or not at all."""
    done: list[Enqueued] = []
    for chunk in _chunks(jobs):
        commands, reply_indexes = _commands(chunk)
        try:
            replies = yield BatchStep(commands, atomic=True)
        except TasksUnavailableError as error:
            error.done = len(done)
            raise
        for job, index in zip(chunk, reply_indexes, strict=True):
            reply = None if index is None else replies[index]
            done.append(_read_reply(job, reply, refuse=False))
    return done


def invocation(job: EncodedJob, relay_window: int | None = None, walk: int = WALK) -> ScriptStep:
    """Return the script invocation that writes one job.

    With ``relay_window`` (seconds) the script writes the job once within the window: a relay may
    repeat it. ``walk`` limits the list entries that the script walks over to the job's position.
    """
    if job.depends_on:
        unique = "" if job.unique is None else unique_key(job.unique.key)
        mark = None if relay_window is None else (relayed_key(job.job_id), relay_window)
        return dependents.invocation([job], job.unique, unique, mark)
    marks = [] if relay_window is None else [relayed_key(job.job_id)]
    return ScriptStep(_ENQUEUE, [*_keys(job), *marks], _arguments(job, relay_window, walk))


def flow_invocation(flow: dependents.EncodedFlow, relay_window: int | None = None) -> ScriptStep:
    """Return the script invocation that writes a flow; see ``invocation`` for ``relay_window``."""
    unique = "" if flow.unique is None else unique_key(flow.unique.key)
    mark = None if relay_window is None else (relayed_key(flow.flow_id), relay_window)
    return dependents.invocation(flow.jobs, flow.unique, unique, mark)


def relay(
    entries: Sequence[EncodedJob | dependents.EncodedFlow],
) -> Steps[list[Enqueued | ResponseError]]:
    """Write jobs and flows, each once within RELAY_WINDOW however often a relay repeats it.

    Return one result per entry, for a flow that of its last job. A ResponseError means that Redis
    refused the entry and wrote nothing of it.
    """
    flow = dependents.EncodedFlow
    scripts = [
        flow_invocation(entry, RELAY_WINDOW)
        if isinstance(entry, flow)
        else invocation(entry, RELAY_WINDOW)
        for entry in entries
    ]
    commands = [invoke.script.words(invoke.keys, invoke.arguments) for invoke in scripts]
    replies = yield BatchStep(commands, refusals=True)
    last_jobs = [entry.jobs[-1] if isinstance(entry, flow) else entry for entry in entries]
    return [
        reply if isinstance(reply, ResponseError) else _read_reply(job, reply, refuse=False)
        for job, reply in zip(last_jobs, replies, strict=True)
    ]


def relayed_key(job_id: str) -> str:
    """Return the key that exists once a relay has written the job."""
    return f"{key_prefixes.RELAYED}{job_id}"


def _chunks(jobs: Sequence[EncodedJob]) -> Iterator[Sequence[EncodedJob]]:
    start = weight = total_bytes = 0
    for index, job in enumerate(jobs):
        job_weight, job_bytes = CHUNK // URGENT_CHUNK if job.priority else 1, size(job)
        full = weight + job_weight > CHUNK or total_bytes + job_bytes > CHUNK_BYTES
        if index > start and full:
            yield jobs[start:index]
            start, weight, total_bytes = index, 0, 0
        weight += job_weight
        total_bytes += job_bytes
    if start < len(jobs):
        yield jobs[start:]


def _commands(jobs: Sequence[EncodedJob]) -> tuple[list[Sequence[Any]], list[int | None]]:
    """Return the commands for the jobs in order, and the index of each job's reply, if any."""
    commands: list[Sequence[Any]] = []
    reply_indexes: list[int | None] = []
    waiting: list[Any] = []
    queues = {keys.queue(job.queue) for job in jobs}
    walk = WALK // max(1, sum(job.priority > 0 for job in jobs))
    commands.append(["SADD", _QUEUES, *sorted(queues)])

    def push() -> None:
        if waiting:
            commands.append(list(waiting))
            waiting.clear()

    for job in jobs:
        plain = job.due is None and not job.at_front and not job.priority and not job.depends_on
        if job.unique is not None or job.named or not plain:
            push()
            reply_indexes.append(len(commands))
            invoke = invocation(job, walk=walk)
            commands.append(invoke.script.words(invoke.keys, invoke.arguments))
            continue
        reply_indexes.append(None)
        key = keys.job(job.job_id)
        commands.append(["HSET", key, *job.fields])
        if job.ttl is not None:
            commands.append(["EXPIRE", key, job.ttl])
        if not waiting or waiting[1] != keys.queue(job.queue):
            push()
            waiting += ["RPUSH", keys.queue(job.queue)]
        waiting.append(job.job_id)
    push()
    return commands, reply_indexes


def _keys(job: EncodedJob) -> list[str]:
    return [
        keys.job(job.job_id), keys.queue(job.queue), keys.scheduled(job.queue), _QUEUES,
        unique_key(job.unique.key) if job.unique is not None else "",
    ]  # fmt: skip


def _arguments(job: EncodedJob, relay_window: int | None = None, walk: int = WALK) -> list[Any]:
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
        job.priority,
        walk,
        *job.fields,
        *dependents.key_fields(unique, "" if unique is None else unique_key(unique.key)),
    ]


def _read_reply(job: EncodedJob, reply: Any, *, refuse: bool = True) -> Enqueued:
    if reply is None:
        return Enqueued(job.job_id, job.queue)
    status, job_id, queue = reply
    reason = _REASONS[status]
    if reason is Reason.PARENT_CANCELED:
        if refuse:
            raise dependents.parent_canceled(reply)
        return Enqueued(job.job_id, job.queue, reason)
    if reason is Reason.EXISTS and refuse:
        raise JobExistsError(f"job_id: {job.job_id} exists; use another id, or a unique key")
    return Enqueued(text(job_id), text(queue), reason)


#: Meaning of the scripts' status. With 4, all jobs are written, and some of them are cancelled.
_REASONS = {
    0: Reason.UNIQUE, 1: Reason.CREATED, 2: Reason.EXISTS, 3: Reason.PARENT_CANCELED,
    4: Reason.PARENT_CANCELED,
}  # fmt: skip

#: KEYS: job, waiting list, scheduled set, set of queues, unique key or ''[, relay's mark].
#: ARGV: id, due or '', push command, ttl, named, until, window in ms, relay's window, priority,
#: limit of list entries to walk over, then names and values of the hash.
#: Returns {status, id, queue}: 1 written, 0 an earlier job holds the unique key, 2 the named job
#: exists, or a relay wrote it before. The mark is written last, so that a job which Redis refuses
#: halfway does not count as written.
_ENQUEUE = LuaScript(
    PUT
    + dependents.WRONG_TYPE
    + """
local job, list, scheduled, queues, unique, mark = unpack(KEYS)
local id, due, push, ttl, named = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local queue = string.sub(list, 10)
local function answer(status, first, where)
  if mark then redis.call('SET', mark, '1', 'EX', ARGV[8]) end
  return {status, first, where}
end
if mark then
  if redis.call('EXISTS', mark) == 1 then return {2, id, queue} end
  local problem = wrong_type(job, 'hash') or wrong_type(queues, 'set')
                  or (due == '' and wrong_type(list, 'list'))
                  or (due ~= '' and wrong_type(scheduled, 'zset'))
  if problem then return problem end
end
if unique ~= '' then
  local first = redis.call('GET', unique)
  if first then
    local state = redis.call('HMGET', 'rq:job:' .. first, 'status', 'origin')
    local status = state[1]
    local ended = not status or status == 'finished' or status == 'failed'
                  or status == 'stopped' or status == 'canceled'
    if ARGV[6] == 'window' or not ended then return answer(0, first, state[2] or queue) end
  end
end
if named ~= '' and redis.call('EXISTS', job) == 1 then return answer(2, id, queue) end
redis.call('HSET', job, unpack(ARGV, 11))
-- The time to live bounds the wait on the queue: RQ sets it for scheduled jobs when they are due.
if ttl ~= '' and due == '' then redis.call('EXPIRE', job, ttl) end
redis.call('SADD', queues, list)
if due ~= '' then
  redis.call('ZADD', scheduled, due, id)
elseif ARGV[9] ~= '0' then
  walk = tonumber(ARGV[10])
  put(list, id, ARGV[9], redis.call('HGET', job, 'enqueued_at'))
else
  redis.call(push, list, id)
end
if unique ~= '' then redis.call('SET', unique, id, 'PX', ARGV[7]) end
return answer(1, id, queue)
"""
)
