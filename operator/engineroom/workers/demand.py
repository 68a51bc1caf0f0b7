"""Demand over time: rates from totals, and the history that scaling down needs.

Pure state: each observation is added with its time; nothing here reads a clock.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engineroom.queue.observe import PoolFacts, QueueFacts

#: Half-life of the averages (seconds): long enough to be calm, short enough to follow.
HALF_LIFE = 30.0


def most_by_limit(facts: QueueFacts, duration: float | None) -> tuple[int, str] | None:
    """Return the most workers that the queue's own limit keeps busy, and that limit in words.

    A rate keeps rate x duration workers busy (Little's law); while the duration is unknown, as many
    as may begin at once. None without a limit.
    """
    limits: list[tuple[int, str]] = []
    if facts.concurrency is not None:
        limits.append((facts.concurrency, f"{facts.concurrency} at once"))
    if facts.rate is not None and facts.burst is not None:
        busy = facts.burst if duration is None else math.ceil(facts.rate * duration)
        limits.append((max(1, busy), f"{facts.rate:.3g} a second"))
    return min(limits) if limits else None


@dataclass(slots=True)
class QueueRates:
    """Moving figures of one queue: mean duration in seconds, arrivals and completions a second."""

    duration: float | None = None
    arrivals: float = 0.0
    completions: float = 0.0
    _finished: int = -1
    _busy_ms: int = 0
    _present: int = 0
    _at: float = 0.0

    def fold(self, facts: QueueFacts, at: float) -> None:
        """Add one observation. Totals that decreased (Redis was flushed) start over."""
        finished = facts.finished_total + facts.failed_total
        if self._finished < 0 or finished < self._finished or facts.busy_ms_total < self._busy_ms:
            # The first observation: the totals already give the mean duration of jobs.
            if finished:
                self.duration = facts.busy_ms_total / 1000.0 / finished
            self._remember(facts, finished, at)
            return
        elapsed = at - self._at
        if elapsed < 0.25:
            return
        done = finished - self._finished
        decay = math.exp2(-elapsed / HALF_LIFE)
        if done:
            mean = (facts.busy_ms_total - self._busy_ms) / 1000.0 / done
            # A handful of jobs must not outweigh thousands.
            weight = max(1.0 - decay, min(1.0, done / 100.0)) if self.duration is not None else 1.0
            before = self.duration if self.duration is not None else mean
            self.duration = before + (mean - before) * min(1.0, weight)
        arrived = max(0, done + facts.demand - self._present)
        self.arrivals += (arrived / elapsed - self.arrivals) * (1.0 - decay)
        self.completions += (done / elapsed - self.completions) * (1.0 - decay)
        self._remember(facts, finished, at)

    def _remember(self, facts: QueueFacts, finished: int, at: float) -> None:
        self._finished, self._busy_ms = finished, facts.busy_ms_total
        self._present, self._at = facts.demand, at


@dataclass(slots=True)
class DemandHistory:
    """The history that the sizing of one pool needs. Times are Unix seconds.

    Safe to lose: without a history the present size counts as wanted, so a restart never shrinks a
    pool.
    """

    rates: dict[str, QueueRates] = field(default_factory=dict)
    #: (time, wanted size), sizes falling: the front is the largest of the window.
    wanted: deque[tuple[float, int]] = field(default_factory=deque)
    last_busy: float | None = None
    removals: deque[float] = field(default_factory=deque)

    def fold(self, facts: PoolFacts, busy: bool) -> None:
        """Add one observation; ``busy``: a job waits, runs or is held by a worker."""
        for queue in facts.queues:
            rates = self.rates.get(queue.name)
            if rates is None:
                rates = self.rates[queue.name] = QueueRates()
            rates.fold(queue, facts.at)
        if busy or self.last_busy is None or self.last_busy > facts.at:
            self.last_busy = facts.at

    def stabilized(self, wanted: int, current: int, window: float, at: float) -> int:
        """Return the largest size wanted in the ``window`` seconds up to ``at``, with this one."""
        if not self.wanted:
            self.wanted.append((at, max(current, wanted)))
        while self.wanted and self.wanted[-1][1] <= wanted:
            self.wanted.pop()
        self.wanted.append((at, wanted))
        while len(self.wanted) > 1 and (
            self.wanted[0][0] < at - window or self.wanted[0][0] > at + 1.0
        ):
            self.wanted.popleft()
        return self.wanted[0][1]

    def removals_left(self, per_minute: int | None, at: float) -> int | None:
        """Return how many more pods may leave in this minute; None: any number."""
        if per_minute is None:
            return None
        while self.removals and self.removals[0] < at - 60.0:
            self.removals.popleft()
        return max(0, per_minute - len(self.removals))

    def next_change(self, window: float, at: float) -> float | None:
        """Return the seconds until the window loses its largest size; None if it has just one."""
        if len(self.wanted) < 2:
            return None
        return max(0.0, self.wanted[0][0] + window - at)
