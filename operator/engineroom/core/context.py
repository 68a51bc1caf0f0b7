"""Ids that follow a request from HTTP through the queue into the worker, for every log line.

They live in structlog's context variables, so each task and thread has its own::

    with bound(request_id=request_id):
        queue.enqueue(work, meta={**carried()})    # in the application

    with taken(job.meta, job_id=job.id):           # in the worker
        work()

Ids come from outside, so what is not a plain id is left out.
"""

from __future__ import annotations

import re
import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from engineroom.core import tracing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping

#: The ids that are carried, in the order of their way.
IDS: Final = ("request_id", "trace_id", "span_id", "object", "job_id")
#: Where they stand in a job's meta.
META_KEY: Final = "engineroom_context"

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}", re.ASCII)
# W3C Trace Context, version 00: version, trace id, parent id, flags.
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}", re.ASCII)


def new_id() -> str:
    """A request id of 128 random bits, 32 hex digits."""
    return secrets.token_hex(16)


def plain(values: Mapping[str, object]) -> dict[str, str]:
    """Those of ``values`` that are known ids with plain text: letters, digits and ``._:/@-``."""
    return {
        key: value
        for key in IDS
        if isinstance(value := values.get(key), str) and _PLAIN.fullmatch(value)
    }


@contextmanager
def bound(**ids: str) -> Iterator[None]:
    """Put ids on every log line of the block; raises ValueError for a name not in ``IDS``."""
    unknown = sorted(set(ids) - set(IDS))
    if unknown:
        raise ValueError(f"{unknown[0]} is no id that is carried; write one of {', '.join(IDS)}")
    from structlog.contextvars import bound_contextvars

    with bound_contextvars(**plain(ids)):
        yield


def carried() -> dict[str, dict[str, str]]:
    """What to put into a job's meta so that its worker logs under the same ids."""
    from structlog.contextvars import get_contextvars

    ids = plain(get_contextvars())
    if "trace_id" not in ids:
        ids |= tracing.foreign()
    if not ids:
        return {}
    line = traceparent(ids)
    return {META_KEY: {**ids, "traceparent": line} if line else ids}


def traceparent(ids: Mapping[str, str]) -> str:
    """The ids as W3C Trace Context has them, for whoever goes on with the trace; "" without."""
    trace, span = ids.get("trace_id"), ids.get("span_id")
    return f"00-{trace}-{span}-01" if trace and span else ""


@contextmanager
def taken(meta: Mapping[str, Any] | None, **ids: str) -> Iterator[None]:
    """The ids of a job's meta and ``ids`` on every log line of the block."""
    found = (meta or {}).get(META_KEY)
    with bound(**{**plain(found if isinstance(found, dict) else {}), **ids}):
        yield


def from_headers(request_id: str | None, traceparent: str | None) -> dict[str, str]:
    """Ids of a request: its own or a new request id, and the trace it belongs to, if any.

    ``traceparent`` is read as W3C Trace Context; ids of zeros are none.
    """
    ids = plain({"request_id": request_id or ""})
    ids.setdefault("request_id", new_id())
    match = _TRACEPARENT.fullmatch((traceparent or "").strip())
    if match and not match[0].startswith("ff"):  # a version that the standard forbids
        trace, span = match.groups()
        if trace.strip("0") and span.strip("0"):
            ids |= {"trace_id": trace, "span_id": span}
    return ids


class RequestContext:
    """ASGI middleware: the ids of each request on its log lines, ``X-Request-Id`` on its answer."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        """Serve one connection."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        given = {bytes(name).lower(): bytes(value) for name, value in scope.get("headers", ())}
        ids = from_headers(
            given.get(b"x-request-id", b"").decode("latin-1"),
            given.get(b"traceparent", b"").decode("latin-1"),
        )

        async def answer(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                span.note(http__response__status_code=message["status"])
                header = (b"x-request-id", ids["request_id"].encode())
                message = {**message, "headers": [*message.get("headers", ()), header]}
            await send(message)

        method = str(scope.get("method", "GET"))[:20]
        with (
            bound(**ids),
            tracing.span(
                method, kind="server", parent=traceparent(ids), http__request__method=method
            ) as span,
        ):
            await self._app(scope, receive, answer)
