"""Redis Cluster with several nodes, which is refused in so many words.

Every bucket of a policy has one hash tag, so a decision runs on any one node; what does not work is
that clients here talk to one address. See docs/decisions/0022-one-redis-for-rate-limits.md.
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
    "give rate limits one Redis of their own, with replicas and Sentinel where it must not fail; "
    "a cluster of one shard works, too, with a plain client"
)


def refuse_cluster_client(client: object) -> None:
    """Raises RedisClusterError for redis-py's client of a cluster."""
    if isinstance(client, RedisCluster | AsyncRedisCluster):
        raise RedisClusterError(f"redis: {type(client).__name__} is a client of a cluster; {_FIX}")


async def refuse_shards(client: AsyncRedis) -> None:
    """Raises RedisClusterError where Redis is one of several shards, and redis-py's errors where it
    does not answer or does not let itself be asked."""
    info: Any = await client.info("cluster")
    if not info.get("cluster_enabled"):
        return
    execute: Callable[..., Awaitable[Any]] = client.execute_command
    told = await execute("CLUSTER INFO")
    if isinstance(told, bytes):
        told = told.decode()
    if isinstance(told, str):
        told = dict(line.split(":", 1) for line in told.split() if ":" in line)
    shards = int(told.get("cluster_size", 1))
    if shards > 1:
        raise RedisClusterError(f"Redis is a cluster of {shards} shards; {_FIX}")


def failure_of(error: BaseException) -> str:
    """What a failed call to Redis is called: its kind, and what to do where it is a cluster's."""
    name = type(error).__name__
    return (
        f"{name}: Redis is a cluster; {_FIX}" if isinstance(error, AskError | MovedError) else name
    )
