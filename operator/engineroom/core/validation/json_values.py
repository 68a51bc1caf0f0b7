"""Lenient readers of JSON: a value of another type counts as empty, and nothing is raised."""

from __future__ import annotations

from typing import Any, overload


def as_map(value: object) -> dict[str, Any]:
    """Return a map as it is, and an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def as_list(value: object) -> list[Any]:
    """Return a list as it is, and an empty one for anything else."""
    return value if isinstance(value, list) else []


def as_text(value: object) -> str:
    """Return a string as it is, and an empty one for anything else."""
    return value if isinstance(value, str) else ""


def as_utf8(text: str) -> str:
    """Return text that UTF-8 can encode: halves of surrogate pairs become U+FFFD.

    Pickles and JSON's escapes can hold such halves; JSON for other programs cannot.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def with_utf8(value: Any) -> Any:
    """Return a copy of maps, lists and scalars in which UTF-8 can encode every text."""
    if isinstance(value, str):
        return as_utf8(value)
    if isinstance(value, dict):
        return {with_utf8(key): with_utf8(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [with_utf8(item) for item in value]
    return value


@overload
def as_integer(value: object) -> int | None: ...
@overload
def as_integer(value: object, default: int) -> int | None: ...
def as_integer(value: object, default: int | None = None) -> int | None:
    """Return an integer as it is, ``default`` for null, and None for anything else."""
    if value is None:
        return default
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def is_same(first: object, second: object) -> bool:
    """Return whether two JSON values are the same; 1 and true differ, which Python calls equal.

    It needs no recursion: the values may be nested to any depth.
    """
    waiting = [(first, second)]
    while waiting:
        one, other = waiting.pop()
        if isinstance(one, dict) and isinstance(other, dict):
            if one.keys() != other.keys():
                return False
            waiting += [(value, other[key]) for key, value in one.items()]
        elif isinstance(one, list) and isinstance(other, list):
            if len(one) != len(other):
                return False
            waiting += zip(one, other, strict=True)
        elif isinstance(one, bool) is not isinstance(other, bool) or one != other:
            return False
    return True
