"""Envoy's rate limit service over gRPC, as an asyncio protocol over libnghttp2.

Python's stock gRPC answers a few thousand calls a second without doing anything; the library h2 is
written in Python and takes longer for a call's frames than all the rest takes. ngh2 wraps the C
library that curl and h2load use, which also guards against floods of resets, settings, pings and
continuations. Only what a unary call needs of gRPC is here. See
docs/decisions/0013-the-limiters-protocols.md.

https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
"""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import structlog
from ngh2 import Configuration, Connection, NGH2Error, Role, Setting
from ngh2.events import (
    ConnectionClosed,
    DataReceived,
    RequestReceived,
    SettingsReceived,
    StreamClosed,
    StreamReset,
    TrailersReceived,
)

from engineroom.ratelimit.service import rls
from engineroom.ratelimit.service.engine import Missing
from engineroom.ratelimit.service.request_parsing import UnreadableError

if TYPE_CHECKING:
    from engineroom.ratelimit.service.engine import Engine
    from engineroom.ratelimit.service.metrics import Counts

log = structlog.get_logger(__name__)

#: Bytes of a message, calls of one connection under way, and connections.
MAX_MESSAGE, MAX_CALLS, MAX_CONNECTIONS = 65_536, 1024, 10_000
#: Bytes of one connection's calls that have not arrived whole; nearly all are one frame.
MAX_HELD = 1_048_576
#: Seconds for a connection's greeting and for a call to arrive whole, and for answers to be taken.
READ_TIMEOUT, WRITE_TIMEOUT = 5.0, 5.0
#: Seconds from a call's beginning to its end, of which Redis may have ten, and without any call.
CALL_TIMEOUT, IDLE_TIMEOUT = 20.0, 75.0
#: gRPC's status codes.
OK, INVALID_ARGUMENT, NOT_FOUND, RESOURCE_EXHAUSTED = 0, 3, 5, 8
UNIMPLEMENTED, INTERNAL, UNAVAILABLE = 12, 13, 14
_METHOD = b"/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"
_HEALTH = b"/grpc.health.v1.Health/Check"
_HEADERS = ((b":status", b"200"), (b"content-type", b"application/grpc"))
_OK_TRAILERS = ((b"grpc-status", b"0"),)
_PREFIX = struct.Struct(">BI")
_MISSING = {
    Missing.UNKNOWN: (NOT_FOUND, "there is no such policy"),
    Missing.UNREAD: (UNAVAILABLE, "the policies were not read yet"),
}
_SWEEP = 1.0
#: A connection's memory: a header list, MAX_HELD, and the heads of calls that may be under way.
_CONFIGURATION = Configuration(max_inbound_header_list_size=16_384, max_inbound_header_count=64)


class GrpcService:
    """Makes connections, and knows them."""

    def __init__(self, engine: Engine, counts: Counts) -> None:
        self.engine = engine
        self.counts = counts
        self.connections: set[GrpcConnection] = set()
        self.draining = False
        self._empty = asyncio.Event()
        self._sweeper: asyncio.Task[None] | None = None

    def connection(self) -> GrpcConnection:
        """For create_server."""
        return GrpcConnection(self)

    def gone(self, connection: GrpcConnection) -> None:
        """A connection is closed."""
        self.connections.discard(connection)
        if self.draining and not self.connections:
            self._empty.set()

    def start(self) -> None:
        """Begin to look after slow connections."""
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep())

    async def drain(self, seconds: float) -> None:
        """Say goodbye, answer what was asked, close; at most so long."""
        self.draining = True
        for each in list(self.connections):
            each.say_goodbye()
        try:
            async with asyncio.timeout(seconds):
                if self.connections:
                    await self._empty.wait()
        except TimeoutError:
            for each in list(self.connections):
                each.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_SWEEP)
            now = loop.time()
            for each in list(self.connections):
                each.sweep(now)


class _Call:
    """A call under way."""

    __slots__ = ("answering", "body", "method", "part", "since")

    def __init__(self, method: bytes, since: float) -> None:
        self.method = method
        self.since = since
        self.body = b""
        #: Of a body in several frames what is here.
        self.part: bytearray | None = None
        self.answering = False


class GrpcConnection(asyncio.Protocol):
    """One connection."""

    __slots__ = (
        "_calls", "_flushing", "_goodbye", "_greeted", "_held", "_leaving", "_loop", "_service",
        "_session", "_stuck", "_transport", "_used",
    )  # fmt: skip

    def __init__(self, service: GrpcService) -> None:
        self._service = service
        self._loop = asyncio.get_running_loop()
        self._session = Connection(Role.SERVER, _CONFIGURATION)
        self._calls: dict[int, _Call] = {}
        self._transport: Any = None
        self._flushing = False
        self._goodbye = self._greeted = self._leaving = False
        self._held = 0
        # Monotonic seconds: since when answers are not taken (0: they are), and the last call.
        self._stuck = 0.0
        self._used = self._loop.time()

    # -- asyncio's ------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Somebody connected."""
        self._transport = transport
        known = self._service.connections
        if self._service.draining or len(known) >= MAX_CONNECTIONS:
            self.abort()
            return
        known.add(self)
        self._session.initiate_connection(
            {Setting.MAX_CONCURRENT_STREAMS: MAX_CALLS, Setting.INITIAL_WINDOW_SIZE: MAX_MESSAGE}
        )
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        """Gone; answers still to come go nowhere."""
        self._calls.clear()
        self._service.gone(self)

    def data_received(self, data: bytes) -> None:
        """Some bytes of frames."""
        session = self._session
        try:
            session.receive_data(data)
        except NGH2Error:
            # What it has to say about that is in its output.
            self._flush()
            self._transport.close()
            return
        for event in session.events():
            self._happened(event)
        self._flush_soon()

    def pause_writing(self) -> None:
        """The other side does not take its answers."""
        self._stuck = self._loop.time()
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """It does again."""
        self._stuck = 0.0
        if not self._transport.is_closing():
            self._transport.resume_reading()

    # -- HTTP/2 ---------------------------------------------------------------------------------

    def _happened(self, event: Any) -> None:
        kind = type(event)
        if kind is DataReceived:
            self._data(event.stream_id, event.data, ended=event.end_stream)
        elif kind is RequestReceived:
            self._request(event.stream_id, event.headers, ended=event.end_stream)
        elif kind is StreamClosed or kind is StreamReset:
            self._forget(event.stream_id)
            if self._goodbye and not self._calls:
                self._flush()
                self._transport.close()
        elif kind is TrailersReceived:
            self._data(event.stream_id, b"", ended=True)
        elif kind is SettingsReceived:
            self._greeted = True
        elif kind is ConnectionClosed:
            self._flush()
            self._transport.close()

    def _request(self, stream: int, headers: Any, *, ended: bool) -> None:
        method = kind = b""
        verb = b""
        for name, value, *_ in headers:
            if name == b":path":
                method = bytes(value)
            elif name == b":method":
                verb = bytes(value)
            elif name == b"content-type":
                kind = bytes(value)
        self._used = self._loop.time()
        call = self._calls[stream] = _Call(method, self._used)
        if verb != b"POST" or not kind.startswith(b"application/grpc"):
            self._refuse_http(stream, call)
        elif ended:
            self._ask(stream, call)

    def _data(self, stream: int, data: bytes, *, ended: bool) -> None:
        call = self._calls.get(stream)
        if call is None or call.answering:
            return
        if ended and call.part is None:
            call.body = data
            size = len(data)
        else:
            if call.part is None:
                call.part = bytearray()
            call.part += data
            self._held += len(data)
            size = len(call.part)
        if size > MAX_MESSAGE + _PREFIX.size:
            self._fail(stream, RESOURCE_EXHAUSTED, f"the message is above {MAX_MESSAGE} bytes")
        elif self._held > MAX_HELD:
            told = f"the connection's unfinished calls are above {MAX_HELD} bytes"
            self._fail(stream, RESOURCE_EXHAUSTED, told)
        elif ended:
            if call.part is not None:
                call.body = bytes(call.part)
                self._release(call)
            self._ask(stream, call)

    def _release(self, call: _Call) -> None:
        if call.part is not None:
            self._held -= len(call.part)
            call.part = None

    def _forget(self, stream: int) -> None:
        call = self._calls.pop(stream, None)
        if call is not None:
            self._release(call)

    # -- questions and answers ------------------------------------------------------------------

    def _ask(self, stream: int, call: _Call) -> None:
        body = call.body
        if call.method != _METHOD:
            if call.method == _HEALTH:
                # grpc.health.v1.HealthCheckResponse, status SERVING.
                self._answer(stream, b"\x08\x01")
            else:
                self._fail(stream, UNIMPLEMENTED, "there is ShouldRateLimit only")
            return
        if len(body) < _PREFIX.size:
            self._fail(stream, INVALID_ARGUMENT, "the message is missing")
            return
        compressed, length = _PREFIX.unpack_from(body)
        if compressed:
            self._fail(stream, UNIMPLEMENTED, "compressed messages are not read")
            return
        if len(body) != _PREFIX.size + length:
            self._fail(stream, INVALID_ARGUMENT, "the message is cut off")
            return
        call.answering = True
        try:
            questions = rls.of_message(body[_PREFIX.size :])
        except UnreadableError as error:
            self._fail(stream, INVALID_ARGUMENT, str(error))
            return

        def rated(found: rls.Rated) -> None:
            if found.missing is not None:
                self._fail(stream, *_MISSING[found.missing])
            else:
                self._answer(stream, found.encoded())

        rls.rate(self._service.engine, questions, rated)

    def _answer(self, stream: int, message: bytes) -> None:
        self._service.counts.answered("rls", OK)
        if stream not in self._calls:
            return
        session = self._session
        try:
            session.send_response(stream, _HEADERS)
            session.send_data(stream, _PREFIX.pack(0, len(message)) + message)
            session.send_trailers(stream, _OK_TRAILERS)
        except NGH2Error as error:
            log.debug("an answer was not sent", error=str(error))
            return
        self._calls[stream].answering = True
        self._flush_soon()

    def _fail(self, stream: int, status: int, detail: str) -> None:
        self._service.counts.answered("rls", status)
        call = self._calls.get(stream)
        if call is None:
            return
        call.answering = True
        self._release(call)
        headers = (
            *_HEADERS,
            (b"grpc-status", str(status).encode()),
            (b"grpc-message", quote(detail, safe=" ,.;:/'").encode()),
        )
        self._respond(stream, headers)

    def _refuse_http(self, stream: int, call: _Call) -> None:
        """What is no call of gRPC at all."""
        call.answering = True
        self._respond(stream, ((b":status", b"415"),))

    def _respond(self, stream: int, headers: tuple[tuple[bytes, bytes], ...]) -> None:
        try:
            self._session.send_response(stream, headers, end_stream=True)
        except NGH2Error as error:
            log.debug("an answer was not sent", error=str(error))
            return
        self._flush_soon()

    def _flush_soon(self) -> None:
        """Send once for everything that is answered in this turn of the loop."""
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._transport.is_closing():
            return
        data = self._session.data_to_send()
        if data:
            self._transport.write(data)
        # Streams end when their last frame is out, which is told as events.
        for event in self._session.events():
            self._happened(event)

    # -- the end --------------------------------------------------------------------------------

    def say_goodbye(self) -> None:
        """No new calls; close after the last answer."""
        if self._goodbye:
            return
        self._goodbye = True
        self._session.send_goaway()
        self._flush()
        if not self._calls:
            self._transport.close()

    def abort(self) -> None:
        """Close now."""
        self._calls.clear()
        self._transport.abort()

    def sweep(self, now: float) -> None:
        """End calls that do not arrive or whose answers are not taken, and a connection that says
        nothing or takes nothing."""
        silent = not self._greeted and now - self._used > READ_TIMEOUT
        if silent or (self._stuck and now - self._stuck > WRITE_TIMEOUT):
            self.abort()
            return
        for stream, call in list(self._calls.items()):
            if now - call.since > (CALL_TIMEOUT if call.answering else READ_TIMEOUT):
                self._forget(stream)
                self._session.reset_stream(stream)
                self._flush_soon()
        if not self._calls and not self._goodbye and now - self._used > IDLE_TIMEOUT:
            if self._leaving:
                self.say_goodbye()
                return
            # A call may be on its way: first only a word that there should be no more of them.
            self._leaving = True
            self._session.send_shutdown_notice()
            self._flush_soon()
