"""Decisions as Prometheus' metrics, by policy and limit; needs ``engineroom[metrics]``.

The decision service and a middleware tell the same series, so that the same dashboard shows both.
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

    from engineroom.ratelimit.limits.decision import Decision, Reason, Source

#: Upper bounds, seconds: from memory, from Redis at loopback, from Redis under load, time-out.
BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0)


class DecisionCounts:
    """Counters of one thread: plain numbers, turned into metrics when they are scraped.

    prometheus_client's own counters take a lock and a microsecond each, and there are several a
    decision.
    """

    def __init__(self) -> None:
        self._decisions: dict[tuple[str, str, Reason, Source], int] = {}
        self._shadowed: dict[tuple[str, str], int] = {}
        self._buckets = [0] * (len(BUCKETS) + 1)
        self._seconds = 0.0

    def decided(self, decision: Decision, seconds: float) -> None:
        """A decision that took so long."""
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
        """What was counted."""
        decisions = CounterMetricFamily(
            "engineroom_ratelimit_decisions",
            "Decisions, by the limit that decided, why, and who decided.",
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
            "Time until a decision was there; next to none where it was known already.",
            buckets=list(self._cumulated()),
            sum_value=self._seconds,
        )

    def _cumulated(self) -> Iterator[tuple[str, float]]:
        total = 0
        for bound, count in zip((*BUCKETS, "+Inf"), self._buckets, strict=True):
            total += count
            yield str(bound), total


class PrometheusDecisions(Collector):
    """What a middleware's ``observe`` is told, as metrics of ``registry``; threads may share it.

    One instance a registry, for all middlewares of a process. It counts its own process:
    prometheus_client's multi-process mode leaves collectors out.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._counts = DecisionCounts()
        self._lock = threading.Lock()
        registry.register(self)

    def __call__(self, decision: Decision, seconds: float) -> None:
        """A decision that took so long."""
        with self._lock:
            self._counts.decided(decision, seconds)

    def collect(self) -> Iterable[Metric]:
        """The metrics, as prometheus_client wants them."""
        with self._lock:
            return list(self._counts.families())
