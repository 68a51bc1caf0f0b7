"""Correlation ids that follow a request from HTTP through the queue into the worker.

They appear on every log line. structlog's context variables hold them, one set for each task and
thread::

    with bound(request_id=request_id):
        queue.enqueue(work, meta={**carried()})    # in the application

    with taken(job.meta, job_id=job.id):           # in the worker
        work()

Ids come from outside, so values that are not plain ids are dropped.
"""

from __future__ import annotations

import re
import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from engineroom.core import tracing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping

#: Names of the carried ids, from the request to the job.
IDS: Final = ("request_id", "trace_id", "span_id", "object", "job_id")
#: The key of the ids in a job's meta.
META_KEY: Final = "engineroom_context"

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}", re.ASCII)
# W3C Trace Context, version 00: version, trace id, parent id, flags.
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}", re.ASCII)


def new_id() -> str:
    """Return a request id: 128 random bits as 32 hex digits."""
    return secrets.token_hex(16)


def plain(values: Mapping[str, object]) -> dict[str, str]:
    """Return those of ``values`` that are valid ids: letters, digits and ``._:/@-``."""
    return {
        key: value
        for key in IDS
        if isinstance(value := values.get(key), str) and _PLAIN.fullmatch(value)
    }


@contextmanager
def bound(**ids: str) -> Iterator[None]:
    """Put ids on every log line of the block; raise ValueError for a name not in ``IDS``."""
    unknown = sorted(set(ids) - set(IDS))
    if unknown:
        raise ValueError(f"{unknown[0]} is not a carried id; use one of {', '.join(IDS)}")
    from structlog.contextvars import bound_contextvars

    with bound_contextvars(**plain(ids)):
        yield


def carried() -> dict[str, dict[str, str]]:
    """Return the entries of a job's meta that let its worker log under the same ids."""
    from structlog.contextvars import get_contextvars

    ids = plain(get_contextvars())
    if "trace_id" not in ids:
        ids |= tracing.foreign()
    if not ids:
        return {}
    line = traceparent(ids)
    return {META_KEY: {**ids, "traceparent": line} if line else ids}


def traceparent(ids: Mapping[str, str]) -> str:
    """Return the ids as a W3C ``traceparent``, or "" without a trace."""
    trace, span = ids.get("trace_id"), ids.get("span_id")
    return f"00-{trace}-{span}-01" if trace and span else ""


@contextmanager
def taken(meta: Mapping[str, Any] | None, **ids: str) -> Iterator[None]:
    """Put the ids of a job's meta and ``ids`` on every log line of the block."""
    stored = (meta or {}).get(META_KEY)
    with bound(**{**plain(stored if isinstance(stored, dict) else {}), **ids}):
        yield


def from_headers(request_id: str | None, traceparent: str | None) -> dict[str, str]:
    """Return the ids of a request: its request id or a new one, and its trace, if any.

    ``traceparent`` is parsed as W3C Trace Context; ids of zeros are ignored.
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
    """ASGI middleware that binds each request's ids and adds ``X-Request-Id`` to the response."""

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
        headers = {bytes(name).lower(): bytes(value) for name, value in scope.get("headers", ())}
        ids = from_headers(
            headers.get(b"x-request-id", b"").decode("latin-1"),
            headers.get(b"traceparent", b"").decode("latin-1"),
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
