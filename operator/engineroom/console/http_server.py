"""The HTTP server of the API: uvicorn's, with limits on connections, heads and slow bodies.

A connection has a time limit for the head of a request, also for the next one and for the handshake
of TLS, and a body must make progress. Responses have no limit of time: event streams stay open.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from engineroom.console.rest.errors import SlowHeadError
from engineroom.core.error_responses import problem_document
from engineroom.core.logging import get_logger
from engineroom.core.serving.connection_budget import ConnectionBudget, Refusal, address_of
from engineroom.core.validation.requests import HeadersTooLargeError, SlowBodyError

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable

    from uvicorn.config import Config
    from uvicorn.server import ServerState

    from engineroom.core.errors import EngineroomError

log = get_logger(__name__)

#: Most bytes of a request line with its headers, and most requests that wait on one connection.
MAX_HEAD, MAX_PIPELINED = 32 * 1024, 16
#: Bytes that are parsed at once.
SLICE = 4096
#: Seconds over which the progress of a body is measured.
BODY_WINDOW = 5.0
#: Seconds in which a closed connection's last response must be taken.
CLOSE_TIMEOUT = 30.0
#: Seconds for which the rest of a refused request is read and dropped.
LINGER = 1.0
#: Seconds between two checks of all connections for timeouts.
SWEEP_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class ConnectionTimeouts:
    """Seconds for the head of a request, and bytes per second that a body must bring."""

    head: float = 10.0
    body_rate: int = 1024


class ConnectionGuard:
    """The connections of one server, with their budget and their timeouts."""

    def __init__(self, budget: ConnectionBudget, timeouts: ConnectionTimeouts) -> None:
        self.budget = budget
        self.timeouts = timeouts

    async def run(self) -> None:
        """Check all connections for timeouts, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = loop.time()
            for connection in self.budget.connections:
                if isinstance(connection, GuardedConnection):
                    try:
                        connection.sweep(now)
                    except Exception:
                        # The timeouts of all other connections must go on.
                        log.exception("a connection could not be checked")
                        connection.abort()


class GuardedConnection(HttpToolsProtocol):
    """One connection to the API."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        guard: ConnectionGuard,
    ) -> None:
        super().__init__(config, server_state, app_state)
        self._guard = guard
        # Start of waiting for a request's head; of the current window of a body, with its bytes; of
        # closing (monotonic seconds). None: not the case.
        self._head_since: float | None = None
        self._body_since: float | None = None
        self._closing_since: float | None = None
        self._body_bytes = self._head_bytes = 0
        self._in_head = self._refused = False

    # -- asyncio.Protocol ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept the connection, unless there are too many."""
        super().connection_made(transport)
        self._head_since = self.loop.time()
        peer = transport.get_extra_info("peername")
        if not self._guard.budget.admit(self, address_of(peer)):
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._guard.budget.release(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse slice by slice: each tiny request in it costs memory."""
        for position in range(0, len(data), SLICE):
            if self._is_over:
                return
            part = data[position : position + SLICE]
            super().data_received(part)
            if self._in_head:
                self._head_bytes += len(part)
                if self._head_bytes > MAX_HEAD:
                    problem = f"the head has over {MAX_HEAD} bytes; send less"
                    self._refuse(HeadersTooLargeError(problem))
        idle = self.cycle is None or self.cycle.response_complete
        # Without a request: line ends between two, which stop the timeout of an idle connection.
        waits = self._in_head or (idle and self._body_since is None)
        if waits and self._head_since is None and self.timeout_keep_alive_task is None:
            self._head_since = self.loop.time()

    # -- HttpRequestParser -----------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        """Begin the body."""
        if self._is_over:
            return
        super().on_headers_complete()
        self._in_head, self._head_since = False, None
        self._body_since, self._body_bytes = self.loop.time(), 0
        if len(self.pipeline) > MAX_PIPELINED:
            self.abort()

    def on_body(self, body: bytes) -> None:
        """Append a part of the body."""
        self._body_bytes += len(body)
        if not self._is_over:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """End the request."""
        self._body_since = None
        if not self._is_over:
            super().on_message_complete()
            self._guard.budget.record_request(self)

    # -- limits ----------------------------------------------------------------------------------

    def abort(self) -> None:
        """Close now."""
        self.transport.abort()

    def sweep(self, now: float) -> None:
        """Refuse a request that is too slow, at ``now`` (monotonic seconds)."""
        if self._is_over:
            self._closing_since = self._closing_since or now
            if now - self._closing_since > CLOSE_TIMEOUT:
                self.abort()
        elif self.flow.read_paused or (self.cycle and self.cycle.waiting_for_100_continue):
            # The application is slow, not the client.
            self._head_since = now if self._head_since is not None else None
            self._body_since = now if self._body_since is not None else None
            self._body_bytes = 0
        elif self._head_since is not None:
            if now - self._head_since > self._guard.timeouts.head:
                seconds = self._guard.timeouts.head
                self._refuse_slow(SlowHeadError(f"the head took over {seconds:g} s"))
        elif self._body_since is not None:
            self._check_progress(now, self._body_since)

    def _check_progress(self, now: float, since: float) -> None:
        if now - since < BODY_WINDOW:
            return
        rate = self._guard.timeouts.body_rate
        if self._body_bytes < rate * (now - since):
            self._refuse_slow(SlowBodyError(f"the body brought under {rate} bytes per second"))
        self._body_since, self._body_bytes = now, 0

    def _refuse_slow(self, error: EngineroomError) -> None:
        self._guard.budget.refusals[Refusal.TIMEOUT] += 1
        self._refuse(error)

    @property
    def _is_over(self) -> bool:
        """True if no further request is read."""
        return self._refused or self.transport.is_closing()

    def _refuse(self, error: EngineroomError) -> None:
        """Close, with a response if a request has begun and no other response is due."""
        cycle = self.cycle
        idle = cycle is None or cycle.response_complete
        answers = idle and (self._in_head or self._body_since is not None)
        if not idle and not self._in_head and not cycle.response_started:
            # The application gets a disconnect, and the client this response.
            cycle.disconnected = answers = True
            cycle.message_event.set()
        if answers:
            self.transport.write(_response(error))
        if not answers or not self.transport.can_write_eof():
            self.transport.close()
            return
        # With unread data the kernel would reset the connection, and the response would be lost:
        # the rest of the request is read and dropped for a moment.
        self._refused = True
        self.flow.resume_reading()
        self.transport.write_eof()
        self.loop.call_later(LINGER, self.abort)


def _response(error: EngineroomError) -> bytes:
    document = problem_document(error)
    body = json.dumps(document.body).encode()
    headers = {**document.headers, "Content-Length": str(len(body)), "Connection": "close"}
    lines = [f"HTTP/1.1 {document.status} -", *(f"{name}: {headers[name]}" for name in headers)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


class TlsAcceptor(asyncio.Protocol):
    """A connection during the handshake of TLS; afterwards ``connection`` has the transport.

    uvicorn's own handshake has no limit of connections.
    """

    def __init__(
        self, connection: GuardedConnection, guard: ConnectionGuard, context: ssl.SSLContext
    ) -> None:
        self._connection = connection
        self._guard = guard
        self._context = context
        self._transport: asyncio.Transport | None = None
        self._handshake: asyncio.Task[None] | None = None
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the handshake, unless there are too many connections."""
        if self._transport is not None:
            return
        self._transport = cast("asyncio.Transport", transport)
        if not self._guard.budget.admit(self, address_of(transport.get_extra_info("peername"))):
            self.abort()
            return
        self._transport.pause_reading()
        self._handshake = asyncio.get_running_loop().create_task(self._start(self._transport))

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._guard.budget.release(self)

    def data_received(self, data: bytes) -> None:
        """Keep a request that arrives with the end of the handshake."""
        self._early.append(data)

    def abort(self) -> None:
        """Close now."""
        if self._transport is not None:
            self._transport.abort()

    async def _start(self, transport: asyncio.Transport) -> None:
        loop = asyncio.get_running_loop()
        try:
            encrypted = await loop.start_tls(
                transport, self, self._context, server_side=True,
                ssl_handshake_timeout=self._guard.timeouts.head,
                ssl_shutdown_timeout=self._guard.timeouts.head,
            )  # fmt: skip
        except OSError:
            encrypted = None
        self._guard.budget.release(self)
        if encrypted is None or encrypted.is_closing():
            transport.abort()
            return
        encrypted.set_protocol(self._connection)
        self._connection.connection_made(encrypted)
        if self._early and not encrypted.is_closing():
            self._connection.data_received(b"".join(self._early))


def protocol_factory(
    guard: ConnectionGuard, context: ssl.SSLContext | None
) -> Callable[..., asyncio.Protocol]:
    """Return what uvicorn calls for each connection."""

    def create(
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> asyncio.Protocol:
        connection = GuardedConnection(config, server_state, app_state, guard)
        return connection if context is None else TlsAcceptor(connection, guard, context)

    return create


class ApiServer(uvicorn.Server):
    """uvicorn's server, which also checks its connections for timeouts."""

    def __init__(self, config: Config, guard: ConnectionGuard) -> None:
        super().__init__(config)
        self.guard = guard
        self._sweeper: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and begin to check connections."""
        self._sweeper = asyncio.get_running_loop().create_task(self.guard.run())
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish the requests, and stop."""
        await super().shutdown(sockets)
        if self._sweeper is not None:
            self._sweeper.cancel()
