"""A span for each job, where the image has OpenTelemetry and an endpoint is configured.

Nothing is imported otherwise. The span belongs to the worker; the work horse is forked within it,
so that what the job's own code traces comes to stand below it.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import re
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError
from rq.exceptions import DeserializationError, InvalidJobOperation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)
_FLUSH_MS = 3000

log = logging.getLogger("rq.worker")


def configured(environment: Mapping[str, str] | None = None) -> bool:
    """Whether the environment says where spans go."""
    said = os.environ if environment is None else environment
    if said.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if said.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower() == "none":
        return False
    return any(said.get(name, "").strip() for name in _ENDPOINTS)


class Tracing:
    """Spans of one worker process."""

    def __init__(self, pool: str, version: str) -> None:
        def of(name: str) -> Any:
            return importlib.import_module(f"opentelemetry.{name}")

        exporter = of("exporter.otlp.proto.http.trace_exporter")
        sdk, processors, resources = of("sdk.trace"), of("sdk.trace.export"), of("sdk.resources")
        self._context, self._trace = of("context"), of("trace")
        self._propagator = of("trace.propagation.tracecontext").TraceContextTextMapPropagator()
        said = {"service.version": version, "engineroom.pool": pool}
        if not os.environ.get("OTEL_SERVICE_NAME"):
            said["service.name"] = "engineroom-worker"
        self._provider = sdk.TracerProvider(
            resource=resources.Resource.create(said), shutdown_on_exit=False
        )
        self._provider.add_span_processor(
            processors.BatchSpanProcessor(exporter.OTLPSpanExporter())
        )
        self._tracer = self._provider.get_tracer("engineroom_worker", version)

    @contextlib.contextmanager
    def job(self, job: Any, queue: str) -> Iterator[dict[str, str]]:
        """The span of a job; gives the ids for its log lines."""
        outer = None
        parent = _parent(job.meta)
        if parent:
            outer = self._propagator.extract({"traceparent": parent})
        span = self._tracer.start_span(
            f"job {_function(job)}",
            outer,
            kind=self._trace.SpanKind.CONSUMER,
            attributes={
                "messaging.system": "rq",
                "messaging.destination.name": queue,
                "messaging.message.id": job.id,
            },
        )
        token = self._context.attach(self._trace.set_span_in_context(span, outer))
        told = span.get_span_context()
        try:
            yield {"trace_id": f"{told.trace_id:032x}", "span_id": f"{told.span_id:016x}"}
        finally:
            # The work horse has written it, and this process knows only whether that one died.
            status = _status(job)
            span.set_attribute("rq.job.status", status.rpartition(".")[2].lower())
            if "fail" in status.lower():
                span.set_status(self._trace.StatusCode.ERROR)
            self._context.detach(token)
            span.end()

    def stop(self) -> None:
        """Send what is left, for a few seconds at most."""
        self._provider.force_flush(_FLUSH_MS)
        self._provider.shutdown()


class NoTracing:
    """Where nobody looks."""

    @contextlib.contextmanager
    def job(self, job: Any, queue: str) -> Iterator[dict[str, str]]:
        """No span."""
        yield {}

    def stop(self) -> None:
        """Nothing to send."""


def start(pool: str, version: str) -> Tracing | NoTracing:
    """Spans if they are configured and OpenTelemetry is there."""
    if not configured():
        return NoTracing()
    try:
        return Tracing(pool, version)
    except ImportError:
        log.warning(
            "no traces: the image has no OpenTelemetry; add opentelemetry-sdk and "
            "opentelemetry-exporter-otlp-proto-http to its requirements"
        )
        return NoTracing()


def _function(job: Any) -> str:
    """The dotted name; "?" for a job that cannot be read, which its work horse will find out."""
    try:
        return str(job.func_name)
    except DeserializationError:
        return "?"


def _status(job: Any) -> str:
    """What became of the job; "" while Redis is away, or when it is gone already."""
    try:
        return str(job.get_status(refresh=True) or "")
    except (RedisError, InvalidJobOperation):
        return ""


def _parent(meta: Any) -> str:
    """The traceparent that whoever enqueued the job left."""
    found = meta.get("engineroom_context") if isinstance(meta, dict) else None
    said = found.get("traceparent") if isinstance(found, dict) else None
    return said if isinstance(said, str) and _TRACEPARENT.fullmatch(said) else ""
