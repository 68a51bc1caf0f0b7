"""The rule of who may use which Redis and which queue, for all pools of the operator."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn, Protocol

import structlog

from engineroom.core import reasons
from engineroom.core.errors import MeasurementError
from engineroom.kube.client.resources import WORKERPOOLS
from engineroom.workers.tenancy.errors import RedisAccessError
from engineroom.workers.tenancy.queue_claims import (
    ClaimIndex,
    OwnedQueue,
    claims,
    foreign,
    owned_queues,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engineroom.kube.client.resources import ObjectRef
    from engineroom.kube.runtime.controller import Context, Record
    from engineroom.workers.redis_connections import SharedConnection
    from engineroom.workers.tenancy.shared_redis import SharedRedisNamespaces

log = structlog.get_logger(__name__)

#: Key on the queue of the renewal of claims; it is no pool.
RENEW_KEY = "owners"
#: Seconds between renewals; an owner without pools keeps its queues for an hour after the last.
RENEW_INTERVAL = 300.0


class JoinedRedis(Protocol):
    """The connection that a pool has joined, and the queues that its namespace owns there."""

    connection: SharedConnection | None
    queues: tuple[str, ...]
    owned: tuple[OwnedQueue, ...]


class PoolTenant(Protocol):
    """What the operator remembers of a pool, as far as it matters here."""

    namespace: str
    uid: str

    @property
    def key(self) -> str:
        """``namespace/name``."""

    @property
    def redis(self) -> JoinedRedis:
        """The connection of the pool."""


class RedisTenancy:
    """Allows pools to use the installation's Redis, and claims their queues."""

    def __init__(
        self,
        context: Context,
        shared: SharedRedisNamespaces,
        memories: Mapping[str, PoolTenant],
    ) -> None:
        self._context = context
        self._shared = shared
        self._memories = memories
        self._index = ClaimIndex()

    async def require_shared(self, namespace: str) -> None:
        """Raise RedisAccessError unless the namespace's pools may use the installation's Redis."""
        await self._shared.require(namespace)

    def changed(self, key: str, record: Record | None) -> None:
        """Read the status of a pool that is new or changed; None for a deleted one."""
        obj = {} if record is None else record.load()
        shared = (obj.get("spec") or {}).get("redis") is None
        self._index.changed(key, owned_queues(obj.get("status")), shared=shared)

    async def claim(
        self,
        pool: ObjectRef,
        queues: Sequence[str],
        connection: SharedConnection,
        *,
        shared: bool,
    ) -> tuple[OwnedQueue, ...]:
        """Claim the queues of a pool; returns them with the time since when they are its own.

        ``shared``: the connection is to the installation's Redis. Raises RedisAccessError, and
        MeasurementError if Redis does not answer.
        """
        for queue in queues:
            owner = self._owner_by_status(queue, connection, shared=shared)
            if owner not in ("", pool.namespace):
                self._refuse(pool, queue, owner)
        recorded = self._index.owned(pool.key)
        owners = await connection.owners.claim(claims(pool.namespace, queues, recorded))
        taken = foreign(pool.namespace, owners)
        if taken is not None:
            self._refuse(pool, taken.queue, taken.namespace)
        if recorded and any(entry.redis_id != connection.owners.redis_id for entry in recorded):
            # This Redis has lost its records, and another pool may have come first.
            self._context.queue.add_after(RENEW_KEY, 0.0)
        return tuple(OwnedQueue(owner.queue, owner.since, owner.redis_id) for owner in owners)

    def _owner_by_status(self, queue: str, connection: SharedConnection, *, shared: bool) -> str:
        """Return the namespace that owns the queue on this Redis by a pool's status, or ""."""
        for key, entry in self._index.owners(queue):
            memory = self._memories.get(key)
            joined = memory is not None and memory.redis.connection is connection
            installation = shared and self._index.uses_shared_redis(key)
            if joined or installation or entry.redis_id == connection.owners.redis_id:
                return key.partition("/")[0]
        return ""

    def _refuse(self, pool: ObjectRef, queue: str, owner: str) -> NoReturn:
        log.warning(
            "a pool names a queue of another namespace", pool=pool.key, queue=queue, owner=owner
        )
        for key, _ in self._index.owners(queue):
            namespace, _, name = key.partition("/")
            if namespace == owner:
                memory = self._memories.get(key)
                self._context.recorder.record(
                    WORKERPOOLS.ref(namespace, name, "" if memory is None else memory.uid),
                    "Warning",
                    reasons.QUEUE_REQUESTED_ELSEWHERE,
                    f"pool {pool.key} is refused: it names queue {queue} of this namespace",
                )
                break
        # The message does not name the owner: its reader may have no rights there.
        raise RedisAccessError(
            reasons.QUEUE_OWNED_ELSEWHERE,
            f"queue {queue} belongs to another namespace on this Redis; use another name, or a "
            "Redis of your own in spec.redis",
        )

    async def renew(self) -> float:
        """Record that the pools still read their queues; returns the seconds until the next time.

        A pool whose queue has another owner by then is looked at again.
        """
        by_connection: dict[SharedConnection, list[PoolTenant]] = {}
        for memory in self._memories.values():
            if memory.redis.connection is not None and memory.redis.owned:
                by_connection.setdefault(memory.redis.connection, []).append(memory)
        for connection, memories in by_connection.items():
            # The earliest first: where the records are lost, it gets its queue back.
            memories.sort(key=lambda memory: min(one.since for one in memory.redis.owned))
            try:
                await self._renew(connection, memories)
            except MeasurementError as error:
                log.warning("owners of queues not renewed", error=str(error))
        return RENEW_INTERVAL

    async def _renew(self, connection: SharedConnection, memories: Sequence[PoolTenant]) -> None:
        wanted = [
            (memory, claim)
            for memory in memories
            for claim in claims(memory.namespace, memory.redis.queues, memory.redis.owned)
        ]
        owners = await connection.owners.claim([claim for _, claim in wanted])
        for (memory, claim), owner in zip(wanted, owners, strict=True):
            # A claim names the Redis on which it was made before.
            if owner.namespace != memory.namespace or owner.redis_id != claim.redis_id:
                memory.redis.owned = ()
                self._context.queue.add(memory.key)
