"""The work queue: what to look at next, one look at a time for each key.

Two halves. ``Schedule`` is pure: it is told the time and answers what is due, so that every rule is
tested without waiting. ``WorkQueue`` runs it on the event loop.

The rules are client-go's (dedup, dirty while running means again, back-off per key with one bucket
for all) with three differences: an urgent lane (user edits and Redis pushes go before resyncs), the
time to look again is the reconcile's return value and is forgotten when something else makes it
look sooner, and an ordinary ``add`` does not break a failing key's back-off into a busy loop.
"""

from __future__ import annotations

import asyncio
import heapq
import random
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol

from engineroom.core import tracing
from engineroom.core.errors import ConflictError, EngineroomError, TimeLimitError
from engineroom.core.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = get_logger(__name__)

#: After so many urgent keys in a row one ordinary key has its turn.
URGENT_BURST = 16

#: What an ordinary ``add`` shortens a failing key's back-off to, in seconds.
NUDGE = 1.0


class QueueMetrics(Protocol):
    """Metrics of a queue; all durations in seconds."""

    def started(self, waited: float) -> None:
        """A run began that long after its key became due."""
        ...

    def finished(self, ran: float, outcome: str) -> None:
        """A run ended: ``ok``, ``error``, ``conflict`` or ``timeout``."""
        ...

    def retried(self) -> None:
        """A failed key was scheduled again."""
        ...

    def failed(self, code: str, category: str) -> None:
        """A run ended with an error of that code."""
        ...


class NullQueueMetrics:
    """Discards metrics."""

    def started(self, waited: float) -> None:
        """Ignore."""

    def finished(self, ran: float, outcome: str) -> None:
        """Ignore."""

    def retried(self) -> None:
        """Ignore."""

    def failed(self, code: str, category: str) -> None:
        """Ignore."""


class TokenBucket:
    """So many at once, then so many a second; for retries of all keys together."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at: float | None = None

    def reserve(self, now: float) -> float:
        """Take one token, on credit if need be; returns the seconds until it is there."""
        if self._at is not None:
            self._tokens = min(self._burst, self._tokens + max(0.0, now - self._at) * self._rate)
        self._at = now
        self._tokens -= 1
        return 0.0 if self._tokens >= 0 else -self._tokens / self._rate

    def take(self, now: float) -> bool:
        """Take one token if there is one."""
        wait = self.reserve(now)
        if wait > 0:
            self._tokens += 1
        return wait == 0.0


def backoff(failures: int, base: float, cap: float, jitter: float) -> float:
    """Seconds to wait after the ``failures``-th failure in a row (from 1).

    ``jitter`` in [0, 1) takes away up to a fifth, so that keys that failed together part.
    """
    exponent = min(failures - 1, 60)  # 2.0**60 * base is past any cap already
    return float(min(cap, base * 2.0**exponent)) * (1 - 0.2 * jitter)


class Lane(IntEnum):
    """The order of keys."""

    URGENT = 0
    NORMAL = 1


class _Timer(IntEnum):
    """The reason for a key on the heap."""

    LATER = 0  # requested with add_after
    AGAIN = 1  # the last run asked to look again
    RETRY = 2  # the last run failed


@dataclass(slots=True)
class _Key:
    """The state of one key; exists only while the key is queued, runs, fails or has a timer."""

    queued: Lane | None = None
    since: float = 0.0  # when it became due
    running: bool = False
    dirty: Lane | None = None  # asked for while running
    failures: int = 0
    later: float | None = None
    again: float | None = None
    retry: float | None = None


@dataclass(slots=True)
class Schedule:
    """The pure half: keys, lanes, timers and back-off; times are seconds on any one clock."""

    base: float = 0.005
    cap: float = 300.0
    bucket: TokenBucket = field(default_factory=lambda: TokenBucket(rate=50, burst=500))
    random: Callable[[], float] = random.random
    _keys: dict[str, _Key] = field(default_factory=dict)
    _lanes: tuple[deque[str], deque[str]] = field(default_factory=lambda: (deque(), deque()))
    _depth: int = 0
    _running: int = 0
    _heap: list[tuple[float, int, str, _Timer]] = field(default_factory=list)
    _sequence: int = 0
    _timers: int = 0
    _urgent_in_row: int = 0

    @property
    def depth(self) -> int:
        """Keys that are due and not running."""
        return self._depth

    @property
    def running(self) -> int:
        """Runs under way."""
        return self._running

    @property
    def delayed(self) -> int:
        """Timers set: looks to come, retries included."""
        return self._timers

    def failing(self) -> dict[str, int]:
        """Keys whose last run failed, with the number of failures in a row."""
        return {name: key.failures for name, key in self._keys.items() if key.failures}

    def add(self, name: str, now: float, *, urgent: bool = False) -> None:
        """Look at ``name`` now: once, however often it is asked for before it starts."""
        lane = Lane.URGENT if urgent else Lane.NORMAL
        key = self._keys.get(name)
        if key is None:
            key = self._keys[name] = _Key()
        if key.running:
            key.dirty = lane if key.dirty is None else min(key.dirty, lane)
            return
        if key.queued is None and key.retry is not None and lane is Lane.NORMAL:
            # It failed a moment ago. The retry will see whatever this is about; only sooner.
            if key.retry > now + NUDGE:
                self._set(name, key, _Timer.RETRY, now + NUDGE)
            return
        self._enqueue(name, key, lane, now)

    def add_after(self, name: str, due: float) -> None:
        """Look at ``name`` at ``due`` at the latest; the earliest of several wins."""
        key = self._keys.get(name)
        if key is None:
            key = self._keys[name] = _Key()
        if key.later is None or due < key.later:
            self._set(name, key, _Timer.LATER, due)

    def forget(self, name: str) -> None:
        """The object is gone: no more timers, no memory of failures. A run under way goes on."""
        key = self._keys.get(name)
        if key is None:
            return
        for timer in _Timer:
            self._unset(key, timer)
        key.failures = 0
        self._tidy(name, key)

    def promote(self, now: float) -> float | None:
        """Move what is due into its lane; returns when the next timer is due, if any."""
        while self._heap:
            due, _, name, timer = self._heap[0]
            key = self._keys.get(name)
            if key is None or self._get(key, timer) != due:
                heapq.heappop(self._heap)  # replaced or cancelled meanwhile
                continue
            if due > now:
                return due
            heapq.heappop(self._heap)
            self._unset(key, timer)
            if key.running:
                key.dirty = Lane.NORMAL if key.dirty is None else key.dirty
            else:
                self._enqueue(name, key, Lane.NORMAL, due)
        return None

    def take(self, now: float) -> tuple[str, float] | None:
        """The next key to run and the seconds it waited, or None. It runs until ``done``."""
        urgent, normal = self._lanes
        while urgent or normal:
            if urgent and (not normal or self._urgent_in_row < URGENT_BURST):
                lane, name = Lane.URGENT, urgent.popleft()
            else:
                lane, name = Lane.NORMAL, normal.popleft()
            key = self._keys.get(name)
            if key is None or key.queued is not lane:
                continue  # it was moved to the other lane
            self._urgent_in_row = self._urgent_in_row + 1 if lane is Lane.URGENT else 0
            key.queued = None
            key.running = True
            self._depth -= 1
            self._running += 1
            # This run sees everything, and says itself when to look again.
            self._unset(key, _Timer.AGAIN)
            self._unset(key, _Timer.RETRY)
            return name, max(0.0, now - key.since)
        return None

    def done(self, name: str, now: float, again: float | None = None) -> None:
        """The run went well; ``again`` is the seconds until to look again."""
        key = self._keys[name]
        key.failures = 0
        self._end(key)
        if key.dirty is not None:
            self._enqueue(name, key, key.dirty, now)
        if again is not None:
            self._set(name, key, _Timer.AGAIN, now + max(0.0, again))
        self._tidy(name, key)

    def failed(self, name: str, now: float, at_least: float = 0.0) -> tuple[float, int]:
        """The run failed; returns the seconds until the retry and the failures in a row.

        ``at_least`` is what the other side asked us to wait. An urgent request that came in during
        the run is served at once all the same: the user may just have repaired it.
        """
        key = self._keys[name]
        key.failures += 1
        wait = backoff(key.failures, self.base, self.cap, self.random())
        wait = max(wait, self.bucket.reserve(now), at_least)
        self._end(key)
        if key.dirty is Lane.URGENT:
            wait = 0.0
            self._enqueue(name, key, Lane.URGENT, now)
        else:
            if key.dirty is not None:
                wait = min(wait, max(NUDGE, at_least))
                key.dirty = None
            self._set(name, key, _Timer.RETRY, now + wait)
        return wait, key.failures

    # -- inside ----------------------------------------------------------------------------------

    def _enqueue(self, name: str, key: _Key, lane: Lane, now: float) -> None:
        key.dirty = None
        if key.queued is None:
            key.since = now
            self._depth += 1
        elif key.queued <= lane:
            return
        key.queued = lane
        self._lanes[lane].append(name)

    def _end(self, key: _Key) -> None:
        key.running = False
        self._running -= 1

    def _tidy(self, name: str, key: _Key) -> None:
        if (
            key.queued is None
            and not key.running
            and not key.failures
            and key.later is None
            and key.again is None
            and key.retry is None
        ):
            self._keys.pop(name, None)

    @staticmethod
    def _get(key: _Key, timer: _Timer) -> float | None:
        if timer is _Timer.LATER:
            return key.later
        return key.again if timer is _Timer.AGAIN else key.retry

    def _set(self, name: str, key: _Key, timer: _Timer, due: float) -> None:
        if self._get(key, timer) is None:
            self._timers += 1
        self._store(key, timer, due)
        self._sequence += 1
        heapq.heappush(self._heap, (due, self._sequence, name, timer))
        if len(self._heap) > 2 * self._timers + 1024:
            self._compact()

    def _unset(self, key: _Key, timer: _Timer) -> None:
        if self._get(key, timer) is not None:
            self._timers -= 1
            self._store(key, timer, None)

    @staticmethod
    def _store(key: _Key, timer: _Timer, due: float | None) -> None:
        if timer is _Timer.LATER:
            key.later = due
        elif timer is _Timer.AGAIN:
            key.again = due
        else:
            key.retry = due

    def _compact(self) -> None:
        live = []
        for entry in self._heap:
            key = self._keys.get(entry[2])
            if key is not None and self._get(key, entry[3]) == entry[0]:
                live.append(entry)
        self._heap = live
        heapq.heapify(self._heap)


class WorkQueue:
    """Runs a reconcile for each key that is due, at most one at a time a key.

    ``timeout`` is the hard limit of one run in seconds. ``gate``, if given, is asked before each
    run whether this process may (shards, leadership); a key it refuses is dropped, because the
    process that may looks at it anyway. Not thread-safe: use it from the event loop it runs on.
    """

    def __init__(
        self,
        name: str,
        *,
        timeout: float = 30.0,
        schedule: Schedule | None = None,
        metrics: QueueMetrics | None = None,
        gate: Callable[[str], bool] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.timeout = timeout
        self.schedule = schedule or Schedule()
        self._metrics = metrics or NullQueueMetrics()
        self._gate = gate
        self._clock = clock
        self._idle: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = float("inf")
        self._started: dict[str, float] = {}
        self._runners: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._active = False

    # -- asking for a look -----------------------------------------------------------------------

    def add(self, key: str, *, urgent: bool = False) -> None:
        """Look at ``key`` now. Cheap, never blocks, deduplicates."""
        self.schedule.add(key, self._clock(), urgent=urgent)
        self._kick()

    def add_after(self, key: str, seconds: float) -> None:
        """Look at ``key`` in ``seconds`` at the latest."""
        self.schedule.add_after(key, self._clock() + seconds)
        self._kick()

    def forget(self, key: str) -> None:
        """The object is gone; drop its timers and its back-off."""
        self.schedule.forget(key)

    # -- what it is doing ------------------------------------------------------------------------

    @property
    def depth(self) -> int:
        """Keys that are due and wait for a runner."""
        return self.schedule.depth

    @property
    def running(self) -> int:
        """Runs under way."""
        return self.schedule.running

    def oldest_run(self) -> float:
        """Seconds that the longest run under way has taken so far; 0 when idle."""
        if not self._started:
            return 0.0
        return self._clock() - min(self._started.values())

    # -- running ---------------------------------------------------------------------------------

    async def run(
        self, reconcile: Callable[[str], Awaitable[float | None]], workers: int = 8
    ) -> None:
        """Work until ``shutdown`` or cancellation; ``workers`` keys at most at a time.

        ``reconcile`` returns the seconds until to look again, or None. What it raises is logged and
        retried with back-off; it never ends the queue.
        """
        self._stopping = False
        self._active = True
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(workers):
                    runner = group.create_task(
                        self._work(reconcile), name=f"queue {self.name} {number}"
                    )
                    self._runners.add(runner)
                    runner.add_done_callback(self._runners.discard)
                self._kick()
        finally:
            self._active = False
            if self._timer is not None:
                self._timer.cancel()
                self._timer, self._timer_due = None, float("inf")

    async def shutdown(self, grace: float) -> bool:
        """Start nothing more, let the runs under way finish for ``grace`` seconds, then cancel.

        Returns whether all of them finished by themselves.
        """
        self._stopping = True
        while self._idle:
            self._wake()
        runners = set(self._runners)
        if not runners:
            return True
        _, late = await asyncio.wait(runners, timeout=grace)
        for runner in late:
            runner.cancel()
        if late:
            log.warning("runs cancelled at the end", queue=self.name, keys=sorted(self._started))
            await asyncio.wait(late)
        return not late

    def _kick(self) -> None:
        """Promote what is due, wake as many runners as there is work, set the one timer."""
        if not self._active:
            return
        due = self.schedule.promote(self._clock())
        for _ in range(min(len(self._idle), self.schedule.depth)):
            self._wake()
        if due is None or due >= self._timer_due:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due = due
        self._timer = asyncio.get_running_loop().call_later(
            max(0.0, due - self._clock()), self._on_timer
        )

    def _on_timer(self) -> None:
        self._timer, self._timer_due = None, float("inf")
        self._kick()

    def _wake(self) -> None:
        waiter = self._idle.popleft()
        if not waiter.done():
            waiter.set_result(None)

    async def _work(self, reconcile: Callable[[str], Awaitable[float | None]]) -> None:
        loop = asyncio.get_running_loop()
        while not self._stopping:
            taken = self.schedule.take(self._clock())
            if taken is None:
                waiter = loop.create_future()
                self._idle.append(waiter)
                try:
                    await waiter
                finally:
                    with suppress(ValueError):
                        self._idle.remove(waiter)
                continue
            key, waited = taken
            if self._gate is not None and not self._gate(key):
                self.schedule.done(key, self._clock())
                continue
            self._metrics.started(waited)
            await self._run_one(key, reconcile)
            self._kick()

    async def _run_one(self, key: str, reconcile: Callable[[str], Awaitable[float | None]]) -> None:
        began = self._started[key] = self._clock()
        try:
            with tracing.span("reconcile", queue=self.name, key=key):
                async with asyncio.timeout(self.timeout) as limit:
                    again = await reconcile(key)
        except asyncio.CancelledError:
            self.schedule.done(key, self._clock(), again=0.0)
            self._metrics.finished(self._clock() - began, "cancelled")
            raise
        except Exception as error:  # noqa: BLE001 - whatever one object does, the others go on
            self._failed(key, error, began, timed_out=limit.expired())
        else:
            now = self._clock()
            self.schedule.done(key, now, again)
            self._metrics.finished(now - began, "ok")
        finally:
            del self._started[key]

    def _failed(self, key: str, error: Exception, began: float, *, timed_out: bool) -> None:
        now = self._clock()
        at_least = getattr(error, "retry_after", None) or 0.0
        wait, failures = self.schedule.failed(key, now, at_least)
        self._metrics.retried()
        kind = type(error) if isinstance(error, EngineroomError) else EngineroomError
        if timed_out:
            kind = TimeLimitError
        self._metrics.failed(kind.code, kind.category.value)
        keys = {
            "queue": self.name,
            "key": key,
            "failures": failures,
            "retry_in": round(wait, 3),
            "error": str(error) or type(error).__name__,
        }
        if timed_out:
            self._metrics.finished(now - began, "timeout")
            log.error("reconcile timed out", timeout=self.timeout, **keys)
        elif isinstance(error, ConflictError):
            # Somebody else wrote in between; looking again is the answer, not a person.
            self._metrics.finished(now - began, "conflict")
            log.debug("reconcile met a conflict", **keys)
        elif isinstance(error, EngineroomError):
            self._metrics.finished(now - began, "error")
            log.warning("reconcile failed", code=error.code, **keys)
        else:
            self._metrics.finished(now - began, "error")
            log.error("reconcile failed unexpectedly", exc_info=error, **keys)
