"""A work queue of reconcile keys that runs each key at most once at a time.

``QueueState`` is pure: every method takes the time as an argument, so tests need not wait.
``WorkQueue`` runs it on the event loop.

The rules are those of client-go's work queue: keys are deduplicated, a key added while it runs
runs again, failures back off per key, and one token bucket limits the retries of all keys. Three
rules differ. Urgent keys (user edits, messages from Redis) run before resyncs. A reconcile returns
its requeue delay, and an earlier run cancels it. An ordinary ``add`` shortens the back-off of a
failing key but does not end it, so that frequent events cannot cause a busy loop.
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

#: After this many urgent keys in a row, one ordinary key runs.
URGENT_BURST = 16

#: An ordinary ``add`` shortens the remaining back-off of a failing key to this many seconds.
NUDGE = 1.0


class QueueMetrics(Protocol):
    """Receiver of a queue's metrics; all durations are in seconds."""

    def started(self, waited: float) -> None:
        """Record the start of a run, ``waited`` seconds after its key became due."""
        ...

    def finished(self, ran: float, outcome: str) -> None:
        """Record the end of a run: ``ok``, ``error``, ``conflict``, ``timeout``, ``cancelled``."""
        ...

    def retried(self) -> None:
        """Record that a failed key was scheduled for a retry."""
        ...

    def failed(self, code: str, category: str) -> None:
        """Record that a run ended with an error of this code and category."""
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
    """A token bucket: ``burst`` tokens at once, then ``rate`` tokens a second."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._updated_at: float | None = None

    def reserve(self, now: float) -> float:
        """Reserve one token, if need be a future one; returns the seconds until it is available."""
        if self._updated_at is not None:
            elapsed = max(0.0, now - self._updated_at)
            self._tokens = min(self._burst, self._tokens + elapsed * self._rate)
        self._updated_at = now
        self._tokens -= 1
        return 0.0 if self._tokens >= 0 else -self._tokens / self._rate

    def take(self, now: float) -> bool:
        """Take one token if one is available; returns whether it was."""
        wait = self.reserve(now)
        if wait > 0:
            self._tokens += 1
        return wait == 0.0


def backoff(failures: int, base: float, cap: float, jitter: float) -> float:
    """Return the seconds to wait after ``failures`` failures in a row (at least 1).

    ``jitter`` in [0, 1) shortens the wait by up to a fifth, so that keys that failed together are
    not retried together.
    """
    exponent = min(failures - 1, 60)  # 2.0**60 * base is past any cap already
    return float(min(cap, base * 2.0**exponent)) * (1 - 0.2 * jitter)


class Lane(IntEnum):
    """Priority of a queued key; lower runs first."""

    URGENT = 0
    NORMAL = 1


class _Timer(IntEnum):
    """The reason for a timer on the heap."""

    DELAYED = 0  # requested with add_after
    REQUEUE = 1  # requested by the result of the last run
    RETRY = 2  # the last run failed


@dataclass(slots=True)
class _Key:
    """State of one key; exists only while the key is queued, runs, fails or has a timer."""

    queued: Lane | None = None
    due_at: float = 0.0
    running: bool = False
    dirty: Lane | None = None  # added while running
    failures: int = 0
    delayed_at: float | None = None
    requeue_at: float | None = None
    retry_at: float | None = None


@dataclass(slots=True)
class QueueState:
    """State of a work queue: keys, lanes, timers and back-off.

    All times are seconds on one clock of the caller's choice.
    """

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
        """Number of keys that are due and not running."""
        return self._depth

    @property
    def running(self) -> int:
        """Number of keys that run now."""
        return self._running

    @property
    def delayed(self) -> int:
        """Number of timers: delayed keys, requeues and retries."""
        return self._timers

    def failing(self) -> dict[str, int]:
        """Return the keys whose last run failed, with the number of failures in a row."""
        return {name: key.failures for name, key in self._keys.items() if key.failures}

    def add(self, name: str, now: float, *, urgent: bool = False) -> None:
        """Queue ``name`` to run now; adding it again before it starts has no effect."""
        lane = Lane.URGENT if urgent else Lane.NORMAL
        key = self._keys.get(name)
        if key is None:
            key = self._keys[name] = _Key()
        if key.running:
            key.dirty = lane if key.dirty is None else min(key.dirty, lane)
            return
        if key.queued is None and key.retry_at is not None and lane is Lane.NORMAL:
            # The key failed a moment ago. The retry reads the new state too; only make it sooner.
            if key.retry_at > now + NUDGE:
                self._set(name, key, _Timer.RETRY, now + NUDGE)
            return
        self._enqueue(name, key, lane, now)

    def add_after(self, name: str, due: float) -> None:
        """Queue ``name`` at ``due`` at the latest; the earliest of several times wins."""
        key = self._keys.get(name)
        if key is None:
            key = self._keys[name] = _Key()
        if key.delayed_at is None or due < key.delayed_at:
            self._set(name, key, _Timer.DELAYED, due)

    def forget(self, name: str) -> None:
        """Drop the timers and failure count of a deleted object; a current run continues."""
        key = self._keys.get(name)
        if key is None:
            return
        for timer in _Timer:
            self._unset(key, timer)
        key.failures = 0
        self._tidy(name, key)

    def promote(self, now: float) -> float | None:
        """Move due keys into their lanes; returns the time of the next timer, or None."""
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
        """Take the next key to run; returns it with the seconds it waited, or None.

        The key counts as running until ``done`` or ``failed``.
        """
        urgent, normal = self._lanes
        while urgent or normal:
            if urgent and (not normal or self._urgent_in_row < URGENT_BURST):
                lane, name = Lane.URGENT, urgent.popleft()
            else:
                lane, name = Lane.NORMAL, normal.popleft()
            key = self._keys.get(name)
            if key is None or key.queued is not lane:
                continue  # moved to the other lane
            self._urgent_in_row = self._urgent_in_row + 1 if lane is Lane.URGENT else 0
            key.queued = None
            key.running = True
            self._depth -= 1
            self._running += 1
            # This run reads the current state and returns a requeue delay of its own.
            self._unset(key, _Timer.REQUEUE)
            self._unset(key, _Timer.RETRY)
            return name, max(0.0, now - key.due_at)
        return None

    def done(self, name: str, now: float, requeue_after: float | None = None) -> None:
        """End a successful run; the key runs again after ``requeue_after`` seconds, if given."""
        key = self._keys[name]
        key.failures = 0
        self._end(key)
        if key.dirty is not None:
            self._enqueue(name, key, key.dirty, now)
        if requeue_after is not None:
            self._set(name, key, _Timer.REQUEUE, now + max(0.0, requeue_after))
        self._tidy(name, key)

    def failed(self, name: str, now: float, at_least: float = 0.0) -> tuple[float, int]:
        """End a failed run; returns the seconds until the retry and the failures in a row.

        ``at_least`` is the delay in seconds that the server requested. An urgent ``add`` during the
        run is served at once all the same: the user may just have corrected the object.
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

    # -- internals -------------------------------------------------------------------------------

    def _enqueue(self, name: str, key: _Key, lane: Lane, now: float) -> None:
        key.dirty = None
        if key.queued is None:
            key.due_at = now
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
            and key.delayed_at is None
            and key.requeue_at is None
            and key.retry_at is None
        ):
            self._keys.pop(name, None)

    @staticmethod
    def _get(key: _Key, timer: _Timer) -> float | None:
        if timer is _Timer.DELAYED:
            return key.delayed_at
        return key.requeue_at if timer is _Timer.REQUEUE else key.retry_at

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
        if timer is _Timer.DELAYED:
            key.delayed_at = due
        elif timer is _Timer.REQUEUE:
            key.requeue_at = due
        else:
            key.retry_at = due

    def _compact(self) -> None:
        live = []
        for entry in self._heap:
            key = self._keys.get(entry[2])
            if key is not None and self._get(key, entry[3]) == entry[0]:
                live.append(entry)
        self._heap = live
        heapq.heapify(self._heap)


class WorkQueue:
    """A queue that runs a reconcile for each due key, at most one run of a key at a time.

    ``timeout`` is the hard limit of one run in seconds. ``gate``, if given, returns whether this
    process is responsible for a key (shards, leadership); other keys are dropped, because the
    responsible process has them too. Not thread-safe: use it from the event loop it runs on.
    """

    def __init__(
        self,
        name: str,
        *,
        timeout: float = 30.0,
        state: QueueState | None = None,
        metrics: QueueMetrics | None = None,
        gate: Callable[[str], bool] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.timeout = timeout
        self.state = state or QueueState()
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

    # -- adding keys -----------------------------------------------------------------------------

    def add(self, key: str, *, urgent: bool = False) -> None:
        """Queue ``key`` to run now, once. Never blocks."""
        self.state.add(key, self._clock(), urgent=urgent)
        self._kick()

    def add_after(self, key: str, seconds: float) -> None:
        """Queue ``key`` to run after ``seconds`` at the latest."""
        self.state.add_after(key, self._clock() + seconds)
        self._kick()

    def forget(self, key: str) -> None:
        """Drop the timers and the back-off of a deleted object."""
        self.state.forget(key)

    # -- state -----------------------------------------------------------------------------------

    @property
    def depth(self) -> int:
        """Number of keys that are due and wait for a worker."""
        return self.state.depth

    @property
    def running(self) -> int:
        """Number of keys that run now."""
        return self.state.running

    def oldest_run(self) -> float:
        """Return the seconds that the longest current run has taken so far; 0 when idle."""
        if not self._started:
            return 0.0
        return self._clock() - min(self._started.values())

    # -- running ---------------------------------------------------------------------------------

    async def run(
        self, reconcile: Callable[[str], Awaitable[float | None]], workers: int = 8
    ) -> None:
        """Run due keys until ``shutdown`` or cancellation, at most ``workers`` at a time.

        ``reconcile`` returns the seconds until the next run of its key, or None. Its exceptions are
        logged and the key is retried with back-off; they never end the queue.
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
        """Start no more runs, wait up to ``grace`` seconds for current ones, then cancel them.

        Returns whether all of them finished in time.
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
        """Promote due keys, wake a worker for each, and set the timer of the next one."""
        if not self._active:
            return
        due = self.state.promote(self._clock())
        for _ in range(min(len(self._idle), self.state.depth)):
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
            taken = self.state.take(self._clock())
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
                self.state.done(key, self._clock())
                continue
            self._metrics.started(waited)
            await self._run_one(key, reconcile)
            self._kick()

    async def _run_one(self, key: str, reconcile: Callable[[str], Awaitable[float | None]]) -> None:
        began = self._started[key] = self._clock()
        try:
            with tracing.span("reconcile", queue=self.name, key=key):
                async with asyncio.timeout(self.timeout) as limit:
                    requeue_after = await reconcile(key)
        except asyncio.CancelledError:
            self.state.done(key, self._clock(), requeue_after=0.0)
            self._metrics.finished(self._clock() - began, "cancelled")
            raise
        except Exception as error:  # noqa: BLE001 - an error of one object must not stop the others
            self._end_failed_run(key, error, began, timed_out=limit.expired())
        else:
            now = self._clock()
            self.state.done(key, now, requeue_after)
            self._metrics.finished(now - began, "ok")
        finally:
            del self._started[key]

    def _end_failed_run(self, key: str, error: Exception, began: float, *, timed_out: bool) -> None:
        now = self._clock()
        at_least = getattr(error, "retry_after", None) or 0.0
        wait, failures = self.state.failed(key, now, at_least)
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
            # Another client wrote in between. A retry resolves it, so no warning.
            self._metrics.finished(now - began, "conflict")
            log.debug("reconcile met a conflict", **keys)
        elif isinstance(error, EngineroomError):
            self._metrics.finished(now - began, "error")
            log.warning("reconcile failed", code=error.code, **keys)
        else:
            self._metrics.finished(now - began, "error")
            log.error("reconcile failed unexpectedly", exc_info=error, **keys)
