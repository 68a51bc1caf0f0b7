"""Strangers: requests of nobody that failed before any credential told of somebody.

Anybody can send them, as many as the rate limit lets through: in the audit log they would push
everything else out of it. They are counted, and the log tells of them once in a while. And names
that nobody has.
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

#: Seconds between two lines.
EVERY = 60.0
#: What tells of somebody: a name with a wrong password, whose attempts the lockout bounds, and a
#: token that we signed and that somebody has a copy of.
TELLING = (CredentialsError, RefreshReusedError, PermissionDeniedError)


class Strangers:
    """Counts such requests; ``secret`` makes the pseudonyms of names."""

    def __init__(self, metrics: ApiMetrics, clock: Clock, secret: bytes) -> None:
        self._metrics = metrics
        self._secret = secret
        self._clock = clock
        self._told = float("-inf")
        self._since = 0

    def pseudonym(self, name: str) -> str:
        """What stands in the audit log for a name that nobody has: it may be a password."""
        return f"unknown:{hmac.digest(self._secret, name.encode(), hashlib.sha256).hex()[:16]}"

    def failed(self, action: str, error: Exception, address: str) -> bool:
        """Whether this was such a request; then it is counted, and not for the audit log."""
        if isinstance(error, TELLING):
            return False
        code = error.code if isinstance(error, EngineroomError) else "internal"
        self._metrics.stranger(action, code)
        self._since += 1
        now = self._clock.monotonic()
        if now - self._told >= EVERY:
            log.warning(
                "requests of nobody failed; they are counted and not in the audit log",
                requests=self._since, action=action, code=code, address=address,
            )  # fmt: skip
            self._told, self._since = now, 0
        return True
