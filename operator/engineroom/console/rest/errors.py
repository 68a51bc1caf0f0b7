"""What goes wrong with requests to the API, besides what the rooms raise themselves."""

from __future__ import annotations

from engineroom.core.errors import Category, ConflictError, EngineroomError, LimitError


class MethodNotAllowedError(EngineroomError):
    """The path exists and not with this method; see the API's document."""

    code = "method_not_allowed"
    category = Category.VALIDATION
    http_status = 405


class MediaTypeError(EngineroomError):
    """The body is not of a type that is read here; send application/json."""

    code = "media_type"
    category = Category.VALIDATION
    http_status = 415


class PreconditionFailedError(ConflictError):
    """If-Match names another version than the object has; read it again."""

    code = "precondition_failed"
    http_status = 412
    retryable = False


class IdempotencyReusedError(EngineroomError):
    """An Idempotency-Key came a second time with another request; use a new key."""

    code = "idempotency_key_reused"
    category = Category.VALIDATION
    http_status = 422


class IdempotencyBusyError(ConflictError):
    """The first request with this Idempotency-Key is still under way; ask again."""

    code = "idempotency_key_busy"


class IdempotencySecretError(ConflictError):
    """The first request succeeded and its answer held a secret, which is shown once."""

    code = "idempotency_secret_shown"
    retryable = False


class StreamsError(LimitError):
    """Too many streams of events are open; close one."""

    code = "too_many_streams"


class PoolSizingError(EngineroomError):
    """The pool is not sized in the way that was asked for."""

    code = "pool_sizing"
    category = Category.VALIDATION
    http_status = 422


class ImpactError(ConflictError):
    """More jobs match than whoever decided had seen; nothing was done."""

    code = "impact_exceeded"
    retryable = False


class DeclaredError(ConflictError):
    """The account is declared in the installation's values; take it out there."""

    code = "account_declared"
    retryable = False
