"""A Redis client behind a circuit breaker: while Redis is away a call fails at once.

What it raises is redis-py's own, so that whoever handles that goes on to do so; only a call that is
held back is told apart, and it is both.
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
    """Redis kept failing and is left alone for a moment; it was not asked."""

    code = "redis_held_back"


class GuardedRedis(Redis):
    """``redis.asyncio.Redis`` whose commands and pipelines go through a Recovery's breaker.

    Nothing is tried again here: that a command was lost says nothing of whether it was done.
    """

    recovery: Recovery | None = None

    @classmethod
    def guarded(cls, recovery: Recovery, url: str, **options: Any) -> Self:
        """A client of the Redis at ``url``; options are those of ``Redis.from_url``."""
        made = cls.from_url(url, **options)
        assert isinstance(made, cls)  # noqa: S101 - redis-py's types say less
        made.recovery = recovery
        return made

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """As Redis, or RedisHeldBackError."""
        if self.recovery is None:
            return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        _admit(self.recovery)
        with self.recovery.watched():
            return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """As Redis; executing it is what is guarded."""
        made = _GuardedPipeline(
            self.connection_pool, self.response_callbacks, transaction, shard_hint
        )
        made.recovery = self.recovery
        return made


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
