"""Paths of fields and values as messages show them."""

from __future__ import annotations

import json

_SHOWN = 60


def child(path: str, key: str) -> str:
    """Path of the field ``key`` under ``path``; keys that are no plain word stand in brackets."""
    if key.isidentifier() and key.isascii():
        return f"{path}.{key}" if path else key
    return f"{path}[{shown(key)}]"


def shown(value: object) -> str:
    """A value as it stands in a message: JSON on one line, cut when long."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = type(value).__name__
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
