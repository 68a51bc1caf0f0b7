"""Lua scripts: called by their digest, and by their text where Redis does not know them yet."""

from __future__ import annotations

from hashlib import sha1
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import NoScriptError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis


class Script:
    """A Lua script and the digest by which Redis caches it."""

    __slots__ = ("sha", "source")

    def __init__(self, source: str) -> None:
        self.source: Final = source
        # Redis names scripts by their SHA-1.
        self.sha: Final = sha1(source.encode(), usedforsecurity=False).hexdigest()


def run(
    client: Redis, script: Script, keys: Sequence[str], arguments: Sequence[object] = ()
) -> Any:
    """Run a script and return its reply; raises redis-py's errors."""
    execute: Callable[..., Any] = client.execute_command
    try:
        return execute("EVALSHA", script.sha, len(keys), *keys, *arguments)
    except NoScriptError:
        return execute("EVAL", script.source, len(keys), *keys, *arguments)


async def run_async(
    client: AsyncRedis, script: Script, keys: Sequence[str], arguments: Sequence[object] = ()
) -> Any:
    """Run a script and return its reply; raises redis-py's errors."""
    execute: Callable[..., Awaitable[Any]] = client.execute_command
    try:
        return await execute("EVALSHA", script.sha, len(keys), *keys, *arguments)
    except NoScriptError:
        return await execute("EVAL", script.source, len(keys), *keys, *arguments)
