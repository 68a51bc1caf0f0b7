"""What the controller counts for its metrics: policies by condition, enforcers, how quick it was.

Counted as statuses are made, so that a scrape costs the same for ten policies and for ten thousand.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from engineroom.core import reasons

if TYPE_CHECKING:
    from collections.abc import Callable

    Gauge = Callable[..., None]
    Histogram = Callable[[str, str], Callable[[float], None]]

_CONDITIONS: Final = ("Accepted", "Programmed", "Enforced", "Degraded", "Ready")
_VALUES: Final = ("True", "False", "Unknown")
#: Reasons of Accepted that say that another policy is in the way.
_CONFLICTS: Final = frozenset({reasons.CONFLICTED, reasons.PARTLY_CONFLICTED})
#: Reasons of Enforced after which it is no longer a matter of time alone.
_NOT_OURS: Final = frozenset({reasons.NO_ENFORCERS, reasons.NOT_PROGRAMMED})


class Census:
    """The policies of all namespaces by what their status says."""

    def __init__(self, gauge: Gauge, histogram: Histogram) -> None:
        self._said: dict[str, frozenset[tuple[str, str]]] = {}
        self._count: Counter[tuple[str, str]] = Counter()
        self._rolls: dict[tuple[str, object], tuple[int, int]] = {}
        #: Of policies that changed and are not enforced yet: generation, and when that was.
        self._changed: dict[str, tuple[int, float]] = {}
        for kind in _CONDITIONS:
            for value in _VALUES:
                gauge(
                    "engineroom_ratelimitpolicies",
                    "RateLimitPolicies by condition and its status.",
                    self._reader((kind, value)),
                    {"condition": kind, "status": value},
                )
        gauge(
            "engineroom_ratelimitpolicy_conflicts",
            "RateLimitPolicies that lost something to an older one.",
            self._reader(("conflict", "")),
        )
        for place, state in enumerate(("live", "current")):
            gauge(
                "engineroom_ratelimit_enforcers",
                "Enforcers that were heard of lately, and those that have the newest policies.",
                self._sum(place),
                {"state": state},
            )
        self._enforced_after = histogram(
            "engineroom_ratelimit_enforced_seconds",
            "From a policy's change, as it was heard of, to a status that says Enforced.",
        )

    def _reader(self, which: tuple[str, str]) -> Callable[[], float]:
        return lambda: float(self._count[which])

    def _sum(self, place: int) -> Callable[[], float]:
        return lambda: float(sum(each[place] for each in self._rolls.values()))

    def changed(self, key: str, generation: int, now: float) -> None:
        """A policy has a new spec (``now`` in monotonic seconds)."""
        if self._changed.get(key, (0, 0.0))[0] != generation:
            self._changed[key] = (generation, now)

    def told(self, key: str, old: dict[str, Any], new: dict[str, Any], now: float) -> None:
        """A status was made; equal to ``old`` when it was so before we came."""
        words = {each["type"]: each for each in new.get("conditions") or ()}
        said = {(kind, str(words[kind]["status"])) for kind in _CONDITIONS if kind in words}
        if words.get("Accepted", {}).get("reason") in _CONFLICTS:
            said.add(("conflict", ""))
        self._say(key, frozenset(said))
        enforced = words.get("Enforced", {})
        if enforced.get("status") == "True":
            began = self._changed.pop(key, None)
            if began is not None and new != old:
                self._enforced_after(max(0.0, now - began[1]))
        elif enforced.get("reason") in _NOT_OURS:
            self._changed.pop(key, None)

    def gone(self, key: str) -> None:
        """A policy is no more."""
        self._say(key, frozenset())
        del self._said[key]
        self._changed.pop(key, None)

    def followed(self, namespace: str, where: object, live: int, current: int) -> None:
        """So many enforcers of a namespace at a Redis were heard of, and have its policies."""
        if live:
            self._rolls[namespace, where] = (live, current)
        else:
            self._rolls.pop((namespace, where), None)

    def _say(self, key: str, said: frozenset[tuple[str, str]]) -> None:
        before = self._said.get(key, frozenset())
        self._count.subtract(dict.fromkeys(before - said, 1))
        self._count.update(dict.fromkeys(said - before, 1))
        self._said[key] = said
