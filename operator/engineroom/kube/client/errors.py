"""Error responses of the API server as types; each keeps the text of its Status object."""

# The names are Kubernetes' own reasons, which every reader knows, so they end without "Error".
# ruff: noqa: N818

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engineroom.core.errors import Category, ConflictError, DependencyError, EngineroomError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class StatusCause:
    """One entry of ``details.causes``: a field, what kind of breach, and the message."""

    field: str
    reason: str
    message: str


class ApiError(EngineroomError):
    """The API server answered with a failure.

    ``status`` is the HTTP status, ``reason`` Kubernetes' own word (``NotFound``, ``Invalid``, ...),
    ``causes`` the fields at fault where it names any, ``retry_after`` seconds or None.
    """

    code = "kubernetes_api"
    category = Category.DEPENDENCY
    http_status = 502

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        reason: str = "",
        causes: tuple[StatusCause, ...] = (),
        retry_after: float | None = None,
    ) -> None:
        self.status = status
        self.reason = reason
        self.message = message
        self.causes = causes
        self.retry_after = retry_after
        super().__init__(message)


class BadRequest(ApiError):
    """400: the request cannot be read; a fault of ours or of a field's type."""

    code = "kubernetes_bad_request"
    category = Category.BUG
    http_status = 500


class Unauthorized(ApiError):
    """401: the credentials are not accepted; heals when the token file is renewed."""

    code = "kubernetes_unauthorized"
    category = Category.DEPENDENCY
    http_status = 503
    retryable = True


class Forbidden(ApiError):
    """403: RBAC, a quota, Pod Security or a namespace that is going away refuses the request."""

    code = "kubernetes_forbidden"
    category = Category.PERMISSION
    http_status = 403

    @property
    def quota(self) -> bool:
        """Whether a ResourceQuota refused it."""
        return "exceeded quota" in self.message

    @property
    def namespace_terminating(self) -> bool:
        """Whether the namespace is being deleted, so that nothing can be created in it."""
        return any(cause.reason == "NamespaceTerminating" for cause in self.causes)


class NotFound(ApiError):
    """404: the object, its namespace, or the whole kind does not exist."""

    code = "kubernetes_not_found"
    category = Category.NOT_FOUND
    http_status = 404


class Conflict(ApiError, ConflictError):
    """409: a precondition does not hold any more, or another manager owns a field."""

    code = "kubernetes_conflict"
    category = Category.CONFLICT
    http_status = 409
    retryable = True


class AlreadyExists(Conflict):
    """409 at a create: an object of that name exists."""

    code = "kubernetes_already_exists"


class Gone(ApiError):
    """410: the resourceVersion or continue token is too old; list again."""

    code = "kubernetes_gone"
    category = Category.CONFLICT
    http_status = 410
    retryable = True


class Invalid(ApiError):
    """422: validation or an admission webhook refuses the object; ``causes`` name the fields."""

    code = "kubernetes_invalid"
    category = Category.VALIDATION
    http_status = 422


class Throttled(ApiError, DependencyError):
    """429: too many requests, for longer than the client itself waits; see ``retry_after``."""

    code = "kubernetes_throttled"
    category = Category.DEPENDENCY
    http_status = 503
    retryable = True


class ServerFailure(ApiError, DependencyError):
    """5xx: the API server or etcd failed; the write may have happened."""

    code = "kubernetes_server"
    category = Category.DEPENDENCY
    http_status = 503
    retryable = True


class Unreachable(DependencyError):
    """The API server cannot be reached: refused, reset, timed out, bad certificate.

    A write may have happened.
    """

    code = "kubernetes_unreachable"
    retryable = True


class ClientConfigError(EngineroomError):
    """The kubeconfig or the service account's files cannot be used; the message says what to do."""

    code = "kubernetes_config"
    category = Category.PERMANENT
    http_status = 500


_BY_STATUS: dict[int, type[ApiError]] = {
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    422: Invalid,
    429: Throttled,
}


def _causes(details: object) -> tuple[StatusCause, ...]:
    if not isinstance(details, dict):
        return ()
    return tuple(
        StatusCause(
            field=str(cause.get("field") or ""),
            reason=str(cause.get("reason") or ""),
            message=str(cause.get("message") or ""),
        )
        for cause in details.get("causes") or ()
        if isinstance(cause, dict)
    )


def from_status(
    status: int, body: Mapping[str, Any] | None, *, retry_after: float | None = None
) -> ApiError:
    """The error for an HTTP status and the Status object that came with it, if any.

    ``body`` may be anything that was JSON; what is not a Status gives an empty reason.
    """
    body = body or {}
    reason = str(body.get("reason") or "")
    message = str(body.get("message") or f"the API server answered {status} without a message")
    kind: type[ApiError] | None = _BY_STATUS.get(status)
    if kind is None:
        kind = ServerFailure if status >= 500 else ApiError
    if reason == "AlreadyExists":
        kind = AlreadyExists
    elif reason == "Expired":
        kind = Gone
    return kind(
        message,
        status=status,
        reason=reason,
        causes=_causes(body.get("details")),
        retry_after=retry_after,
    )
