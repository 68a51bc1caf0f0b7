"""Whether a value is of the kind that its field has; said in the same words everywhere.

What a program without a type checker passes must not come back as a TypeError from halfway.
"""

from __future__ import annotations

from typing import Any

from engineroom.tasks.errors import InvalidTaskError

#: No number of any field is larger; Python refuses to write out integers of thousands of digits.
_BOUND = 1 << 62


def check_kind(field: str, value: object, kinds: type | tuple[type, ...], fix: str) -> None:
    """Raises InvalidTaskError unless the value is of one of the types."""
    if not isinstance(value, kinds):
        raise wrong_kind(field, value, fix)


def wrong_kind(field: str, value: object, fix: str) -> InvalidTaskError:
    """The error for a value of the wrong type; the value itself may be a secret."""
    return InvalidTaskError(field, f"is of type {type(value).__name__[:80]}", fix)


def check_number(field: str, value: Any, fix: str = "use a number") -> None:
    """Raises InvalidTaskError unless it is an int or a float that can be written out."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise wrong_kind(field, value, fix)
    if isinstance(value, int) and abs(value) > _BOUND:
        raise InvalidTaskError(field, "is out of bounds", fix)


def whole(field: str, value: Any, fix: str = "use a whole number") -> int:
    """The value as a plain int: Redis would be sent the name of one of an enumeration."""
    if not isinstance(value, int):
        raise wrong_kind(field, value, fix)
    check_number(field, value, fix)
    return int(value)


def plain(value: str) -> str:
    """The text itself: that of an enumeration is formatted as the name of its member."""
    return value if type(value) is str else str.__str__(value)


def check_text(field: str, value: Any) -> None:
    """Raises InvalidTaskError unless it is text that UTF-8 can hold: no half of a surrogate."""
    check_kind(field, value, str, "use text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidTaskError(
            field, "is no text that can be stored", "use whole characters"
        ) from error
