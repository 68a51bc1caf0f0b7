"""Paths of fields, values quoted for messages, and spelling suggestions."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Most characters of a quoted value.
_LONGEST = 60
_ENCODER = json.JSONEncoder(ensure_ascii=False)


def child(path: str, key: str) -> str:
    """Return the path of ``key`` under ``path``.

    Keys that are no identifiers, or are longer than 60 characters, get quotes and brackets. So a
    path's length is limited by its depth.
    """
    if len(key) <= _LONGEST and key.isidentifier() and key.isascii():
        return f"{path}.{key}" if path else key
    return f"{path}[{quoted(key)}]"


def quoted(value: object) -> str:
    """Return a value as one line of JSON for a message, cut at 60 characters."""
    try:
        text = _start_of(value)
    except (TypeError, ValueError, RecursionError):
        text = type(value).__name__
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def _start_of(value: object) -> str:
    """Return a value as JSON, or its start where it is longer than a message shows."""
    if isinstance(value, str):
        return json.dumps(value[: _LONGEST + 1], ensure_ascii=False)
    text = ""
    for part in _ENCODER.iterencode(value):
        text += part[: _LONGEST + 1]
        if len(text) > _LONGEST:
            break
    return text


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """Return the candidate that ``word`` most likely misspells, or None."""
    import difflib

    by_folded: dict[str, str] = {}
    for candidate in candidates:
        by_folded.setdefault(candidate.casefold().replace("_", ""), candidate)
    folded = word[:100].casefold().replace("_", "").replace("-", "")
    close = difflib.get_close_matches(folded, by_folded, n=1, cutoff=0.7)
    return by_folded[close[0]] if close else None
