"""Traces, sent by OTLP over HTTP if an endpoint is configured.

``start`` reads OpenTelemetry's environment variables, such as ``OTEL_EXPORTER_OTLP_ENDPOINT``, and
imports its SDK (``engineroom[tracing]``) only if one is set. Otherwise all spans are one shared
object that does nothing, at almost no cost::

    with span("charge", account=account):
        ...

The span's ids appear on each log line of its block and in the meta of jobs enqueued there. A span
records an error's code or class, never its text, which may hold personal data.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

from engineroom.core.errors import EngineroomError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

#: Environment variables with the endpoint of traces.
ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
#: Most seconds to send the last spans at the end of the process.
FLUSH: Final = 3.0

log = logging.getLogger(__name__)


class Span(Protocol):
    """A named period of time."""

    def __enter__(self) -> Span:
        """Start the span."""
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the span; an exception marks it as failed and propagates."""
        ...

    def note(self, *, name: str | None = None, **attributes: str | int | float | bool) -> None:
        """Set attributes, or rename the span."""
        ...


class _NullSpan:
    """A span that does nothing."""

    __slots__ = ()

    def __enter__(self) -> _NullSpan:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def note(self, *, name: str | None = None, **attributes: str | int | float | bool) -> None:
        """Ignore the attributes."""


OFF: Final = _NullSpan()


class _Tracing:
    """The tracer and exporter of OpenTelemetry."""

    def __init__(self, service: str, version: str) -> None:
        from opentelemetry import context, trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self.context = context
        self.trace = trace
        self.propagator = TraceContextTextMapPropagator()
        attributes = {SERVICE_VERSION: version}
        if not os.environ.get("OTEL_SERVICE_NAME"):
            attributes[SERVICE_NAME] = service
        # A separate provider leaves the application's global one unchanged.
        self.provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
        self.provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self.tracer = self.provider.get_tracer("engineroom", version)
        self.kinds = {kind.name.lower(): kind for kind in trace.SpanKind}

    def stop(self) -> None:
        """Send the remaining spans, for at most FLUSH seconds."""
        self.provider.force_flush(round(FLUSH * 1000))
        self.provider.shutdown()


class _OtlpSpan:
    """A span that is exported."""

    __slots__ = (
        "_attributes",
        "_kind",
        "_name",
        "_parent",
        "_span",
        "_token",
        "_tokens",
        "_tracing",
    )

    def __init__(
        self, tracing: _Tracing, name: str, kind: str, parent: str | None, attributes: Any
    ) -> None:
        self._tracing = tracing
        self._name = name
        self._kind = kind
        self._parent = parent
        self._attributes = attributes

    def __enter__(self) -> _OtlpSpan:
        tracing, outer = self._tracing, None
        if self._parent:
            outer = tracing.propagator.extract({"traceparent": self._parent})
        self._span = tracing.tracer.start_span(
            self._name, outer, kind=tracing.kinds[self._kind], attributes=self._attributes
        )
        self._token = tracing.context.attach(tracing.trace.set_span_in_context(self._span, outer))
        ids = self._span.get_span_context()
        from structlog.contextvars import bind_contextvars

        self._tokens = bind_contextvars(
            trace_id=f"{ids.trace_id:032x}", span_id=f"{ids.span_id:016x}"
        )
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is not None:
            named = error.code if isinstance(error, EngineroomError) else type(error).__name__
            self._span.set_attribute("error.type", named)
            self._span.set_status(self._tracing.trace.StatusCode.ERROR, named)
        from structlog.contextvars import reset_contextvars

        reset_contextvars(**self._tokens)
        self._tracing.context.detach(self._token)
        self._span.end()

    def note(self, *, name: str | None = None, **attributes: str | int | float | bool) -> None:
        """Set attributes, or rename the span."""
        _note(self._span, name, attributes)


_tracing: _Tracing | None = None


def configured(environment: Mapping[str, str] | None = None) -> bool:
    """Return whether the environment configures an endpoint of traces."""
    variables = os.environ if environment is None else environment
    if variables.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if variables.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower() == "none":
        return False
    return any(variables.get(name, "").strip() for name in ENDPOINTS)


def start(service: str, version: str = "") -> bool:
    """Start to send spans if an endpoint is configured; return whether spans are sent.

    ``service`` is the name of the process; ``OTEL_SERVICE_NAME`` overrides it. Further calls have
    no effect.
    """
    global _tracing
    if _tracing is not None:
        return True
    if not configured():
        return False
    try:
        _tracing = _Tracing(service, version)
    except ImportError:
        log.warning("no traces: OpenTelemetry is not installed; pip install 'engineroom[tracing]'")
        return False
    return True


def stop() -> None:
    """Send the remaining spans and stop."""
    global _tracing
    tracing, _tracing = _tracing, None
    if tracing is not None:
        tracing.stop()


def span(
    name: str,
    *,
    kind: str = "internal",
    parent: str | None = None,
    **attributes: str | int | float | bool,
) -> Span:
    """Return a span for a block, a child of the current span.

    ``kind`` is internal, server, client, producer or consumer; ``parent`` is the W3C
    ``traceparent`` of a remote parent. Attributes must not hold secrets or texts of errors.
    """
    if _tracing is None:
        return OFF
    # Attribute names have dots; a keyword writes a dot as "__".
    dotted = {key.replace("__", "."): value for key, value in attributes.items()}
    return _OtlpSpan(_tracing, name, kind, parent, dotted)


def note(*, name: str | None = None, **attributes: str | int | float | bool) -> None:
    """Set attributes of the current span, or rename it, if there is one."""
    if _tracing is not None:
        _note(_tracing.trace.get_current_span(), name, attributes)


def _note(span_: Any, name: str | None, attributes: Mapping[str, Any]) -> None:
    if name is not None:
        span_.update_name(name)
    for key, value in attributes.items():
        span_.set_attribute(key.replace("__", "."), value)


def foreign() -> dict[str, str]:
    """Return the ids of the application's own current OpenTelemetry span, or an empty dictionary.

    Does not import OpenTelemetry: an application with a span has imported it.
    """
    module = sys.modules.get("opentelemetry.trace")
    if module is None:
        return {}
    with suppress(Exception):
        ids = module.get_current_span().get_span_context()
        if ids.is_valid:
            return {"trace_id": f"{ids.trace_id:032x}", "span_id": f"{ids.span_id:016x}"}
    return {}
