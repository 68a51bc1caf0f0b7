"""Measurement of a pool's queues and workers, over the connection of its Redis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engineroom.core.errors import DependencyError, MeasurementError, SecretError
from engineroom.kube.client.errors import NotFound
from engineroom.kube.runtime.redis_addresses import redis_trouble
from engineroom.workers.tenancy.errors import RedisAccessError

if TYPE_CHECKING:
    from engineroom.core.conditions import Trouble
    from engineroom.kube.client.resources import ObjectRef
    from engineroom.kube.runtime.redis_addresses import RedisAddresses
    from engineroom.queue.observe import PoolFacts
    from engineroom.redis.address import Address
    from engineroom.workers.plan import Plan
    from engineroom.workers.redis_connections import SharedConnection, SharedConnections
    from engineroom.workers.tenancy.queue_claims import OwnedQueue
    from engineroom.workers.tenancy.redis_tenancy import RedisTenancy


@dataclass(slots=True)
class PoolConnection:
    """The shared connection that one pool has joined; None before and after."""

    connection: SharedConnection | None = None
    address: Address | None = None
    #: The queues whose changes wake the pool.
    queues: tuple[str, ...] = ()
    #: Whether the pool is deleted or replaced, so it must join nothing more.
    ended: bool = False
    #: The queues that the pool's namespace owns; empty before they are claimed.
    owned: tuple[OwnedQueue, ...] = ()


class RedisMeasurer:
    """Measures pools, and joins them to the connection of the Redis that each refers to.

    Joining and leaving update a pool's ``PoolConnection`` at once, because a reconcile may be
    cancelled while it waits for an answer.
    """

    def __init__(
        self, addresses: RedisAddresses, connections: SharedConnections, tenancy: RedisTenancy
    ) -> None:
        self._addresses = addresses
        self._connections = connections
        self._tenancy = tenancy

    async def measure(
        self, pool: ObjectRef, plan: Plan, joined: PoolConnection
    ) -> tuple[PoolFacts | None, Trouble | None]:
        """Return the facts of the pool, or (reason, message) of why it cannot be measured.

        A pool leaves its connection when the Secret of the address is missing or invalid, or when
        it may not use the Redis or one of its queues. Raises NotFound for a pool that was deleted
        meanwhile.
        """
        key = pool.key
        try:
            if plan.redis is None:
                await self._tenancy.require_shared(pool.namespace)
            address = await self._addresses.resolve(pool.namespace, plan.redis)
            if joined.ended:
                raise NotFound(f"{pool.kind} {key} was deleted", status=404)
            connection = joined.connection
            if connection is None or joined.address != address:
                connection = self._join(key, address, plan.queues, joined)
            if not joined.owned:
                joined.owned = await self._tenancy.claim(
                    pool, plan.queues, connection, shared=plan.redis is None
                )
            return await connection.observer.observe(key, plan.queues), None
        except RedisAccessError as error:
            self.leave(key, joined)
            return None, (error.reason, str(error))
        except (SecretError, DependencyError) as error:
            if isinstance(error, SecretError):
                self.leave(key, joined)
            if isinstance(error, (SecretError, MeasurementError)):
                self._addresses.doubt(pool.namespace, plan.redis)
            return None, redis_trouble(error)

    def leave(self, key: str, joined: PoolConnection) -> None:
        """Leave the connection that the pool has joined, if any."""
        if joined.connection is not None:
            self._connections.leave(joined.connection, key, joined.queues)
        joined.connection = joined.address = None
        joined.owned = ()

    def end(self, key: str, joined: PoolConnection) -> None:
        """Leave the connection for good: a measurement that is running joins none."""
        joined.ended = True
        self.leave(key, joined)

    def _join(
        self, key: str, address: Address, queues: tuple[str, ...], joined: PoolConnection
    ) -> SharedConnection:
        self.leave(key, joined)
        connection = self._connections.join(address, key, queues)
        joined.connection, joined.address, joined.queues = connection, address, queues
        return connection
