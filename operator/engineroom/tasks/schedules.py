"""Schedules as data in Redis, and the loop that enqueues each tick exactly once.

A tick is enqueued and the schedule moved on by one script, which does neither unless the schedule
still waits for that very tick in that very version. So it does not matter how many schedulers run,
nor where one is killed: the tick itself is the token.

A schedule may have an owner, such as the WorkerPool that declares it. Then only its owner changes
or removes it: who puts one of that name without being the owner is refused, and so the other way.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from engineroom.core.clock import Clock, SystemClock
from engineroom.core.logging import get_logger
from engineroom.queue import keys
from engineroom.queue.priority import PUT
from engineroom.tasks.enqueueing.enqueue import relayed_key
from engineroom.tasks.enqueueing.task import Rules, Task, check_task, encode, timestamp
from engineroom.tasks.errors import (
    InvalidTaskError,
    ScheduleChangedError,
    ScheduleNotFoundError,
    ScheduleOwnedError,
    TasksUnavailableError,
)
from engineroom.tasks.redis_steps import Batch, Invoke, Script, Steps, run, run_async, text
from engineroom.tasks.triggers import (
    MAX_AT_ONCE,
    Cron,
    Decision,
    Every,
    Missed,
    Once,
    Trigger,
    decide,
)
from engineroom.tasks.type_checks import check_kind, check_number

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime

    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis

log = get_logger(__name__)

#: Sorted set of the names of schedules by their next tick, in Unix seconds.
INDEX = "engineroom:schedules"
#: Hash of owners to the installation that looks after each.
OWNERS = "engineroom:schedules:owners"
#: Schedules that one look takes, the most overdue first.
LOOK = 200
#: On an event loop so many are decided before others get their turn: the one that was missed for
#: long costs 2 ms or more, and ticks of one schedule that run at once are fewer, too.
TURN, MOST_IN_A_TURN = 8, 20
MAX_SCHEDULES = 100_000
#: The loop looks at least so often (seconds), whatever is due.
PACE = 0.5
#: What is due within so long is enqueued together (seconds).
TOGETHER = 0.02
#: One that cannot be read is looked at again after so long, lest it be in the way (seconds).
ASIDE = 60.0

_NAME = re.compile(r"[A-Za-z0-9_-]{1,160}")
_TRIGGERS: dict[str, type[Trigger]] = {"cron": Cron, "every": Every, "once": Once}


@dataclass(frozen=True, slots=True)
class Schedule:
    """A task and when it ticks. ``grace``: a tick that is later by more (s) counts as missed."""

    name: str
    trigger: Trigger
    task: Task
    missed: Missed = Missed.RUN_ONCE
    grace: float = 60.0
    #: Whether it ticks not; of one without an owner, ``pause`` and ``resume`` say so instead.
    paused: bool = False


@dataclass(frozen=True, slots=True)
class Known:
    """A schedule as it is listed; times are Unix seconds.

    ``last`` is the latest tick that made a job, ``last_job``. ``dropped`` counts ticks that the
    policy did not run. ``owner`` is "" for one made at run time. ``version`` grows with changes.
    """

    name: str
    trigger: Trigger
    queue: str
    description: str
    missed: Missed
    grace: float
    next: float | None
    last: float | None
    paused: bool = False
    owner: str = ""
    last_job: str = ""
    dropped: int = 0
    version: int = 0


def put(
    schedule: Schedule, rules: Rules, now: datetime, expected: int | None = None
) -> Steps[bool]:
    """Store the schedule, new or instead of the one of that name; True if it is new.

    The same again changes nothing: its next tick stays. ``expected`` is the version that it has to
    have, 0: that there is none. Raises InvalidTaskError, ScheduleOwnedError,
    ScheduleChangedError.
    """
    words, first = _words(schedule, "", rules, now, expected)
    if first is None:
        raise InvalidTaskError("trigger", "is in the past", "use a time to come")
    reply = yield Invoke(_PUT, *words)
    return _is_new(schedule.name, reply)


def declare(
    owner: str, installation: str, declared: Sequence[Schedule], rules: Rules, now: datetime
) -> Steps[dict[str, str]]:
    """Make the owner's schedules exactly these; the same again writes nothing.

    Returns of those whose name somebody else has the name and who that is ("": made at run time).
    One whose time is past is stored and never ticks. ``installation`` is who looks after the owner;
    see ``owners``. Raises InvalidTaskError, before anything is written.
    """
    commands = []
    for schedule in declared:
        (its_keys, arguments), _ = _words(schedule, owner, rules, now)
        commands.append(_PUT.words(its_keys, arguments))
    [names, known] = yield Batch([["SMEMBERS", _owned_key(owner)], ["HGET", OWNERS, owner]])
    kept = {schedule.name for schedule in declared}
    left_out = sorted({text(each) for each in names} - kept)
    commands += [_REMOVE.words(*_removal(name, owner)) for name in left_out]
    if declared and (known is None or text(known) != installation):
        commands.append(["HSET", OWNERS, owner, installation])
    elif not declared and known is not None:
        commands.append(["HDEL", OWNERS, owner])
    replies = (yield Batch(commands)) if commands else []
    refused = {}
    for schedule, reply in zip(declared, replies, strict=False):
        try:
            _is_new(schedule.name, reply)
        except ScheduleOwnedError as error:
            refused[schedule.name] = error.owner
    return refused


def owners() -> Steps[dict[str, str]]:
    """Who has schedules here, and the installation that looks after each."""
    [found] = yield Batch([["HGETALL", OWNERS]])
    pairs = found.items() if isinstance(found, dict) else zip(found[::2], found[1::2], strict=True)
    return {text(owner): text(installation) for owner, installation in pairs}


def owned(owner: str) -> Steps[list[Known]]:
    """The owner's schedules, by name."""
    rows = yield Invoke(_OWNED, [_owned_key(owner), INDEX], [])
    return sorted((_known(row) for row in rows), key=lambda known: known.name)


def _words(
    schedule: Schedule, owner: str, rules: Rules, now: datetime, expected: int | None = None
) -> tuple[tuple[list[str], list[Any]], float | None]:
    """Keys and arguments of _PUT, and the first tick. Raises InvalidTaskError."""
    check_kind("schedule", schedule, Schedule, "use Schedule(name, trigger, task)")
    check_kind("name", schedule.name, str, "use text")
    check_kind("trigger", schedule.trigger, (Cron, Every, Once), "use Cron, Every or Once")
    check_kind("missed", schedule.missed, Missed, "use one of Missed")
    check_number("grace", schedule.grace)
    check_task(schedule.task)
    if not _NAME.fullmatch(schedule.name):
        raise InvalidTaskError(
            "name", f"{schedule.name[:50]!r}", "use 1 to 160 letters, digits, '_' and '-'"
        )
    if not 0 <= schedule.grace <= 366 * 86400:
        raise InvalidTaskError("grace", f"{schedule.grace} s", "use 0 s to 366 days")
    if schedule.paused and not owner:
        raise InvalidTaskError("paused", "stands in the schedule", "put it, then pause it")
    task = schedule.task
    if task.delay is not None or task.at is not None or task.unique or task.job_id is not None:
        raise InvalidTaskError(
            "task", "has delay, at, unique or job_id", "leave them out: the schedule says when"
        )
    if task.depends_on:
        raise InvalidTaskError("task.depends_on", "stands in a schedule", "leave it out")
    # The same task has the same bytes whenever it is stored: what differs is set at the tick.
    job = encode(replace(task, job_id="tick"), rules, now, carry=False)
    template = list(zip(job.fields[::2], job.fields[1::2], strict=True))
    fixed = [pair for pair in template if pair[0] not in ("created_at", "enqueued_at")]
    if task.at_front:
        # Of a job that is put off RQ's own field says so, and of a tick too.
        fixed.append(("enqueue_at_front", 1))
    spec = _spec(schedule, job.queue, str(dict(template)["description"]))
    first = schedule.trigger.after(now.timestamp(), schedule.name)
    name = schedule.name
    arguments = [
        name, "inf" if first is None else _number(first), spec, MAX_SCHEDULES, owner,
        "1" if schedule.paused else "", _trigger_words(schedule.trigger),
        "" if expected is None else expected,
        *(word for pair in fixed for word in pair),
    ]  # fmt: skip
    return ([INDEX, _key(name), _template_key(name), _owned_key(owner)], arguments), first


def _is_new(name: str, reply: Any) -> bool:
    verdict, holder = int(reply[0]), text(reply[1])
    if verdict == -1:
        raise InvalidTaskError("name", f"{MAX_SCHEDULES} schedules exist", "remove some first")
    if verdict == -2:
        raise ScheduleOwnedError(name, holder)
    if verdict == -3:
        raise _has_changed(name)
    return verdict == 1


def remove(name: str, expected: int | None = None) -> Steps[None]:
    """Forget the schedule, in the version ``expected`` if given; jobs that it enqueued stay.

    Raises ScheduleNotFoundError, ScheduleOwnedError, ScheduleChangedError.
    """
    its_keys, words = _removal(name, "")
    if expected is not None:
        words.append(expected)
    _changed(name, (yield Invoke(_REMOVE, its_keys, words)))


def pause(name: str) -> Steps[None]:
    """Have the schedule not tick until it is resumed; ticks in between are not made up for.

    Raises ScheduleNotFoundError, ScheduleOwnedError.
    """
    _changed(name, (yield Invoke(_PAUSE, [INDEX, _key(name)], [name, "inf"])))


def resume(name: str, now: datetime) -> Steps[None]:
    """Undo ``pause``; the next tick is the first after ``now``.

    Raises ScheduleNotFoundError, ScheduleOwnedError.
    """
    known = yield from get(name)
    following = known.trigger.after(now.timestamp(), name)
    score = "inf" if following is None else _number(following)
    _changed(name, (yield Invoke(_RESUME, [INDEX, _key(name)], [name, score])))


def run_now(name: str, now: datetime, once: tuple[str, int] | None = None) -> Steps[str]:
    """Enqueue the schedule's job once, beside its ticks, paused or not; returns the job's id.

    ``once``: a name of this run, and for how many seconds the same name is the same run. Raises
    ScheduleNotFoundError.
    """
    known = yield from get(name)
    job_id = f"{name}-{once[0] if once else uuid4().hex[:12]}"
    marks = [relayed_key(job_id)] if once else []
    made = yield Invoke(
        _RUN_NOW,
        [_key(name), _template_key(name), keys.queue(known.queue), "rq:queues", *marks],
        [name, job_id, timestamp(now), once[1] if once else ""],
    )
    if not made:
        raise _not_found(name)
    return job_id


def get(name: str) -> Steps[Known]:
    """One schedule. Raises ScheduleNotFoundError."""
    rows = yield Invoke(_GET, [INDEX, _key(name)], [name])
    if not rows:
        raise _not_found(name)
    return _known(rows)


def _removal(name: str, owner: str) -> tuple[list[str], list[Any]]:
    return [INDEX, _key(name), _template_key(name), _owned_key(owner)], [name, owner]


def _changed(name: str, reply: Any) -> None:
    verdict, holder = int(reply[0]), text(reply[1])
    if verdict == 0:
        raise _not_found(name)
    if verdict == -2:
        raise ScheduleOwnedError(name, holder)
    if verdict == -3:
        raise _has_changed(name)


def _has_changed(name: str) -> ScheduleChangedError:
    return ScheduleChangedError(f"name: schedule {name[:100]!r} has just changed; read it again")


def _not_found(name: str) -> ScheduleNotFoundError:
    return ScheduleNotFoundError(f"name: no schedule {name[:100]!r}; see the list of schedules")


def listed(after: str, limit: int) -> Steps[list[Known]]:
    """Schedules by their next tick, those that will never tick again last; ``after`` is a name."""
    if not 1 <= limit <= 1000:
        raise InvalidTaskError("limit", f"{limit}", "use 1 to 1000")
    rows = yield Invoke(_LIST, [INDEX], [after, limit])
    return [_known(row) for row in rows]


def tick(now: datetime) -> Steps[tuple[int, float | None]]:
    """Enqueue what is due; how many jobs that were, and when to look again (Unix seconds)."""
    found, head = yield from due(now)
    if not found:
        return 0, head
    fired = yield from fire(found, now)
    [[_, head]] = yield Batch([_DUE.words([INDEX], ["-inf", 0])])
    return fired, None if head is None else float(head)


@dataclass(frozen=True, slots=True)
class Due:
    """A schedule whose tick ``expected``, in that version, is due."""

    known: Known
    expected: str


def due(now: datetime, behind: float = 0.0) -> Steps[tuple[list[Due], float | None]]:
    """What was due ``behind`` seconds before now, most overdue first; if nothing, the next tick."""
    latest = now.timestamp() - behind
    rows, head = yield Invoke(_DUE, [INDEX], [repr(latest), LOOK])
    found, aside = [], []
    for row in rows:
        try:
            found.append(Due(_known(row), text(row[1])))
        except (ValueError, KeyError, TypeError, InvalidTaskError) as error:
            # Written by another version, or its zone is not known here: it keeps up nobody else.
            log.warning("a schedule cannot be read", schedule=text(row[0]), error=str(error)[:200])
            later = _number(round(now.timestamp() + ASIDE, 3))
            aside.append(_ASIDE.words([INDEX], [row[0], row[1], later]))
    if aside:
        yield Batch(aside)
    return found, None if head is None else float(head)


def fire(
    found: Iterable[Due], now: datetime, most: int = MAX_AT_ONCE, at: float | None = None
) -> Steps[int]:
    """Enqueue the ticks that are due, unless somebody else did; how many jobs that made.

    ``most``: see ``triggers.decide``. ``at``: when to decide, if not now (Unix seconds): schedules
    of one cron line that are decided for the same moment are so all at once.
    """
    fired = 0
    at = now.timestamp() if at is None else at
    commands: list[list[Any]] = []
    for each in found:
        known = each.known
        tick = float(each.expected)
        decision = decide(known.trigger, known.name, tick, at, known.missed, known.grace, most)
        commands.append(_firing(each, decision, now))
    # In parts: each script is atomic by itself.
    for start in range(0, len(commands), 50):
        fired += sum((yield Batch(commands[start : start + 50])))
    return fired


def _firing(each: Due, decision: Decision, now: datetime) -> list[Any]:
    known = each.known
    its_keys = [
        INDEX, _key(known.name), _template_key(known.name), keys.queue(known.queue), "rq:queues",
    ]  # fmt: skip
    following = "" if decision.next is None else _number(decision.next)
    ticks = [_number(tick) for tick in decision.run]
    return _FIRE.words(
        its_keys,
        [
            known.name, each.expected, known.version, timestamp(now), following, decision.dropped,
            *ticks,
        ],
    )  # fmt: skip


class Scheduler:
    """The loop; any number may run at once, on one Redis."""

    def __init__(self, redis: Redis, clock: Clock | None = None, pace: float = PACE) -> None:
        self._redis = redis
        self._clock = clock or SystemClock()
        self._pace = pace

    def once(self) -> tuple[int, float | None]:
        """One look: jobs enqueued, and the next tick. Raises TasksUnavailableError."""
        return run(self._redis, tick(self._clock.now()))

    def run(self, stop: threading.Event) -> None:
        """Until ``stop``; waits through outages of Redis."""
        while not stop.is_set():
            try:
                _, due = self.once()
            except TasksUnavailableError as error:
                log.warning("schedules cannot be looked at", error=str(error))
                stop.wait(1.0)
                continue
            left = self._pace if due is None else due - self._clock.now().timestamp()
            stop.wait(min(self._pace, max(0.0, left)))


class AsyncScheduler:
    """``Scheduler`` on an event loop, which it never holds up for long.

    ``behind``: how many seconds to leave what is due to others, asked for at each look, for one
    that stands by while another is expected to do it.
    """

    def __init__(
        self,
        redis: AsyncRedis,
        clock: Clock | None = None,
        pace: float = PACE,
        behind: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._redis = redis
        self._clock = clock or SystemClock()
        self._pace = pace
        self._behind = behind
        #: Jobs made so far, and how late the latest was when it was made (seconds).
        self.fired = 0
        self.late = 0.0
        #: Whether the last look reached Redis; "" or why not.
        self.trouble = ""

    async def once(self) -> tuple[int, float | None]:
        """One look: jobs enqueued, and the next tick. Raises TasksUnavailableError."""
        fired = 0
        began = self._clock.now()
        found, head = await run_async(self._redis, due(began, self._behind()))
        for start in range(0, len(found), TURN):
            part = found[start : start + TURN]
            steps = fire(part, self._clock.now(), MOST_IN_A_TURN, began.timestamp())
            made = await run_async(self._redis, steps)
            fired += made
            if made:
                self.late = self._clock.now().timestamp() - float(part[0].expected)
        self.fired += fired
        # More may have become due meanwhile.
        return fired, self._clock.now().timestamp() - self._behind() if found else head

    async def run(self) -> None:
        """Until cancelled; waits through outages of Redis."""
        task = asyncio.current_task()
        # Python 3.11's wait_for, and redis-py while it connects, may swallow a cancellation.
        while task is None or not task.cancelling():
            try:
                _, due_at = await self.once()
            except TasksUnavailableError as error:
                if not self.trouble:
                    log.warning("schedules cannot be looked at", error=str(error))
                self.trouble = str(error)
                await asyncio.sleep(1.0)
                continue
            if self.trouble:
                log.info("schedules are looked at again")
                self.trouble = ""
            left = self._pace
            if due_at is not None:
                left = due_at + self._behind() - self._clock.now().timestamp()
            await asyncio.sleep(min(self._pace, max(TOGETHER, left)))
        raise asyncio.CancelledError


def _spec(schedule: Schedule, queue: str, description: str) -> str:
    return json.dumps(
        {
            "trigger": json.loads(_trigger_words(schedule.trigger)),
            "queue": queue,
            "description": description,
            "missed": schedule.missed.value,
            "grace": schedule.grace,
        },
        sort_keys=True,
    )


def _trigger_words(trigger: Trigger) -> str:
    kind = next(name for name, of in _TRIGGERS.items() if isinstance(trigger, of))
    return json.dumps({"kind": kind, **asdict(trigger)}, sort_keys=True)


#: What _known reads of a schedule's hash, after its name and its score.
_FIELDS = "'spec', 'last', 'version', 'paused', 'owner', 'last_job', 'dropped'"


def _known(row: Any) -> Known:
    name, score, spec, last, version, paused, owner, last_job, dropped = row
    said = json.loads(spec)
    return Known(
        name=text(name),
        trigger=_trigger(json.dumps(said["trigger"])),
        queue=said["queue"],
        description=said["description"],
        missed=Missed(said["missed"]),
        grace=said["grace"],
        next=float(score) if score and text(score) != "inf" else None,
        last=float(last) if last else None,
        paused=text(paused) == "1",
        owner=text(owner),
        last_job=text(last_job),
        dropped=int(dropped or 0),
        version=int(version or 0),
    )


@lru_cache(maxsize=4096)
def _trigger(said: str) -> Trigger:
    # Remembered, for a trigger checks itself when it is made, which takes longer than a tick.
    fields = json.loads(said)
    return _TRIGGERS[fields.pop("kind")](**fields)


def _key(name: str) -> str:
    return f"engineroom:schedule:{name}"


def _template_key(name: str) -> str:
    return f"engineroom:schedule:{name}:job"


def _owned_key(owner: str) -> str:
    # Nobody's is never written.
    return f"engineroom:schedules:of:{owner}"


def _number(seconds: float) -> str:
    # As Redis writes a score: what is compared as text has to be the same text.
    return f"{seconds:.17g}"


#: KEYS: index, schedule, template, the owner's set. ARGV: name, first tick, spec, most schedules,
#: owner or '', paused of an owned one, trigger, the job's fields. Returns {verdict, owner}: 1 new,
#: 0 was there, -1 too many, -2 somebody else's.
_PUT = Script("""
local index, schedule, template, owned = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local name, first, spec, owner, trigger = ARGV[1], ARGV[2], ARGV[3], ARGV[5], ARGV[7]
local now = redis.call('HMGET', schedule, 'spec', 'owner', 'paused', 'trigger', 'version')
local new = not now[1]
-- A name that was removed starts anew, so that there is none is version 0.
if ARGV[8] ~= '' and (new and '0' or now[5] or '0') ~= ARGV[8] then return {-3, ''} end
if new and redis.call('ZCARD', index) >= tonumber(ARGV[4]) then return {-1, ''} end
if not new and (now[2] or '') ~= owner then return {-2, now[2] or ''} end
local was_paused = now[3] == '1'
local paused = was_paused
if owner ~= '' then paused = ARGV[6] == '1' end
local fields, same = {}, now[1] == spec and paused == was_paused
for at = 9, #ARGV do fields[#fields + 1] = ARGV[at] end
if same then
  same = redis.call('HLEN', template) == #fields / 2
  for at = 1, #fields, 2 do
    same = same and redis.call('HGET', template, fields[at]) == fields[at + 1]
  end
end
if owner ~= '' and redis.call('SISMEMBER', owned, name) == 0 then
  redis.call('SADD', owned, name)
end
if same then return {0, ''} end
redis.call('HSET', schedule, 'spec', spec, 'trigger', trigger)
if owner ~= '' then redis.call('HSET', schedule, 'owner', owner) end
if paused then redis.call('HSET', schedule, 'paused', '1')
elseif was_paused then redis.call('HDEL', schedule, 'paused') end
redis.call('HINCRBY', schedule, 'version', 1)
redis.call('DEL', template)
redis.call('HSET', template, unpack(fields))
if paused then redis.call('ZADD', index, 'inf', name)
-- What it does changed, and not when: a tick that is due stays so.
elseif new or was_paused or now[4] ~= trigger then redis.call('ZADD', index, first, name) end
return {new and 1 or 0, ''}
""")

#: KEYS: index, schedule, template, the owner's set. ARGV: name, owner or ''.
_REMOVE = Script("""
local owner = redis.call('HMGET', KEYS[2], 'owner', 'spec')
if ARGV[2] ~= '' then redis.call('SREM', KEYS[4], ARGV[1]) end
if not owner[2] then return {0, ''} end
if (owner[1] or '') ~= ARGV[2] then return {-2, owner[1] or ''} end
if ARGV[3] and (redis.call('HGET', KEYS[2], 'version') or '0') ~= ARGV[3] then return {-3, ''} end
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[2], KEYS[3])
return {1, ''}
""")

#: KEYS: index, schedule. ARGV: name, its place in the index.
_PAUSE = Script("""
local owner = redis.call('HMGET', KEYS[2], 'owner', 'spec')
if not owner[2] then return {0, ''} end
if (owner[1] or '') ~= '' then return {-2, owner[1]} end
redis.call('HSET', KEYS[2], 'paused', '1')
redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
return {1, ''}
""")

#: As _PAUSE; of one that is not paused any more the next tick stays.
_RESUME = Script("""
local owner = redis.call('HMGET', KEYS[2], 'owner', 'spec')
if not owner[2] then return {0, ''} end
if (owner[1] or '') ~= '' then return {-2, owner[1]} end
if redis.call('HDEL', KEYS[2], 'paused') == 1 then redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1]) end
return {1, ''}
""")

#: KEYS: schedule, template, waiting list, set of queues. ARGV: name, the job's id, the time.
_RUN_NOW = Script(
    PUT
    + """
local fields = redis.call('HGETALL', KEYS[2])
if #fields == 0 then return 0 end
if KEYS[5] and not redis.call('SET', KEYS[5], '1', 'NX', 'EX', ARGV[4]) then return 1 end
local job = 'rq:job:' .. ARGV[2]
redis.call('HSET', job, 'created_at', ARGV[3], 'enqueued_at', ARGV[3], 'er_schedule', ARGV[1],
           unpack(fields))
local ttl = tonumber(redis.call('HGET', KEYS[2], 'ttl') or '')
if ttl then redis.call('EXPIRE', job, ttl) end
if redis.call('HEXISTS', KEYS[2], 'enqueue_at_front') == 1 then
  redis.call('LPUSH', KEYS[3], ARGV[2])
else
  put(KEYS[3], ARGV[2], redis.call('HGET', KEYS[2], 'er_priority'), ARGV[3])
end
redis.call('SADD', KEYS[4], KEYS[3])
redis.call('HSET', KEYS[1], 'last_job', ARGV[2])
return 1
"""
)

_ROW = """
local function row(name, score)
  local hash = redis.call('HMGET', 'engineroom:schedule:' .. name, FIELDS)
  if not hash[1] then return nil end
  return {name, score, unpack(hash, 1, 7)}
end
""".replace("FIELDS", _FIELDS)

_GET = Script(
    _ROW
    + """
return row(ARGV[1], redis.call('ZSCORE', KEYS[1], ARGV[1])) or {}
"""
)

#: KEYS: the owner's set, index.
_OWNED = Script(
    _ROW
    + """
local rows = {}
for _, name in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  rows[#rows + 1] = row(name, redis.call('ZSCORE', KEYS[2], name))
end
return rows
"""
)

_LIST = Script(
    _ROW
    + """
local first, rows = 0, {}
if ARGV[1] ~= '' then first = (redis.call('ZRANK', KEYS[1], ARGV[1]) or -1) + 1 end
local members = redis.call('ZRANGE', KEYS[1], first, first + ARGV[2] - 1, 'WITHSCORES')
for at = 1, #members, 2 do rows[#rows + 1] = row(members[at], members[at + 1]) end
return rows
"""
)

#: ARGV: until when, how many. Returns the rows, and the next tick of all if there are none.
_DUE = Script(
    _ROW
    + """
local rows = {}
local members = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'WITHSCORES',
                           'LIMIT', 0, ARGV[2])
for at = 1, #members, 2 do
  local found = row(members[at], members[at + 1])
  -- Of a hash that is gone (evicted, deleted by hand) nothing is left to be done.
  if found then rows[#rows + 1] = found else redis.call('ZREM', KEYS[1], members[at]) end
end
if #rows > 0 then return {rows, false} end
local head = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(inf', 'WITHSCORES', 'LIMIT', 0, 1)
return {rows, head[2] or false}
"""
)

#: KEYS: index. ARGV: name, the tick expected, another time.
_ASIDE = Script("""
if redis.call('ZSCORE', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
return redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1])
""")

#: KEYS: index, schedule, template, waiting list, set of queues. ARGV: name, the tick expected, the
#: version, the time, the next tick or '', ticks dropped, then the ticks to run. Returns how many
#: jobs were made.
_FIRE = Script(
    PUT
    + """
local index, schedule, template, list = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local name, now, following = ARGV[1], ARGV[4], ARGV[5]
if redis.call('ZSCORE', index, name) ~= ARGV[2] then return 0 end
if redis.call('HGET', schedule, 'version') ~= ARGV[3] then return 0 end
local fields = redis.call('HGETALL', template)
local ttl = tonumber(redis.call('HGET', template, 'ttl') or '')
local priority = redis.call('HGET', template, 'er_priority')
local at_front = redis.call('HEXISTS', template, 'enqueue_at_front') == 1
local ahead = {}
for at = 7, #ARGV do
  local id = name .. '-' .. string.gsub(ARGV[at], '[.]', '_')
  local job = 'rq:job:' .. id
  redis.call('HSET', job, 'created_at', now, 'enqueued_at', now, 'er_schedule', name,
             'er_tick', ARGV[at], unpack(fields))
  if ttl then redis.call('EXPIRE', job, ttl) end
  if at_front then table.insert(ahead, 1, id) else put(list, id, priority, now) end
  redis.call('HSET', schedule, 'last', ARGV[at], 'last_job', id)
end
-- The first to be pushed stands last.
if #ahead > 0 then redis.call('LPUSH', list, unpack(ahead)) end
if #ARGV > 6 then redis.call('SADD', KEYS[5], list) end
if ARGV[6] ~= '0' then redis.call('HINCRBY', schedule, 'dropped', ARGV[6]) end
redis.call('ZADD', index, following == '' and 'inf' or following, name)
return #ARGV - 6
"""
)
