"""Connections to the Redis servers of pools: one observer and one push listener an address."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING

from engineroom.core import reasons
from engineroom.core.errors import SecretError
from engineroom.queue.invalidations import InvalidationListener
from engineroom.queue.observe import Observer
from engineroom.queue.ownership import QueueOwners
from engineroom.redis.address import open_client

if TYPE_CHECKING:
    from collections.abc import Callable

    from engineroom.core.clock import Clock
    from engineroom.redis.address import Address


class SharedConnection:
    """One Redis and the pools that read its queues.

    ``on_queue(key)`` is called for each pool that reads a queue that changed;
    ``on_state(connection)`` when pushes stop arriving or arrive again.
    """

    def __init__(
        self,
        address: Address,
        clock: Clock,
        *,
        on_queue: Callable[[str], None],
        on_state: Callable[[SharedConnection], None],
    ) -> None:
        self.address = address
        self.redis = open_client(address)
        self.observer = Observer(self.redis, clock)
        self.owners = QueueOwners(self.redis)
        #: Keys of pools by queue name.
        self.subscribers: dict[str, set[str]] = {}
        self.pools = 0
        #: Whether pushes arrive.
        self.up = False
        self._on_queue = on_queue
        self._on_state = on_state
        self._push = InvalidationListener(
            self.redis, on_queue=self._on_change, on_up=self._went_up, on_down=self._went_down
        )
        self._task = asyncio.create_task(self._push.run())

    def subscribe(self, pool: str, queues: tuple[str, ...]) -> None:
        """Wake ``pool`` whenever one of ``queues`` changes."""
        self.pools += 1
        for queue in queues:
            self.subscribers.setdefault(queue, set()).add(pool)

    def unsubscribe(self, pool: str, queues: tuple[str, ...]) -> None:
        """Undo ``subscribe``."""
        self.pools -= 1
        for queue in queues:
            pools = self.subscribers.get(queue)
            if pools is not None:
                pools.discard(pool)
                if not pools:
                    del self.subscribers[queue]

    async def close(self) -> None:
        """Stop listening and close the connections."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        await self.redis.aclose()

    def _on_change(self, queue: str) -> None:
        for pool in self.subscribers.get(queue, ()):
            self._on_queue(pool)

    def _went_up(self) -> None:
        self.up = True
        self._on_state(self)

    def _went_down(self, _problem: str) -> None:
        was_up, self.up = self.up, False
        if was_up:
            self._on_state(self)


class SharedConnections:
    """All connections by address; the last pool that leaves one closes it."""

    def __init__(
        self,
        clock: Clock,
        *,
        on_queue: Callable[[str], None],
        on_state: Callable[[SharedConnection], None],
    ) -> None:
        self._clock = clock
        self._on_queue = on_queue
        self._on_state = on_state
        self._connections: dict[Address, SharedConnection] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def join(self, address: Address, pool: str, queues: tuple[str, ...]) -> SharedConnection:
        """Return the connection of ``address``, with ``pool`` subscribed to its queues.

        Raises SecretError for an address that cannot be used.
        """
        connection = self._connections.get(address)
        if connection is None:
            try:
                connection = SharedConnection(
                    address, self._clock, on_queue=self._on_queue, on_state=self._on_state
                )
            except (ValueError, ssl.SSLError) as error:
                raise SecretError(
                    reasons.REDIS_URL_INVALID, f"the Redis address cannot be used: {error}"
                ) from error
            self._connections[address] = connection
        connection.subscribe(pool, queues)
        return connection

    def leave(self, connection: SharedConnection, pool: str, queues: tuple[str, ...]) -> None:
        """Unsubscribe the pool."""
        connection.unsubscribe(pool, queues)
        if connection.pools <= 0:
            self._connections.pop(connection.address, None)
            task = asyncio.create_task(connection.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close every connection."""
        connections, self._connections = list(self._connections.values()), {}
        await asyncio.gather(*(connection.close() for connection in connections), *self._closing)
