"""Metrics of the controller: policies by condition, enforcers, and time until enforcement.

Updated with each status, so that the cost of a scrape does not depend on the number of policies.
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
#: Reasons of Accepted for a conflict with another policy.
_CONFLICTS: Final = frozenset({reasons.CONFLICTED, reasons.PARTLY_CONFLICTED})
#: Reasons of Enforced for which waiting alone does not help.
_NOT_WAITING: Final = frozenset({reasons.NO_ENFORCERS, reasons.NOT_PROGRAMMED})


class PolicyMetrics:
    """The policies of all namespaces by the conditions of their status."""

    def __init__(self, gauge: Gauge, histogram: Histogram) -> None:
        self._labels: dict[str, frozenset[tuple[str, str]]] = {}
        self._count: Counter[tuple[str, str]] = Counter()
        self._enforcers: dict[tuple[str, object], tuple[int, int]] = {}
        #: Changed policies that are not enforced yet, with generation and time of the change.
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
            "RateLimitPolicies that lost a target or selector to an older one.",
            self._reader(("conflict", "")),
        )
        for index, state in enumerate(("live", "current")):
            gauge(
                "engineroom_ratelimit_enforcers",
                "Enforcers with recent heartbeats, and those with the newest policies.",
                self._sum(index),
                {"state": state},
            )
        self._enforced_after = histogram(
            "engineroom_ratelimit_enforced_seconds",
            "Time from the event of a policy's change to a status with Enforced.",
        )

    def _reader(self, which: tuple[str, str]) -> Callable[[], float]:
        return lambda: float(self._count[which])

    def _sum(self, index: int) -> Callable[[], float]:
        return lambda: float(sum(counts[index] for counts in self._enforcers.values()))

    def changed(self, key: str, generation: int, now: float) -> None:
        """Record the event of a policy's change, at ``now`` (monotonic seconds)."""
        if self._changed.get(key, (0, 0.0))[0] != generation:
            self._changed[key] = (generation, now)

    def status_written(
        self, key: str, old: dict[str, Any], new: dict[str, Any], now: float
    ) -> None:
        """Record a policy's status; equal to ``old`` if it was up to date."""
        conditions = {condition["type"]: condition for condition in new.get("conditions") or ()}
        labels = {
            (kind, str(conditions[kind]["status"])) for kind in _CONDITIONS if kind in conditions
        }
        if conditions.get("Accepted", {}).get("reason") in _CONFLICTS:
            labels.add(("conflict", ""))
        self._set(key, frozenset(labels))
        enforced = conditions.get("Enforced", {})
        if enforced.get("status") == "True":
            change = self._changed.pop(key, None)
            if change is not None and new != old:
                self._enforced_after(max(0.0, now - change[1]))
        elif enforced.get("reason") in _NOT_WAITING:
            self._changed.pop(key, None)

    def deleted(self, key: str) -> None:
        """Remove a policy."""
        self._set(key, frozenset())
        del self._labels[key]
        self._changed.pop(key, None)

    def enforcers(self, namespace: str, redis: object, live: int, current: int) -> None:
        """Record how many enforcers of a namespace are live, and have the newest policies."""
        if live:
            self._enforcers[namespace, redis] = (live, current)
        else:
            self._enforcers.pop((namespace, redis), None)

    def _set(self, key: str, labels: frozenset[tuple[str, str]]) -> None:
        before = self._labels.get(key, frozenset())
        self._count.subtract(dict.fromkeys(before - labels, 1))
        self._count.update(dict.fromkeys(labels - before, 1))
        self._labels[key] = labels
