"""The mark that a Redis has all documents.

A Redis that was flushed, restarted or failed over without its data loses the mark. An enforcer that
starts there then knows that a missing document does not mean that there are no policies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from engineroom.core.errors import EngineroomError

if TYPE_CHECKING:
    from collections.abc import Callable

    from engineroom.kube.runtime.controller import Context
    from engineroom.ratelimit.reconcile.policy_stores import PolicyStores
    from engineroom.redis.address import Address

log = structlog.get_logger(__name__)

#: Seconds until the next check: while documents are missing, and otherwise.
INCOMPLETE_SECONDS, COMPLETE_SECONDS = 0.1, 3.0


class CompletenessMark:
    """Sets the mark in each Redis once all documents are written.

    ``unchecked(address, since)`` returns the namespaces without a successful check since then.
    """

    def __init__(
        self,
        context: Context,
        stores: PolicyStores,
        unchecked: Callable[[Address, float], list[str]],
    ) -> None:
        self._context = context
        self._stores = stores
        self._unchecked = unchecked
        #: Time since when a Redis is incomplete (monotonic seconds).
        self._incomplete: dict[Address, float] = {}

    async def check(self) -> float:
        """Check each Redis and reconcile namespaces that may be missing; return the next wait."""
        installation, incomplete = self._context.installation(), False
        stores = self._stores.all()
        for closed in self._incomplete.keys() - {address for address, _ in stores}:
            del self._incomplete[closed]
        for address, store in stores:
            since = self._incomplete.get(address)
            pending = [] if since is None else self._unchecked(address, since)
            all_written = since is not None and not pending
            try:
                if await store.record_check(installation, all_written=all_written) or all_written:
                    self._incomplete.pop(address, None)
                    continue
            except EngineroomError as error:
                log.debug("the mark of complete policies was not set", error=str(error))
                self._incomplete.pop(address, None)
                continue
            incomplete = True
            if since is None:
                since = self._incomplete[address] = self._context.clock.monotonic()
                pending = self._unchecked(address, since)
            for namespace in pending:
                self._context.queue.add(namespace)
        return INCOMPLETE_SECONDS if incomplete else COMPLETE_SECONDS
