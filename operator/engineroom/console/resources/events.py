"""Live events of a namespace, as server-sent events.

A stream carries the changes of every kind that the caller may watch. It holds a bounded number of
undelivered events; a client that reads too slowly has to read the lists again.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from starlette.responses import StreamingResponse

from engineroom.auth.kubernetes import ResourceAttributes
from engineroom.auth.permissions import Permission
from engineroom.console.rest.routing import BASE, Call, Route
from engineroom.core.errors import EngineroomError, PermissionDeniedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from engineroom.auth.permissions import Principal
    from engineroom.console.background.event_hub import EventStream, WatchedKind

#: Seconds between two heartbeats. Each heartbeat checks the caller's rights again.
HEARTBEAT = 5.0
#: Characters of the header Last-Event-ID that are read.
_MAX_ID = 1_024


async def stream_events(call: Call) -> StreamingResponse:
    """Stream the namespace's events while the caller has the right to them."""
    last = call.request.headers.get("last-event-id", "")[:_MAX_ID]
    kinds = await _watchable(call, call.principal)
    exits = contextlib.ExitStack()
    # Before the response begins, so that too many streams are an ordinary error.
    opened = call.services.hub.opened(call.principal.subject, call.namespace, kinds, last)
    stream, missed = exits.enter_context(opened)
    lines = _lines(stream, missed=missed, check=lambda: _check(call), every=HEARTBEAT)
    return _EventResponse(exits, lines)


class _EventResponse(StreamingResponse):
    """Closes the stream however the response ends."""

    def __init__(self, exits: contextlib.ExitStack, lines: AsyncIterator[bytes]) -> None:
        # Tells proxies to pass on each event immediately.
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(lines, media_type="text/event-stream", headers=headers)
        self._exits = exits

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        with self._exits:
            await super().__call__(scope, receive, send)


async def _lines(
    stream: EventStream,
    *,
    missed: bool,
    check: Callable[[], Awaitable[frozenset[str] | None]],
    every: float,
) -> AsyncIterator[bytes]:
    """Yield the stream's text; ``check`` returns the kinds that the caller may watch now."""
    loop = asyncio.get_running_loop()
    # After `reset` the client reads the lists; the events that follow are newer.
    yield b"retry: 1000\nevent: reset\ndata: {}\n\n" if missed else b"retry: 1000\n\n"
    due = loop.time() + every
    while not stream.lost:
        event = await stream.next(max(0.0, due - loop.time()))
        if loop.time() >= due:
            # Also while events follow each other without a pause.
            kinds = await check()
            if kinds is None:
                yield b"event: end\ndata: {}\n\n"
                return
            stream.kinds &= kinds
            yield b": alive\n\n"
            due = loop.time() + every
        if event is not None:
            yield event
    yield b"event: lost\ndata: {}\n\n"


async def _check(call: Call) -> frozenset[str] | None:
    """Return the kinds that the caller may watch now; None if the stream has to end."""
    try:
        principal, _ = await call.services.authenticate_again(call.request.scope)
        if principal is None or principal.subject != call.principal.subject:
            return None
        await call.services.authorizer.require(
            principal, Permission.NAMESPACE_EVENTS_READ, call.namespace
        )
        return await _watchable(call, principal)
    except EngineroomError:
        return None


async def _watchable(call: Call, principal: Principal) -> frozenset[str]:
    """Return the kinds whose events the principal may see in the namespace."""
    watched = call.services.hub.watched
    allowed = await asyncio.gather(*(_may_watch(call, principal, kind) for kind in watched))
    return frozenset(kind.event for kind, may in zip(watched, allowed, strict=True) if may)


async def _may_watch(call: Call, principal: Principal, kind: WatchedKind) -> bool:
    authorizer, resource = call.services.authorizer, kind.resource
    wanted = ResourceAttributes("watch", resource.plural, group=resource.group)
    try:
        await authorizer.require(principal, kind.permission, call.namespace)
        await authorizer.require_object(principal, wanted, call.namespace)
    except PermissionDeniedError:
        return False
    return True


ROUTES = (
    Route(
        method="GET", path=f"{BASE}/namespaces/{{namespace}}/events",
        needs=Permission.NAMESPACE_EVENTS_READ, handler=stream_events,
        summary="Changes of objects, as server-sent events", tag="events",
        media="text/event-stream",
    ),
)  # fmt: skip
