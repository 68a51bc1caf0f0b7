"""Spans of what happens, sent by OTLP over HTTP where an endpoint is configured; else nothing.

``start`` looks at OpenTelemetry's own variables, ``OTEL_EXPORTER_OTLP_ENDPOINT`` first of all, and
imports its SDK (``engineroom[tracing]``) only where one is set. Until then a span is one shared
object that does nothing, so that it costs next to nothing to write one::

    with span("charge", account=account):
        ...

The ids of a span stand on each log line of its block, and in the meta of what is enqueued there. A
span never carries the text of an error, which may be anybody's: its code, or its class.
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

#: Any of these says where spans go.
ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
#: Seconds that the last spans get at the end.
FLUSH: Final = 3.0

log = logging.getLogger(__name__)


class Span(Protocol):
    """A block of time that has a name."""

    def __enter__(self) -> Span:
        """Begin it."""
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it; an exception marks it as failed and passes."""
        ...

    def note(self, *, name: str | None = None, **attributes: str | int | float | bool) -> None:
        """Say more of it, or call it otherwise."""
        ...


class _Off:
    """What a span is where nobody looks."""

    __slots__ = ()

    def __enter__(self) -> _Off:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def note(self, *, name: str | None = None, **attributes: str | int | float | bool) -> None:
        """Nothing."""


OFF: Final = _Off()


class _Tracing:
    """OpenTelemetry, once it is imported."""

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
        said = {SERVICE_VERSION: version}
        if not os.environ.get("OTEL_SERVICE_NAME"):
            said[SERVICE_NAME] = service
        # A provider of our own: the application's global one, if it has one, stays its business.
        self.provider = TracerProvider(resource=Resource.create(said), shutdown_on_exit=False)
        self.provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self.tracer = self.provider.get_tracer("engineroom", version)
        self.kinds = {kind.name.lower(): kind for kind in trace.SpanKind}

    def stop(self) -> None:
        """Send what is left, for FLUSH seconds at most."""
        self.provider.force_flush(round(FLUSH * 1000))
        self.provider.shutdown()


class _On:
    """A span that is sent."""

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

    def __enter__(self) -> _On:
        tracing, outer = self._tracing, None
        if self._parent:
            outer = tracing.propagator.extract({"traceparent": self._parent})
        self._span = tracing.tracer.start_span(
            self._name, outer, kind=tracing.kinds[self._kind], attributes=self._attributes
        )
        self._token = tracing.context.attach(tracing.trace.set_span_in_context(self._span, outer))
        told = self._span.get_span_context()
        from structlog.contextvars import bind_contextvars

        self._tokens = bind_contextvars(
            trace_id=f"{told.trace_id:032x}", span_id=f"{told.span_id:016x}"
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
        """See Span."""
        _note(self._span, name, attributes)


_tracing: _Tracing | None = None


def configured(environment: Mapping[str, str] | None = None) -> bool:
    """Whether the environment says where spans go."""
    said = os.environ if environment is None else environment
    if said.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if said.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower() == "none":
        return False
    return any(said.get(name, "").strip() for name in ENDPOINTS)


def start(service: str, version: str = "") -> bool:
    """Send spans from now on, if that is configured; whether they are sent.

    ``service`` is the name of the process, which ``OTEL_SERVICE_NAME`` overrules. Called again it
    changes nothing.
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
    """Send what is left and no more."""
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
    """A span for the length of a block, within the one that is under way.

    ``kind`` is internal, server, client, producer or consumer; ``parent`` is a W3C ``traceparent``
    from elsewhere. Attributes are for whoever looks at traces: no secrets, and no texts of errors.
    """
    if _tracing is None:
        return OFF
    # Names of attributes have dots, which keywords have not.
    said = {key.replace("__", "."): value for key, value in attributes.items()}
    return _On(_tracing, name, kind, parent, said)


def note(*, name: str | None = None, **attributes: str | int | float | bool) -> None:
    """Say more of the span that is under way, if there is one."""
    if _tracing is not None:
        _note(_tracing.trace.get_current_span(), name, attributes)


def _note(span_: Any, name: str | None, attributes: Mapping[str, Any]) -> None:
    if name is not None:
        span_.update_name(name)
    for key, value in attributes.items():
        span_.set_attribute(key.replace("__", "."), value)


def foreign() -> dict[str, str]:
    """The ids of a span that the application made by OpenTelemetry itself; empty without one.

    Never imports it: who has made a span has.
    """
    module = sys.modules.get("opentelemetry.trace")
    if module is None:
        return {}
    with suppress(Exception):
        told = module.get_current_span().get_span_context()
        if told.is_valid:
            return {"trace_id": f"{told.trace_id:032x}", "span_id": f"{told.span_id:016x}"}
    return {}
