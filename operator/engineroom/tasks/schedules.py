"""Schedules as data in Redis, and the loop that enqueues each tick exactly once.

A tick is enqueued and the schedule moved on by one script, which does neither unless the schedule
still waits for that very tick in that very version. So it does not matter how many schedulers run,
nor where one is killed: the tick itself is the token.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from engineroom.core.clock import Clock, SystemClock
from engineroom.core.logging import get_logger
from engineroom.queue import keys
from engineroom.tasks.errors import (
    InvalidTaskError,
    ScheduleNotFoundError,
    TasksUnavailableError,
)
from engineroom.tasks.steps import Batch, Invoke, Script, Steps, run, text
from engineroom.tasks.task import Rules, Task, encode, timestamp
from engineroom.tasks.triggers import Cron, Every, Missed, Once, Trigger, decide

if TYPE_CHECKING:
    import threading
    from datetime import datetime

    from redis import Redis

log = get_logger(__name__)

#: Sorted set of the names of schedules by their next tick, in Unix seconds.
INDEX = "engineroom:schedules"
#: Schedules that one look takes, the most overdue first.
LOOK = 200
MAX_SCHEDULES = 100_000
#: The loop looks at least so often (seconds), whatever is due.
PACE = 0.5

_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")
_TRIGGERS: dict[str, type[Trigger]] = {"cron": Cron, "every": Every, "once": Once}


@dataclass(frozen=True, slots=True)
class Schedule:
    """A task and when it ticks. ``grace``: a tick that is later by more (s) counts as missed."""

    name: str
    trigger: Trigger
    task: Task
    missed: Missed = Missed.RUN_ONCE
    grace: float = 60.0


@dataclass(frozen=True, slots=True)
class Known:
    """A schedule as it is listed; times are Unix seconds."""

    name: str
    trigger: Trigger
    queue: str
    description: str
    missed: Missed
    grace: float
    next: float | None
    last: float | None


def put(schedule: Schedule, rules: Rules, now: datetime) -> Steps[bool]:
    """Store the schedule, new or instead of the one of that name; True if it is new.

    The same again changes nothing: its next tick stays. Raises InvalidTaskError.
    """
    if not _NAME.fullmatch(schedule.name):
        raise InvalidTaskError(
            "name", f"{schedule.name[:50]!r}", "use 1 to 100 letters, digits, '_' and '-'"
        )
    if not 0 <= schedule.grace <= 366 * 86400:
        raise InvalidTaskError("grace", f"{schedule.grace} s", "use 0 s to 366 days")
    task = schedule.task
    if task.delay is not None or task.at is not None or task.unique or task.job_id is not None:
        raise InvalidTaskError(
            "task", "has delay, at, unique or job_id", "leave them out: the schedule says when"
        )
    # The same task has the same bytes whenever it is stored: what differs is set at the tick.
    if task.depends_on:
        raise InvalidTaskError("task.depends_on", "stands in a schedule", "leave it out")
    job = encode(replace(task, job_id="tick"), rules, now)
    template = list(zip(job.fields[::2], job.fields[1::2], strict=True))
    fixed = [pair for pair in template if pair[0] not in ("created_at", "enqueued_at")]
    spec = _spec(schedule, job.queue, str(dict(template)["description"]))
    first = schedule.trigger.after(now.timestamp(), schedule.name)
    if first is None:
        raise InvalidTaskError("trigger", "is in the past", "use a time to come")
    added = yield Invoke(
        _PUT,
        [INDEX, _key(schedule.name), _template_key(schedule.name)],
        [schedule.name, _number(first), spec, MAX_SCHEDULES, *(w for p in fixed for w in p)],
    )
    if added == -1:
        raise InvalidTaskError("name", f"{MAX_SCHEDULES} schedules exist", "remove some first")
    return bool(added)


def remove(name: str) -> Steps[None]:
    """Forget the schedule; jobs that it has enqueued stay. Raises ScheduleNotFoundError."""
    [_, removed, _] = yield Batch(
        [["ZREM", INDEX, name], ["DEL", _key(name)], ["DEL", _template_key(name)]], atomic=True
    )
    if not removed:
        raise ScheduleNotFoundError(f"name: no schedule {name[:100]!r}; see the list of schedules")


def listed(after: str, limit: int) -> Steps[list[Known]]:
    """Schedules by their next tick, those that will never tick again last; ``after`` is a name."""
    if not 1 <= limit <= 1000:
        raise InvalidTaskError("limit", f"{limit}", "use 1 to 1000")
    rows = yield Invoke(_LIST, [INDEX], [after, limit])
    return [_known(row) for row in rows]


def tick(now: datetime) -> Steps[tuple[int, float | None]]:
    """Enqueue what is due; how many jobs that were, and when to look again (Unix seconds)."""
    at = now.timestamp()
    rows = yield Invoke(_DUE, [INDEX], [repr(at), LOOK])
    fired = 0
    commands: list[list[Any]] = []
    for row in rows:
        known = _known(row[:4])
        due = float(row[1])
        decision = decide(known.trigger, known.name, due, at, known.missed, known.grace)
        commands.append(
            _FIRE.words(
                [
                    INDEX, _key(known.name), _template_key(known.name),
                    keys.queue(known.queue), "rq:queues",
                ],
                [
                    known.name, text(row[1]), text(row[4]), timestamp(now),
                    "" if decision.next is None else _number(decision.next),
                    *(_number(each) for each in decision.run),
                ],
            )
        )  # fmt: skip
    # In parts: each script is atomic by itself.
    for start in range(0, len(commands), 50):
        fired += sum((yield Batch(commands[start : start + 50])))
    [head] = yield Batch([["EVAL", _HEAD, 1, INDEX]])
    return fired, None if head is None else float(head)


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


def _spec(schedule: Schedule, queue: str, description: str) -> str:
    kind = next(name for name, of in _TRIGGERS.items() if isinstance(schedule.trigger, of))
    return json.dumps(
        {
            "trigger": {"kind": kind, **asdict(schedule.trigger)},
            "queue": queue,
            "description": description,
            "missed": schedule.missed.value,
            "grace": schedule.grace,
        },
        sort_keys=True,
    )


def _known(row: Any) -> Known:
    name, due, spec, last = row
    said = json.loads(spec)
    return Known(
        name=text(name),
        trigger=_trigger(json.dumps(said["trigger"])),
        queue=said["queue"],
        description=said["description"],
        missed=Missed(said["missed"]),
        grace=said["grace"],
        next=float(due) if due and text(due) != "inf" else None,
        last=float(last) if last else None,
    )


def _trigger(said: str) -> Trigger:
    fields = json.loads(said)
    return _TRIGGERS[fields.pop("kind")](**fields)


def _key(name: str) -> str:
    return f"engineroom:schedule:{name}"


def _template_key(name: str) -> str:
    return f"engineroom:schedule:{name}:job"


def _number(seconds: float) -> str:
    # As Redis writes a score: what is compared as text has to be the same text.
    return f"{seconds:.17g}"


#: KEYS: index, schedule, template. ARGV: name, first tick, spec, most schedules, the job's fields.
_PUT = Script("""
local new = redis.call('EXISTS', KEYS[2]) == 0
if new and redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[4]) then return -1 end
local fields, same = {}, redis.call('HGET', KEYS[2], 'spec') == ARGV[3]
for at = 5, #ARGV do fields[#fields + 1] = ARGV[at] end
if same then
  same = redis.call('HLEN', KEYS[3]) == #fields / 2
  for at = 1, #fields, 2 do
    same = same and redis.call('HGET', KEYS[3], fields[at]) == fields[at + 1]
  end
end
if same then return 0 end
redis.call('HSET', KEYS[2], 'spec', ARGV[3])
redis.call('HINCRBY', KEYS[2], 'version', 1)
redis.call('DEL', KEYS[3])
redis.call('HSET', KEYS[3], unpack(fields))
redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
return new and 1 or 0
""")

_LIST = Script("""
local first, rows = 0, {}
if ARGV[1] ~= '' then first = (redis.call('ZRANK', KEYS[1], ARGV[1]) or -1) + 1 end
local members = redis.call('ZRANGE', KEYS[1], first, first + ARGV[2] - 1, 'WITHSCORES')
for at = 1, #members, 2 do
  local hash = redis.call('HMGET', 'engineroom:schedule:' .. members[at], 'spec', 'last')
  if hash[1] then rows[#rows + 1] = {members[at], members[at + 1], hash[1], hash[2]} end
end
return rows
""")

_DUE = Script("""
local rows = {}
local members = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'WITHSCORES',
                           'LIMIT', 0, ARGV[2])
for at = 1, #members, 2 do
  local key = 'engineroom:schedule:' .. members[at]
  local hash = redis.call('HMGET', key, 'spec', 'last', 'version')
  if hash[1] then rows[#rows + 1] = {members[at], members[at + 1], hash[1], hash[2], hash[3]} end
end
return rows
""")

_HEAD = """
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
"""

#: KEYS: index, schedule, template, waiting list, set of queues. ARGV: name, the tick expected, the
#: version, the time, the next tick or '', then the ticks to run. Returns how many jobs were made.
_FIRE = Script("""
local index, schedule, template, list = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local name, now, following = ARGV[1], ARGV[4], ARGV[5]
if redis.call('ZSCORE', index, name) ~= ARGV[2] then return 0 end
if redis.call('HGET', schedule, 'version') ~= ARGV[3] then return 0 end
local fields = redis.call('HGETALL', template)
local ttl = tonumber(redis.call('HGET', template, 'ttl') or '')
for at = 6, #ARGV do
  local id = name .. '-' .. string.gsub(ARGV[at], '[.]', '_')
  local job = 'rq:job:' .. id
  redis.call('HSET', job, 'created_at', now, 'enqueued_at', now, 'er_schedule', name,
             'er_tick', ARGV[at], unpack(fields))
  if ttl then redis.call('EXPIRE', job, ttl) end
  redis.call('RPUSH', list, id)
  redis.call('HSET', schedule, 'last', ARGV[at])
end
if #ARGV > 5 then redis.call('SADD', KEYS[5], list) end
redis.call('ZADD', index, following == '' and 'inf' or following, name)
return #ARGV - 5
""")
