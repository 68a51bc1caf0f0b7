"""Triggers as data: a cron line, an interval, a single time. Times are Unix seconds."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TypeAlias

from engineroom.core.errors import InvalidInputError, Problem
from engineroom.core.triggers.cron_slots import next_slot
from engineroom.core.validation.cron import cron_problem, zone_problem
from engineroom.core.validation.values import number_problem, type_problem

#: The shortest interval (seconds).
MIN_INTERVAL = 1.0
#: The longest jitter of a cron line (seconds). The search for a tick reads all slots within it.
MAX_JITTER = 3600.0


@dataclass(frozen=True, slots=True)
class Cron:
    """Ticks of a cron line of five fields in a time zone, each up to ``jitter`` seconds later.

    The delay depends on the schedule's name and the slot alone, and ends before the next slot.
    Raises InvalidInputError.
    """

    line: str
    zone: str = "UTC"
    jitter: float = 0.0

    def __post_init__(self) -> None:
        _check(self.problem())

    def problem(self) -> Problem | None:
        """Return the first invalid field, or None."""
        wrong_type = (
            type_problem("cron", self.line, str, "use text")
            or type_problem("zone", self.zone, str, "use text")
            or number_problem("jitter", self.jitter)
        )
        if wrong_type:
            return wrong_type
        for field, invalid in (
            ("cron", cron_problem(self.line)), ("zone", zone_problem(self.zone))
        ):  # fmt: skip
            if invalid is not None:
                return Problem(field, *invalid)
        if not 0 <= self.jitter <= MAX_JITTER:
            return Problem("jitter", f"{self.jitter} s", "use 0 s to an hour")
        return None

    def after(self, at: float, name: str) -> float | None:
        """Return the first tick after ``at`` of the schedule ``name``, or None."""
        slot = next_slot(self.line, self.zone, at - self.jitter)
        if not self.jitter:
            return slot
        while slot is not None:
            following = next_slot(self.line, self.zone, slot)
            room = self.jitter if following is None else min(self.jitter, following - slot)
            tick = round(slot + room * _random_fraction(name, slot), 3)
            if tick > at:
                return tick
            slot = following
        return None


@dataclass(frozen=True, slots=True)
class Every:
    """Ticks each ``seconds`` from ``start`` (Unix seconds) on, each up to ``jitter`` s later.

    The delay depends on the schedule's name and the tick's number alone, so all processes compute
    the same one. Raises InvalidInputError.
    """

    seconds: float
    jitter: float = 0.0
    start: float = 0.0

    def __post_init__(self) -> None:
        _check(self.problem())

    def problem(self) -> Problem | None:
        """Return the first invalid field, or None."""
        wrong_type = (
            number_problem("every", self.seconds)
            or number_problem("jitter", self.jitter)
            or number_problem("start", self.start)
        )
        if wrong_type:
            return wrong_type
        if not MIN_INTERVAL <= self.seconds <= 366 * 86400:
            return Problem("every", f"{self.seconds} s", "use 1 s to 366 days")
        if not 0 <= self.jitter < self.seconds:
            return Problem("jitter", f"{self.jitter} s", "use less than the interval")
        if not 0 <= self.start < 1e11:
            return Problem("start", f"{self.start}", "use Unix seconds")
        return None

    def after(self, at: float, name: str) -> float | None:
        """Return the first tick after ``at`` of the schedule ``name``."""
        number = max(0, math.floor((at - self.start - self.jitter) / self.seconds))
        while self._tick(number, name) <= at:
            number += 1
        return self._tick(number, name)

    def _tick(self, number: int, name: str) -> float:
        delay = self.jitter * _random_fraction(name, number) if self.jitter else 0.0
        # Whole milliseconds have the same value in Python, in JSON and in Redis.
        return round(self.start + number * self.seconds + delay, 3)


@dataclass(frozen=True, slots=True)
class Once:
    """A single tick at a time in Unix seconds. Raises InvalidInputError."""

    at: float

    def __post_init__(self) -> None:
        _check(self.problem())

    def problem(self) -> Problem | None:
        """Return the problem of the time, or None."""
        wrong_type = number_problem("at", self.at)
        if wrong_type:
            return wrong_type
        return None if 0 <= self.at < 1e11 else Problem("at", f"{self.at}", "use Unix seconds")

    def after(self, at: float, name: str) -> float | None:
        """Return the tick if it is after ``at``, or None."""
        return self.at if self.at > at else None


Trigger: TypeAlias = Cron | Every | Once


def _check(problem: Problem | None) -> None:
    if problem is not None:
        raise InvalidInputError([problem])


def _random_fraction(name: str, number: float) -> float:
    """Return a number in [0, 1) that depends on the arguments alone."""
    digest = hashlib.blake2b(f"{name}:{number}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big") / (1 << 56)
