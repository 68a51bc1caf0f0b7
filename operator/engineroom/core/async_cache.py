"""Answers by question, kept for a while; what is being asked is not asked again meanwhile."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

    from engineroom.core.clock import Clock

MOST = 4096

_T = TypeVar("_T")


class Kept(Generic[_T]):
    """At most ``most`` answers; the oldest goes first. For one event loop."""

    def __init__(self, clock: Clock, most: int = MOST) -> None:
        self._clock = clock
        self._most = most
        self._answers: OrderedDict[Hashable, tuple[float, _T]] = OrderedDict()
        self._asking: dict[Hashable, asyncio.Task[_T]] = {}

    async def get(self, key: Hashable, ask: Callable[[], Awaitable[tuple[_T, float]]]) -> _T:
        """The answer; ``ask`` gives it and for how many seconds it is good. Errors are not kept."""
        kept = self._answers.get(key)
        if kept is not None and self._clock.monotonic() < kept[0]:
            return kept[1]
        task = self._asking.get(key)
        if task is None:
            # A task of its own: one impatient request must not cancel the answer of the others.
            task = asyncio.ensure_future(self._ask(key, ask))
            self._asking[key] = task
        return await asyncio.shield(task)

    def forget(self, key: Hashable) -> None:
        """Ask anew the next time."""
        self._answers.pop(key, None)

    async def _ask(self, key: Hashable, ask: Callable[[], Awaitable[tuple[_T, float]]]) -> _T:
        try:
            answer, seconds = await ask()
        finally:
            del self._asking[key]
        self._answers[key] = (self._clock.monotonic() + seconds, answer)
        self._answers.move_to_end(key)
        while len(self._answers) > self._most:
            self._answers.popitem(last=False)
        return answer
