"""An async TTL cache: concurrent callers of one key share a single fetch."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

    from engineroom.core.clock import Clock

#: The default capacity of a cache.
CAPACITY = 4096

_T = TypeVar("_T")


class AsyncCache(Generic[_T]):
    """A cache of at most ``capacity`` values that evicts the oldest first. For one event loop."""

    def __init__(self, clock: Clock, capacity: int = CAPACITY) -> None:
        self._clock = clock
        self._capacity = capacity
        #: Expiry (monotonic seconds) and value by key.
        self._entries: OrderedDict[Hashable, tuple[float, _T]] = OrderedDict()
        self._fetches: dict[Hashable, asyncio.Task[_T]] = {}

    async def get(self, key: Hashable, fetch: Callable[[], Awaitable[tuple[_T, float]]]) -> _T:
        """Return the cached value, or the one that ``fetch`` returns.

        ``fetch`` returns a value and the seconds for which it is valid. Its errors are not cached.
        """
        entry = self._entries.get(key)
        if entry is not None and self._clock.monotonic() < entry[0]:
            return entry[1]
        task = self._fetches.get(key)
        if task is None:
            # A separate task: a cancelled caller must not cancel the fetch of the other callers.
            task = asyncio.ensure_future(self._fetch(key, fetch))
            self._fetches[key] = task
        return await asyncio.shield(task)

    def forget(self, key: Hashable) -> None:
        """Remove the value of ``key``."""
        self._entries.pop(key, None)

    async def _fetch(self, key: Hashable, fetch: Callable[[], Awaitable[tuple[_T, float]]]) -> _T:
        try:
            value, seconds = await fetch()
        finally:
            del self._fetches[key]
        self._entries[key] = (self._clock.monotonic() + seconds, value)
        self._entries.move_to_end(key)
        while len(self._entries) > self._capacity:
            self._entries.popitem(last=False)
        return value
