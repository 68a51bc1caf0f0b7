"""Failed requests without a valid credential.

Anyone can send as many of them as the rate limit permits, and they would push other records out of
the audit log. They are counted instead, and the process log reports them once a minute.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING

from engineroom.auth.errors import CredentialsError, RefreshReusedError
from engineroom.core.errors import EngineroomError, PermissionDeniedError
from engineroom.core.logging import get_logger

if TYPE_CHECKING:
    from engineroom.console.metrics import ApiMetrics
    from engineroom.core.clock import Clock

log = get_logger(__name__)

#: Seconds between two log lines.
LOG_INTERVAL = 60.0
#: Errors that concern an account and so belong in the audit log: a wrong password, whose attempts
#: the lockout limits, and a copied refresh token.
AUDITED = (CredentialsError, RefreshReusedError, PermissionDeniedError)


class UnauthenticatedFailures:
    """Counts failed unauthenticated requests, so that they cannot flood the audit log."""

    def __init__(self, metrics: ApiMetrics, clock: Clock, secret: bytes) -> None:
        """``secret`` is the key of the pseudonyms."""
        self._metrics = metrics
        self._secret = secret
        self._clock = clock
        self._logged_at = float("-inf")
        self._unlogged = 0

    def pseudonym(self, name: str) -> str:
        """Return the text that the audit log holds for an unknown name, which may be a password."""
        return f"unknown:{hmac.digest(self._secret, name.encode(), hashlib.sha256).hex()[:16]}"

    def count(self, action: str, error: Exception, address: str) -> bool:
        """Count a failure; return False for one that belongs in the audit log instead."""
        if isinstance(error, AUDITED):
            return False
        code = error.code if isinstance(error, EngineroomError) else "internal"
        self._metrics.record_unauthenticated(action, code)
        self._unlogged += 1
        now = self._clock.monotonic()
        if now - self._logged_at >= LOG_INTERVAL:
            log.warning(
                "unauthenticated requests failed; they are counted and not in the audit log",
                requests=self._unlogged, action=action, code=code, address=address,
            )  # fmt: skip
            self._logged_at, self._unlogged = now, 0
        return True
