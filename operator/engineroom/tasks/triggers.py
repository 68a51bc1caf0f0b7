"""When a schedule ticks, and what is to be done about ticks that are due: pure, time is data.

Daylight saving, for cron: a schedule with ``*`` (or ``*/n``) as its hour goes by elapsed time, so
that a repeated hour has its ticks twice and a skipped one none. One with a fixed hour ticks once a
day: in a repeated hour at its first pass, and of a time that does not exist as much later as the
clock jumps. That is what Vixie cron does.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import TypeAlias
from zoneinfo import ZoneInfo

from engineroom.core.validation.cron import cron_problem, zone_problem
from engineroom.tasks.errors import InvalidTaskError
from engineroom.tasks.type_checks import check_kind, check_number

#: Ticks that one decision runs at most; the rest follows in the next.
MAX_AT_ONCE = 100
#: The shortest interval (seconds).
LEAST_INTERVAL = 1.0
#: The longest jitter of a cron line (seconds): to find a tick, each base within it is looked at.
MOST_JITTER = 3600.0
#: A jump of a clock is never longer.
_LONGEST_JUMP = timedelta(hours=25)


class Missed(StrEnum):
    """What becomes of ticks that nobody was there to run in time."""

    SKIP = "skip"
    RUN_ONCE = "run_once"
    RUN_ALL = "run_all"


@dataclass(frozen=True, slots=True)
class Cron:
    """By a cron line of five fields in a time zone, each time up to ``jitter`` s later.

    How much later is a function of the schedule's name and the tick; never as late as the next.
    """

    line: str
    zone: str = "UTC"
    jitter: float = 0.0

    def __post_init__(self) -> None:
        check_kind("cron", self.line, str, "use text")
        check_kind("zone", self.zone, str, "use text")
        check_number("jitter", self.jitter)
        for field, told in (
            ("cron", cron_problem(self.line)), ("zone", zone_problem(self.zone))
        ):  # fmt: skip
            if told is not None:
                raise InvalidTaskError(field, *told)
        if not 0 <= self.jitter <= MOST_JITTER:
            raise InvalidTaskError("jitter", f"{self.jitter} s", "use 0 s to an hour")

    def after(self, at: float, name: str) -> float | None:
        """The first tick after ``at``, both in Unix seconds."""
        base = _cron_after(self.line, self.zone, at - self.jitter)
        if not self.jitter:
            return base
        while base is not None:
            following = _cron_after(self.line, self.zone, base)
            room = self.jitter if following is None else min(self.jitter, following - base)
            tick = round(base + room * _drawn(name, base), 3)
            if tick > at:
                return tick
            base = following
        return None


@dataclass(frozen=True, slots=True)
class Every:
    """Each ``seconds`` from ``start`` (Unix seconds) on, each time up to ``jitter`` s later.

    How much later is a function of the schedule's name and the tick: the same for whoever asks.
    """

    seconds: float
    jitter: float = 0.0
    start: float = 0.0

    def __post_init__(self) -> None:
        check_number("every", self.seconds)
        check_number("jitter", self.jitter)
        check_number("start", self.start)
        if not LEAST_INTERVAL <= self.seconds <= 366 * 86400:
            raise InvalidTaskError("every", f"{self.seconds} s", "use 1 s to 366 days")
        if not 0 <= self.jitter < self.seconds:
            raise InvalidTaskError("jitter", f"{self.jitter} s", "use less than the interval")
        if not 0 <= self.start < 1e11:
            raise InvalidTaskError("start", f"{self.start}", "use Unix seconds")

    def after(self, at: float, name: str) -> float | None:
        """The first tick after ``at``, both in Unix seconds."""
        number = max(0, math.floor((at - self.start - self.jitter) / self.seconds))
        while self._tick(number, name) <= at:
            number += 1
        return self._tick(number, name)

    def _tick(self, number: int, name: str) -> float:
        later = 0.0
        if self.jitter:
            later = self.jitter * _drawn(name, number)
        # Whole milliseconds: the same number in Python, in JSON and in Redis.
        return round(self.start + number * self.seconds + later, 3)


@dataclass(frozen=True, slots=True)
class Once:
    """At one time, in Unix seconds."""

    at: float

    def __post_init__(self) -> None:
        check_number("at", self.at)
        if not 0 <= self.at < 1e11:
            raise InvalidTaskError("at", f"{self.at}", "use Unix seconds")

    def after(self, at: float, name: str) -> float | None:
        """The tick if it is after ``at``."""
        return self.at if self.at > at else None


Trigger: TypeAlias = Cron | Every | Once


@dataclass(frozen=True, slots=True)
class Decision:
    """Ticks to run now, and the tick that is waited for next (None: never again).

    ``dropped`` counts those that the policy does not run, as far as the limit of a decision.
    """

    run: tuple[float, ...]
    next: float | None
    dropped: int = 0


def decide(
    trigger: Trigger,
    name: str,
    due: float,
    now: float,
    missed: Missed,
    grace: float,
    most: int = MAX_AT_ONCE,
) -> Decision:
    """What to do at ``now`` about a schedule whose next tick is ``due`` (Unix seconds).

    A tick is missed when it is more than ``grace`` seconds late. Under SKIP such are not run,
    under RUN_ONCE only the latest of all that are due is, under RUN_ALL all are, oldest first and
    ``most`` at a time.
    """
    if due > now:
        return Decision((), due)
    if missed is Missed.RUN_ALL:
        ticks = [due]
        following = trigger.after(due, name)
        while following is not None and following <= now and len(ticks) < most:
            ticks.append(following)
            following = trigger.after(following, name)
        return Decision(tuple(ticks), following)
    following = trigger.after(now, name)
    if missed is Missed.RUN_ONCE:
        latest = _latest(trigger, name, due, now)
        return Decision((latest,), following, _count(trigger, name, due, latest, most))
    punctual = due
    if due < now - grace:
        # Ticks are in whole milliseconds: one that is late by the grace exactly is in time.
        found = trigger.after(now - grace - 0.0005, name)
        if found is None or found > now:
            return Decision((), following, _count(trigger, name, due, now + 0.001, most))
        punctual = found
    ticks = [punctual]
    later = trigger.after(punctual, name)
    while later is not None and later <= now and len(ticks) < most:
        ticks.append(later)
        later = trigger.after(later, name)
    return Decision(tuple(ticks), later, _count(trigger, name, due, punctual, most))


def _count(trigger: Trigger, name: str, first: float, end: float, most: int) -> int:
    """Ticks from ``first``, which is one, to before ``end``; ``most`` where there are more."""
    count, tick = 0, first
    while tick < end and count < most:
        count += 1
        following = trigger.after(tick, name)
        if following is None:
            break
        tick = following
    return count


def _latest(trigger: Trigger, name: str, due: float, now: float) -> float:
    """The last tick from ``due`` to ``now``; looks back in growing steps, so a year is cheap."""
    back = 1.0
    found = due
    while now - back > due:
        tick = trigger.after(now - back, name)
        if tick is not None and tick <= now:
            found = tick
            break
        back *= 2
    following = trigger.after(found, name)
    while following is not None and following <= now:
        found, following = following, trigger.after(following, name)
    return found


def _drawn(name: str, number: float) -> float:
    """A number in [0, 1) that is the same for whoever asks."""
    drawn = hashlib.blake2b(f"{name}:{number}".encode(), digest_size=7).digest()
    return int.from_bytes(drawn, "big") / (1 << 56)


@lru_cache(maxsize=4096)
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)


@lru_cache(maxsize=4096)
def _cron_after(line: str, zone_name: str, at: float) -> float | None:
    zone = _zone(zone_name)
    moment = datetime.fromtimestamp(at, UTC)
    if line.split()[1].startswith("*"):
        return _by_elapsed_time(line, zone, moment)
    return _by_the_clock(line, zone, moment)


def _by_elapsed_time(line: str, zone: ZoneInfo, moment: datetime) -> float | None:
    while True:
        offset = _offset(moment, zone)
        local = (moment + offset).replace(tzinfo=None)
        candidate = _naive_after(line, local)
        if candidate is None:
            return None
        tick = candidate.replace(tzinfo=UTC) - offset
        if _offset(tick, zone) == offset:
            return tick.timestamp()
        # The clocks change in between: go on from that moment with the new offset.
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
        candidate = _naive_after(line, (moment + new).replace(tzinfo=None))
        if candidate is None:
            return None
        tick = candidate.replace(tzinfo=UTC) - new
        if _offset(tick, zone) == new:
            return tick.timestamp()
        moment = change


def _by_the_clock(line: str, zone: ZoneInfo, moment: datetime) -> float | None:
    # From so far back that a time which the last jump moved to later is seen, too.
    local: datetime | None = moment.astimezone(zone).replace(tzinfo=None) - _LONGEST_JUMP
    while local is not None:
        local = _naive_after(line, local)
        if local is not None:
            # fold=0: the first pass of a repeated hour; in a gap, the offset from before it.
            tick = local.replace(tzinfo=zone, fold=0).astimezone(UTC)
            if tick > moment:
                return tick.timestamp()
    return None


def _offset(moment: datetime, zone: ZoneInfo) -> timedelta:
    return moment.astimezone(zone).utcoffset() or timedelta(0)


def _naive_after(line: str, local: datetime) -> datetime | None:
    from croniter import CroniterBadDateError, croniter

    try:
        # croniter reads a naive time as UTC, which has no jumps.
        found: datetime = croniter(line, local.replace(tzinfo=UTC)).get_next(datetime)
    except (CroniterBadDateError, OverflowError):
        return None
    return found.replace(tzinfo=None)
