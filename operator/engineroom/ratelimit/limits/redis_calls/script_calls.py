"""Operations of several script calls, written once for sync and async clients.

An operation is a generator: it yields a ScriptCall, receives the reply or one of FAILURES, and
returns its result. ``drive`` and ``drive_async`` run it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from redis.exceptions import ReadOnlyError, RedisError

from engineroom.redis.scripts import run, run_async

if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import Lock

    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis

    from engineroom.redis.scripts import Script

_T = TypeVar("_T")
#: Errors of a call that Redis did not answer, or not in time.
FAILURES = (RedisError, OSError, TimeoutError)


class ScriptCall(NamedTuple):
    """One call of a script."""

    script: Script
    keys: list[str]
    arguments: list[str | int]


Steps = Generator[ScriptCall, Any, _T]


def drive(client: Redis, steps: Steps[_T], lock: Lock) -> _T:
    """Run an operation; ``lock`` is held except during calls."""
    advance: Callable[[Any], ScriptCall] = steps.send
    value: Any = None
    while True:
        with lock:
            try:
                call = advance(value)
            except StopIteration as end:
                result: _T = end.value
                return result
        try:
            value = run(client, call.script, call.keys, call.arguments)
            advance = steps.send
        except FAILURES as error:
            if isinstance(error, ReadOnlyError):
                # The primary became a replica: reconnect, to the new primary.
                client.connection_pool.disconnect()
            value, advance = error, steps.throw
        except BaseException:
            steps.close()
            raise


async def drive_async(
    client: AsyncRedis, steps: Steps[_T], deadline: float, reconnect: Callable[[], None]
) -> _T:
    """Run an operation with ``deadline`` seconds for each call.

    ``reconnect`` is called in addition when the primary became a replica.
    """
    advance: Callable[[Any], ScriptCall] = steps.send
    value: Any = None
    while True:
        try:
            call = advance(value)
        except StopIteration as end:
            result: _T = end.value
            return result
        try:
            async with asyncio.timeout(deadline):
                value = await run_async(client, call.script, call.keys, call.arguments)
            advance = steps.send
        except FAILURES as error:
            if isinstance(error, ReadOnlyError):
                await client.connection_pool.disconnect()
                reconnect()
            value, advance = error, steps.throw
        except BaseException:
            steps.close()
            raise
