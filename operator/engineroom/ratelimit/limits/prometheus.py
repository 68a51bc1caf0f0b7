"""Prometheus metrics of decisions, by policy and limit; needs ``engineroom[metrics]``.

The decision service and the middleware export the same series, so that one dashboard shows both.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

    from engineroom.ratelimit.limits.decision import Decision, DecisionReason, DecisionSource

#: Upper bounds of the histogram in seconds: memory, Redis on loopback, Redis under load, timeout.
BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0)


class DecisionCounts:
    """Counters of one thread: plain numbers, converted to metrics at each scrape.

    prometheus_client's own counters cost a lock and a microsecond each, several times a decision.
    """

    def __init__(self) -> None:
        self._decisions: dict[tuple[str, str, DecisionReason, DecisionSource], int] = {}
        self._shadowed: dict[tuple[str, str], int] = {}
        self._buckets = [0] * (len(BUCKETS) + 1)
        self._seconds = 0.0

    def record_decision(self, decision: Decision, seconds: float) -> None:
        """Count a decision and the seconds that it took."""
        key = (decision.policy, decision.limit, decision.reason, decision.source)
        try:
            self._decisions[key] += 1
        except KeyError:
            self._decisions[key] = 1
        self._buckets[bisect_left(BUCKETS, seconds)] += 1
        self._seconds += seconds
        for name in decision.shadowed:
            shadow = (decision.policy, name)
            self._shadowed[shadow] = self._shadowed.get(shadow, 0) + 1

    def families(self) -> Iterator[Metric]:
        """Yield the metrics."""
        decisions = CounterMetricFamily(
            "engineroom_ratelimit_decisions",
            "Decisions by policy, limit, reason and source.",
            labels=["policy", "limit", "reason", "source"],
        )
        for (policy, limit, reason, source), count in self._decisions.items():
            decisions.add_metric([policy, limit, reason.value, source.value], count)
        yield decisions
        shadowed = CounterMetricFamily(
            "engineroom_ratelimit_shadowed",
            "Requests that a limit in mode Shadow would have refused.",
            labels=["policy", "limit"],
        )
        for shadow, count in self._shadowed.items():
            shadowed.add_metric(shadow, count)
        yield shadowed
        yield HistogramMetricFamily(
            "engineroom_ratelimit_decision_seconds",
            "Time of a decision; close to 0 for decisions from memory.",
            buckets=list(self._cumulative_buckets()),
            sum_value=self._seconds,
        )

    def _cumulative_buckets(self) -> Iterator[tuple[str, float]]:
        total = 0
        for bound, count in zip((*BUCKETS, "+Inf"), self._buckets, strict=True):
            total += count
            yield str(bound), total


class PrometheusDecisions(Collector):
    """Counts the decisions of middlewares, passed as ``observe``, as metrics of ``registry``.

    Create one instance per registry, for all middlewares of a process; threads may share it. It
    covers its own process only: prometheus_client's multi-process mode ignores collectors.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._counts = DecisionCounts()
        self._lock = threading.Lock()
        registry.register(self)

    def __call__(self, decision: Decision, seconds: float) -> None:
        """Count a decision and the seconds that it took."""
        with self._lock:
            self._counts.record_decision(decision, seconds)

    def collect(self) -> Iterable[Metric]:
        """Return the metrics."""
        with self._lock:
            return list(self._counts.families())
