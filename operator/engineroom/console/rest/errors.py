"""Errors of requests to the API, besides those that other packages raise."""

from __future__ import annotations

from engineroom.core.errors import Category, ConflictError, EngineroomError


class MethodNotAllowedError(EngineroomError):
    """The path does not support this method; see the API's document."""

    code = "method_not_allowed"
    category = Category.VALIDATION
    http_status = 405


class MediaTypeError(EngineroomError):
    """The body has an unsupported media type; send application/json."""

    code = "media_type"
    category = Category.VALIDATION
    http_status = 415


class SlowHeadError(EngineroomError):
    """The head of the request arrived too slowly; send it again over a better connection."""

    code = "slow_head"
    category = Category.LIMIT
    http_status = 408


class PreconditionFailedError(ConflictError):
    """If-Match names another version of the object; read it again."""

    code = "precondition_failed"
    http_status = 412
    retryable = False


class PoolSizingError(EngineroomError):
    """The pool's scaling mode does not permit this change."""

    code = "pool_sizing"
    category = Category.VALIDATION
    http_status = 422


class ImpactError(ConflictError):
    """More jobs match than the request expected; nothing was changed."""

    code = "impact_exceeded"
    retryable = False


class DeclaredError(ConflictError):
    """The account is declared in the installation's values; remove it there."""

    code = "account_declared"
    retryable = False
