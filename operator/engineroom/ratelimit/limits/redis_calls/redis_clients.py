"""Redis clients for limiters and followers: own connections, deadlines, and no retries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.connection import ConnectionPool as AsyncConnectionPool
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.connection import ConnectionPool
from redis.retry import Retry

from engineroom.ratelimit.limits.cluster import refuse_cluster_client
from engineroom.redis.pipelined import command_sender

if TYPE_CHECKING:
    from engineroom.redis.pipelined import CommandSender


class SharedRedis(Redis):
    """A client for several limiters; closing a limiter leaves it open."""

    def close(self) -> None:
        """Leave the client open; ``close_shared`` closes it."""

    def close_for_all(self) -> None:
        """Close the client."""
        super().close()


class SharedAsyncRedis(AsyncRedis):
    """A client for several limiters; closing a limiter leaves it open."""

    #: The command sender of all limiters, created by the first one.
    sender: CommandSender | None = None

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Leave the client open; ``close_shared_async`` closes it."""

    async def close_for_all(self) -> None:
        """Close the client and its command sender."""
        if self.sender is not None:
            await self.sender.close()
        await super().aclose(close_connection_pool=True)


def sender_of(client: AsyncRedis) -> CommandSender:
    """Return the command sender of a client; a shared client has one for all limiters."""
    if not isinstance(client, SharedAsyncRedis):
        return command_sender(client)
    if client.sender is None:
        client.sender = command_sender(client)
    return client.sender


def share_client(client: Redis, timeout: float) -> Redis:
    """Return a client for several limiters, with one ``timeout`` (seconds) for all of them.

    ``close_shared`` closes it. A client whose pool cannot be copied is returned as it is.
    """
    own = dedicated_client(client, timeout)
    return SharedRedis.from_pool(own.connection_pool) if own is not client else client


def share_async_client(client: AsyncRedis) -> AsyncRedis:
    """Return a client for several limiters; ``close_shared_async`` closes it.

    A client whose pool cannot be copied is returned as it is.
    """
    own = dedicated_async_client(client)
    return SharedAsyncRedis.from_pool(own.connection_pool) if own is not client else client


def close_shared(client: Redis) -> None:
    """Close a client of ``share_client``, unless it is the caller's own."""
    if isinstance(client, SharedRedis):
        client.close_for_all()


async def close_shared_async(client: AsyncRedis) -> None:
    """Close a client of ``share_async_client``, unless it is the caller's own."""
    if isinstance(client, SharedAsyncRedis):
        await client.close_for_all()


def dedicated_client(client: Redis, timeout: float) -> Redis:
    """Return a client for the same Redis with own connections, ``timeout`` (seconds) and no retry.

    A client behind Sentinel, or a shared one, is returned as it is. Raises RedisClusterError for a
    client of a cluster.
    """
    refuse_cluster_client(client)
    pool = client.connection_pool
    if type(pool) is not ConnectionPool or isinstance(client, SharedRedis):
        return client
    settings = {
        **pool.connection_kwargs,
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "retry": Retry(NoBackoff(), 0),
        "retry_on_error": [],
    }
    return Redis.from_pool(ConnectionPool(connection_class=pool.connection_class, **settings))


def dedicated_async_client(client: AsyncRedis, connect_timeout: float | None = None) -> AsyncRedis:
    """Return a client for the same Redis with own connections and no retry.

    Calls have no timeout of their own: the caller sets deadlines. ``connect_timeout`` (seconds)
    replaces the client's own. A client behind Sentinel, or a shared one, is returned as it is.
    Raises RedisClusterError for a client of a cluster.
    """
    refuse_cluster_client(client)
    pool = client.connection_pool
    if type(pool) is not AsyncConnectionPool or isinstance(client, SharedAsyncRedis):
        return client
    settings = {
        **pool.connection_kwargs,
        "socket_timeout": None,
        "retry": AsyncRetry(NoBackoff(), 0),
        "retry_on_error": [],
    }
    if connect_timeout is not None:
        settings["socket_connect_timeout"] = connect_timeout
    own = AsyncConnectionPool(connection_class=pool.connection_class, **settings)
    return AsyncRedis.from_pool(own)
