"""A limit on how often status figures are written, shared by all objects of a process."""

from __future__ import annotations

#: Seconds between two writes of mere figures: ten a second for all kinds together.
FIGURES_GAP = 0.1


class StatusPacer:
    """Hands out moments for writes that lie at least ``gap`` seconds apart."""

    def __init__(self, gap: float = FIGURES_GAP) -> None:
        self._gap = gap
        self._next_free = float("-inf")

    def slot(self, now: float, earliest: float) -> float:
        """Reserve the next free moment, not before ``earliest`` (monotonic seconds).

        A write that waits for its ``earliest`` does not delay the writes of other objects.
        """
        moment = max(now, self._next_free)
        self._next_free = moment + self._gap
        return max(moment, earliest)
