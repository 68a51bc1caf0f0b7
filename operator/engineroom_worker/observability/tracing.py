"""A span for each job, if the image has OpenTelemetry and an endpoint is configured.

Otherwise nothing is imported. The worker opens the span before it forks the work horse, so spans of
the job's own code become its children.
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
    """Return whether the environment configures an endpoint for spans."""
    variables = os.environ if environment is None else environment
    if variables.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if variables.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower() == "none":
        return False
    return any(variables.get(name, "").strip() for name in _ENDPOINTS)


class Tracing:
    """Spans of one worker process."""

    def __init__(self, pool: str, version: str) -> None:
        def load(name: str) -> Any:
            return importlib.import_module(f"opentelemetry.{name}")

        exporter = load("exporter.otlp.proto.http.trace_exporter")
        sdk, processors, resources = (
            load("sdk.trace"),
            load("sdk.trace.export"),
            load("sdk.resources"),
        )
        self._context, self._trace = load("context"), load("trace")
        self._propagator = load("trace.propagation.tracecontext").TraceContextTextMapPropagator()
        attributes = {"service.version": version, "engineroom.pool": pool}
        if not os.environ.get("OTEL_SERVICE_NAME"):
            attributes["service.name"] = "engineroom-worker"
        self._provider = sdk.TracerProvider(
            resource=resources.Resource.create(attributes), shutdown_on_exit=False
        )
        self._provider.add_span_processor(
            processors.BatchSpanProcessor(exporter.OTLPSpanExporter())
        )
        self._tracer = self._provider.get_tracer("engineroom_worker", version)

    @contextlib.contextmanager
    def job(self, job: Any, queue: str) -> Iterator[dict[str, str]]:
        """Open the span of a job; yield the ids for its log lines."""
        parent_context = None
        parent = _traceparent(job.meta)
        if parent:
            parent_context = self._propagator.extract({"traceparent": parent})
        span = self._tracer.start_span(
            f"job {_function(job)}",
            parent_context,
            kind=self._trace.SpanKind.CONSUMER,
            attributes={
                "messaging.system": "rq",
                "messaging.destination.name": queue,
                "messaging.message.id": job.id,
            },
        )
        token = self._context.attach(self._trace.set_span_in_context(span, parent_context))
        context = span.get_span_context()
        try:
            yield {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
        finally:
            # Only Redis has the outcome, which the work horse wrote.
            status = _status(job)
            span.set_attribute("rq.job.status", status.rpartition(".")[2].lower())
            if "fail" in status.lower():
                span.set_status(self._trace.StatusCode.ERROR)
            self._context.detach(token)
            span.end()

    def stop(self) -> None:
        """Send the remaining spans, for at most a few seconds."""
        self._provider.force_flush(_FLUSH_MS)
        self._provider.shutdown()


class NoTracing:
    """Traces nothing."""

    @contextlib.contextmanager
    def job(self, job: Any, queue: str) -> Iterator[dict[str, str]]:
        """Yield no ids."""
        yield {}

    def stop(self) -> None:
        """Do nothing."""


def start(pool: str, version: str) -> Tracing | NoTracing:
    """Return Tracing if it is configured and OpenTelemetry is installed, else NoTracing."""
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
    """Return the job's function; "?" if it cannot be read, on which its work horse will fail."""
    try:
        return str(job.func_name)
    except DeserializationError:
        return "?"


def _status(job: Any) -> str:
    """Return the job's status; "" if Redis is unavailable or the job no longer exists."""
    try:
        return str(job.get_status(refresh=True) or "")
    except (RedisError, InvalidJobOperation):
        return ""


def _traceparent(meta: Any) -> str:
    """Return the valid traceparent in a job's meta, or ""."""
    ids = meta.get("engineroom_context") if isinstance(meta, dict) else None
    value = ids.get("traceparent") if isinstance(ids, dict) else None
    return value if isinstance(value, str) and _TRACEPARENT.fullmatch(value) else ""
