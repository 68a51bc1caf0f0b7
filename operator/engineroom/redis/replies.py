"""Replies of Redis as text, whether the client decodes them or not."""

from __future__ import annotations

from typing import Any


def text(value: Any) -> str:
    """Return a reply as text, with U+FFFD for bytes that are not UTF-8; ``None`` is ``""``."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return "" if value is None else str(value)
