"""What the API process counts, and where it is scraped: a port of its own, never the API's.

Routes are named by their pattern, so that nobody who asks for many paths makes many series.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from aiohttp import web
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

from engineroom.core.clock import SystemClock
from engineroom.core.errors import Category
from engineroom.core.prometheus import PrometheusRecovery
from engineroom.kube.runtime.health import HttpServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from engineroom.console.services import Services
    from engineroom.core.clock import Clock

    Scope = MutableMapping[str, Any]

#: In a request's scope: a map for the pattern of the route that took it, and for what it changes.
TAKEN = "engineroom.taken"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIGN_INS = frozenset({"session.open", "token.issue", "token.refresh"})
_REFUSALS = frozenset({Category.AUTHENTICATION, Category.LIMIT, Category.PERMISSION})
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class ApiMetrics:
    """One registry and the process' instruments on it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.recovery = PrometheusRecovery(self.registry)
        self._requests = Histogram(
            "engineroom_http_request_seconds",
            "From a request's arrival to the beginning of its answer.",
            ["method", "route", "status"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._under_way = Gauge(
            "engineroom_http_requests_under_way", "Requests now, streams included.",
            registry=self.registry,
        )  # fmt: skip
        self._refused = Counter(
            "engineroom_sign_ins_refused", "Sign-ins that were refused, by code.",
            ["code"], registry=self.registry,
        )  # fmt: skip
        self._sagas = Counter(
            "engineroom_sagas", "Transactions that came to an end, by outcome.",
            ["saga", "outcome"], registry=self.registry,
        )  # fmt: skip

        self._strangers = Counter(
            "engineroom_requests_unrecorded",
            "Failed requests of nobody that the audit log was spared, by action and code.",
            ["action", "code"], registry=self.registry,
        )  # fmt: skip
        self._forged = Counter(
            "engineroom_forged_records", "Records in Redis that were not as sealed, by kind.",
            ["kind"], registry=self.registry,
        )  # fmt: skip

    def observe(self, services: Services) -> None:
        """Read what the services know of themselves when scraped; once a process."""
        for name, told, value in (
            ("engineroom_sse_streams", "Open streams of events.", lambda: services.hub.streams),
            ("engineroom_operations_running", "Bulk changes that this replica is at.",
             lambda: services.operation_runner.working),
            ("engineroom_cache_objects", "WorkerPools cached.", lambda: len(services.hub.pools)),
            ("engineroom_watch_age_seconds", "Since the watch was last heard of.",
             services.hub.pools.age),
        ):  # fmt: skip
            Gauge(name, told, registry=self.registry).set_function(value)

    def refused(self, action: str, body: bytes) -> None:
        """A problem document was answered, whoever wrote it; ``action`` is its route's."""
        try:
            said = json.loads(body)
            code, category = str(said["code"]), str(said["category"])
        except (ValueError, KeyError, TypeError):
            return
        self.recovery.failed(code, category)
        if action in _SIGN_INS and category in _REFUSALS:
            self._refused.labels(code).inc()

    def stranger(self, action: str, code: str) -> None:
        """A request of nobody failed, and no record was made of it."""
        self._strangers.labels(action, code).inc()

    def forged(self, kind: str) -> None:
        """A record in Redis was not as the API sealed it, and was refused."""
        self._forged.labels(kind).inc()

    def saga(self, name: str, outcome: str) -> None:
        """A transaction ended; the number of its steps is no part of its name here."""
        stem, _, last = name.rpartition(".")
        self._sagas.labels(stem if last.isdigit() else name, outcome).inc()

    def exposition(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self.registry)

    def server(self, port: int | None, host: str) -> HttpServer:
        """Serves ``/metrics`` while it is entered; port None: nothing."""

        async def answer(_request: web.Request) -> web.Response:
            body = self.exposition()
            return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

        return HttpServer(port, {"/metrics": answer}, host)

    def began(self) -> None:
        """A request came."""
        self._under_way.inc()

    def ended(self) -> None:
        """Its answer is out, or its client is gone."""
        self._under_way.dec()

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Its answer began."""
        known = method if method in _METHODS else "other"
        self._requests.labels(known, route, str(status)).observe(seconds)


class Measured:
    """ASGI middleware, the outermost: what every request came to, also one that no route took."""

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
        began, metrics = self._clock.monotonic(), self._metrics

        bad = False
        # A map, because what is between here and the route hands on copies of the scope.
        taken = scope[TAKEN] = {"route": "", "action": ""}

        async def answer(message: MutableMapping[str, Any]) -> None:
            nonlocal bad
            if message["type"] == "http.response.start":
                bad = message["status"] >= 400
                route, seconds = taken["route"], self._clock.monotonic() - began
                metrics.answered(scope["method"], route, message["status"], seconds)
            elif bad:
                bad = False
                metrics.refused(taken["action"], message.get("body", b""))
            await send(message)

        metrics.began()
        try:
            await self._app(scope, receive, answer)
        finally:
            metrics.ended()
