"""Connections to the Redis of each pool: one observer and one push listener an address."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING, Any

from engineroom.core import reasons
from engineroom.core.errors import SecretError
from engineroom.kube.client.secrets import Secrets
from engineroom.queue.invalidations import InvalidationListener
from engineroom.queue.observe import Observer
from engineroom.redis.address import Address, open_client, reason_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from engineroom.core.clock import Clock

__all__ = ["Address", "Link", "Links", "Secrets", "open_client", "reason_of"]


class Link:
    """One Redis: commands, looks and pushes. ``subscribers`` are pools by queue name."""

    def __init__(
        self,
        address: Address,
        clock: Clock,
        *,
        on_queue: Callable[[str], None],
        on_turn: Callable[[Link], None],
    ) -> None:
        self.address = address
        self.redis = open_client(address)
        self.observer = Observer(self.redis, clock)
        self.subscribers: dict[str, set[str]] = {}
        self.pools = 0
        #: Whether pushes are heard; "" or what the connection said last.
        self.up = False
        self.trouble = ""
        self._on_queue = on_queue
        self._on_turn = on_turn
        self._push = InvalidationListener(
            self.redis, on_queue=self._changed, on_up=self._went_up, on_down=self._went_down
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

    def _changed(self, queue: str) -> None:
        for pool in self.subscribers.get(queue, ()):
            self._on_queue(pool)

    def _went_up(self) -> None:
        self.up, self.trouble = True, ""
        self._on_turn(self)

    def _went_down(self, why: str) -> None:
        was_up, self.up, self.trouble = self.up, False, why
        if was_up:
            self._on_turn(self)


class Links:
    """All connections, shared by the pools that name the same address."""

    def __init__(
        self,
        clock: Clock,
        *,
        on_queue: Callable[[str], None],
        on_turn: Callable[[Link], None],
    ) -> None:
        self._clock = clock
        self._on_queue = on_queue
        self._on_turn = on_turn
        self._links: dict[Address, Link] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def __iter__(self) -> Any:
        return iter(list(self._links.values()))

    def join(self, address: Address, pool: str, queues: tuple[str, ...]) -> Link:
        """The link of ``address``, with ``pool`` subscribed. Raises SecretError on a wrong URL."""
        link = self._links.get(address)
        if link is None:
            try:
                link = Link(address, self._clock, on_queue=self._on_queue, on_turn=self._on_turn)
            except (ValueError, ssl.SSLError) as error:
                raise SecretError(
                    reasons.REDIS_URL_INVALID, f"the Redis address cannot be used: {error}"
                ) from error
            self._links[address] = link
        link.subscribe(pool, queues)
        return link

    def leave(self, link: Link, pool: str, queues: tuple[str, ...]) -> None:
        """Unsubscribe; the last one closes the connection."""
        link.unsubscribe(pool, queues)
        if link.pools <= 0:
            self._links.pop(link.address, None)
            task = asyncio.create_task(link.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close every connection."""
        links, self._links = list(self._links.values()), {}
        await asyncio.gather(*(link.close() for link in links), *self._closing)
