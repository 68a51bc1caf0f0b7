"""What one replica does for all from time to time: the audit log kept short, signing keys renewed.

Each round is one replica's, whichever comes first. Two that do it at once do no harm: what they do
is decided in Redis once more, by what they had read.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING

from engineroom.auth.audit.log import Entry, Outcome
from engineroom.core.errors import EngineroomError
from engineroom.core.logging import get_logger
from engineroom.redis.errors import asking

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from engineroom.auth.audit.log import AuditLog
    from engineroom.auth.tokens.signing_keys import Keys
    from engineroom.core.clock import Clock

log = get_logger(__name__)

#: Seconds between two rounds of an installation, and between two looks of a replica for its turn.
ROUND, LOOK = 60.0, 20.0
_DAY = 86_400
#: Who does what nobody asked for, in the audit log.
WHO = "(engineroom)"


class Upkeep:
    """Keeps the last ``records`` of the audit log, none older than ``days``; 0: of any age.

    A signing key signs for ``key_days`` and is then followed by a new one, 0: until somebody asks;
    old ones verify for ``overlap`` after that.
    """

    def __init__(
        self,
        redis: Redis,
        audit: AuditLog,
        keys: Keys,
        clock: Clock,
        *,
        records: int,
        days: int,
        key_days: int,
        overlap: timedelta,
        name: str = "engineroom:api:upkeep",
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
        """Look until ``stopping``."""
        while not stopping.is_set():
            try:
                if await self._turn():
                    await self.once()
            except EngineroomError as error:
                log.warning("upkeep waits", code=error.code, error=str(error))
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK):
                    await stopping.wait()

    async def once(self) -> None:
        """One round. Raises AuthStoreError and KeyStoreError."""
        before = self._clock.now().timestamp() - self._days * _DAY if self._days else None
        # What goes was written to standard output before: see AuditLog.write.
        gone = await self._audit.trim(self._records, before=before)
        if gone:
            log.info("audit log shortened", records=gone)
        await self._renew()

    async def _turn(self) -> bool:
        with asking():
            life = round(ROUND * 1000)
            return bool(await self._redis.set(self._name, "1", px=life, nx=True))

    async def _renew(self) -> None:
        if not self.key_days:
            return
        known = await self._keys.latest()
        youngest = max((key.signs_from for key in known.keys), default=self._clock.now())
        if self._clock.now() < youngest + timedelta(days=self.key_days):
            return
        kid = await self._keys.rotate(overlap=self.overlap)
        log.info("signing key renewed", key=kid)
        await self._audit.write(
            Entry(
                who=WHO,
                action="signing-key.rotate",
                target="signing-keys",
                outcome=Outcome.DONE,
                details={"key": kid, "days": self.key_days},
            )
        )
