"""New signing keys after Redis has lost its data.

The lost keys are not restored from a process's memory: the revocations of tokens are lost too, and
a revoked token must not become valid again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engineroom.console.background.periodic import repeat
from engineroom.core.errors import DependencyError
from engineroom.core.logging import get_logger

if TYPE_CHECKING:
    import asyncio

    from engineroom.auth.tokens.signing_keys import SigningKeyCache
    from engineroom.core.clock import Clock

log = get_logger(__name__)

#: Seconds between two checks.
INTERVAL = 5.0


async def check_signing_keys(keys: SigningKeyCache, clock: Clock) -> None:
    """Raise DependencyError or KeyStoreError unless a key in Redis can sign now."""
    current = await keys.latest()
    if not current.keys:
        raise DependencyError(
            f"signing keys: Redis has lost them; wait {INTERVAL:g} s until new ones are made"
        )
    current.signer(clock.now())


class SigningKeyRestoration:
    """Makes the first signing key anew where the store has none."""

    def __init__(self, keys: SigningKeyCache) -> None:
        self._keys = keys

    async def check(self) -> bool:
        """Return whether keys were missing and have been made. Raises AuthStoreError."""
        if (await self._keys.latest()).keys:
            return False
        await self._keys.ensure()
        log.error("Redis has lost the signing keys; new ones are made, and all tokens end")
        return True

    async def run(self, stopping: asyncio.Event) -> None:
        """Check until ``stopping`` is set."""
        await repeat(self.check, INTERVAL, stopping, log, "signing keys are not checked")
