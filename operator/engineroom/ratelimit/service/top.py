"""The most frequent keys, recorded on demand with bounded memory.

Space-Saving (Metwally, Agrawal and El Abbadi, "Efficient computation of frequent and top-k elements
in data streams", 2005): of a stream of N keys with m counters, every key that occurs more than
N / m times has a counter, and a count is too high by at most its ``error``.

Nothing is recorded without a request for it. Values that may be secret or personal (headers,
cookies, parameters, claims) are represented by digests.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

from engineroom.ratelimit.limits import sources

if TYPE_CHECKING:
    from engineroom.ratelimit.limits.model import Policy
    from engineroom.ratelimit.limits.request import RequestView

#: Counters of one recording, and most recordings at the same time.
CAPACITY, MAX_RECORDINGS = 1000, 4
#: Sources whose values are shown; those of others become digests.
_PLAIN = (
    sources.ClientIP, sources.Method, sources.Path, sources.Constant, sources.Tenant, sources.Route,
)  # fmt: skip
_MAX_SHOWN = 120


class KeyCount(NamedTuple):
    """A key, the upper bound of its count, and the largest error of that."""

    key: str
    times: int
    error: int


class SpaceSaving:
    """The most frequent keys of a stream.

    Keys of equal count are grouped, so that a least frequent one is available at once.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._count: dict[str, int] = {}
        self._error: dict[str, int] = {}
        # Insertion-ordered sets of keys by their count.
        self._by_count: dict[int, dict[str, None]] = {}
        self._least = 0
        #: The number of recorded keys.
        self.total = 0

    def add(self, key: str) -> None:
        """Count one occurrence of ``key``."""
        self.total += 1
        count = self._count.get(key)
        if count is None:
            if len(self._count) < self._capacity:
                self._put(key, 1, 0)
                self._least = 1
                return
            least = self._least
            evicted = next(iter(self._by_count[least]))
            self._take(evicted, least)
            del self._count[evicted], self._error[evicted]
            self._put(key, least + 1, least)
        else:
            error = self._error[key]
            self._take(key, count)
            self._put(key, count + 1, error)
        while self._least not in self._by_count:
            self._least += 1

    def top(self, many: int) -> list[KeyCount]:
        """Return the most frequent keys, most frequent first."""
        ordered = sorted(self._count.items(), key=lambda item: (-item[1], item[0]))
        return [KeyCount(key, count, self._error[key]) for key, count in ordered[:many]]

    def _put(self, key: str, count: int, error: int) -> None:
        self._count[key], self._error[key] = count, error
        self._by_count.setdefault(count, {})[key] = None

    def _take(self, key: str, count: int) -> None:
        same = self._by_count[count]
        del same[key]
        if not same:
            del self._by_count[count]


class Recordings:
    """The running recordings."""

    def __init__(self) -> None:
        #: Empty without a request for top keys.
        self.running: list[SpaceSaving] = []

    def start(self) -> SpaceSaving | None:
        """Start a recording; return None if too many run."""
        if len(self.running) >= MAX_RECORDINGS:
            return None
        recording = SpaceSaving()
        self.running.append(recording)
        return recording

    def stop(self, recording: SpaceSaving) -> None:
        """End a recording."""
        self.running.remove(recording)

    def record(self, policy: Policy, view: RequestView) -> None:
        """Record the keys of a request."""
        for limit in policy.limits:
            parts = [redacted(source, source(view)) for source in limit.key]
            key = f"{policy.name}/{limit.name} {' '.join(parts)}".rstrip()
            for recording in self.running:
                recording.add(key)


def redacted(source: object, value: str | None) -> str:
    """Return a part of a key for display: a digest of a possible secret, ``-`` if it is missing."""
    if value is None:
        return "-"
    if isinstance(source, _PLAIN):
        return value[:_MAX_SHOWN]
    return "#" + blake2b(value.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
