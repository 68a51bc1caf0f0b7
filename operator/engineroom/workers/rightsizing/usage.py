"""What a pool's workers use, over time, in bounded memory: pure state, the time is an argument.

The method is the Vertical Pod Autoscaler's: samples fall into buckets that grow by 5% each, and
lose half of their weight every 24 hours (kubernetes/autoscaler, ``pkg/recommender/util``:
``histogram_options.go``, ``decaying_histogram.go``). Its memory of peaks is eight days long, and a
process killed for memory counts as if it had wanted a fifth or 100 MB more than it had
(``pkg/recommender/model``: ``aggregations_config.go``, ``container.go``).
"""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field
from typing import Final

DAY: Final = 86_400.0
#: Samples lose half of their weight in so long (seconds).
HALF_LIFE: Final = DAY
#: Peaks are forgotten after so long (seconds).
PEAK_WINDOW: Final = 8 * DAY
#: Each bucket reaches so much further than the one before: a percentile is at most 5% too high.
RATIO: Final = 1.05
#: Buckets at most: 0.01 cores to 2,600, 8 MiB to 2 TiB.
BUCKETS: Final = 257
#: What a process killed for memory would have liked: so many times its limit, or so much more.
KILL_RATIO: Final = 1.2
KILL_BYTES: Final = 100e6

_LOG_RATIO = math.log(RATIO)
#: Weights are scaled down when the newest would count 2 to this power of the oldest.
_REBASE = 16.0
#: A share of one sample's weight below which a bucket is empty.
_NOTHING = 2.0**-20


@dataclass(frozen=True, slots=True)
class Scale:
    """Where a resource's buckets begin: the upper bound of the first."""

    first: float

    def bucket(self, value: float) -> int:
        """The bucket whose upper bound is the smallest that is not below ``value``."""
        if value <= self.first:
            return 0
        # A bound's own logarithm must not push it into the next bucket.
        place = math.ceil(math.log(value / self.first) / _LOG_RATIO - 1e-9)
        return min(place, BUCKETS - 1)

    def bound(self, bucket: int) -> float:
        """The upper bound of a bucket."""
        return self.first * RATIO**bucket


CPU: Final = Scale(0.01)
MEMORY: Final = Scale(8.0 * 2**20)


class Histogram:
    """Weights by bucket, of which old ones count less and less; 12 bytes to 1 KiB of numbers."""

    __slots__ = ("_low", "_reference", "_scale", "_weights")

    def __init__(self, scale: Scale) -> None:
        self._scale = scale
        self._weights = array("f")
        self._low = 0
        self._reference = 0.0

    def add(self, value: float, at: float) -> None:
        """Count one sample of ``value`` at ``at`` (Unix seconds; a step back counts as now)."""
        if not self._weights:
            self._reference = at
        if (at - self._reference) / HALF_LIFE > _REBASE:
            self._rebase(at)
        place = self._place(self._scale.bucket(value))
        self._weights[place] += 2.0 ** (max(0.0, at - self._reference) / HALF_LIFE)

    def percentile(self, share: float) -> float | None:
        """The bound that ``share`` of all weight lies below; None while there is none.

        It does not depend on the time: all weights lose at the same pace.
        """
        total = math.fsum(self._weights)
        if not total:
            return None
        below = 0.0
        for place, weight in enumerate(self._weights):
            below += weight
            if weight and below >= share * total * (1 - 1e-9):
                return self._scale.bound(self._low + place)
        return self._scale.bound(self._low + len(self._weights) - 1)

    def __len__(self) -> int:
        """Buckets that are kept."""
        return len(self._weights)

    def _place(self, bucket: int) -> int:
        """The index of a bucket; the window of those kept grows to it."""
        if not self._weights:
            self._low = bucket
        if bucket < self._low:
            self._weights = array("f", bytes(4 * (self._low - bucket))) + self._weights
            self._low = bucket
        missing = bucket - self._low + 1 - len(self._weights)
        if missing > 0:
            self._weights.frombytes(bytes(4 * missing))
        return bucket - self._low

    def _rebase(self, at: float) -> None:
        """Scale all weights to ``at``; buckets that hold nothing any more go."""
        factor = 2.0 ** max(-1000.0, (self._reference - at) / HALF_LIFE)
        scaled = [weight * factor for weight in self._weights]
        kept = [place for place, weight in enumerate(scaled) if weight > _NOTHING]
        self._reference = at
        if not kept:
            self._weights = array("f")
            return
        self._weights = array("f", scaled[kept[0] : kept[-1] + 1])
        self._low += kept[0]


class Peak:
    """The largest value of the last eight days, to the bound of its bucket."""

    __slots__ = ("_marks", "_scale")

    def __init__(self, scale: Scale) -> None:
        self._scale = scale
        #: (time, bucket), buckets falling: the front is the largest that is not forgotten.
        #: A list: there are few of them, and an empty deque takes as much room as sixty.
        self._marks: list[tuple[float, int]] = []

    def add(self, value: float, at: float) -> None:
        """Take note of a value; smaller ones that came before it can never count again."""
        bucket = self._scale.bucket(value)
        while self._marks and self._marks[-1][1] <= bucket:
            self._marks.pop()
        self._marks.append((at, bucket))
        self._forget(at)

    def value(self, at: float) -> float | None:
        """The peak; None when nothing was seen for so long."""
        self._forget(at)
        return self._scale.bound(self._marks[0][1]) if self._marks else None

    def __len__(self) -> int:
        """Values that are kept: as many as there are buckets, at most."""
        return len(self._marks)

    def _forget(self, at: float) -> None:
        while self._marks and self._marks[0][0] < at - PEAK_WINDOW:
            del self._marks[0]


@dataclass(frozen=True, slots=True)
class Sample:
    """What one pod's worker container used: cores, bytes. None: not known, or not to count."""

    cpu: float | None = None
    memory: float | None = None
    #: The most memory since the sample before, where somebody saw more than ``memory``.
    peak: float | None = None


@dataclass(slots=True)
class Profile:
    """One pool's use."""

    cpu: Histogram = field(default_factory=lambda: Histogram(CPU))
    memory: Histogram = field(default_factory=lambda: Histogram(MEMORY))
    cpu_peak: Peak = field(default_factory=lambda: Peak(CPU))
    memory_peak: Peak = field(default_factory=lambda: Peak(MEMORY))
    #: Samples counted, of each kind.
    cpu_samples: int = 0
    memory_samples: int = 0
    #: Seconds during which there was something to see.
    watched: float = 0.0
    #: Rises with whatever is learned.
    version: int = 0

    def fold(self, samples: list[Sample], at: float, elapsed: float) -> None:
        """Take in one round of samples, ``elapsed`` seconds after the round before."""
        told = False
        for sample in samples:
            if sample.cpu is not None:
                self.cpu.add(sample.cpu, at)
                self.cpu_peak.add(sample.cpu, at)
                self.cpu_samples += 1
                told = True
            if sample.memory is not None:
                self.memory.add(sample.memory, at)
                self.memory_samples += 1
                told = True
            most = max(sample.memory or 0.0, sample.peak or 0.0)
            if most:
                self.memory_peak.add(most, at)
                told = True
        if told:
            self.watched += elapsed
            self.version += 1

    def killed(self, limit: float, at: float, headroom: float) -> None:
        """A process was killed for memory at ``limit`` bytes, so it wanted more.

        Counts as the peak that leads, with ``headroom``, to what the VPA would ask for.
        """
        self.memory_peak.add(max(limit * KILL_RATIO, limit + KILL_BYTES) / headroom, at)
        self.version += 1

    def inherit(self, peak: float, at: float) -> None:
        """What a predecessor took for the peak counts for one more day; to be told first."""
        self.memory_peak.add(peak, at - PEAK_WINDOW + DAY)
