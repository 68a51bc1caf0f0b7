"""The resource use of a pool's workers over time, in bounded memory. The time is an argument.

The method is the Vertical Pod Autoscaler's: samples fall into buckets that grow by 5% each, and
lose half of their weight every 24 hours (kubernetes/autoscaler, ``pkg/recommender/util``:
``histogram_options.go``, ``decaying_histogram.go``). It remembers peaks for eight days, and counts
a process killed for memory as if it had needed a fifth or 100 MB more than its limit
(``pkg/recommender/model``: ``aggregations_config.go``, ``container.go``).
"""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field
from typing import Final

DAY: Final = 86_400.0
#: Samples lose half of their weight in this time (seconds).
HALF_LIFE: Final = DAY
#: Peaks are forgotten after this time (seconds).
PEAK_WINDOW: Final = 8 * DAY
#: Ratio of the bounds of neighbouring buckets: a percentile is at most 5% too high.
RATIO: Final = 1.05
#: Buckets at most: 0.01 cores to 2,600, 8 MiB to 2 TiB.
BUCKETS: Final = 257
#: Need of a process killed for memory: a multiple of its limit, or so many bytes more.
KILL_RATIO: Final = 1.2
KILL_BYTES: Final = 100e6

_LOG_RATIO = math.log(RATIO)
#: Weights are scaled down when the newest would count 2 to this power of the oldest.
_REBASE = 16.0
#: A share of one sample's weight below which a bucket is empty.
_NEGLIGIBLE = 2.0**-20


@dataclass(frozen=True, slots=True)
class BucketScale:
    """The buckets of a resource, by the upper bound of the first."""

    first: float

    def bucket(self, value: float) -> int:
        """Return the bucket with the smallest upper bound that is not below ``value``."""
        if value <= self.first:
            return 0
        # Rounding of a bound's logarithm must not move it into the next bucket.
        place = math.ceil(math.log(value / self.first) / _LOG_RATIO - 1e-9)
        return min(place, BUCKETS - 1)

    def bound(self, bucket: int) -> float:
        """Return the upper bound of a bucket."""
        return self.first * RATIO**bucket


CPU: Final = BucketScale(0.01)
MEMORY: Final = BucketScale(8.0 * 2**20)


class Histogram:
    """Weights by bucket that decay with time; 12 bytes to 1 KiB of numbers."""

    __slots__ = ("_low", "_reference", "_scale", "_weights")

    def __init__(self, scale: BucketScale) -> None:
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
        """Return the bound below which ``share`` of all weight lies; None without samples.

        It does not depend on the time, because all weights decay at the same pace.
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
        """Return the number of buckets held."""
        return len(self._weights)

    def _place(self, bucket: int) -> int:
        """Return the index of a bucket, after extending the array to it."""
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
        """Scale all weights to ``at`` and drop empty buckets."""
        factor = 2.0 ** max(-1000.0, (self._reference - at) / HALF_LIFE)
        scaled = [weight * factor for weight in self._weights]
        filled = [place for place, weight in enumerate(scaled) if weight > _NEGLIGIBLE]
        self._reference = at
        if not filled:
            self._weights = array("f")
            return
        self._weights = array("f", scaled[filled[0] : filled[-1] + 1])
        self._low += filled[0]


class Peak:
    """The largest value of the last eight days, to the bound of its bucket."""

    __slots__ = ("_marks", "_scale")

    def __init__(self, scale: BucketScale) -> None:
        self._scale = scale
        #: (time, bucket), buckets falling: the first is the largest that is not forgotten.
        #: A list, because an empty deque takes as much memory as sixty entries.
        self._marks: list[tuple[float, int]] = []

    def add(self, value: float, at: float) -> None:
        """Remember a value; smaller ones before it can never count again."""
        bucket = self._scale.bucket(value)
        while self._marks and self._marks[-1][1] <= bucket:
            self._marks.pop()
        self._marks.append((at, bucket))
        self._forget(at)

    def value(self, at: float) -> float | None:
        """Return the peak; None if there was no value in that time."""
        self._forget(at)
        return self._scale.bound(self._marks[0][1]) if self._marks else None

    def __len__(self) -> int:
        """Return the number of values held: at most the number of buckets."""
        return len(self._marks)

    def _forget(self, at: float) -> None:
        while self._marks and self._marks[0][0] < at - PEAK_WINDOW:
            del self._marks[0]


@dataclass(frozen=True, slots=True)
class UsageSample:
    """The use of one pod's worker container in cores and bytes. None: unknown, or not counted."""

    cpu: float | None = None
    memory: float | None = None
    #: The most memory since the sample before, if more than ``memory`` was seen.
    peak: float | None = None


@dataclass(slots=True)
class UsageProfile:
    """The use of one pool's workers."""

    cpu: Histogram = field(default_factory=lambda: Histogram(CPU))
    memory: Histogram = field(default_factory=lambda: Histogram(MEMORY))
    cpu_peak: Peak = field(default_factory=lambda: Peak(CPU))
    memory_peak: Peak = field(default_factory=lambda: Peak(MEMORY))
    #: Samples counted, of each kind.
    cpu_samples: int = 0
    memory_samples: int = 0
    #: Seconds during which there were samples.
    watched: float = 0.0
    #: Rises with every change.
    version: int = 0

    def fold(self, samples: list[UsageSample], at: float, elapsed: float) -> None:
        """Count one round of samples, ``elapsed`` seconds after the round before."""
        counted = False
        for sample in samples:
            if sample.cpu is not None:
                self.cpu.add(sample.cpu, at)
                self.cpu_peak.add(sample.cpu, at)
                self.cpu_samples += 1
                counted = True
            if sample.memory is not None:
                self.memory.add(sample.memory, at)
                self.memory_samples += 1
                counted = True
            most = max(sample.memory or 0.0, sample.peak or 0.0)
            if most:
                self.memory_peak.add(most, at)
                counted = True
        if counted:
            self.watched += elapsed
            self.version += 1

    def killed(self, limit: float, at: float, headroom: float) -> None:
        """Count a process that was killed for memory at ``limit`` bytes.

        It counts as the peak that, with ``headroom``, gives what the VPA would request.
        """
        self.memory_peak.add(max(limit * KILL_RATIO, limit + KILL_BYTES) / headroom, at)
        self.version += 1

    def inherit(self, peak: float, at: float) -> None:
        """Count the peak of an earlier process for one more day; call it before any ``fold``."""
        self.memory_peak.add(peak, at - PEAK_WINDOW + DAY)
