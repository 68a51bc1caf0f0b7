"""Writing the compiled policies into Redis, as a whole and only over what was read."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from redis.exceptions import ReadOnlyError, RedisError

from engineroom.core.errors import ConflictError, DependencyError
from engineroom.ratelimit.distribution import redis_schema
from engineroom.ratelimit.distribution.redis_schema import EMPTY_FOR_MS, head_text, keys_of
from engineroom.ratelimit.limits.cluster import failure_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from redis.asyncio import Redis

    from engineroom.ratelimit.distribution.document import Text

_TIMEOUT = 5.0


async def replace(redis: Redis, namespace: str, before: str, document: Text) -> str:
    """Put ``document`` in the place of the one with the head ``before`` and tell the enforcers.

    Returns the new head. Raises ConflictError when another one stands there by now, and
    DependencyError when Redis does not answer: it may or may not have been written.
    """
    keys = keys_of(namespace)
    head = head_text(document.hash, document.revision, document.lineage)
    execute: Callable[..., Awaitable[Any]] = redis.execute_command
    keep = 0 if document.since else EMPTY_FOR_MS
    try:
        async with asyncio.timeout(_TIMEOUT):
            done = await execute(
                "EVAL", redis_schema.REPLACE, 3, keys.document, keys.head, keys.news,
                before, head, document.text, keep,
            )  # fmt: skip
    except (RedisError, OSError, TimeoutError) as error:
        if isinstance(error, ReadOnlyError):
            # A primary that became a replica: connect anew, to whoever is the primary now.
            await redis.connection_pool.disconnect()
        raise DependencyError(
            f"the compiled policies could not be written to Redis: {failure_of(error)}"
        ) from error
    if int(done) != 1:
        raise ConflictError("the compiled policies in Redis changed since they were read")
    return head


async def looked(redis: Redis, installation: str, *, all_written: bool) -> bool:
    """Say that an installation looks after its documents in this Redis.

    Returns whether it was known before that it has written all of them; ``all_written`` makes it
    known. Raises DependencyError.
    """
    execute: Callable[..., Awaitable[Any]] = redis.execute_command
    arguments = (1, redis_schema.PUBLISHED, installation or "-", int(all_written))
    try:
        async with asyncio.timeout(_TIMEOUT):
            return bool(int(await execute("EVAL", redis_schema.LOOKED, *arguments)))
    except (RedisError, OSError, TimeoutError) as error:
        raise DependencyError(
            f"Redis was not told that its policies are complete: {type(error).__name__}"
        ) from error
