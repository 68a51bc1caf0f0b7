"""Times of a cron line in a time zone, through changes to and from daylight saving time.

A line whose hour field is ``*`` or ``*/n`` counts elapsed time: a repeated hour has its ticks
twice, and a skipped hour has none. A line with a fixed hour ticks once a day: in the first pass of
a repeated hour, and, for a time that does not exist, later by the length of the jump. Vixie cron
does the same.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

#: No change of a clock is longer.
_LONGEST_JUMP = timedelta(hours=25)


@lru_cache(maxsize=4096)
def next_slot(line: str, zone_name: str, at: float) -> float | None:
    """Return the first time of the cron line after ``at``, both in Unix seconds."""
    zone = _zone(zone_name)
    moment = datetime.fromtimestamp(at, UTC)
    if line.split()[1].startswith("*"):
        return _next_by_elapsed_time(line, zone, moment)
    return _next_by_local_time(line, zone, moment)


@lru_cache(maxsize=4096)
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)


def _next_by_elapsed_time(line: str, zone: ZoneInfo, moment: datetime) -> float | None:
    while True:
        offset = _offset(moment, zone)
        local = (moment + offset).replace(tzinfo=None)
        candidate = _next_local(line, local)
        if candidate is None:
            return None
        tick = candidate.replace(tzinfo=UTC) - offset
        if _offset(tick, zone) == offset:
            return tick.timestamp()
        # The offset changes in between: continue from the change with the new offset.
        before, beyond = moment, tick
        while beyond - before > timedelta(seconds=1):
            middle = before + (beyond - before) / 2
            if _offset(middle, zone) == offset:
                before = middle
            else:
                beyond = middle
        change = beyond.replace(microsecond=0)
        # The moment of the change itself may be a tick.
        moment = change - timedelta(microseconds=1)
        new = _offset(change, zone)
        candidate = _next_local(line, (moment + new).replace(tzinfo=None))
        if candidate is None:
            return None
        tick = candidate.replace(tzinfo=UTC) - new
        if _offset(tick, zone) == new:
            return tick.timestamp()
        moment = change


def _next_by_local_time(line: str, zone: ZoneInfo, moment: datetime) -> float | None:
    # Start early enough to find a time that the last change of the clock moved to later.
    local: datetime | None = moment.astimezone(zone).replace(tzinfo=None) - _LONGEST_JUMP
    while local is not None:
        local = _next_local(line, local)
        if local is not None:
            # fold=0: the first pass of a repeated hour; in a gap, the offset from before it.
            tick = local.replace(tzinfo=zone, fold=0).astimezone(UTC)
            if tick > moment:
                return tick.timestamp()
    return None


def _offset(moment: datetime, zone: ZoneInfo) -> timedelta:
    return moment.astimezone(zone).utcoffset() or timedelta(0)


def _next_local(line: str, local: datetime) -> datetime | None:
    from croniter import CroniterBadDateError, croniter

    try:
        # croniter reads a naive time as UTC, which has no jumps.
        following: datetime = croniter(line, local.replace(tzinfo=UTC)).get_next(datetime)
    except (CroniterBadDateError, OverflowError):
        return None
    return following.replace(tzinfo=None)
