"""Envoy's rate limit service over gRPC, as an asyncio protocol over libnghttp2.

Python's stock gRPC handles a few thousand empty calls per second. The library h2 is written in
Python and takes longer for a call's frames than the rest of the call. ngh2 wraps the C library of
curl and h2load, which also guards against floods of resets, settings, pings and continuations. The
module supports unary calls only. See
docs/decisions/0013-the-limiters-protocols.md.

https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
"""

from __future__ import annotations

import asyncio
import struct
from typing import Any
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

from engineroom.core.serving.connection_budget import Refusal, address_of
from engineroom.ratelimit.service import rls
from engineroom.ratelimit.service.engine import MissingPolicy
from engineroom.ratelimit.service.frames import FrameReader
from engineroom.ratelimit.service.protocol_server import FREE_BYTES, SLICE, ProtocolServer
from engineroom.ratelimit.service.request_parsing import UnreadableRequestError

log = structlog.get_logger(__name__)

#: Most bytes of a message, and most calls of one connection at the same time.
MAX_MESSAGE, MAX_CALLS = 65_536, 1024
#: Most bytes of one connection's calls, from the first byte to the last of the response.
MAX_HELD = 1_048_576
#: Memory of a call besides its bytes.
_CALL_BYTES = 256
#: Timeouts in seconds: of writing responses, and of a whole call, up to ten of them for Redis.
WRITE_TIMEOUT, CALL_TIMEOUT = 5.0, 20.0
#: gRPC's status codes.
OK, INVALID_ARGUMENT, NOT_FOUND, RESOURCE_EXHAUSTED = 0, 3, 5, 8
UNIMPLEMENTED, INTERNAL, UNAVAILABLE = 12, 13, 14
_METHOD = b"/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"
_HEALTH = b"/grpc.health.v1.Health/Check"
#: The supported methods. A call refers to one of these objects: the path that it sent can be long,
#: and takes a client one byte to repeat.
_METHODS = {_METHOD: _METHOD, _HEALTH: _HEALTH}
_HEADERS = ((b":status", b"200"), (b"content-type", b"application/grpc"))
_OK_TRAILERS = ((b"grpc-status", b"0"),)
_PREFIX = struct.Struct(">BI")
_MISSING = {
    MissingPolicy.UNKNOWN: (NOT_FOUND, "the policy does not exist"),
    MissingPolicy.UNREAD: (UNAVAILABLE, "the policies were not read yet"),
}
#: A connection's memory: a header list, MAX_HELD, and the headers of concurrent calls.
_CONFIGURATION = Configuration(max_inbound_header_list_size=16_384, max_inbound_header_count=64)


class GrpcService(ProtocolServer["GrpcConnection"]):
    """The gRPC server of the service."""

    def connection(self) -> GrpcConnection:
        """Create a connection, for create_server."""
        return GrpcConnection(self)


class _Call:
    """A call without a complete response."""

    __slots__ = ("held", "method", "part", "responding", "since")

    def __init__(self, method: bytes | None, since: float) -> None:
        #: The method; None if it is not supported.
        self.method = method
        self.since = since
        #: The bytes of the request, or of its response.
        self.held = 0
        #: The received part of a body in several frames.
        self.part: bytearray | None = None
        self.responding = False


class GrpcConnection(asyncio.Protocol):
    """One connection."""

    __slots__ = (
        "_budget", "_calls", "_counted", "_ended", "_flushing", "_frames", "_goodbye", "_greeted",
        "_held", "_leaving", "_loop", "_partial", "_service", "_session", "_stuck", "_transport",
        "_used",
    )  # fmt: skip

    def __init__(self, service: GrpcService) -> None:
        self._service = service
        self._loop = asyncio.get_running_loop()
        self._session = Connection(Role.SERVER, _CONFIGURATION)
        self._frames = FrameReader()
        self._calls: dict[int, _Call] = {}
        self._transport: Any = None
        self._flushing = False
        self._goodbye = self._greeted = self._leaving = False
        self._budget = service.budget
        # Bytes of the calls, and the number of them that the budget holds.
        self._held = self._counted = 0
        # Start of a partial frame, of a blocked write and of closing, or 0, and the time of the
        # last call (monotonic seconds).
        self._partial = self._stuck = self._ended = 0.0
        self._used = self._loop.time()

    # -- asyncio.Protocol -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept the connection, unless there are too many."""
        self._transport = transport
        peer = transport.get_extra_info("peername")
        if self._service.draining or not self._budget.admit(self, address_of(peer)):
            self.abort()
            return
        self._service.connections.add(self)
        self._session.initiate_connection(
            {Setting.MAX_CONCURRENT_STREAMS: MAX_CALLS, Setting.INITIAL_WINDOW_SIZE: MAX_MESSAGE}
        )
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        """Remove the connection; later responses are dropped."""
        self._calls.clear()
        self._service.remove(self)

    def data_received(self, data: bytes) -> None:
        """Process frames."""
        if len(data) <= SLICE:
            self._receive(data)
        else:
            # The headers of all calls in a slice are in memory at once, and may be long.
            for position in range(0, len(data), SLICE):
                if self._transport.is_closing():
                    return
                self._receive(data[position : position + SLICE])
        self._flush_soon()
        if self._counted or self._held + len(self._calls) * _CALL_BYTES > FREE_BYTES:
            self._account()

    def _receive(self, data: bytes) -> None:
        session = self._session
        try:
            session.receive_data(data)
        except NGH2Error:
            # The session's output contains the error for the client.
            self._flush()
            self._close()
            return
        if not self._frames.ends_inside(data):
            self._partial = 0.0
        elif self._frames.began or not self._partial:
            self._partial = self._loop.time()
        for event in session.events():
            self._process(event)

    def pause_writing(self) -> None:
        """Stop reading while the client does not read its responses."""
        self._stuck = self._loop.time()
        self._transport.pause_reading()
        self._account()

    def resume_writing(self) -> None:
        """Continue to read."""
        self._stuck = 0.0
        if not self._transport.is_closing():
            self._transport.resume_reading()

    # -- HTTP/2 ---------------------------------------------------------------------------------

    def _process(self, event: Any) -> None:
        kind = type(event)
        if kind is DataReceived:
            self._data(event.stream_id, event.data, ended=event.end_stream)
        elif kind is RequestReceived:
            self._request(event.stream_id, event.headers, ended=event.end_stream)
        elif kind is StreamClosed or kind is StreamReset:
            self._forget(event.stream_id)
            if self._goodbye and not self._calls:
                self._flush()
                self._close()
        elif kind is TrailersReceived:
            self._data(event.stream_id, b"", ended=True)
        elif kind is SettingsReceived:
            self._greeted = True
        elif kind is ConnectionClosed:
            self._flush()
            self._close()

    def _request(self, stream: int, headers: Any, *, ended: bool) -> None:
        method: bytes | None = None
        kind = verb = b""
        for name, value, *_ in headers:
            if name == b":path":
                method = _METHODS.get(bytes(value))
            elif name == b":method":
                verb = bytes(value)
            elif name == b"content-type":
                kind = bytes(value)
        self._used = self._loop.time()
        call = self._calls[stream] = _Call(method, self._used)
        if verb != b"POST" or not kind.startswith(b"application/grpc"):
            self._refuse_http(stream, call)
        elif ended:
            self._dispatch(stream, call, b"")

    def _data(self, stream: int, data: bytes, *, ended: bool) -> None:
        call = self._calls.get(stream)
        if call is None or call.responding:
            return
        size = len(data)
        self._hold(call, call.held + size)
        if call.part is not None:
            call.part += data
        elif not ended:
            call.part = bytearray(data)
        if call.held > MAX_MESSAGE + _PREFIX.size:
            self._fail(stream, RESOURCE_EXHAUSTED, f"the message exceeds {MAX_MESSAGE} bytes")
        elif self._held > MAX_HELD:
            problem = f"the connection's calls exceed {MAX_HELD} bytes"
            self._fail(stream, RESOURCE_EXHAUSTED, problem)
        elif ended:
            body = data if call.part is None else bytes(call.part)
            call.part = None
            self._dispatch(stream, call, body)

    def _hold(self, call: _Call, held: int) -> None:
        self._held += held - call.held
        call.held = held

    def _forget(self, stream: int) -> None:
        call = self._calls.pop(stream, None)
        if call is not None:
            self._held -= call.held
            if self._counted:
                self._account()

    def _account(self) -> None:
        """Count the held bytes in the budget; fail incomplete calls if there are too many."""
        if self._count_held():
            return
        problem = "too many bytes of calls wait; send fewer at the same time"
        for stream, call in list(self._calls.items()):
            if not call.responding:
                self._fail(stream, RESOURCE_EXHAUSTED, problem)
        if not self._count_held():
            self.abort()

    def _count_held(self) -> bool:
        held = self._held + len(self._calls) * _CALL_BYTES
        if self._stuck:
            held += self._transport.get_write_buffer_size()
        if held <= FREE_BYTES:
            held = 0
        if held != self._counted and not self._budget.hold(self, held):
            return False
        self._counted = held
        return True

    # -- requests and responses -----------------------------------------------------------------

    def _dispatch(self, stream: int, call: _Call, body: bytes) -> None:
        self._budget.record_request(self)
        if call.method is not _METHOD:
            if call.method is _HEALTH:
                # grpc.health.v1.HealthCheckResponse, status SERVING.
                self._respond(stream, b"\x08\x01")
            else:
                self._fail(stream, UNIMPLEMENTED, "the only method is ShouldRateLimit")
            return
        if len(body) < _PREFIX.size:
            self._fail(stream, INVALID_ARGUMENT, "the message is missing")
            return
        compressed, length = _PREFIX.unpack_from(body)
        if compressed:
            self._fail(stream, UNIMPLEMENTED, "compressed messages are not supported")
            return
        if len(body) != _PREFIX.size + length:
            self._fail(stream, INVALID_ARGUMENT, "the message is incomplete")
            return
        call.responding = True
        try:
            requests = rls.parse_message(body[_PREFIX.size :])
        except UnreadableRequestError as error:
            self._fail(stream, INVALID_ARGUMENT, str(error))
            return

        def respond(result: rls.RateLimitResult) -> None:
            if result.missing is not None:
                self._fail(stream, *_MISSING[result.missing])
            else:
                self._respond(stream, result.encoded())

        rls.decide_all(self._service.engine, requests, respond)

    def _respond(self, stream: int, message: bytes) -> None:
        self._service.counts.record_response("rls", OK)
        call = self._calls.get(stream)
        if call is None:
            return
        session = self._session
        try:
            session.send_response(stream, _HEADERS)
            session.send_data(stream, _PREFIX.pack(0, len(message)) + message)
            session.send_trailers(stream, _OK_TRAILERS)
        except NGH2Error as error:
            log.debug("a response was not sent", error=str(error))
            return
        call.responding = True
        self._hold(call, len(message))
        self._flush_soon()

    def _fail(self, stream: int, status: int, detail: str) -> None:
        self._service.counts.record_response("rls", status)
        call = self._calls.get(stream)
        if call is None:
            return
        call.responding = True
        call.part = None
        self._hold(call, 0)
        headers = (
            *_HEADERS,
            (b"grpc-status", str(status).encode()),
            (b"grpc-message", quote(detail, safe=" ,.;:/'").encode()),
        )
        self._send_headers(stream, headers)

    def _refuse_http(self, stream: int, call: _Call) -> None:
        """Respond to a request that is not a gRPC call."""
        call.responding = True
        self._send_headers(stream, ((b":status", b"415"),))

    def _send_headers(self, stream: int, headers: tuple[tuple[bytes, bytes], ...]) -> None:
        try:
            self._session.send_response(stream, headers, end_stream=True)
        except NGH2Error as error:
            log.debug("a response was not sent", error=str(error))
            return
        self._flush_soon()

    def _flush_soon(self) -> None:
        """Write the responses of this turn of the event loop at once."""
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Write what is due; close the connection if its session is broken."""
        self._flushing = False
        if self._transport.is_closing():
            return
        try:
            data = self._session.data_to_send()
        except NGH2Error as error:
            # This runs in error handlers and in callbacks of the event loop, which catch nothing.
            log.debug("a session is broken", error=str(error))
            self.abort()
            return
        if data:
            self._transport.write(data)
        # Streams end when their last frame is sent, which results in events.
        for event in self._session.events():
            self._process(event)

    # -- closing --------------------------------------------------------------------------------

    def drain(self) -> None:
        """Accept no new calls; close after the last response."""
        if self._goodbye:
            return
        self._goodbye = True
        try:
            self._session.send_goaway()
        except NGH2Error as error:
            log.debug("a session is broken", error=str(error))
            self.abort()
            return
        self._flush()
        if not self._calls:
            self._close()

    def abort(self) -> None:
        """Close now."""
        self._calls.clear()
        self._transport.abort()

    def _close(self) -> None:
        """Close after the written responses."""
        self._ended = self._loop.time()
        self._transport.close()

    def sweep(self, now: float) -> None:
        """Reset calls that exceeded a timeout, and close a silent or blocked connection."""
        timeout = self._service.request_timeout
        if not self._greeted and now - self._used > timeout:
            self._budget.refusals[Refusal.TIMEOUT] += 1
            self.abort()
            return
        if any(since and now - since > WRITE_TIMEOUT for since in (self._stuck, self._ended)):
            self.abort()
            return
        for stream, call in list(self._calls.items()):
            if now - call.since > (CALL_TIMEOUT if call.responding else timeout):
                self._forget(stream)
                self._session.reset_stream(stream)
                self._flush_soon()
        if self._partial and now - self._partial > timeout and not self._calls:
            self._budget.refusals[Refusal.TIMEOUT] += not self._goodbye
            self.drain()
        if not self._calls and not self._goodbye and now - self._used > self._service.idle_timeout:
            if self._leaving:
                self.drain()
                return
            # A call may be on its way: a notice comes first, and the connection closes later.
            self._leaving = True
            self._session.send_shutdown_notice()
            self._flush_soon()
