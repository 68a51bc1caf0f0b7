"""Publication of compiled policies in Redis."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from redis.exceptions import ReadOnlyError, RedisError

from engineroom.core.errors import ConflictError, DependencyError
from engineroom.ratelimit.distribution import redis_schema
from engineroom.ratelimit.distribution.redis_schema import EMPTY_EXPIRY_MS, head_text, keys_of
from engineroom.ratelimit.limits.cluster import failure_of
from engineroom.redis.scripts import run_async

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from engineroom.ratelimit.distribution.document import DocumentText

_TIMEOUT = 5.0
_FAILURES = (RedisError, OSError, TimeoutError)


async def replace_document(
    redis: Redis, namespace: str, before: str, document: DocumentText
) -> str:
    """Replace the document with the head ``before``, notify the enforcers, return the new head.

    Raises ConflictError if Redis has another head, and DependencyError if Redis does not answer;
    then the document may or may not have been written.
    """
    keys = keys_of(namespace)
    head = head_text(document.hash, document.revision, document.lineage)
    expiry_ms = 0 if document.since else EMPTY_EXPIRY_MS
    try:
        async with asyncio.timeout(_TIMEOUT):
            replaced: Any = await run_async(
                redis,
                redis_schema.REPLACE_DOCUMENT,
                (keys.document, keys.head, keys.changes),
                (before, head, document.text, expiry_ms),
            )
    except _FAILURES as error:
        if isinstance(error, ReadOnlyError):
            # The primary became a replica: reconnect, to the new primary.
            await redis.connection_pool.disconnect()
        raise DependencyError(
            f"the compiled policies could not be written to Redis: {failure_of(error)}"
        ) from error
    if int(replaced) != 1:
        raise ConflictError("the compiled policies in Redis changed since they were read")
    return head


async def record_check(redis: Redis, installation: str, *, all_written: bool) -> bool:
    """Record that an installation checks its documents in this Redis.

    Returns whether it was recorded before that all of them are written; ``all_written`` records it.
    Raises DependencyError.
    """
    arguments = (installation or "-", int(all_written))
    try:
        async with asyncio.timeout(_TIMEOUT):
            recorded: Any = await run_async(
                redis, redis_schema.RECORD_CHECK, (redis_schema.PUBLISHED,), arguments
            )
            return bool(int(recorded))
    except _FAILURES as error:
        raise DependencyError(
            f"Redis did not record that its policies are complete: {type(error).__name__}"
        ) from error
