"""The Redis servers of policies: the documents and enforcers of each, and a listener."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING, Any, Protocol

import structlog
from redis.exceptions import RedisError

from engineroom.core import reasons
from engineroom.core.errors import MeasurementError, SecretError
from engineroom.core.redis_replies import text
from engineroom.ratelimit.distribution.publish import record_check, replace_document
from engineroom.ratelimit.distribution.redis_schema import (
    ACKNOWLEDGEMENTS_PATTERN,
    PREFIX,
    namespace_of,
)
from engineroom.ratelimit.limits.cluster import failure_of, refuse_shards
from engineroom.ratelimit.limits.errors import RedisClusterError
from engineroom.ratelimit.reconcile.observe import (
    EnforcerRoster,
    read_current,
    read_identity,
    read_roster,
    seconds_since_check,
)
from engineroom.redis.address import open_client

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from engineroom.ratelimit.distribution.document import DocumentHead, DocumentText
    from engineroom.redis.address import Address

log = structlog.get_logger(__name__)

_FAILURES = (RedisError, OSError, TimeoutError)
_FIRST_RETRY_SECONDS, _MAX_RETRY_SECONDS = 0.05, 2.0
_POLL_SECONDS = 5.0


class PolicyStore(Protocol):
    """The compiled policies in one Redis.

    Reads raise MeasurementError, writes DependencyError.
    """

    async def identity(self) -> str:
        """Return the random string that identifies the Redis, whatever its address."""
        ...

    async def namespaces(self) -> set[str]:
        """Return the namespaces that have a document."""
        ...

    async def roster(self, namespace: str) -> EnforcerRoster:
        """Return the enforcers of a namespace."""
        ...

    async def current(self, namespace: str) -> tuple[str, DocumentHead | None]:
        """Return the document's head as text, and parsed; None for an unreadable document."""
        ...

    async def replace(self, namespace: str, before: str, document: DocumentText) -> str:
        """Replace the document with the head ``before``; return the new head."""
        ...

    async def seconds_since_check(self, installation: str) -> float | None:
        """Return the seconds since an installation's last check; None if it never checked."""
        ...

    async def record_check(self, installation: str, *, all_written: bool) -> bool:
        """Record a check; return whether all documents were recorded as written before."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...


class RedisPolicyStore:
    """The compiled policies in a Redis, and a listener for acknowledgements.

    ``on_acknowledgement(namespace)`` is called when an acknowledgement there changes, and
    ``on_connect`` after each (re)connect, because changes may have been missed.
    """

    def __init__(
        self,
        address: Address,
        on_acknowledgement: Callable[[str], None],
        on_connect: Callable[[], None],
    ) -> None:
        self._redis = open_client(address)
        self._on_acknowledgement = on_acknowledgement
        self._on_connect = on_connect
        self._task = asyncio.create_task(self._listen())

    async def identity(self) -> str:
        """See PolicyStore."""
        return await read_identity(self._redis)

    async def namespaces(self) -> set[str]:
        """See PolicyStore."""
        try:
            return {
                namespace
                async for key in self._redis.scan_iter(match=f"{PREFIX}*:head", count=1000)
                if (namespace := namespace_of(text(key)))
            }
        except _FAILURES as error:
            raise MeasurementError(
                f"the documents in Redis cannot be listed: {failure_of(error)}"
            ) from error

    async def roster(self, namespace: str) -> EnforcerRoster:
        """See PolicyStore."""
        return await read_roster(self._redis, namespace)

    async def current(self, namespace: str) -> tuple[str, DocumentHead | None]:
        """See PolicyStore."""
        return await read_current(self._redis, namespace)

    async def replace(self, namespace: str, before: str, document: DocumentText) -> str:
        """See PolicyStore."""
        return await replace_document(self._redis, namespace, before, document)

    async def seconds_since_check(self, installation: str) -> float | None:
        """See PolicyStore."""
        return await seconds_since_check(self._redis, installation)

    async def record_check(self, installation: str, *, all_written: bool) -> bool:
        """See PolicyStore."""
        return await record_check(self._redis, installation, all_written=all_written)

    async def close(self) -> None:
        """Stop listening and close the connections."""
        self._task.cancel()
        await asyncio.wait([self._task])
        await self._redis.aclose()

    async def _listen(self) -> None:
        wait = _FIRST_RETRY_SECONDS
        while True:
            with contextlib.suppress(*_FAILURES):
                async with self._redis.pubsub() as listener:
                    await listener.psubscribe(ACKNOWLEDGEMENTS_PATTERN)
                    self._on_connect()
                    await self._check_shards()
                    while True:
                        message: Any = await listener.get_message(timeout=_POLL_SECONDS)
                        wait = _FIRST_RETRY_SECONDS
                        if message is not None and message["type"] == "pmessage":
                            namespace = namespace_of(text(message["channel"]))
                            if namespace is not None:
                                self._on_acknowledgement(namespace)
            await asyncio.sleep(wait)
            wait = min(wait * 2, _MAX_RETRY_SECONDS)

    async def _check_shards(self) -> None:
        try:
            await refuse_shards(self._redis)
        except RedisClusterError as error:
            # The status of policies whose keys are on another shard reports it, too.
            log.error("rate limits are not enforced everywhere", problem=str(error))  # noqa: TRY400


class PolicyStores:
    """The open stores, by address. ``open_store`` opens one, with its two callbacks."""

    def __init__(
        self,
        on_acknowledgement: Callable[[str], None],
        on_connect: Callable[[], None],
        open_store: Callable[
            [Address, Callable[[str], None], Callable[[], None]], PolicyStore
        ] = RedisPolicyStore,
    ) -> None:
        self._on_acknowledgement = on_acknowledgement
        self._on_connect = on_connect
        self._open_store = open_store
        self._stores: dict[Address, PolicyStore] = {}

    def of(self, address: Address) -> PolicyStore:
        """Return the store of an address. Raises SecretError for an invalid address."""
        store = self._stores.get(address)
        if store is None:
            try:
                store = self._open_store(address, self._on_acknowledgement, self._on_connect)
            except (ValueError, ssl.SSLError) as error:
                raise SecretError(
                    reasons.REDIS_URL_INVALID, f"the Redis address cannot be used: {error}"
                ) from error
            self._stores[address] = store
        return store

    def all(self) -> tuple[tuple[Address, PolicyStore], ...]:
        """Return all open stores."""
        return tuple(self._stores.items())

    async def close_unused(self, used: Collection[Address]) -> None:
        """Close the stores whose address is not in ``used``."""
        for address in [address for address in self._stores if address not in used]:
            await self._stores.pop(address).close()

    async def close(self) -> None:
        """Close all stores."""
        await self.close_unused(())
