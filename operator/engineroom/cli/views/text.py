"""Numbers and times as people read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

ABSENT = "-"


def count(number: int, noun: str) -> str:
    """``1 pod``, ``2 pods``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def number(value: int | None) -> str:
    """A number, or a dash for what is not known."""
    return ABSENT if value is None else str(value)


def seconds(duration: str) -> float:
    """A duration of the API (``1h30m``) in seconds."""
    from engineroom.api.v1alpha1.types import Duration

    return Duration(duration).seconds


def span(length: float) -> str:
    """A length of time in the two units that matter: ``3d4h``, ``2m10s``, ``7s``."""
    left = max(0, int(length))
    parts: list[tuple[int, str]] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        value, left = divmod(left, size)
        if value or parts:
            parts.append((value, unit))
    if not parts:
        return "0s"
    # Two hours ago need no seconds; ten minutes neither.
    largest = parts[:2] if parts[0][0] < 10 else parts[:1]
    return "".join(f"{value}{unit}" for value, unit in largest if value)


def age(since: datetime | None, now: datetime) -> str:
    """Return the time since then, or a dash."""
    return ABSENT if since is None else span((now - since).total_seconds())


def memory(amount: int | None) -> str:
    """Bytes as ``412Mi``."""
    if amount is None:
        return ABSENT
    return f"{amount / 2**30:.1f}Gi" if amount >= 10 * 2**30 else f"{amount / 2**20:.0f}Mi"


def cpu(millicores: int | None) -> str:
    """Millicores as ``250m``."""
    return ABSENT if millicores is None else f"{millicores}m"


def clip(text: str, length: int) -> str:
    """At most ``length`` characters, with an ellipsis for the rest."""
    return text if len(text) <= length else f"{text[: length - 1].rstrip()}…"
