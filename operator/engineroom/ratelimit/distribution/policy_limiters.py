"""One limiter for each policy of a source, on shared connections.

An edited policy gets a new limiter on the same keys, so that consumption is preserved. The old
limiter returns its leases.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from engineroom.ratelimit.distribution.document import NO_POLICIES
from engineroom.ratelimit.limits.limiter import AsyncLimiter, Limiter
from engineroom.ratelimit.limits.redis_calls.redis_clients import (
    close_shared,
    close_shared_async,
    share_async_client,
    share_client,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis

    from engineroom.core.clock import Clock
    from engineroom.ratelimit.distribution.document import CompiledPolicy
    from engineroom.ratelimit.distribution.policy_source import PolicySource


class _AnyLimiter(Protocol):
    @property
    def failed(self) -> int: ...

    def share_rate(self, enforcers: int) -> None: ...


_L = TypeVar("_L", bound=_AnyLimiter)


class _FallbackCounter:
    """Counts the decisions without Redis of changing limiters, by policy."""

    def __init__(self) -> None:
        self._unreported: Counter[str] = Counter()
        #: The count of each limiter at its last reading.
        self._last: dict[str, int] = {}

    def remove(self, name: str, failed: int) -> None:
        """Count the last decisions of a limiter that is replaced or removed."""
        self._count(name, failed)
        self._last.pop(name, None)

    def take(self, limiters: Iterable[tuple[str, int]]) -> Mapping[str, int]:
        """Return the decisions since the last call; ``limiters`` has the total of each."""
        for name, failed in limiters:
            self._count(name, failed)
        counts, self._unreported = self._unreported, Counter()
        return counts

    def _count(self, name: str, failed: int) -> None:
        increase = failed - self._last.get(name, 0)
        if increase > 0:
            self._unreported[name.rpartition("/")[2]] += increase
            self._last[name] = failed


class _LimiterCache(Generic[_L]):
    """The limiters of a source by policy; it creates and removes them, and never closes them."""

    def __init__(self, source: PolicySource, create: Callable[[CompiledPolicy, int], _L]) -> None:
        self._source = source
        self._create = create
        self._snapshot = NO_POLICIES
        self._limiters: dict[str, tuple[str, _L]] = {}
        self._fallbacks = _FallbackCounter()

    def of(self, compiled: CompiledPolicy) -> tuple[_L, list[_L]]:
        """Return the limiter of a policy, and the limiters that were removed meanwhile.

        The limiter stays the same as long as the policy does.
        """
        removed: list[_L] = []
        current = self._source.current
        if current is not self._snapshot:
            self._snapshot = current
            names = {entry.policy.name for entry in current.entries}
            removed += [self._remove(name) for name in self._limiters.keys() - names]
        key, enforcers = compiled.policy.name, self._source.enforcers
        entry = self._limiters.get(key)
        if entry is not None and entry[0] == compiled.hash:
            entry[1].share_rate(enforcers)
            return entry[1], removed
        limiter = self._create(compiled, enforcers)
        if entry is not None:
            removed.append(self._remove(key))
        self._limiters[key] = compiled.hash, limiter
        return limiter, removed

    def clear(self) -> list[_L]:
        """Remove and return all limiters."""
        return [self._remove(name) for name in list(self._limiters)]

    def take_fallbacks(self) -> Mapping[str, int]:
        """Return the decisions without Redis since the last call, by policy."""
        return self._fallbacks.take(
            [(name, limiter.failed) for name, (_, limiter) in self._limiters.items()]
        )

    def _remove(self, name: str) -> _L:
        limiter = self._limiters.pop(name)[1]
        self._fallbacks.remove(name, limiter.failed)
        return limiter


class AsyncLimiters:
    """A limiter for each policy of a source, created when it is first needed."""

    def __init__(
        self, source: PolicySource, redis: AsyncRedis, *, clock: Clock | None = None
    ) -> None:
        self._redis = share_async_client(redis)
        self._clock = clock
        self._cache: _LimiterCache[AsyncLimiter] = _LimiterCache(source, self._create)
        self._closing: set[asyncio.Task[None]] = set()
        source.report_fallbacks(self._cache.take_fallbacks)

    def of(self, compiled: CompiledPolicy) -> AsyncLimiter:
        """Return the limiter of a policy; it stays the same as long as the policy does."""
        limiter, removed = self._cache.of(compiled)
        self._close_later(removed)
        return limiter

    async def close(self) -> None:
        """Return all leases and close the connections."""
        self._close_later(self._cache.clear())
        if self._closing:
            await asyncio.wait(self._closing)
        await close_shared_async(self._redis)

    def _create(self, compiled: CompiledPolicy, enforcers: int) -> AsyncLimiter:
        return AsyncLimiter(compiled.policy, self._redis, clock=self._clock, enforcers=enforcers)

    def _close_later(self, limiters: Iterable[AsyncLimiter]) -> None:
        for limiter in limiters:
            task = asyncio.get_running_loop().create_task(limiter.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)


class Limiters:
    """A limiter for each policy of a source; safe to share between threads. See AsyncLimiters."""

    def __init__(self, source: PolicySource, redis: Redis, *, clock: Clock | None = None) -> None:
        self._redis = redis
        self._clock = clock
        #: Clients by timeout, which is a property of their connections.
        self._clients: dict[float, Redis] = {}
        self._cache: _LimiterCache[Limiter] = _LimiterCache(source, self._create)
        self._lock = threading.Lock()
        source.report_fallbacks(self._take_fallbacks)

    def of(self, compiled: CompiledPolicy) -> Limiter:
        """Return the limiter of a policy; it stays the same as long as the policy does."""
        with self._lock:
            limiter, removed = self._cache.of(compiled)
        for old in removed:
            old.close()
        return limiter

    def close(self) -> None:
        """Return all leases and close the connections."""
        with self._lock:
            limiters = self._cache.clear()
            clients, self._clients = list(self._clients.values()), {}
        for limiter in limiters:
            limiter.close()
        for client in clients:
            close_shared(client)

    def _take_fallbacks(self) -> Mapping[str, int]:
        with self._lock:
            return self._cache.take_fallbacks()

    def _create(self, compiled: CompiledPolicy, enforcers: int) -> Limiter:
        timeout = float(compiled.policy.failure.timeout)
        if timeout not in self._clients:
            self._clients[timeout] = share_client(self._redis, timeout)
        return Limiter(
            compiled.policy, self._clients[timeout], clock=self._clock, enforcers=enforcers
        )
