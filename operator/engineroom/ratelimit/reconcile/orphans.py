"""Documents of namespaces without policies, such as those deleted while no operator ran."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from engineroom.core.errors import EngineroomError
from engineroom.ratelimit.reconcile.facts import UNREACHABLE_SECONDS
from engineroom.redis.address import Address

if TYPE_CHECKING:
    from engineroom.kube.runtime.controller import Context
    from engineroom.ratelimit.reconcile.namespaces import Namespaces
    from engineroom.ratelimit.reconcile.policy_stores import PolicyStores

log = structlog.get_logger(__name__)

#: Seconds between searches for documents of namespaces without policies.
SWEEP_SECONDS = 300.0


class OrphanSweep:
    """Searches the installation's own Redis; ``redis_url`` is "" if it has none."""

    def __init__(
        self, context: Context, stores: PolicyStores, namespaces: Namespaces, redis_url: str
    ) -> None:
        self._context = context
        self._stores = stores
        self._namespaces = namespaces
        self._redis_url = redis_url

    async def sweep(self) -> float:
        """Reconcile namespaces with orphaned documents; return the seconds until the next sweep."""
        if not self._redis_url:
            return SWEEP_SECONDS
        watched = self._context.namespaces
        try:
            address = Address(self._redis_url)
            for namespace in await self._stores.of(address).namespaces():
                if namespace not in self._namespaces and (not watched or namespace in watched):
                    self._namespaces.adopt(namespace, address)
                    self._context.queue.add(namespace)
        except EngineroomError as error:
            log.debug("orphaned documents not listed", error=str(error))
            return UNREACHABLE_SECONDS
        return SWEEP_SECONDS
