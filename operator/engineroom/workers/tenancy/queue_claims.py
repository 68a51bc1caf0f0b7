"""Claims of pools to their queues, from their specs and statuses."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from engineroom.core.conditions import timestamp
from engineroom.core.validation.json_values import as_list, as_map, as_text
from engineroom.queue.ownership import QueueClaim

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from engineroom.queue.ownership import QueueOwner


@dataclass(frozen=True, slots=True)
class OwnedQueue:
    """A queue that a pool's namespace owns; ``since`` is Unix seconds."""

    queue: str
    since: int
    redis_id: str


def owned_queues(status: Mapping[str, Any] | None) -> tuple[OwnedQueue, ...]:
    """Read ``status.ownedQueues``; entries that cannot be read are left out."""
    owned = []
    for entry in as_list(as_map(status).get("ownedQueues")):
        row = as_map(entry)
        name, redis_id = as_text(row.get("name")), as_text(row.get("redisId"))
        try:
            since = datetime.fromisoformat(as_text(row.get("since")))
        except ValueError:
            continue
        if name and redis_id:
            owned.append(OwnedQueue(name, int(since.timestamp()), redis_id))
    return tuple(owned)


def status_rows(owned: Iterable[OwnedQueue]) -> list[dict[str, str]]:
    """Return ``status.ownedQueues``."""
    return [
        {
            "name": queue.queue,
            "redisId": queue.redis_id,
            "since": timestamp(datetime.fromtimestamp(queue.since, UTC)),
        }
        for queue in owned
    ]


def claims(namespace: str, queues: Sequence[str], owned: Iterable[OwnedQueue]) -> list[QueueClaim]:
    """Return the claims of a pool to its queues."""
    earlier = {entry.queue: entry for entry in owned}
    return [
        QueueClaim(namespace, queue, earlier[queue].since, earlier[queue].redis_id)
        if queue in earlier
        else QueueClaim(namespace, queue)
        for queue in queues
    ]


class ClaimIndex:
    """The queues that statuses of pools name as owned, of all pools in the cluster.

    It answers for records that a Redis has lost: a queue then returns to its owner.
    """

    def __init__(self) -> None:
        self._pools: dict[str, tuple[OwnedQueue, ...]] = {}
        self._by_queue: dict[str, set[str]] = {}
        #: Pools that use the installation's Redis.
        self._shared: set[str] = set()

    def changed(self, key: str, owned: tuple[OwnedQueue, ...], *, shared: bool) -> None:
        """Replace what the status of the pool ``namespace/name`` says; empty for a deleted one.

        ``shared``: the pool uses the installation's Redis.
        """
        self._shared.discard(key)
        if owned and shared:
            self._shared.add(key)
        for entry in self._pools.pop(key, ()):
            pools = self._by_queue.get(entry.queue, set())
            pools.discard(key)
            if not pools:
                self._by_queue.pop(entry.queue, None)
        if owned:
            self._pools[key] = owned
        for entry in owned:
            self._by_queue.setdefault(entry.queue, set()).add(key)

    def owned(self, key: str) -> tuple[OwnedQueue, ...]:
        """Return what the status of a pool says."""
        return self._pools.get(key, ())

    def uses_shared_redis(self, key: str) -> bool:
        """Return whether a pool that owns queues uses the installation's Redis."""
        return key in self._shared

    def owners(self, queue: str) -> list[tuple[str, OwnedQueue]]:
        """Return the pools that own the queue on any Redis, earliest first."""
        owners = [
            (key, entry)
            for key in self._by_queue.get(queue, ())
            for entry in self._pools[key]
            if entry.queue == queue
        ]
        return sorted(owners, key=lambda pair: (pair[1].since, pair[0]))


def foreign(namespace: str, owners: Iterable[QueueOwner]) -> QueueOwner | None:
    """Return the first queue that another namespace owns."""
    return next((owner for owner in owners if owner.namespace != namespace), None)
