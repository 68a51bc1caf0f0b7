"""Validation of cron lines and time zones, with suggestions.

Used for kinds, the command line and schedules in code. ``cron_problem`` needs croniter (extra
``schedules``).
"""

from __future__ import annotations

import re
import zoneinfo
from datetime import UTC, datetime
from functools import cache, lru_cache

from engineroom.core.errors import InvalidInputError, Problem
from engineroom.core.validation.paths import nearest, quoted

_CRON_FIELDS = 5
#: Most characters of a cron line; every meaningful list and range fits.
MAX_LINE = 200
_NICKNAMES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_WORDS = frozenset(
    [
        "JAN",
        "FEB",
        "MAR",
        "APR",
        "MAY",
        "JUN",
        "JUL",
        "AUG",
        "SEP",
        "OCT",
        "NOV",
        "DEC",
        "SUN",
        "MON",
        "TUE",
        "WED",
        "THU",
        "FRI",
        "SAT",
    ]
)


@lru_cache(maxsize=4096)
def cron_problem(line: str) -> tuple[str, str] | None:
    """Return (problem, fix) of a cron line, or None if it has five fields and fires some day."""
    from croniter import CroniterBadDateError, CroniterError, croniter

    example = "such as 0 8 * * 1-5 (minute, hour, day, month, weekday)"
    if len(line) > MAX_LINE:
        return f"has {len(line)} characters", f"write at most {MAX_LINE}, {example}"
    if line.startswith("@"):
        guess = nearest(line, _NICKNAMES)
        fix = f"write {_NICKNAMES[guess]}" if guess else f"write the five fields, {example}"
        return f"{quoted(line)} is a nickname", fix
    count = len(line.split())
    if count != _CRON_FIELDS:
        fields = "1 field" if count == 1 else f"{count} fields"
        return f"{quoted(line)} has {fields}, not 5", f"write five fields, {example}"
    # croniter draws Jenkins' H and R at random, so they differ in each process.
    if re.search(r"(?<![A-Za-z])[HhRr](?![A-Za-z])", line):
        return f"{quoted(line)} uses H or R", f"write fixed times, {example}"
    try:
        croniter(line, datetime(2026, 1, 1, tzinfo=UTC)).get_next(datetime)
    except CroniterBadDateError:
        return f"{quoted(line)} names a day that never comes", "choose a day that the month has"
    except (CroniterError, ValueError, KeyError, IndexError, OverflowError):
        for word in re.findall(r"[A-Za-z]{3,}", line):
            guess = nearest(word, _WORDS)
            if guess and word.upper() not in _WORDS:
                return f"{quoted(line)} is not a cron line", f"did you mean {guess}?"
        return f"{quoted(line)} is not a cron line", f"write five fields, {example}"
    return None


def check_cron(line: str, zone: str = "UTC", *, path: str = "schedule") -> None:
    """Raise InvalidInputError unless ``line`` fires some day and ``zone`` is a time zone."""
    results = {f"{path}.cron": cron_problem(line), f"{path}.zone": zone_problem(zone)}
    problems = [Problem(field, *result) for field, result in results.items() if result]
    if problems:
        raise InvalidInputError(problems)


def zone_problem(zone: str) -> tuple[str, str] | None:
    """Return (problem, fix) of an unknown time zone, or None for a known one."""
    if _zone_exists(zone):
        return None
    guess = nearest(zone, _zones())
    fix = f"did you mean {guess}?" if guess else "write an IANA name such as Europe/Berlin"
    return f"{quoted(zone)} is not a time zone", fix


@cache
def _zones() -> frozenset[str]:
    """Return every IANA zone, cached because the first lookup is slow."""
    return frozenset(zoneinfo.available_timezones())


@lru_cache(maxsize=1024)
def _zone_exists(name: str) -> bool:
    if name in {"", "localtime"}:
        return False
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True
