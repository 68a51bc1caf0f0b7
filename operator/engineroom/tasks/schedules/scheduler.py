"""The loops that enqueue due ticks, for threads and for event loops."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from engineroom.core.clock import Clock, SystemClock
from engineroom.core.logging import get_logger
from engineroom.tasks.errors import TasksUnavailableError
from engineroom.tasks.redis_steps import run, run_async
from engineroom.tasks.schedules.ticking import due, enqueue_due, tick

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis

#: The longest pause between two polls of Redis (seconds).
MAX_PAUSE = 0.5
#: The shortest pause between two polls on an event loop; ticks within it are enqueued together
#: (seconds).
MIN_PAUSE = 0.02
#: Pause after a failed poll (seconds).
OUTAGE_PAUSE = 1.0
#: Schedules that are planned before other coroutines run. A schedule that missed ticks for long
#: takes 2 ms or more, so fewer of its ticks run at once, too.
SCHEDULES_A_TURN, TICKS_A_TURN = 8, 20

log = get_logger(__name__)


class Scheduler:
    """The scheduler loop; any number may run at once on one Redis."""

    def __init__(self, redis: Redis, clock: Clock | None = None, pace: float = MAX_PAUSE) -> None:
        self._redis = redis
        self._clock = clock or SystemClock()
        self._pace = pace

    def once(self) -> tuple[int, float | None]:
        """Enqueue what is due; return the number of jobs and the next tick (Unix seconds).

        Raises TasksUnavailableError.
        """
        return run(self._redis, tick(self._clock.now()))

    def run(self, stop: threading.Event) -> None:
        """Enqueue ticks until ``stop`` is set; wait through outages of Redis."""
        while not stop.is_set():
            try:
                _, next_tick = self.once()
            except TasksUnavailableError as error:
                log.warning("schedules cannot be looked at", error=str(error))
                stop.wait(OUTAGE_PAUSE)
                continue
            left = self._pace if next_tick is None else next_tick - self._clock.now().timestamp()
            stop.wait(min(self._pace, max(0.0, left)))


class AsyncScheduler:
    """``Scheduler`` on an event loop, which it never blocks for long.

    ``behind`` returns the seconds by which this scheduler stays behind others; it is called at each
    look. A standby then enqueues only the ticks that the active scheduler missed.
    """

    def __init__(
        self,
        redis: AsyncRedis,
        clock: Clock | None = None,
        pace: float = MAX_PAUSE,
        behind: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._redis = redis
        self._clock = clock or SystemClock()
        self._pace = pace
        self._behind = behind
        #: Jobs enqueued so far, and the delay of the latest (seconds).
        self.fired = 0
        self.late = 0.0
        #: The error of the last poll of Redis; empty after a success.
        self.trouble = ""

    async def once(self) -> tuple[int, float | None]:
        """Enqueue what is due; return the number of jobs and the next tick (Unix seconds).

        Raises TasksUnavailableError.
        """
        fired = 0
        began = self._clock.now()
        schedules, next_tick = await run_async(self._redis, due(began, self._behind()))
        for start in range(0, len(schedules), SCHEDULES_A_TURN):
            part = schedules[start : start + SCHEDULES_A_TURN]
            steps = enqueue_due(part, self._clock.now(), TICKS_A_TURN, began.timestamp())
            enqueued = await run_async(self._redis, steps)
            fired += enqueued
            if enqueued:
                self.late = self._clock.now().timestamp() - float(part[0].tick)
        self.fired += fired
        if not schedules:
            return fired, next_tick
        # More ticks may have become due meanwhile.
        return fired, self._clock.now().timestamp() - self._behind()

    async def run(self) -> None:
        """Enqueue ticks until cancelled; wait through outages of Redis."""
        task = asyncio.current_task()
        # Python 3.11's wait_for, and redis-py while it connects, may swallow a cancellation.
        while task is None or not task.cancelling():
            try:
                _, next_tick = await self.once()
            except TasksUnavailableError as error:
                if not self.trouble:
                    log.warning("schedules cannot be looked at", error=str(error))
                self.trouble = str(error)
                await asyncio.sleep(OUTAGE_PAUSE)
                continue
            if self.trouble:
                log.info("schedules are looked at again")
                self.trouble = ""
            left = self._pace
            if next_tick is not None:
                left = next_tick + self._behind() - self._clock.now().timestamp()
            await asyncio.sleep(min(self._pace, max(MIN_PAUSE, left)))
        raise asyncio.CancelledError
