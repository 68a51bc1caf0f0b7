"""A Redis client with a circuit breaker: while Redis fails, calls fail at once.

It raises redis-py's own errors. The error of a blocked call is both a CircuitOpenError and a
ConnectionError of redis-py, so existing handlers work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import ConnectionError as RedisConnectionError

from engineroom.core.errors import CircuitOpenError

if TYPE_CHECKING:
    from engineroom.core.recovery import Recovery


class RedisHeldBackError(CircuitOpenError, RedisConnectionError):
    """The circuit breaker of Redis is open; Redis was not called."""

    code = "redis_held_back"


class GuardedRedis(Redis):
    """A ``redis.asyncio.Redis`` whose commands and pipelines pass a Recovery's breaker.

    It never retries: after a lost answer a command may have been executed.
    """

    recovery: Recovery | None = None

    @classmethod
    def guarded(cls, recovery: Recovery, url: str, **options: Any) -> Self:
        """Return a client for ``url``; options are those of ``Redis.from_url``."""
        client = cls.from_url(url, **options)
        assert isinstance(client, cls)  # noqa: S101 - redis-py's types are less precise
        client.recovery = recovery
        return client

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Execute a command; raise RedisHeldBackError while the breaker is open."""
        if self.recovery is None:
            return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        _admit(self.recovery)
        with self.recovery.watched():
            return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """Return a pipeline whose execution passes the breaker."""
        pipeline = _GuardedPipeline(
            self.connection_pool, self.response_callbacks, transaction, shard_hint
        )
        pipeline.recovery = self.recovery
        return pipeline


class _GuardedPipeline(Pipeline):
    recovery: Recovery | None = None

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        if self.recovery is None or not (self.command_stack or self.watching):
            return await super().execute(raise_on_error)
        try:
            _admit(self.recovery)
        except RedisHeldBackError:
            await self.reset()  # type: ignore[no-untyped-call]
            raise
        with self.recovery.watched():
            return await super().execute(raise_on_error)


def _admit(recovery: Recovery) -> None:
    breaker = recovery.breaker
    if breaker is None:
        return
    try:
        breaker.admit()
    except CircuitOpenError as error:
        raise RedisHeldBackError(
            str(error), context=error.context, retry_after=error.retry_after
        ) from None
