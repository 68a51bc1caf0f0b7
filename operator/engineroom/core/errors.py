"""One hierarchy for everything that goes wrong in Engineroom.

Each class carries a stable ``code`` (documented, greppable) and says whether trying again can help;
messages are for people: the field, what is wrong with it, and what to do.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from engineroom.core.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


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
    """An error that Engineroom raised on purpose; its subclasses say which."""

    code: ClassVar[str] = "internal"
    category: ClassVar[Category] = Category.BUG
    #: HTTP status of the problem document that an API answers with.
    http_status: ClassVar[int] = 500
    #: Whether the same call may succeed later without anybody changing anything.
    retryable: ClassVar[bool] = False
    #: Seconds after which trying again makes sense, where whoever refused has said so.
    retry_after: float | None = None
    #: Facts for programs and logs, keys to plain values; secrets were taken out of it.
    context: Mapping[str, Any] = MappingProxyType({})

    def __init__(
        self,
        message: str = "",
        *,
        context: Mapping[str, object] | None = None,
        retry_after: float | None = None,
    ) -> None:
        if context:
            safe = redact(context)
            self.context = safe if isinstance(safe, dict) else {}
        if retry_after is not None:
            self.retry_after = max(0.0, retry_after)
        super().__init__(message)


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


# -- what the caller sent or may do -------------------------------------------------------------


class InvalidInputError(EngineroomError):
    """Input breaks its rules; ``problems`` lists every breach, at least one."""

    code = "invalid_input"
    category = Category.VALIDATION
    http_status = 422

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(str(problem) for problem in self.problems))


class InvalidSpecError(InvalidInputError):
    """A document breaks the rules of its kind; ``problems`` lists every breach, at least one."""

    code = "invalid_spec"


class AuthenticationError(EngineroomError):
    """It is not known who asks: credentials are missing, wrong or expired; log in again."""

    code = "not_authenticated"
    category = Category.AUTHENTICATION
    http_status = 401


class PermissionDeniedError(EngineroomError):
    """Who asks is known and may not do this; ask for the right that the message names."""

    code = "permission_denied"
    category = Category.PERMISSION
    http_status = 403


class MissingError(EngineroomError):
    """What was asked for does not exist, or not any more."""

    code = "not_found"
    category = Category.NOT_FOUND
    http_status = 404


class ConflictError(EngineroomError):
    """The object changed since it was read; look again and decide anew."""

    code = "conflict"
    category = Category.CONFLICT
    http_status = 409
    retryable = True


class LimitError(EngineroomError):
    """Too much in too short a time; try again after ``retry_after`` seconds."""

    code = "limit_reached"
    category = Category.LIMIT
    http_status = 429
    retryable = True


class TooLargeError(EngineroomError):
    """Input is larger than is accepted, however often it is sent; send less."""

    code = "too_large"
    category = Category.LIMIT
    http_status = 413


# -- what is outside ----------------------------------------------------------------------------


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


class CircuitOpenError(DependencyError):
    """Calls to a dependency are held back because it kept failing; it was not called."""

    code = "circuit_open"


class RedisUnavailableError(DependencyError):
    """Redis does not answer, is loading, or is failing over."""

    code = "redis_unavailable"


class RedisRefusedError(DependencyError):
    """Redis refuses the user, the password or the command; correct the URL or the ACL."""

    code = "redis_refused"
    retryable = False


class RedisFullError(DependencyError):
    """Redis is at maxmemory and refuses writes; give it memory or an eviction policy."""

    code = "redis_full"


class RedisCommandError(EngineroomError):
    """Redis understood the connection and not the command; a fault of the caller's code."""

    code = "redis_command"


class DatabaseUnavailableError(DependencyError):
    """PostgreSQL does not answer, is starting, is shutting down or has no connection to spare."""

    code = "database_unavailable"


class DatabaseRefusedError(DependencyError):
    """PostgreSQL refuses the user, the password or a right; correct the URL or grant it."""

    code = "database_refused"
    retryable = False


class DatabaseConflictError(ConflictError):
    """PostgreSQL undid the transaction for another's sake (deadlock, serialization); try again."""

    code = "database_conflict"


class IntegrityError(ConflictError):
    """A constraint of the database refuses the row; ``context`` names the constraint."""

    code = "integrity"
    retryable = False


class DatabaseQueryError(EngineroomError):
    """PostgreSQL refuses the statement or a value; a fault of the caller's code."""

    code = "database_query"


class UpstreamUnavailableError(DependencyError):
    """An HTTP service does not answer, or answers with 5xx."""

    code = "upstream_unavailable"


class UpstreamThrottledError(DependencyError):
    """An HTTP service asks for fewer requests; ``retry_after`` is what it said."""

    code = "upstream_throttled"


class UpstreamRefusedError(DependencyError):
    """An HTTP service refuses the request; the same request will not succeed."""

    code = "upstream_refused"
    http_status = 502
    retryable = False


class MailUnavailableError(DependencyError):
    """The mail server does not answer or says no for now (4xx)."""

    code = "mail_unavailable"


class MailRefusedError(DependencyError):
    """The mail server refuses the sender, a recipient or the login for good (5xx)."""

    code = "mail_refused"
    http_status = 502
    retryable = False


class JobMissingError(MissingError):
    """There is no such job in the queue's Redis: it expired or was deleted."""

    code = "job_not_found"


class JobInvalidError(EngineroomError):
    """RQ cannot read the job or does not allow the operation in the job's state."""

    code = "job_invalid"
    category = Category.PERMANENT


# -- time and the rest --------------------------------------------------------------------------


class TransientError(EngineroomError):
    """It failed for a reason that passes by itself; try again."""

    code = "transient"
    category = Category.TRANSIENT
    http_status = 503
    retryable = True


class TimeLimitError(TransientError):
    """It took longer than it was given."""

    code = "time_limit"
    http_status = 504


class JobTimedOutError(TimeLimitError):
    """A job ran longer than its timeout; give it more time or less to do."""

    code = "job_timed_out"


class PermanentError(EngineroomError):
    """It will fail however often it is tried; somebody has to change something."""

    code = "permanent"
    category = Category.PERMANENT


class BugError(EngineroomError):
    """A state that the code rules out; please report it with its trace."""

    code = "bug"
