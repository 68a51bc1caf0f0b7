"""How often mere figures are written: a fixed number a second for all pools together."""

from __future__ import annotations


class Pace:
    """Hands out moments that lie ``gap`` seconds apart."""

    def __init__(self, gap: float) -> None:
        self._gap = gap
        self._free = float("-inf")

    def slot(self, now: float, earliest: float) -> float:
        """The next moment that nobody has, and not before ``earliest`` (monotonic seconds).

        One that waits for its ``earliest`` keeps no other back.
        """
        moment = max(now, self._free)
        self._free = moment + self._gap
        return max(moment, earliest)
