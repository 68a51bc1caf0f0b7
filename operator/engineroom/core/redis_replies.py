"""Redis replies as text, whether or not the client decodes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def text(value: Any, encoding: str = "utf-8") -> str:
    """Return a reply as text: ``None`` is ``""``, a number its digits.

    Bytes that are invalid in the encoding become U+FFFD.
    """
    if isinstance(value, bytes):
        return value.decode(encoding, "replace")
    return "" if value is None else str(value)


def texts(reply: Mapping[Any, Any]) -> dict[str, str]:
    """Return a hash as a dictionary of texts."""
    return {text(field): text(value) for field, value in reply.items()}
