"""The hierarchy of Engineroom's errors.

Each class has a stable, documented ``code`` and a flag for whether a retry can help. Messages are
for people: they name the field, the problem and the fix.
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
    """The kind of a failure; edges and retry policies depend on it."""

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
    """Base class of all errors that Engineroom raises."""

    code: ClassVar[str] = "internal"
    category: ClassVar[Category] = Category.BUG
    #: HTTP status of the problem document in an API's response.
    http_status: ClassVar[int] = 500
    #: Whether the same call may succeed later without any change.
    retryable: ClassVar[bool] = False
    #: Seconds until a retry makes sense, if the refusing system named them.
    retry_after: float | None = None
    #: Facts for programs and logs, keys to plain values, with secrets redacted.
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
    """One invalid field of a document.

    ``field`` is a path such as ``spec.queues[0].name``, ``problem`` describes the invalid value and
    ``fix`` the correction.
    """

    field: str
    problem: str
    fix: str

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}; {self.fix}"


# -- the caller's input and rights --------------------------------------------------------------


class InvalidInputError(EngineroomError):
    """Input is invalid; ``problems`` lists every problem, at least one."""

    code = "invalid_input"
    category = Category.VALIDATION
    http_status = 422

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(str(problem) for problem in self.problems))


class InvalidSpecError(InvalidInputError):
    """A document breaks the rules of its kind; ``problems`` lists every problem, at least one."""

    code = "invalid_spec"


class AuthenticationError(EngineroomError):
    """Credentials are missing, wrong or expired; sign in again."""

    code = "not_authenticated"
    category = Category.AUTHENTICATION
    http_status = 401


class PermissionDeniedError(EngineroomError):
    """The caller lacks a permission; ask for the one that the message names."""

    code = "permission_denied"
    category = Category.PERMISSION
    http_status = 403


class MissingError(EngineroomError):
    """The requested object does not exist, or no longer exists."""

    code = "not_found"
    category = Category.NOT_FOUND
    http_status = 404


class ConflictError(EngineroomError):
    """The object changed since it was read; read it again and retry."""

    code = "conflict"
    category = Category.CONFLICT
    http_status = 409
    retryable = True


class LimitError(EngineroomError):
    """A rate limit is reached; try again after ``retry_after`` seconds."""

    code = "limit_reached"
    category = Category.LIMIT
    http_status = 429
    retryable = True


class TooLargeError(EngineroomError):
    """Input is larger than the limit; send less."""

    code = "too_large"
    category = Category.LIMIT
    http_status = 413


# -- external systems ---------------------------------------------------------------------------


class DependencyError(EngineroomError):
    """An external system (Redis, the API server) did not answer or answered with a failure."""

    code = "dependency"
    category = Category.DEPENDENCY
    http_status = 503
    retryable = True


class MeasurementError(DependencyError):
    """A measurement failed; it never counts as zero."""

    code = "measurement_failed"


class SecretError(EngineroomError):
    """A referenced Secret, or its key, is missing or not readable; retried until it appears."""

    code = "secret_unavailable"
    category = Category.NOT_FOUND
    http_status = 503
    retryable = True

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)


class CircuitOpenError(DependencyError):
    """The circuit breaker of a failing dependency is open; the dependency was not called."""

    code = "circuit_open"


class RedisUnavailableError(DependencyError):
    """Redis does not answer, is loading its data, or is failing over."""

    code = "redis_unavailable"


class RedisRefusedError(DependencyError):
    """Redis refuses the user, the password or the command; correct the URL or the ACL."""

    code = "redis_refused"
    retryable = False


class RedisFullError(DependencyError):
    """Redis reached maxmemory and refuses writes; give it more memory or an eviction policy."""

    code = "redis_full"


class RedisCommandError(EngineroomError):
    """Redis rejects the command; a bug in the calling code."""

    code = "redis_command"


class DatabaseUnavailableError(DependencyError):
    """PostgreSQL does not answer, is starting, is shutting down or has no free connection."""

    code = "database_unavailable"


class DatabaseRefusedError(DependencyError):
    """PostgreSQL refuses the user, the password or a privilege; correct the URL or grant it."""

    code = "database_refused"
    retryable = False


class DatabaseConflictError(ConflictError):
    """PostgreSQL rolled the transaction back in a conflict (deadlock, serialization); try again."""

    code = "database_conflict"


class IntegrityError(ConflictError):
    """A database constraint rejects the row; ``context`` names the constraint."""

    code = "integrity"
    retryable = False


class DatabaseQueryError(EngineroomError):
    """PostgreSQL rejects the statement or a value; a bug in the calling code."""

    code = "database_query"


class UpstreamUnavailableError(DependencyError):
    """An HTTP service does not answer, or responds with 5xx."""

    code = "upstream_unavailable"


class UpstreamThrottledError(DependencyError):
    """An HTTP service limits the rate of requests; ``retry_after`` is its own value."""

    code = "upstream_throttled"


class UpstreamRefusedError(DependencyError):
    """An HTTP service refuses the request; a retry will not succeed."""

    code = "upstream_refused"
    http_status = 502
    retryable = False


class MailUnavailableError(DependencyError):
    """The mail server does not answer or refuses temporarily (4xx)."""

    code = "mail_unavailable"


class MailRefusedError(DependencyError):
    """The mail server refuses the sender, a recipient or the login permanently (5xx)."""

    code = "mail_refused"
    http_status = 502
    retryable = False


class JobMissingError(MissingError):
    """The job does not exist in the queue's Redis: it expired or was deleted."""

    code = "job_not_found"


class JobInvalidError(EngineroomError):
    """RQ cannot read the job, or the job's state does not allow the operation."""

    code = "job_invalid"
    category = Category.PERMANENT


# -- time, and general errors -------------------------------------------------------------------


class TransientError(EngineroomError):
    """A temporary failure; try again."""

    code = "transient"
    category = Category.TRANSIENT
    http_status = 503
    retryable = True


class TimeLimitError(TransientError):
    """An operation took longer than its time limit."""

    code = "time_limit"
    http_status = 504


class JobTimedOutError(TimeLimitError):
    """A job ran longer than its timeout; raise the timeout or split the job."""

    code = "job_timed_out"


class PermanentError(EngineroomError):
    """A permanent failure: a retry will fail too until its cause is corrected."""

    code = "permanent"
    category = Category.PERMANENT


class BugError(EngineroomError):
    """An impossible state; please report it with its traceback."""

    code = "bug"
