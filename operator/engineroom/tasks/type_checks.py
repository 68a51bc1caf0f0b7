"""Type checks of a task's fields, which raise InvalidTaskError.

A program without a type checker then gets an error that names the field, instead of a TypeError
from halfway through an operation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engineroom.core.validation import values
from engineroom.tasks.errors import InvalidTaskError

if TYPE_CHECKING:
    from engineroom.core.errors import Problem


def check_type(field: str, value: object, types: type | tuple[type, ...], fix: str) -> None:
    """Raise InvalidTaskError unless the value is an instance of one of the types."""
    _check(values.type_problem(field, value, types, fix))


def wrong_type(field: str, value: object, fix: str) -> InvalidTaskError:
    """Return the error for a value of the wrong type; it omits the value, a possible secret."""
    return _error(values.wrong_type(field, value, fix))


def check_number(field: str, value: Any, fix: str = "use a number") -> None:
    """Raise InvalidTaskError unless the value is an int or a float that can be formatted."""
    _check(values.number_problem(field, value, fix))


def whole_number(field: str, value: Any, fix: str = "use a whole number") -> int:
    """Return the value as a plain int; redis-py would send a member of an IntEnum by its name."""
    if not isinstance(value, int):
        raise wrong_type(field, value, fix)
    check_number(field, value, fix)
    return int(value)


def plain_text(value: str) -> str:
    """Return the text as a plain str; a member of a StrEnum may format as its name."""
    return value if type(value) is str else str.__str__(value)


def check_text(field: str, value: Any) -> None:
    """Raise InvalidTaskError unless the value is text that UTF-8 can encode."""
    check_type(field, value, str, "use text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidTaskError(
            field, "is no text that can be stored", "use whole characters"
        ) from error


def _check(problem: Problem | None) -> None:
    if problem is not None:
        raise _error(problem)


def _error(problem: Problem) -> InvalidTaskError:
    return InvalidTaskError(problem.field, problem.problem, problem.fix)
