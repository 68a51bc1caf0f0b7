"""One hierarchy for everything that goes wrong in Engineroom.

Each class carries a stable ``code`` (documented, greppable) and says whether trying again can help;
messages are for people: the field, what is wrong with it, and what to do.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sequence


class Category(StrEnum):
    """What kind of thing went wrong: each edge and each recovery policy goes by this."""

    VALIDATION = "validation"
    AUTHENTICATION = "authentication"
    PERMISSION = "permission"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    LIMIT = "limit"
    DEPENDENCY = "dependency"
    TRANSIENT = "transient"
    PERMANENT = "permanent"
    BUG = "bug"


class EngineroomError(Exception):
    """Base of all errors that Engineroom raises on purpose."""

    code: ClassVar[str] = "internal"
    category: ClassVar[Category] = Category.BUG
    #: HTTP status of the problem document that an API answers with.
    http_status: ClassVar[int] = 500
    #: Whether the same call may succeed later without anybody changing anything.
    retryable: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a document.

    ``field`` is a path such as ``spec.queues[0].name``; ``problem`` says what is wrong with the
    value, ``fix`` what to write instead.
    """

    field: str
    problem: str
    fix: str

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}; {self.fix}"


class InvalidSpecError(EngineroomError):
    """A document breaks the rules of its kind; ``problems`` lists every breach, at least one."""

    code = "invalid_spec"
    category = Category.VALIDATION
    http_status = 422

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(str(problem) for problem in self.problems))


class DependencyError(EngineroomError):
    """Something outside (Redis, the API server) did not answer or answered with a failure."""

    code = "dependency"
    category = Category.DEPENDENCY
    http_status = 503
    retryable = True


class MeasurementError(DependencyError):
    """A measurement failed; it is never taken for a zero."""

    code = "measurement_failed"


class SecretError(EngineroomError):
    """A referenced Secret or key of it is missing or must not be read; heals when it appears."""

    code = "secret_unavailable"
    category = Category.NOT_FOUND
    http_status = 503
    retryable = True

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)


class ConflictError(EngineroomError):
    """The object changed since it was read; look again and decide anew."""

    code = "conflict"
    category = Category.CONFLICT
    http_status = 409
    retryable = True
