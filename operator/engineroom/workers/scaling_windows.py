"""Known peaks: which schedules hold a minimum right now, and when that changes next."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from croniter import croniter

if TYPE_CHECKING:
    from engineroom.workers.plan import SchedulePlan


@lru_cache(maxsize=4096)
def _window(cron: str, zone: str, minute: int) -> tuple[float, float]:
    """Last and next tick around a minute since the epoch, in Unix seconds."""
    now = datetime.fromtimestamp(minute * 60 + 60, ZoneInfo(zone))
    previous = croniter(cron, now + timedelta(microseconds=1)).get_prev(datetime)
    following = croniter(cron, now).get_next(datetime)
    return previous.timestamp(), following.timestamp()


def active(schedules: tuple[SchedulePlan, ...], at: float) -> SchedulePlan | None:
    """The schedule with the largest minimum among those that hold at ``at`` (Unix seconds)."""
    holding = [s for s in schedules if _holds(s, at)]
    return max(holding, key=lambda s: s.min_replicas, default=None)


def next_change(schedules: tuple[SchedulePlan, ...], at: float) -> float | None:
    """Seconds until a schedule starts or ends; None without schedules."""
    moments: list[float] = []
    for schedule in schedules:
        previous, following = _window(schedule.cron, schedule.time_zone, int(at // 60) - 1)
        moments += [m for m in (previous + schedule.duration, previous, following) if m > at]
        later, _ = _window(schedule.cron, schedule.time_zone, int(at // 60))
        moments += [m for m in (later,) if m > at]
    return min(moments) - at if moments else None


def _holds(schedule: SchedulePlan, at: float) -> bool:
    # The window is looked up by the full minute that has begun, so that a tick counts from its
    # own second on and the cache is hit by all looks within a minute.
    previous, _ = _window(schedule.cron, schedule.time_zone, int(at // 60) - 1)
    return previous <= at < previous + schedule.duration
