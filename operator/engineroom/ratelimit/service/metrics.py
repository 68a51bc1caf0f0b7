"""Metrics of the service, by policy and limit, never by key."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from engineroom.core.recovery import BreakerState
from engineroom.core.serving.connection_budget import Refusal
from engineroom.ratelimit.limits.decision import DecisionReason, DecisionSource
from engineroom.ratelimit.limits.errors import LimiterUnavailableError
from engineroom.ratelimit.limits.prometheus import DecisionCounts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from prometheus_client.metrics_core import Metric


class ServiceCounts(DecisionCounts, Collector):
    """Counters of one event loop: decisions and requests."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        super().__init__()
        self.clock = clock
        self._missing: dict[str, int] = {}
        self._requests: dict[tuple[str, int], int] = {}
        self._states: Callable[[], Iterable[str]] = tuple
        self._refusals: Callable[[], Mapping[Refusal, int]] = dict
        self._gauges: list[tuple[str, str, Callable[[], float]]] = []

    def record_missing(self, why: str) -> None:
        """Count a request without a policy."""
        self._missing[why] = self._missing.get(why, 0) + 1

    def record_response(self, form: str, status: int) -> None:
        """Count a response by the form of its request and its status (of HTTP or gRPC)."""
        key = (form, status)
        try:
            self._requests[key] += 1
        except KeyError:
            self._requests[key] = 1

    def gauge(self, name: str, documentation: str, value: Callable[[], float]) -> None:
        """Register a gauge that is read at each scrape."""
        self._gauges.append((name, documentation, value))

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics."""
        yield from self.families()
        missing = CounterMetricFamily(
            "engineroom_ratelimit_unmatched",
            "Requests without a policy: unknown, unattached, or policies not read yet.",
            labels=["why"],
        )
        for why, count in self._missing.items():
            missing.add_metric([why], count)
        yield missing
        requests = CounterMetricFamily(
            "engineroom_ratelimit_requests",
            "Requests by form and status of HTTP or gRPC.",
            labels=["form", "status"],
        )
        for (form, status), count in self._requests.items():
            requests.add_metric([str(form), str(status)], count)
        yield requests
        yield self._refused()
        yield self._errors()
        yield self._breakers()
        for name, documentation, value in self._gauges:
            yield GaugeMetricFamily(name, documentation, value())

    def _refused(self) -> Metric:
        """Return the connections and requests that the budget or a timeout refused."""
        refused = CounterMetricFamily(
            "engineroom_ratelimit_refused_connections",
            "Connections refused or closed, and requests refused, to protect others: too many of "
            "an address or of the process, too many bytes, or too slow.",
            labels=["why"],
        )
        current = self._refusals()
        for why in Refusal:
            refused.add_metric([why.value], current.get(why, 0))
        return refused

    def _errors(self) -> Metric:
        """Return the decisions that Redis did not make in time, as the common error series."""
        errors = CounterMetricFamily(
            "engineroom_errors", "Failed attempts.", labels=["code", "category"]
        )
        kind = LimiterUnavailableError
        failed = sum(
            count
            for (_, _, reason, source), count in self._decisions.items()
            if source == DecisionSource.LOCAL
            or reason in (DecisionReason.FAILED_OPEN, DecisionReason.FAILED_CLOSED)
        )
        errors.add_metric([kind.code, kind.category.value], failed)
        return errors

    def _breakers(self) -> Metric:
        """Return the state of the breaker for Redis: the worst state of all policies."""
        states = GaugeMetricFamily(
            "engineroom_breaker_state", "1 for the state.", labels=["name", "state"]
        )
        current = set(self._states())
        order = (BreakerState.OPEN, BreakerState.HALF_OPEN, BreakerState.CLOSED)
        worst = next((state for state in order if state.value in current), BreakerState.CLOSED)
        for state in BreakerState:
            states.add_metric(["redis", state.value], float(state is worst))
        return states

    def read_refusals(self, refusals: Callable[[], Mapping[Refusal, int]]) -> None:
        """Set the function that returns the refusals at each scrape."""
        self._refusals = refusals

    def read_breakers(self, states: Callable[[], Iterable[str]]) -> None:
        """Set the function that returns the states of all breakers at each scrape."""
        self._states = states


class Exposition:
    """One registry with the service's counters and the metrics of the process."""

    def __init__(self, counts: ServiceCounts) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(counts)
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)
