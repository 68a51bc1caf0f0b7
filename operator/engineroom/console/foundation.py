"""The foundation of the API process: settings, connections and the secret that seals records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engineroom.auth.audit.hash_chain import derive_secret

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from engineroom.auth.audit.log import AuditLog
    from engineroom.console.background.tampering import TamperingReports
    from engineroom.console.metrics import ApiMetrics
    from engineroom.console.settings import ApiSettings
    from engineroom.core.clock import Clock
    from engineroom.kube.client.client import Client


@dataclass(frozen=True, slots=True)
class Foundation:
    """The parts that all services of the process build on."""

    settings: ApiSettings
    redis: Redis
    client: Client
    clock: Clock
    metrics: ApiMetrics
    secret: bytes
    audit: AuditLog
    #: Receives stored records whose seal is broken.
    tampering: TamperingReports

    def key(self, purpose: str) -> bytes:
        """Return the key for one purpose, derived from the secret."""
        return derive_secret(self.secret, purpose)
