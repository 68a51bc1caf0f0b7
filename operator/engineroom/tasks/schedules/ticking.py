"""Enqueueing the ticks that are due, each exactly once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engineroom.core.logging import get_logger
from engineroom.core.redis_replies import text
from engineroom.core.triggers.missed import MAX_TICKS, TickPlan, plan_ticks
from engineroom.queue import keys
from engineroom.tasks.enqueueing.encode import timestamp
from engineroom.tasks.errors import InvalidTaskError
from engineroom.tasks.redis_steps import BatchStep, ScriptStep, Steps
from engineroom.tasks.schedules import scripts
from engineroom.tasks.schedules.model import (
    INDEX,
    ScheduleInfo,
    read_schedule,
    schedule_key,
    score,
    template_key,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

#: Schedules that one poll reads, the most overdue first.
MAX_DUE = 200
#: Scripts in one round trip; each is atomic by itself.
CHUNK = 50
#: Delay before the next attempt at a schedule that cannot be read, so that it does not block the
#: others (seconds).
UNREADABLE_DELAY = 60.0

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class DueSchedule:
    """A schedule whose tick is due; ``tick`` is its score as Redis wrote it."""

    schedule: ScheduleInfo
    tick: str


def tick(now: datetime) -> Steps[tuple[int, float | None]]:
    """Enqueue what is due; return the number of jobs and the next tick (Unix seconds)."""
    schedules, next_tick = yield from due(now)
    if not schedules:
        return 0, next_tick
    enqueued = yield from enqueue_due(schedules, now)
    [[_, next_tick]] = yield BatchStep([scripts.DUE.words([INDEX], ["-inf", 0])])
    return enqueued, None if next_tick is None else float(next_tick)


def due(now: datetime, behind: float = 0.0) -> Steps[tuple[list[DueSchedule], float | None]]:
    """Return the schedules that were due ``behind`` seconds ago, most overdue first.

    The second value is the next tick of all schedules if none is due, otherwise None.
    """
    latest = now.timestamp() - behind
    rows, next_tick = yield ScriptStep(scripts.DUE, [INDEX], [repr(latest), MAX_DUE])
    schedules, postponements = [], []
    for row in rows:
        try:
            schedules.append(DueSchedule(read_schedule(row), text(row[1])))
        except (ValueError, KeyError, TypeError, InvalidTaskError) as error:
            # Another version wrote it, or this machine lacks its time zone.
            log.warning("a schedule cannot be read", schedule=text(row[0]), error=str(error)[:200])
            later = score(round(now.timestamp() + UNREADABLE_DELAY, 3))
            postponements.append(scripts.POSTPONE.words([INDEX], [row[0], row[1], later]))
    if postponements:
        yield BatchStep(postponements)
    return schedules, None if next_tick is None else float(next_tick)


def enqueue_due(
    schedules: Iterable[DueSchedule],
    now: datetime,
    limit: int = MAX_TICKS,
    at: float | None = None,
) -> Steps[int]:
    """Enqueue the due ticks that no other scheduler enqueued; return the number of jobs.

    ``limit`` bounds the ticks of one schedule. ``at`` is the time of the plan, ``now`` unless given
    (Unix seconds): schedules with the same cron line that are planned for the same time share the
    cached computation.
    """
    enqueued = 0
    at = now.timestamp() if at is None else at
    commands: list[list[Any]] = []
    for entry in schedules:
        schedule = entry.schedule
        plan = plan_ticks(
            schedule.trigger, schedule.name, float(entry.tick), at,
            schedule.missed, schedule.grace, limit,
        )  # fmt: skip
        commands.append(_tick_command(entry, plan, now))
    for start in range(0, len(commands), CHUNK):
        enqueued += sum((yield BatchStep(commands[start : start + CHUNK])))
    return enqueued


def _tick_command(entry: DueSchedule, plan: TickPlan, now: datetime) -> list[Any]:
    schedule = entry.schedule
    name = schedule.name
    following = "" if plan.next is None else score(plan.next)
    return scripts.TICK.words(
        [INDEX, schedule_key(name), template_key(name), keys.queue(schedule.queue), "rq:queues"],
        [
            name, entry.tick, schedule.version, timestamp(now), following, plan.dropped,
            *(score(at) for at in plan.run),
        ],
    )  # fmt: skip
