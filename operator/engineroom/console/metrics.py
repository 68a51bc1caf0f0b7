"""Prometheus metrics of the API process, served on a separate port.

The label ``route`` is the pattern of a route, so that requests cannot create arbitrary series.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

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
from prometheus_client.core import CounterMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from engineroom.core.clock import SystemClock
from engineroom.core.errors import Category
from engineroom.core.prometheus import PrometheusRecovery
from engineroom.core.serving.connection_budget import Refusal
from engineroom.kube.runtime.health import HttpServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping

    from prometheus_client.metrics_core import Metric

    from engineroom.core.clock import Clock

    Scope = MutableMapping[str, Any]

#: Key in a request's ASGI scope: a dictionary with the pattern and the action of its route.
ROUTE_INFO = "engineroom.route"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIGN_INS = frozenset({"session.open", "token.issue", "token.refresh"})
_REFUSALS = frozenset({Category.AUTHENTICATION, Category.LIMIT, Category.PERMISSION})
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class ApiMetrics:
    """The registry and the instruments of one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.recovery = PrometheusRecovery(self.registry)
        self._requests = Histogram(
            "engineroom_http_request_seconds",
            "Seconds from the arrival of a request to the start of its response.",
            ["method", "route", "status"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._under_way = Gauge(
            "engineroom_http_requests_under_way", "Requests in progress, streams included.",
            registry=self.registry,
        )  # fmt: skip
        self._refused = Counter(
            "engineroom_sign_ins_refused", "Refused sign-ins, by error code.",
            ["code"], registry=self.registry,
        )  # fmt: skip
        self._sagas = Counter(
            "engineroom_sagas", "Transactions that ended, by outcome.",
            ["saga", "outcome"], registry=self.registry,
        )  # fmt: skip

        self._unauthenticated = Counter(
            "engineroom_requests_unrecorded",
            "Failed unauthenticated requests, which the audit log omits, by action and code.",
            ["action", "code"], registry=self.registry,
        )  # fmt: skip
        self._tampered = Counter(
            "engineroom_forged_records", "Records in Redis with a broken seal, by kind.",
            ["kind"], registry=self.registry,
        )  # fmt: skip

    def gauge(self, name: str, help_text: str, value: Callable[[], float]) -> None:
        """Add a gauge that calls ``value`` on each scrape."""
        Gauge(name, help_text, registry=self.registry).set_function(value)

    def read_refusals(self, refusals: Mapping[Refusal, int]) -> None:
        """Expose how many connections and requests were refused; read on each scrape."""
        self.registry.register(_Refusals(refusals))

    def record_problem(self, action: str, body: bytes) -> None:
        """Count a problem document (RFC 9457); ``action`` is that of the route."""
        try:
            document = json.loads(body)
            code, category = str(document["code"]), str(document["category"])
        except (ValueError, KeyError, TypeError):
            return
        self.recovery.failed(code, category)
        if action in _SIGN_INS and category in _REFUSALS:
            self._refused.labels(code).inc()

    def record_unauthenticated(self, action: str, code: str) -> None:
        """Count a failed unauthenticated request that the audit log omits."""
        self._unauthenticated.labels(action, code).inc()

    def record_tampering(self, kind: str) -> None:
        """Count a record in Redis that was refused because its seal is broken."""
        self._tampered.labels(kind).inc()

    def record_saga(self, name: str, outcome: str) -> None:
        """Count the end of a transaction, by its name without the number of steps."""
        stem, _, last = name.rpartition(".")
        self._sagas.labels(stem if last.isdigit() else name, outcome).inc()

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def server(self, port: int | None, host: str) -> HttpServer:
        """Return a server of ``/metrics``; with port None it serves nothing."""

        async def metrics(_parameters: Mapping[str, str]) -> tuple[int, str, bytes]:
            return 200, CONTENT_TYPE_LATEST, self.exposition()

        return HttpServer(port, {"/metrics": metrics}, host)

    def request_started(self) -> None:
        """Count a request in progress."""
        self._under_way.inc()

    def request_ended(self) -> None:
        """Count a request that was answered or cancelled."""
        self._under_way.dec()

    def response_started(self, method: str, route: str, status: int, seconds: float) -> None:
        """Observe the time until a response started."""
        label = method if method in _METHODS else "other"
        self._requests.labels(label, route, str(status)).observe(seconds)


class _Refusals(Collector):
    """The refused connections by reason."""

    def __init__(self, refusals: Mapping[Refusal, int]) -> None:
        self._refusals = refusals

    def collect(self) -> Iterable[Metric]:
        """Yield the metric."""
        refused = CounterMetricFamily(
            "engineroom_http_connections_refused",
            "Connections refused or closed to protect others: too many of an address or of the "
            "process, or too slow.",
            labels=["why"],
        )
        for why in Refusal:
            refused.add_metric([why.value], self._refusals.get(why, 0))
        yield refused


class MetricsMiddleware:
    """Outermost ASGI middleware: measures all requests, also those that match no route."""

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],
        metrics: ApiMetrics,
        clock: Clock | None = None,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._clock = clock or SystemClock()

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, metrics = self._clock.monotonic(), self._metrics

        failed = False
        # A dictionary that the route fills in: middleware in between passes on copies of the scope.
        info = scope[ROUTE_INFO] = {"route": "", "action": ""}

        async def measure(message: MutableMapping[str, Any]) -> None:
            nonlocal failed
            if message["type"] == "http.response.start":
                failed = message["status"] >= 400
                route, seconds = info["route"], self._clock.monotonic() - started
                metrics.response_started(scope["method"], route, message["status"], seconds)
            elif failed:
                failed = False
                metrics.record_problem(info["action"], message.get("body", b""))
            await send(message)

        metrics.request_started()
        try:
            await self._app(scope, receive, measure)
        finally:
            metrics.request_ended()
