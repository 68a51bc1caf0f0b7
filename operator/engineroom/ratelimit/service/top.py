"""Which keys are asked for most, found on demand and with bounded memory.

Space-Saving (Metwally, Agrawal and El Abbadi, "Efficient computation of frequent and top-k elements
in data streams", 2005): of a stream of N with m counters every key that came more than N / m times
is among them, and a count is too high by at most its ``error``.

Nothing is recorded until somebody asks. What may be a secret or a person (headers, cookies,
parameters, claims) is shown as a digest.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

from engineroom.ratelimit.limits import sources

if TYPE_CHECKING:
    from engineroom.ratelimit.limits.model import Policy
    from engineroom.ratelimit.limits.request import RequestView

#: Counters of one recording, and recordings at once.
CAPACITY, MAX_RECORDINGS = 1000, 4
#: What is shown as it is; anything else as a digest.
_PLAIN = (
    sources.ClientIP, sources.Method, sources.Path, sources.Constant, sources.Tenant, sources.Route,
)  # fmt: skip
_SHOWN = 120


class Counted(NamedTuple):
    """A key, how often it came at most, and by how much that may be too high."""

    key: str
    times: int
    error: int


class SpaceSaving:
    """The most frequent keys of a stream.

    Keys of equal count are kept together, so that one of the least is found at once.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._count: dict[str, int] = {}
        self._error: dict[str, int] = {}
        # Insertion-ordered sets of keys by their count.
        self._by_count: dict[int, dict[str, None]] = {}
        self._least = 0
        #: Keys seen, all together.
        self.total = 0

    def add(self, key: str) -> None:
        """One more of ``key``."""
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

    def top(self, many: int) -> list[Counted]:
        """The keys that came most, most first."""
        ordered = sorted(self._count.items(), key=lambda item: (-item[1], item[0]))
        return [Counted(key, count, self._error[key]) for key, count in ordered[:many]]

    def _put(self, key: str, count: int, error: int) -> None:
        self._count[key], self._error[key] = count, error
        self._by_count.setdefault(count, {})[key] = None

    def _take(self, key: str, count: int) -> None:
        same = self._by_count[count]
        del same[key]
        if not same:
            del self._by_count[count]


class Recordings:
    """The recordings that run now."""

    def __init__(self) -> None:
        #: Empty while nobody wants to know.
        self.running: list[SpaceSaving] = []

    def start(self) -> SpaceSaving | None:
        """Begin one; None when too many run."""
        if len(self.running) >= MAX_RECORDINGS:
            return None
        made = SpaceSaving()
        self.running.append(made)
        return made

    def stop(self, recording: SpaceSaving) -> None:
        """End one."""
        self.running.remove(recording)

    def seen(self, policy: Policy, view: RequestView) -> None:
        """A request is about to be decided."""
        for limit in policy.limits:
            parts = [shown(source, source(view)) for source in limit.key]
            key = f"{policy.name}/{limit.name} {' '.join(parts)}".rstrip()
            for recording in self.running:
                recording.add(key)


def shown(source: object, value: str | None) -> str:
    """A part of a key for people: a digest where it may be a secret, ``-`` where it is missing."""
    if value is None:
        return "-"
    if isinstance(source, _PLAIN):
        return value[:_SHOWN]
    return "#" + blake2b(value.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
