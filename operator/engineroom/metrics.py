"""The operator's own Prometheus metrics; what rooms measure they register beside it.

Not in ``core``: prometheus-client is an extra that applications do not install.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from engineroom.core.prometheus import PrometheusRecovery

if TYPE_CHECKING:
    from collections.abc import Callable

#: From a Redis push to a pod takes milliseconds; a slow API server takes seconds.
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """One registry and the process' instruments on it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.recovery = PrometheusRecovery(self.registry)
        self._gauges: dict[str, Gauge] = {}
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.wait = Histogram(
            "engineroom_queue_wait_seconds",
            "From being due to the start of the reconcile.",
            ["queue"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.duration = Histogram(
            "engineroom_reconcile_seconds",
            "Duration of reconciles, by outcome.",
            ["queue", "outcome"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.retries = Counter(
            "engineroom_reconcile_retries",
            "Reconciles that failed and were scheduled again.",
            ["queue"],
            registry=self.registry,
        )
        self.requests = Histogram(
            "engineroom_api_request_seconds",
            "Requests to the API server, by verb and HTTP status; 0: no answer.",
            ["verb", "code"],
            buckets=_SECONDS,
            registry=self.registry,
        )

    def gauge(
        self,
        name: str,
        documentation: str,
        value: Callable[[], float],
        labels: dict[str, str] | None = None,
    ) -> None:
        """A gauge that is read when scraped; called again with other labels it adds a series."""
        existing = self._gauges.get(name)
        if existing is None:
            existing = Gauge(name, documentation, list(labels or ()), registry=self.registry)
            self._gauges[name] = existing
        child = existing.labels(**labels) if labels else existing
        child.set_function(value)

    def histogram(self, name: str, documentation: str) -> Callable[[float], None]:
        """A histogram of seconds; returns what observes."""
        histogram = Histogram(name, documentation, buckets=_SECONDS, registry=self.registry)
        return histogram.observe

    def request(self, verb: str, status: int, seconds: float) -> None:
        """One request to the API server took that long."""
        self.requests.labels(verb, str(status)).observe(seconds)

    def exposition(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self.registry)


class QueueMetrics:
    """Metrics of one work queue."""

    def __init__(self, metrics: Metrics, queue: str) -> None:
        self._wait = metrics.wait.labels(queue)
        self._duration = metrics.duration
        self._retries = metrics.retries.labels(queue)
        self._failed = metrics.recovery.failed
        self._queue = queue

    def started(self, waited: float) -> None:
        """A run began that long after its key became due."""
        self._wait.observe(waited)

    def finished(self, ran: float, outcome: str) -> None:
        """A run ended."""
        self._duration.labels(self._queue, outcome).observe(ran)

    def retried(self) -> None:
        """A failed key was scheduled again."""
        self._retries.inc()

    def failed(self, code: str, category: str) -> None:
        """A run ended with an error of that code."""
        self._failed(code, category)
