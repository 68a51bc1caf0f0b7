"""Errors of authentication and authorization."""

from __future__ import annotations

from engineroom.core.errors import (
    AuthenticationError,
    Category,
    ConflictError,
    DependencyError,
    EngineroomError,
    PermissionDeniedError,
)


class TokenError(AuthenticationError):
    """A token was refused. ``reason`` is a stable word for logs, the message is for clients."""

    code = "token_invalid"

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)


class RefreshReusedError(AuthenticationError):
    """A refresh token of ``subject`` was used twice, which revokes its whole family."""

    code = "refresh_reused"

    def __init__(self, subject: str) -> None:
        self.subject = subject
        super().__init__("refresh token: was used before, so its family has ended; sign in again")


class ApiKeyError(AuthenticationError):
    """An API key is unknown, expired or revoked; only the log says which."""

    code = "api_key_invalid"

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__("API key: not valid; use another one or make a new one")


class SessionError(AuthenticationError):
    """A session is unknown or has ended."""

    code = "session_invalid"


class LinkError(AuthenticationError):
    """A one-time link is unknown, used or expired; the error does not say which."""

    code = "sign_in_link_invalid"

    def __init__(self) -> None:
        super().__init__("link: is not valid or has expired; `engineroom ui` makes a new one")


class CredentialsError(AuthenticationError):
    """Name or password is wrong; the error does not say which."""

    code = "credentials_invalid"


class AccountGoneError(AuthenticationError):
    """The caller's account was removed; an administrator may create it again."""

    code = "account_gone"


class OidcSignInError(AuthenticationError):
    """A sign-in at the OIDC provider failed. ``reason`` is a stable word for logs."""

    code = "oidc_sign_in_failed"

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)


class OidcProviderError(DependencyError):
    """The OIDC provider does not answer, or answers incorrectly; sign-ins fail meanwhile."""

    code = "oidc_provider_unavailable"


class CsrfError(PermissionDeniedError):
    """A request with a session's cookie changes something without that session's CSRF token.

    ``subject`` and ``session`` (a handle) identify the session of the cookie, or are empty.
    """

    code = "csrf_token_invalid"
    subject: str = ""
    session: str = ""


class LockedOutError(EngineroomError):
    """Too many failed attempts; ``retry_after`` is the time until the next one, in seconds."""

    code = "locked_out"
    category = Category.LIMIT
    http_status = 429
    retryable = True

    def __init__(self, retry_after: float) -> None:
        super().__init__(
            f"sign-in: too many failed attempts; wait {max(1, round(retry_after))} s",
            retry_after=retry_after,
        )


class AuthStoreError(DependencyError):
    """Redis does not answer, so access is denied until it does."""

    code = "auth_store_unavailable"


class KeyStoreError(DependencyError):
    """The signing keys cannot be loaded, or are invalid."""

    code = "signing_keys_unavailable"


class RotationError(ConflictError):
    """The signing keys were not rotated: another rotation was faster, or there are too many."""

    code = "signing_keys_not_rotated"


class OutboundRefusedError(EngineroomError):
    """An outbound URL is not allowed; ``reason`` is a stable word for logs."""

    code = "outbound_refused"
    category = Category.VALIDATION
    http_status = 422

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)


class OutboundError(DependencyError):
    """A response from an allowed URL was late, too large or malformed."""

    code = "outbound_failed"


class AuditRecordError(EngineroomError):
    """An audit record is invalid: a field is missing, too long or not a plain value."""

    code = "audit_record_invalid"
    category = Category.BUG
