"""Recurring times with a larger minimum: which is active now, and when that changes."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from croniter import croniter

if TYPE_CHECKING:
    from engineroom.workers.plan import ScalingWindow


@lru_cache(maxsize=4096)
def _starts(cron: str, zone: str, minute: int) -> tuple[float, float]:
    """Return the last and the next start around a minute since the epoch, in Unix seconds."""
    now = datetime.fromtimestamp(minute * 60 + 60, ZoneInfo(zone))
    previous = croniter(cron, now + timedelta(microseconds=1)).get_prev(datetime)
    following = croniter(cron, now).get_next(datetime)
    return previous.timestamp(), following.timestamp()


def active(windows: tuple[ScalingWindow, ...], at: float) -> ScalingWindow | None:
    """Return the window with the largest minimum of those active at ``at`` (Unix seconds)."""
    current = [window for window in windows if _is_active(window, at)]
    return max(current, key=lambda window: window.min_replicas, default=None)


def next_change(windows: tuple[ScalingWindow, ...], at: float) -> float | None:
    """Return the seconds until a window starts or ends; None without windows."""
    moments: list[float] = []
    for window in windows:
        previous, following = _starts(window.cron, window.time_zone, int(at // 60) - 1)
        moments += [m for m in (previous + window.duration, previous, following) if m > at]
        later, _ = _starts(window.cron, window.time_zone, int(at // 60))
        moments += [m for m in (later,) if m > at]
    return min(moments) - at if moments else None


def _is_active(window: ScalingWindow, at: float) -> bool:
    # Looked up by the full minute that has begun: a window is active from its very second on, and
    # all looks within a minute hit the cache.
    previous, _ = _starts(window.cron, window.time_zone, int(at // 60) - 1)
    return previous <= at < previous + window.duration
