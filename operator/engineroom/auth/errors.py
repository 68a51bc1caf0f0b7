"""What can be wrong with who somebody says to be, and with what he asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engineroom.core.errors import (
    AuthenticationError,
    Category,
    ConflictError,
    DependencyError,
    EngineroomError,
    PermissionDeniedError,
)

if TYPE_CHECKING:
    from engineroom.auth.login.sessions import Session


class TokenError(AuthenticationError):
    """A token was refused. ``reason`` is a stable word for logs; a client is told the message."""

    code = "token_invalid"

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)


class RefreshReusedError(AuthenticationError):
    """A refresh token came a second time: its whole family has ended. ``subject`` whose it was."""

    code = "refresh_reused"

    def __init__(self, subject: str) -> None:
        self.subject = subject
        super().__init__("refresh token: was used before, so its family has ended; sign in again")


class ApiKeyError(AuthenticationError):
    """An API key is unknown, expired or revoked: which of them is for the log only."""

    code = "api_key_invalid"

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__("API key: not valid; use another one or make a new one")


class SessionError(AuthenticationError):
    """A session is unknown or over."""

    code = "session_invalid"


class LinkError(AuthenticationError):
    """A one-time link is unknown, used or over: which of them is never said."""

    code = "sign_in_link_invalid"

    def __init__(self) -> None:
        super().__init__("link: is not valid, or not any more; `engineroom ui` makes a new one")


class CredentialsError(AuthenticationError):
    """Name or password is wrong; which of them is never said."""

    code = "credentials_invalid"


class AccountGoneError(AuthenticationError):
    """Who asks had an account, and has none any more; an administrator may make one again."""

    code = "account_gone"


class OidcSignInError(AuthenticationError):
    """A sign-in at the provider came to nothing. ``reason`` is a stable word for logs."""

    code = "oidc_sign_in_failed"

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)


class OidcProviderError(DependencyError):
    """The OIDC provider does not answer, or not as it has to; nobody is let in meanwhile."""

    code = "oidc_provider_unavailable"


class CsrfError(PermissionDeniedError):
    """A request that changes something came with a cookie and without its session's token."""

    code = "csrf_token_invalid"
    #: Whose session it is, where the cookie is of one.
    session: Session | None = None


class LockedOutError(EngineroomError):
    """Too many failed attempts; ``retry_after`` is seconds until the next may be made."""

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
    """Redis did not answer: who may do what cannot be told, so nobody may until it does."""

    code = "auth_store_unavailable"


class KeyStoreError(DependencyError):
    """Signing keys cannot be had, or what is stored is no key."""

    code = "signing_keys_unavailable"


class RotationError(ConflictError):
    """Signing keys were not rotated: somebody else did, or there are too many of them."""

    code = "signing_keys_not_rotated"


class OutboundRefusedError(EngineroomError):
    """An outbound URL leads where it must not; ``reason`` is a stable word for logs."""

    code = "outbound_refused"
    category = Category.VALIDATION
    http_status = 422

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)


class OutboundError(DependencyError):
    """An allowed outbound URL did not answer in time, in size or in form."""

    code = "outbound_failed"


class AuditRecordError(EngineroomError):
    """A record cannot be written as asked for: a field is missing, too long or no plain value."""

    code = "audit_record_invalid"
    category = Category.BUG
