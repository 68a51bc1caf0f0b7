"""Periodic work for the whole installation: trim the audit log and renew signing keys.

The first replica that takes the turn in Redis does a round. Two concurrent rounds are harmless:
each write is conditional on what was read.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from engineroom.auth.audit.log import AuditEntry, AuditOutcome
from engineroom.auth.store_errors import store_errors
from engineroom.console.background.periodic import repeat
from engineroom.core import key_prefixes
from engineroom.core.logging import get_logger

if TYPE_CHECKING:
    import asyncio

    from redis.asyncio import Redis

    from engineroom.auth.audit.log import AuditLog
    from engineroom.auth.tokens.signing_keys import SigningKeyCache
    from engineroom.core.clock import Clock

log = get_logger(__name__)

#: Seconds between two rounds of an installation, and between two attempts of a replica.
ROUND, POLL_INTERVAL = 60.0, 20.0
_DAY = 86_400
#: Name in the audit log for actions that no user requested.
WHO = "(engineroom)"


class Housekeeping:
    """Trims the audit log to the last ``records``, none older than ``days``; 0: of any age.

    Signing keys are replaced after ``key_days``; 0: only on request. An old key verifies for
    ``overlap`` longer.
    """

    def __init__(
        self,
        redis: Redis,
        audit: AuditLog,
        keys: SigningKeyCache,
        clock: Clock,
        *,
        records: int,
        days: int,
        key_days: int,
        overlap: timedelta,
        name: str = key_prefixes.HOUSEKEEPING,
    ) -> None:
        self._redis = redis
        self._audit = audit
        self._keys = keys
        self._clock = clock
        self._records = records
        self._days = days
        self.key_days = key_days
        self.overlap = overlap
        self._name = name

    async def run(self, stopping: asyncio.Event) -> None:
        """Do rounds until ``stopping`` is set."""

        async def step() -> None:
            if await self._take_turn():
                await self.run_once()

        await repeat(step, POLL_INTERVAL, stopping, log, "housekeeping is delayed")

    async def run_once(self) -> None:
        """Do one round. Raises AuthStoreError and KeyStoreError."""
        before = self._clock.now().timestamp() - self._days * _DAY if self._days else None
        # Standard output has the removed records already: see AuditLog.write.
        removed = await self._audit.trim(self._records, before=before)
        if removed:
            log.info("audit log trimmed", records=removed)
        await self._renew()

    async def _take_turn(self) -> bool:
        with store_errors():
            milliseconds = round(ROUND * 1000)
            return bool(await self._redis.set(self._name, "1", px=milliseconds, nx=True))

    async def _renew(self) -> None:
        if not self.key_days:
            return
        current = await self._keys.latest()
        newest = max((key.signs_from for key in current.keys), default=self._clock.now())
        if self._clock.now() < newest + timedelta(days=self.key_days):
            return
        kid = await self._keys.rotate(overlap=self.overlap)
        log.info("signing key renewed", key=kid)
        await self._audit.write(
            AuditEntry(
                who=WHO,
                action="signing-key.rotate",
                target="signing-keys",
                outcome=AuditOutcome.DONE,
                details={"key": kid, "days": self.key_days},
            )
        )
