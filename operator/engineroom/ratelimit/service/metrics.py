"""What the service counts: by policy and limit, never by key."""

from __future__ import annotations

import time
from bisect import bisect_left
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.registry import Collector

from engineroom.core.recovery import BreakerState
from engineroom.ratelimit.decision import Reason, Source
from engineroom.ratelimit.errors import LimiterUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client.metrics_core import Metric

    from engineroom.ratelimit.decision import Decision

#: Upper bounds, seconds: from memory, from Redis at loopback, from Redis under load, time-out.
BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0)


class Counts(Collector):
    """Counters of one event loop: plain numbers, turned into metrics when they are scraped.

    prometheus_client's own counters take a lock and a microsecond each, and there are several a
    decision.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self._decisions: dict[tuple[str, str, Reason, Source], int] = {}
        self._shadowed: dict[tuple[str, str], int] = {}
        self._missing: dict[str, int] = {}
        self._requests: dict[tuple[str, int], int] = {}
        self._buckets = [0] * (len(BUCKETS) + 1)
        self._seconds = 0.0
        self._states: Callable[[], Iterable[str]] = tuple
        self._gauges: list[tuple[str, str, Callable[[], float]]] = []

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

    def missed(self, why: str) -> None:
        """There was no policy to decide by."""
        self._missing[why] = self._missing.get(why, 0) + 1

    def answered(self, form: str, status: int) -> None:
        """A question in some form got an answer with that status (HTTP's, or gRPC's)."""
        key = (form, status)
        try:
            self._requests[key] += 1
        except KeyError:
            self._requests[key] = 1

    def gauge(self, name: str, documentation: str, value: Callable[[], float]) -> None:
        """A number that is read when it is scraped."""
        self._gauges.append((name, documentation, value))

    def collect(self) -> Iterable[Metric]:
        """The metrics, as prometheus_client wants them."""
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
        missing = CounterMetricFamily(
            "engineroom_ratelimit_unmatched",
            "Questions without a policy: unknown, unattached, or policies not read yet.",
            labels=["why"],
        )
        for why, count in self._missing.items():
            missing.add_metric([why], count)
        yield missing
        requests = CounterMetricFamily(
            "engineroom_ratelimit_requests",
            "Questions by form and status; gRPC's statuses are its own.",
            labels=["form", "status"],
        )
        for (form, status), count in self._requests.items():
            requests.add_metric([str(form), str(status)], count)
        yield requests
        yield HistogramMetricFamily(
            "engineroom_ratelimit_decision_seconds",
            "Time until a decision was there; next to none where it was known already.",
            buckets=list(self._cumulated()),
            sum_value=self._seconds,
        )
        yield self._errors()
        yield self._breakers()
        for name, documentation, value in self._gauges:
            yield GaugeMetricFamily(name, documentation, value())

    def _errors(self) -> Metric:
        """The same series as in the other processes: decisions that Redis did not make in time."""
        errors = CounterMetricFamily(
            "engineroom_errors", "Failed attempts.", labels=["code", "category"]
        )
        kind = LimiterUnavailableError
        failed = sum(
            count
            for (_, _, reason, source), count in self._decisions.items()
            if source == Source.LOCAL or reason in (Reason.FAILED_OPEN, Reason.FAILED_CLOSED)
        )
        errors.add_metric([kind.code, kind.category.value], failed)
        return errors

    def _breakers(self) -> Metric:
        """One for Redis: the worst of all policies, each of which has a breaker of its own."""
        states = GaugeMetricFamily(
            "engineroom_breaker_state", "1 for the state.", labels=["name", "state"]
        )
        found = set(self._states())
        order = (BreakerState.OPEN, BreakerState.HALF_OPEN, BreakerState.CLOSED)
        worst = next((state for state in order if state.value in found), BreakerState.CLOSED)
        for each in BreakerState:
            states.add_metric(["redis", each.value], float(each is worst))
        return states

    def breakers(self, states: Callable[[], Iterable[str]]) -> None:
        """Where the states of the breakers are read when they are scraped."""
        self._states = states

    def _cumulated(self) -> Iterator[tuple[str, float]]:
        total = 0
        for bound, count in zip((*BUCKETS, "+Inf"), self._buckets, strict=True):
            total += count
            yield str(bound), total


class Exposition:
    """One registry with the service's counts and the process' own metrics."""

    def __init__(self, counts: Counts) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(counts)
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self._registry)
