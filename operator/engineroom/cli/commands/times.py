"""Parsing of durations and times in options."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from engineroom.cli.errors import UsageError

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LENGTH = re.compile(r"(?:\d{1,6}[smhd])+")


def parse_moment(option: str, text: str, now: datetime, *, ago: bool) -> datetime:
    """Return a time, or a length of time before ``now`` (after it without ``ago``).

    A time without an offset is UTC. Raises UsageError.
    """
    try:
        length = timedelta(seconds=parse_length(option, text))
    except UsageError:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise UsageError(
                f"{option} {text[:50]} is not a time",
                fix="write a length (90s, 2h, 1d12h) or a time (2026-01-31T12:00Z)",
            ) from None
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return now - length if ago else now + length


def parse_length(option: str, text: str) -> float:
    """Return a length of time such as ``90s`` or ``1d12h`` in seconds.

    A bare number is seconds. Raises UsageError.
    """
    if re.fullmatch(r"\d{1,9}(\.\d+)?", text):
        return float(text)
    if not _LENGTH.fullmatch(text):
        raise UsageError(
            f"{option} {text[:50]} is not a length of time", fix="write 90s, 2h or 1d12h"
        )
    return float(
        sum(int(count) * _UNITS[unit] for count, unit in re.findall(r"(\d+)([smhd])", text))
    )
