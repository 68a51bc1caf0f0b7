"""Checks of single values that a program passes: their type and their size.

A program without a type checker may pass a value of any type. These checks describe the problem
before the value causes a TypeError halfway through an operation.
"""

from __future__ import annotations

from engineroom.core.errors import Problem

#: The largest magnitude of any number. Python refuses to format integers of thousands of digits.
_MAX_MAGNITUDE = 1 << 62


def type_problem(
    field: str, value: object, types: type | tuple[type, ...], fix: str
) -> Problem | None:
    """Return the problem of a value that is an instance of none of ``types``, or None."""
    return None if isinstance(value, types) else wrong_type(field, value, fix)


def wrong_type(field: str, value: object, fix: str) -> Problem:
    """Return the problem of a value of the wrong type; it omits the value, a possible secret."""
    return Problem(field, f"is of type {type(value).__name__[:80]}", fix)


def number_problem(field: str, value: object, fix: str = "use a number") -> Problem | None:
    """Return the problem of a value that is not a formattable int or float, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return wrong_type(field, value, fix)
    if isinstance(value, int) and abs(value) > _MAX_MAGNITUDE:
        return Problem(field, "is out of bounds", fix)
    return None
