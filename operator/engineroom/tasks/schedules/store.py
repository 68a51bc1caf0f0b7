"""Storing, changing, removing, listing and running schedules."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from engineroom.core.redis_replies import text
from engineroom.queue import keys
from engineroom.tasks.enqueueing.encode import encode, timestamp
from engineroom.tasks.enqueueing.enqueue import relayed_key
from engineroom.tasks.enqueueing.task import EnqueueRules, check_task
from engineroom.tasks.errors import (
    InvalidTaskError,
    ScheduleChangedError,
    ScheduleNotFoundError,
    ScheduleOwnedError,
)
from engineroom.tasks.redis_steps import BatchStep, ScriptStep, Steps
from engineroom.tasks.schedules import scripts
from engineroom.tasks.schedules.model import (
    INDEX,
    OWNERS,
    Schedule,
    ScheduleInfo,
    owned_key,
    read_schedule,
    schedule_key,
    score,
    spec_json,
    template_key,
    trigger_json,
)
from engineroom.tasks.triggers import Cron, Every, Missed, Once
from engineroom.tasks.type_checks import check_number, check_type

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

MAX_SCHEDULES = 100_000

_NAME = re.compile(r"[A-Za-z0-9_-]{1,160}")


def put(
    schedule: Schedule, rules: EnqueueRules, now: datetime, expected: int | None = None
) -> Steps[bool]:
    """Create the schedule or replace the one of its name; return True if it is new.

    An equal schedule stays unchanged and keeps its next tick. ``expected`` is the version that the
    stored schedule must have; 0 means that none may exist. Raises InvalidTaskError,
    ScheduleOwnedError, ScheduleChangedError.
    """
    (its_keys, arguments), first = _put_arguments(schedule, "", rules, now, expected)
    if first is None:
        raise InvalidTaskError("trigger", "is in the past", "use a time to come")
    reply = yield ScriptStep(scripts.PUT_SCHEDULE, its_keys, arguments)
    return _is_new(schedule.name, reply)


def declare(
    owner: str, installation: str, declared: Sequence[Schedule], rules: EnqueueRules, now: datetime
) -> Steps[dict[str, str]]:
    """Replace the owner's schedules by exactly these; equal schedules cause no write.

    Return the refused names, each with the owner that already holds the name (empty for a schedule
    made at run time). A schedule without a future tick is stored and never ticks. ``installation``
    manages the owner; see ``owners``. Raises InvalidTaskError before anything is written.
    """
    commands = []
    for schedule in declared:
        (its_keys, arguments), _ = _put_arguments(schedule, owner, rules, now)
        commands.append(scripts.PUT_SCHEDULE.words(its_keys, arguments))
    [stored_names, manager] = yield BatchStep(
        [["SMEMBERS", owned_key(owner)], ["HGET", OWNERS, owner]]
    )
    declared_names = {schedule.name for schedule in declared}
    left_out = sorted({text(name) for name in stored_names} - declared_names)
    commands += [scripts.REMOVE.words(*_remove_arguments(name, owner)) for name in left_out]
    if declared and (manager is None or text(manager) != installation):
        commands.append(["HSET", OWNERS, owner, installation])
    elif not declared and manager is not None:
        commands.append(["HDEL", OWNERS, owner])
    replies = (yield BatchStep(commands)) if commands else []
    refused = {}
    for schedule, reply in zip(declared, replies, strict=False):
        try:
            _is_new(schedule.name, reply)
        except ScheduleOwnedError as error:
            refused[schedule.name] = error.owner
    return refused


def owners() -> Steps[dict[str, str]]:
    """Return the owners of schedules, each with the installation that manages it."""
    [reply] = yield BatchStep([["HGETALL", OWNERS]])
    pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
    return {text(owner): text(installation) for owner, installation in pairs}


def owned(owner: str) -> Steps[list[ScheduleInfo]]:
    """Return the owner's schedules, sorted by name."""
    rows = yield ScriptStep(scripts.OWNED, [owned_key(owner), INDEX], [])
    return sorted((read_schedule(row) for row in rows), key=lambda schedule: schedule.name)


def remove(name: str, expected: int | None = None) -> Steps[None]:
    """Delete the schedule, in the version ``expected`` if given; jobs that it enqueued stay.

    Raises ScheduleNotFoundError, ScheduleOwnedError, ScheduleChangedError.
    """
    its_keys, arguments = _remove_arguments(name, "")
    if expected is not None:
        arguments.append(expected)
    _check_changed(name, (yield ScriptStep(scripts.REMOVE, its_keys, arguments)))


def pause(name: str) -> Steps[None]:
    """Suspend the schedule's ticks until ``resume``, which does not catch up on them.

    Raises ScheduleNotFoundError, ScheduleOwnedError.
    """
    invoke = ScriptStep(scripts.PAUSE, [INDEX, schedule_key(name)], [name, "inf"])
    _check_changed(name, (yield invoke))


def resume(name: str, now: datetime) -> Steps[None]:
    """Undo ``pause``; the next tick is the first after ``now``.

    Raises ScheduleNotFoundError, ScheduleOwnedError.
    """
    schedule = yield from get(name)
    following = schedule.trigger.after(now.timestamp(), name)
    next_score = "inf" if following is None else score(following)
    invoke = ScriptStep(scripts.RESUME, [INDEX, schedule_key(name)], [name, next_score])
    _check_changed(name, (yield invoke))


def run_now(name: str, now: datetime, once: tuple[str, int] | None = None) -> Steps[str]:
    """Enqueue the schedule's job beside its ticks, paused or not; return the job's id.

    ``once`` is an id of this run and a window in seconds: within the window the same id enqueues
    one job only. Raises ScheduleNotFoundError.
    """
    schedule = yield from get(name)
    job_id = f"{name}-{once[0] if once else uuid4().hex[:12]}"
    marks = [relayed_key(job_id)] if once else []
    enqueued = yield ScriptStep(
        scripts.RUN_NOW,
        [schedule_key(name), template_key(name), keys.queue(schedule.queue), "rq:queues", *marks],
        [name, job_id, timestamp(now), once[1] if once else ""],
    )
    if not enqueued:
        raise _not_found(name)
    return job_id


def get(name: str) -> Steps[ScheduleInfo]:
    """Return the schedule. Raises ScheduleNotFoundError."""
    row = yield ScriptStep(scripts.GET, [INDEX, schedule_key(name)], [name])
    if not row:
        raise _not_found(name)
    return read_schedule(row)


def page(after: str, limit: int) -> Steps[list[ScheduleInfo]]:
    """Return schedules sorted by their next tick, those without one last.

    The page begins after the schedule named ``after``, or at the first for "".
    """
    if not 1 <= limit <= 1000:
        raise InvalidTaskError("limit", f"{limit}", "use 1 to 1000")
    rows = yield ScriptStep(scripts.LIST, [INDEX], [after, limit])
    return [read_schedule(row) for row in rows]


def _put_arguments(
    schedule: Schedule, owner: str, rules: EnqueueRules, now: datetime, expected: int | None = None
) -> tuple[tuple[list[str], list[Any]], float | None]:
    """Return keys and arguments of PUT_SCHEDULE, and the first tick. Raises InvalidTaskError."""
    _check_schedule(schedule, owner)
    task = schedule.task
    # The fields that differ between ticks are set at the tick, so equal tasks have equal bytes.
    job = encode(replace(task, job_id="tick"), rules, now, carry=False)
    fields = list(zip(job.fields[::2], job.fields[1::2], strict=True))
    template = [pair for pair in fields if pair[0] not in ("created_at", "enqueued_at")]
    if task.at_front:
        # RQ's own field of scheduled jobs; scripts read it for ticks too.
        template.append(("enqueue_at_front", 1))
    spec = spec_json(schedule, job.queue, str(dict(fields)["description"]))
    first = schedule.trigger.after(now.timestamp(), schedule.name)
    name = schedule.name
    arguments = [
        name, "inf" if first is None else score(first), spec, MAX_SCHEDULES, owner,
        "1" if schedule.paused else "", trigger_json(schedule.trigger),
        "" if expected is None else expected,
        *(word for pair in template for word in pair),
    ]  # fmt: skip
    return ([INDEX, schedule_key(name), template_key(name), owned_key(owner)], arguments), first


def _check_schedule(schedule: Schedule, owner: str) -> None:
    check_type("schedule", schedule, Schedule, "use Schedule(name, trigger, task)")
    check_type("name", schedule.name, str, "use text")
    check_type("trigger", schedule.trigger, (Cron, Every, Once), "use Cron, Every or Once")
    check_type("missed", schedule.missed, Missed, "use one of Missed")
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


def _is_new(name: str, reply: Any) -> bool:
    status, holder = int(reply[0]), text(reply[1])
    if status == -1:
        raise InvalidTaskError("name", f"{MAX_SCHEDULES} schedules exist", "remove some first")
    if status == -2:
        raise ScheduleOwnedError(name, holder)
    if status == -3:
        raise _has_changed(name)
    return status == 1


def _remove_arguments(name: str, owner: str) -> tuple[list[str], list[Any]]:
    return [INDEX, schedule_key(name), template_key(name), owned_key(owner)], [name, owner]


def _check_changed(name: str, reply: Any) -> None:
    status, holder = int(reply[0]), text(reply[1])
    if status == 0:
        raise _not_found(name)
    if status == -2:
        raise ScheduleOwnedError(name, holder)
    if status == -3:
        raise _has_changed(name)


def _has_changed(name: str) -> ScheduleChangedError:
    return ScheduleChangedError(f"name: schedule {name[:100]!r} has just changed; read it again")


def _not_found(name: str) -> ScheduleNotFoundError:
    return ScheduleNotFoundError(f"name: no schedule {name[:100]!r}; see the list of schedules")
