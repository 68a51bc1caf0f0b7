"""Detection of Redis Cluster, which rate limits do not support with several shards.

All buckets of a policy share a hash tag, so that one node can decide; but the clients here connect
to a single address. See docs/decisions/0022-one-redis-for-rate-limits.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.asyncio.cluster import RedisCluster as AsyncRedisCluster
from redis.cluster import RedisCluster
from redis.exceptions import AskError, MovedError

from engineroom.ratelimit.limits.errors import RedisClusterError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from redis.asyncio import Redis as AsyncRedis

_FIX = (
    "use one Redis for rate limits, with replicas and Sentinel for high availability; "
    "a cluster of one shard also works, with a plain client"
)


def refuse_cluster_client(client: object) -> None:
    """Raise RedisClusterError for redis-py's cluster clients."""
    if isinstance(client, RedisCluster | AsyncRedisCluster):
        raise RedisClusterError(f"redis: {type(client).__name__} is a cluster client; {_FIX}")


async def refuse_shards(client: AsyncRedis) -> None:
    """Raise RedisClusterError if Redis is one of several shards.

    Raises redis-py's errors if Redis does not answer, or refuses the commands.
    """
    info: Any = await client.info("cluster")
    if not info.get("cluster_enabled"):
        return
    execute: Callable[..., Awaitable[Any]] = client.execute_command
    state = await execute("CLUSTER INFO")
    if isinstance(state, bytes):
        state = state.decode()
    if isinstance(state, str):
        state = dict(line.split(":", 1) for line in state.split() if ":" in line)
    shards = int(state.get("cluster_size", 1))
    if shards > 1:
        raise RedisClusterError(f"Redis is a cluster of {shards} shards; {_FIX}")


def failure_of(error: BaseException) -> str:
    """Return the kind of a failed call to Redis, with advice if Redis is a cluster."""
    name = type(error).__name__
    return (
        f"{name}: Redis is a cluster; {_FIX}" if isinstance(error, AskError | MovedError) else name
    )
