"""Connections of the controller to the Redis of each policy: one client and one listener each."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING, Any

import structlog
from redis.exceptions import RedisError

from engineroom.core import reasons
from engineroom.core.errors import MeasurementError, SecretError
from engineroom.ratelimit.distribution.redis_schema import (
    ACKNOWLEDGEMENTS_PATTERN,
    PREFIX,
    namespace_of,
)
from engineroom.ratelimit.limits.cluster import failure_of, refuse_shards
from engineroom.ratelimit.limits.errors import RedisClusterError
from engineroom.redis.address import open_client
from engineroom.redis.replies import text

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from engineroom.redis.address import Address

log = structlog.get_logger(__name__)

_FAILURES = (RedisError, OSError, TimeoutError)
_RETRY_FIRST, _RETRY_LAST = 0.05, 2.0
_GLANCE = 5.0


class Link:
    """One Redis. ``on_word(namespace)`` is called when an enforcer there said something new, and
    ``on_up`` after each (re)connect: what was said meanwhile was not heard."""

    def __init__(
        self, address: Address, on_word: Callable[[str], None], on_up: Callable[[], None]
    ) -> None:
        self.redis = open_client(address)
        self._on_word = on_word
        self._on_up = on_up
        self._task = asyncio.create_task(self._listen())

    async def namespaces(self) -> set[str]:
        """Namespaces that have a document there; raises MeasurementError."""
        try:
            return {
                namespace
                async for key in self.redis.scan_iter(match=f"{PREFIX}*:head", count=1000)
                if (namespace := namespace_of(text(key)))
            }
        except _FAILURES as error:
            raise MeasurementError(
                f"Redis did not list its documents: {failure_of(error)}"
            ) from error

    async def close(self) -> None:
        """Stop listening and close the connections."""
        self._task.cancel()
        await asyncio.wait([self._task])
        await self.redis.aclose()

    async def _listen(self) -> None:
        wait = _RETRY_FIRST
        while True:
            with contextlib.suppress(*_FAILURES):
                async with self.redis.pubsub() as listener:
                    await listener.psubscribe(ACKNOWLEDGEMENTS_PATTERN)
                    self._on_up()
                    await self._look_for_shards()
                    while True:
                        message: Any = await listener.get_message(timeout=_GLANCE)
                        wait = _RETRY_FIRST
                        if message is not None and message["type"] == "pmessage":
                            namespace = namespace_of(text(message["channel"]))
                            if namespace is not None:
                                self._on_word(namespace)
            await asyncio.sleep(wait)
            wait = min(wait * 2, _RETRY_LAST)

    async def _look_for_shards(self) -> None:
        try:
            await refuse_shards(self.redis)
        except RedisClusterError as error:
            # Policies whose keys are elsewhere say so in their status, too.
            log.error("rate limits are not enforced everywhere", problem=str(error))  # noqa: TRY400


class Links:
    """All of them, by address."""

    def __init__(self, on_word: Callable[[str], None], on_up: Callable[[], None]) -> None:
        self._on_word = on_word
        self._on_up = on_up
        self._links: dict[Address, Link] = {}

    def of(self, address: Address) -> Link:
        """The link of an address. Raises SecretError for one that is none."""
        link = self._links.get(address)
        if link is None:
            try:
                link = Link(address, self._on_word, self._on_up)
            except (ValueError, ssl.SSLError) as error:
                raise SecretError(
                    reasons.REDIS_URL_INVALID, f"the Redis address cannot be used: {error}"
                ) from error
            self._links[address] = link
        return link

    def open(self) -> tuple[tuple[Address, Link], ...]:
        """Those that are used."""
        return tuple(self._links.items())

    async def keep(self, used: Collection[Address]) -> None:
        """Close those that nobody uses any more."""
        for address in [each for each in self._links if each not in used]:
            await self._links.pop(address).close()

    async def close(self) -> None:
        """Close all."""
        await self.keep(())
