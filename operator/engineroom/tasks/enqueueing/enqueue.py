"""Enqueueing: one job in one atomic script, many in transactions of bounded size."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from redis.exceptions import ResponseError

from engineroom.core import tracing
from engineroom.queue import keys
from engineroom.queue.priority import PUT, WALK
from engineroom.tasks.enqueueing import dependents
from engineroom.tasks.enqueueing.task import Encoded, Rules, Task, encode, size
from engineroom.tasks.errors import InvalidTaskError, JobExistsError, TasksUnavailableError
from engineroom.tasks.redis_steps import Batch, Invoke, Pause, Script, Steps, text
from engineroom.tasks.type_checks import check_kind

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

#: Jobs in one transaction; Redis serves nobody else meanwhile, for less than 5 ms.
CHUNK = 250
#: Jobs with a priority in one transaction, which share what may be walked to their places.
URGENT_CHUNK = 10
#: Bytes of the jobs in one transaction, which Redis holds twice meanwhile; one job may be larger.
CHUNK_BYTES = 1 << 20
#: Tasks that are serialised before others on the event loop have their turn: each takes some 50 us,
#: one of a mebibyte 10 ms.
TURN = 10
#: Tasks in one enqueue_many.
MAX_BATCH = 100_000

#: A relay that was killed has to be back within this, or it may write a job again (seconds).
RELAY_WINDOW = 30 * 86400

_QUEUES = "rq:queues"


class Reason(StrEnum):
    """Why a job is the answer to what was enqueued."""

    CREATED = "created"
    #: An earlier job stands for the same work: it has the ``unique`` key.
    UNIQUE = "unique"
    #: A job of that id was there before, and was left as it is.
    EXISTS = "exists"
    #: A job that it was to wait for is cancelled or stopped: it never runs. ``enqueue_many`` writes
    #: nothing of it; a relay writes it cancelled, for its transaction has committed.
    PARENT_CANCELED = "parent canceled"


@dataclass(frozen=True, slots=True)
class Enqueued:
    """The job that does the work, or of which ``reason`` says why it does not.

    ``created``: this call has made it, and it is going to run.
    """

    job_id: str
    queue: str
    reason: Reason = Reason.CREATED
    created: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "created", self.reason is Reason.CREATED)


def unique_key(key: str) -> str:
    """Holds the id of the job that stands for the work ``key``."""
    # Not formatted: of an enumeration that would be the name of its member.
    return "engineroom:unique:" + key


def enqueue_one(task: Task, rules: Rules, now: datetime) -> Steps[Enqueued]:
    """One round trip, all or nothing."""
    with tracing.span("enqueue", kind="producer", messaging__destination__name=task.queue) as span:
        job = encode(task, rules, now)
        span.note(messaging__message__id=job.job_id)
        reply = yield invocation(job)
        return _enqueued(job, reply)


def enqueue_many(tasks: Iterable[Task], rules: Rules, now: datetime) -> Steps[list[Enqueued]]:
    """All are checked before the first is written; each chunk is written whole or not at all."""
    with tracing.span("enqueue many", kind="producer") as span:
        check_kind("tasks", tasks, Iterable, "use a list of tasks")
        together = Together()
        for at, task in enumerate(tasks):
            if at % TURN == TURN - 1:
                yield Pause()
            try:
                job = encode(task, rules, now)
            except InvalidTaskError as error:
                error.args = (f"tasks[{at}].{error}",)
                raise
            together.add(job)
        span.note(messaging__batch__message_count=len(together.jobs))
        return (yield from write(together.jobs))


class Together:
    """Jobs that are to be written in their order, each looked at as it comes."""

    def __init__(self, jobs: Iterable[Encoded] = ()) -> None:
        self.jobs: list[Encoded] = []
        self._named: set[str] = set()
        self._awaited: dict[str, int] = {}
        for job in jobs:
            self.add(job)

    def add(self, job: Encoded) -> None:
        """Raises InvalidTaskError for what cannot come after those that are here; then it is not.

        Messages call the jobs ``tasks[0]``, ``tasks[1]`` and so on.
        """
        at = len(self.jobs)
        if at >= MAX_BATCH:
            raise InvalidTaskError("tasks", f"more than {MAX_BATCH}", "enqueue them in parts")
        if job.named:
            if job.job_id in self._named:
                raise InvalidTaskError(f"tasks[{at}].job_id", "is there twice", "use it once")
            if job.job_id in self._awaited:
                raise InvalidTaskError(
                    f"tasks[{self._awaited[job.job_id]}].depends_on",
                    f"names tasks[{at}], which comes later",
                    "put it first; for whatever is more than a list use a flow",
                )
            self._named.add(job.job_id)
        for parent in job.depends_on:
            self._awaited.setdefault(parent, at)
        self.jobs.append(job)


def write(jobs: Sequence[Encoded]) -> Steps[list[Enqueued]]:
    """Write jobs that have been checked together; each chunk of them whole or not at all."""
    done: list[Enqueued] = []
    for chunk in _chunks(jobs):
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


def invocation(job: Encoded, relay_window: int | None = None, walk: int = WALK) -> Invoke:
    """The script that writes one job; with a window, by a relay that may have done so before.

    ``walk`` is how far it may walk to the job's place.
    """
    if job.depends_on:
        unique = "" if job.unique is None else unique_key(job.unique.key)
        mark = None if relay_window is None else (relayed_key(job.job_id), relay_window)
        return dependents.invocation([job], job.unique, unique, mark)
    marks = [] if relay_window is None else [relayed_key(job.job_id)]
    return Invoke(_ENQUEUE, [*_keys(job), *marks], _arguments(job, relay_window, walk))


def flow_invocation(flow: dependents.EncodedFlow, relay_window: int | None = None) -> Invoke:
    """The script that writes a flow; with a window, by a relay that may have done so before."""
    unique = "" if flow.unique is None else unique_key(flow.unique.key)
    mark = None if relay_window is None else (relayed_key(flow.flow_id), relay_window)
    return dependents.invocation(flow.jobs, flow.unique, unique, mark)


def relay(
    entries: Sequence[Encoded | dependents.EncodedFlow],
) -> Steps[list[Enqueued | ResponseError]]:
    """Write jobs and flows that may have been written before: each once within RELAY_WINDOW.

    One answer for each, of a flow for its last job, or Redis' refusal of it; then nothing of it is
    there.
    """
    flow = dependents.EncodedFlow
    scripts = [
        flow_invocation(each, RELAY_WINDOW)
        if isinstance(each, flow)
        else invocation(each, RELAY_WINDOW)
        for each in entries
    ]
    commands = [each.script.words(each.keys, each.arguments) for each in scripts]
    replies = yield Batch(commands, refusals=True)
    last = [each.jobs[-1] if isinstance(each, flow) else each for each in entries]
    return [
        reply if isinstance(reply, ResponseError) else _enqueued(job, reply, refuse=False)
        for job, reply in zip(last, replies, strict=True)
    ]


def relayed_key(job_id: str) -> str:
    """Exists once the job has been written by a relay."""
    return f"engineroom:relayed:{job_id}"


def _chunks(jobs: Sequence[Encoded]) -> Iterator[Sequence[Encoded]]:
    start = weight = held = 0
    for at, job in enumerate(jobs):
        more, its_bytes = CHUNK // URGENT_CHUNK if job.priority else 1, size(job)
        if at > start and (weight + more > CHUNK or held + its_bytes > CHUNK_BYTES):
            yield jobs[start:at]
            start, weight, held = at, 0, 0
        weight += more
        held += its_bytes
    if start < len(jobs):
        yield jobs[start:]


def _commands(jobs: Sequence[Encoded]) -> tuple[list[Sequence[Any]], list[int | None]]:
    """Commands for the jobs in order, and for each job the number of the reply that tells of it."""
    commands: list[Sequence[Any]] = []
    answers: list[int | None] = []
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
            answers.append(len(commands))
            one = invocation(job, walk=walk)
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


def _arguments(job: Encoded, relay_window: int | None = None, walk: int = WALK) -> list[Any]:
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


def _enqueued(job: Encoded, reply: Any, *, refuse: bool = True) -> Enqueued:
    if reply is None:
        return Enqueued(job.job_id, job.queue)
    verdict, first, queue = reply
    reason = _REASONS[verdict]
    if reason is Reason.PARENT_CANCELED:
        if refuse:
            raise dependents.parent_canceled(reply)
        return Enqueued(job.job_id, job.queue, reason)
    if reason is Reason.EXISTS and refuse:
        raise JobExistsError(f"job_id: {job.job_id} exists; use another id, or a unique key")
    return Enqueued(text(first), text(queue), reason)


#: What the scripts' verdicts mean; of 4 all jobs are written, some of them cancelled.
_REASONS = {
    0: Reason.UNIQUE, 1: Reason.CREATED, 2: Reason.EXISTS, 3: Reason.PARENT_CANCELED,
    4: Reason.PARENT_CANCELED,
}  # fmt: skip

#: KEYS: job, waiting list, scheduled set, set of queues, unique key or ''[, relay's mark].
#: ARGV: id, due or '', push command, ttl, named, until, window in ms, relay's window, priority, how
#: far it may walk, the hash.
#: Returns {verdict, id, queue}: 1 written, 0 an earlier job stands for the work, 2 the named job
#: exists, or was written by a relay before. The mark comes last: a job that Redis refuses halfway
#: is not taken for written.
_ENQUEUE = Script(
    PUT
    + dependents.UNFIT
    + """
local job, list, scheduled, queues, unique, mark = unpack(KEYS)
local id, due, push, ttl, named = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local queue = string.sub(list, 10)
local function answer(verdict, first, where)
  if mark then redis.call('SET', mark, '1', 'EX', ARGV[8]) end
  return {verdict, first, where}
end
if mark then
  if redis.call('EXISTS', mark) == 1 then return {2, id, queue} end
  local problem = unfit(job, 'hash') or unfit(queues, 'set')
                  or (due == '' and unfit(list, 'list') or due ~= '' and unfit(scheduled, 'zset'))
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
-- A time to live is for waiting: of what is put off, RQ sets it when its time has come.
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
