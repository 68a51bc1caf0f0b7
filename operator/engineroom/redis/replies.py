"""Redis replies as text, whether or not the client decodes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def text(value: Any) -> str:
    """Return a reply as text, with U+FFFD for bytes that are not UTF-8; ``None`` is ``""``."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return "" if value is None else str(value)


def texts(reply: Mapping[Any, Any]) -> dict[str, str]:
    """Return a hash as a dictionary of texts."""
    return {text(field): text(value) for field, value in reply.items()}
