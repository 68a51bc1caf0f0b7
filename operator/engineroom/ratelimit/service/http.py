"""The service over HTTP/1.1, as an asyncio protocol over httptools.

A no-op server of this kind handles ten times as many requests per second as one over h11; see
docs/decisions/0013-the-limiters-protocols.md. It supports what the service needs: requests with
small bodies, responses of known length, keep-alive, and pipelining with responses in order.

Limits: MAX_HEAD and MAX_BODY bytes of a request, MAX_PIPELINED requests and MAX_UNANSWERED bytes of
a connection without a response, the connections and bytes of the budget, and timeouts for reading a
request and writing a response.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httptools
import orjson
import structlog

from engineroom.core.serving.connection_budget import Refusal, address_of
from engineroom.ratelimit.service import request_parsing, responses, rls
from engineroom.ratelimit.service.protocol_server import FREE_BYTES, SLICE, ProtocolServer
from engineroom.ratelimit.service.request_parsing import ProxyProtocol, UnreadableRequestError

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from engineroom.core.serving.connection_budget import ConnectionBudget
    from engineroom.ratelimit.service.engine import DecisionEngine, DecisionResult
    from engineroom.ratelimit.service.metrics import ServiceCounts
from engineroom.ratelimit.service.request_parsing import DecisionRequest

log = structlog.get_logger(__name__)

#: Most bytes of a request line with its headers, and of a body.
MAX_HEAD, MAX_BODY = 65_536, 65_536
#: Bytes that each header counts for besides its own, as in HTTP/2.
HEADER_OVERHEAD = 32
#: Requests of one connection without a response, and their bytes, at which reading stops.
MAX_PIPELINED, MAX_UNANSWERED = 128, 131_072
#: Bytes of unsent responses at which reading stops.
MAX_UNSENT = 16_384
#: Memory of short headers as a multiple of the bytes that they count for.
_HEADER_MEMORY = 4
#: Timeout of writing a response, in seconds.
WRITE_TIMEOUT = 5.0
#: Seconds for which the rest of a refused request is read and dropped.
LINGER = 1.0
_METHODS = {b"GET": "GET", b"POST": "POST", b"HEAD": "HEAD"}
_PROTOCOLS = {protocol.value: protocol for protocol in ProxyProtocol}
#: Header names as sent, and in lower case: a few names occur in every request.
_names: dict[bytes, str] = {}
_MAX_NAMES, _MAX_NAME = 1024, 64
#: Protocol and policy by URL, for URLs without further parameters; there are few of them.
_routes: dict[bytes, tuple[ProxyProtocol, str, str]] = {}
_MAX_ROUTES, _MAX_ROUTE = 4096, 1024


class HttpService(ProtocolServer["HttpConnection"]):
    """The HTTP/1.1 server of the service."""

    def __init__(
        self,
        engine: DecisionEngine,
        counts: ServiceCounts,
        budget: ConnectionBudget,
        **timeouts: float,
    ) -> None:
        super().__init__(engine, counts, budget, **timeouts)
        self._tasks: set[asyncio.Task[None]] = set()

    def connection(self) -> HttpConnection:
        """Create a connection, for create_server."""
        return HttpConnection(self)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine in a task."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class HttpConnection(asyncio.Protocol):
    """One connection."""

    __slots__ = (
        "_begun", "_body", "_budget", "_bytes", "_closing", "_counts", "_early", "_ended",
        "_engine", "_header_bytes", "_headers", "_heads", "_held", "_last", "_last_response",
        "_lingering", "_loop", "_parser", "_paused", "_repeated", "_requests", "_responses",
        "_service", "_since", "_stuck", "_transport", "_unanswered", "_unread", "_url",
    )  # fmt: skip

    def __init__(self, service: HttpService) -> None:
        self._service = service
        self._engine = service.engine
        self._loop = asyncio.get_running_loop()
        self._counts = service.counts
        # Requests are numbered: the number of requests, and of responses.
        self._requests = self._responses = 0
        # Responses that are ready before those of earlier requests.
        self._early: dict[int, bytes] = {}
        # HEAD requests, and the request after whose response the connection closes.
        self._heads: set[int] = set()
        self._last = -1
        self._transport: Any = None
        self._paused = False
        self._closing = self._lingering = False
        self._budget = service.budget
        # Received bytes that are not parsed yet; bytes of the requests without a response; the
        # number of bytes that the budget holds.
        self._unread = b""
        self._unanswered = self._held = 0
        # Start of waiting for a request, of writing a blocked response, and of closing (monotonic
        # seconds); or 0. The first request is waited for from the start.
        self._since = self._last_response = self._loop.time()
        self._stuck = self._ended = 0.0
        self._begin()

    def _begin(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._next()

    def _next(self) -> None:
        self._url = b""
        self._headers: dict[str, str] = {}
        self._repeated: dict[str, list[str]] | None = None
        self._body = b""
        self._bytes = 0
        self._header_bytes = 0
        # True while a request has begun and is not complete.
        self._begun = False

    # -- asyncio.Protocol -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept the connection, unless there are too many."""
        self._transport = transport
        peer = transport.get_extra_info("peername")
        if self._service.draining or not self._budget.admit(self, address_of(peer)):
            self.abort()
            return
        self._transport.set_write_buffer_limits(high=MAX_UNSENT)
        self._service.connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        """Remove the connection; later responses are dropped."""
        self._closing = True
        self._unread = b""
        self._service.remove(self)

    def data_received(self, data: bytes) -> None:
        """Parse requests."""
        if self._closing:
            return
        if len(data) <= SLICE and not self._unread:
            self._parse(data)
        else:
            self._unread += data
            self._parse_unread()
        self._account()

    def _parse_unread(self) -> None:
        """Parse slice by slice, until too many requests wait for their responses."""
        data, position = self._unread, 0
        while position < len(data) and not self._paused and not self._closing:
            self._parse(data[position : position + SLICE])
            position += SLICE
        self._unread = b"" if self._closing else data[position:]
        if not self._unread and not self._paused and not self._transport.is_closing():
            self._transport.resume_reading()

    def _continue(self) -> None:
        """Parse the unread rest after a pause."""
        if not self._closing:
            self._parse_unread()
            self._account()

    def _parse(self, data: bytes) -> None:
        self._bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # A proxied WebSocket handshake: HTTP ends here.
            self._close_after_answers()
        except httptools.HttpParserCallbackError:
            log.exception("a request could not be handled")
            self.abort()
        except httptools.HttpParserError:
            if not self._closing:
                self._refuse(400, "this is not an HTTP request")
        else:
            # Most requests arrive in one piece.
            if self._begun:
                self._await_more()

    def eof_received(self) -> bool:
        """Close after the outstanding responses."""
        self._close_after_answers()
        return self._due

    def pause_writing(self) -> None:
        """Stop reading while the client does not read its responses."""
        self._stuck = self._loop.time()
        self._pause()
        self._account()

    def resume_writing(self) -> None:
        """Continue to read."""
        self._stuck = 0.0
        self._resume()

    # -- HttpRequestParser ----------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Note the first byte of a request."""
        self._begun = True

    def on_url(self, url: bytes) -> None:
        """Append a part of the URL."""
        if len(self._url) <= MAX_HEAD:
            self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header."""
        self._header_bytes += len(name) + len(value) + HEADER_OVERHEAD
        if self._header_bytes > MAX_HEAD:
            return
        key = _names.get(name)
        if key is None:
            key = name.decode("latin-1").lower()
            if len(_names) < _MAX_NAMES and len(name) <= _MAX_NAME:
                _names[name] = key
        text = value.decode("latin-1")
        headers = self._headers
        if key in headers:
            # Joined at the end of the headers: joining one by one would take quadratic time.
            if self._repeated is None:
                self._repeated = {}
            self._repeated.setdefault(key, [headers[key]]).append(text)
        else:
            headers[key] = text

    def on_headers_complete(self) -> None:
        """Join repeated headers, and check the size."""
        if self._repeated is not None:
            for key, values in self._repeated.items():
                self._headers[key] = ("; " if key == "cookie" else ",").join(values)
            self._repeated = None
        if self._closing:
            return
        if self._header_bytes + len(self._url) > MAX_HEAD:
            self._refuse(431, f"the head is longer than {MAX_HEAD} bytes; send fewer headers")

    def on_body(self, body: bytes) -> None:
        """Append a part of the body."""
        if len(self._body) + len(body) > MAX_BODY:
            if not self._closing:
                self._refuse(413, f"the body is longer than {MAX_BODY} bytes")
            return
        self._body += body

    def on_message_complete(self) -> None:
        """Handle a complete request."""
        if self._closing:
            return
        self._since = 0.0
        url, headers, body = self._url, self._headers, self._body
        self._unanswered += self._header_bytes + len(url) + len(body)
        self._next()
        parser, number = self._parser, self._requests
        self._requests = number + 1
        if not number:
            self._budget.record_request(self)
        if number - self._responses >= MAX_PIPELINED or self._unanswered > MAX_UNANSWERED:
            self._pause()
        method = _METHODS.get(parser.get_method()) or self._method()
        if method == "HEAD":
            self._heads.add(number)
        if not parser.should_keep_alive() or self._service.draining:
            self._last, self._closing = number, True
        try:
            route = _routes.get(url)
            if route is None:
                self._route(number, method, url, headers, body)
            else:
                form, namespace, name = route
                self._decide_for_proxy(number, form, namespace, name, "", "", method, headers)
        except UnreadableRequestError as error:
            self._respond(number, 400, responses.problem(400, str(error)), "unreadable")

    # -- requests and responses -----------------------------------------------------------------

    @property
    def _due(self) -> bool:
        """True if a request has no response so far."""
        return self._responses != self._requests

    def _await_more(self) -> None:
        if not self._since:
            self._since = self._loop.time()
        if self._bytes > MAX_HEAD + MAX_BODY and not self._closing:
            self._refuse(431, f"the head is longer than {MAX_HEAD} bytes")

    def _account(self) -> None:
        """Count the held bytes in the budget; refuse the request if there are too many."""
        held = self._unanswered + len(self._unread)
        if self._begun:
            held += self._bytes + _HEADER_MEMORY * self._header_bytes
        if self._stuck:
            held += self._transport.get_write_buffer_size()
        if held <= FREE_BYTES:
            held = 0
        if held == self._held or self._budget.hold(self, held):
            self._held = held
        elif self._stuck:
            self.abort()
        elif not self._closing:
            self._unread = b""
            self._refuse(503, "too many bytes of requests wait; send fewer at the same time")

    def _method(self) -> str:
        return self._parser.get_method().decode("latin-1")

    def _route(
        self, number: int, method: str, url: bytes, headers: dict[str, str], body: bytes
    ) -> None:
        target, _, query = url.decode("latin-1").partition("?")
        parts = target.split("/", 5)
        if len(parts) > 4 and parts[1] == "v1" and (form := _PROTOCOLS.get(parts[2])) is not None:
            namespace, name = (
                request_parsing.decode_segment(parts[3]),
                request_parsing.decode_segment(parts[4]),
            )
            rest = parts[5] if len(parts) > 5 else ""
            if not rest and not query and len(url) <= _MAX_ROUTE:
                if len(_routes) >= _MAX_ROUTES:
                    _routes.clear()
                _routes[url] = form, namespace, name
            self._decide_for_proxy(number, form, namespace, name, rest, query, method, headers)
        elif target == "/v1/decide":
            if self._is_post(number, method):
                self._decide(number, request_parsing.parse_json(_document(body)))
        elif target == "/v1/explain":
            if self._is_post(number, method):
                request = request_parsing.parse_json(_document(body))
                self._service.spawn(self._explain(number, request))
        elif target == "/v1/charge":
            if self._is_post(number, method):
                document = _document(body)
                request = request_parsing.parse_json(document)
                spent = request_parsing.parse_response_headers(document)
                self._service.spawn(self._charge(number, request, spent))
        elif target == "/json":
            if self._is_post(number, method):
                self._as_json(number, body)
        else:
            self._respond(number, 404, responses.problem(404, "not found"), "none")

    def _decide_for_proxy(
        self, number: int, form: ProxyProtocol, namespace: str, name: str, rest: str, query: str,
        method: str, headers: dict[str, str],
    ) -> None:  # fmt: skip
        try:
            request = request_parsing.parse_proxy_request(
                form, namespace, name, rest, query, method, headers
            )
        except UnreadableRequestError as error:
            self._respond(number, *responses.unreadable(form, str(error)), "unreadable")
            return
        result = self._engine.decide(request, self._respond_to_proxy, number, form)
        if result is not None:
            self._respond_to_proxy(result, number, form)

    def _respond_to_proxy(self, result: DecisionResult, number: int, form: ProxyProtocol) -> None:
        status, answer = responses.to_proxy(form, result)
        self._respond(number, status, answer, form)

    def _decide(self, number: int, request: DecisionRequest) -> None:
        result = self._engine.decide(request, self._respond_to_program, number)
        if result is not None:
            self._respond_to_program(result, number)

    def _respond_to_program(self, result: DecisionResult, number: int) -> None:
        self._respond(number, *responses.decided(result), "decide")

    async def _explain(self, number: int, request: DecisionRequest) -> None:
        self._respond(number, *responses.explained(await self._engine.explain(request)), "explain")

    async def _charge(self, number: int, request: DecisionRequest, spent: dict[str, str]) -> None:
        charged = await self._engine.charge(request, spent)
        self._respond(number, *responses.charged(charged), "charge")

    def _is_post(self, number: int, method: str) -> bool:
        if method == "POST":
            return True
        self._respond(number, 405, responses.problem(405, "use POST"), "none")
        return False

    def _as_json(self, number: int, body: bytes) -> None:
        """Respond to Envoy's rate limit service in JSON, as envoyproxy/ratelimit does."""
        requests = rls.parse_json(_document(body))

        def respond(result: rls.RateLimitResult) -> None:
            status = 429 if result.limited else 200
            response = responses.response(
                status, (("Content-Type", "application/json"),), orjson.dumps(result.document())
            )
            self._respond(number, status, response, "json")

        rls.decide_all(self._engine, requests, respond)

    def _respond(self, number: int, status: int, answer: bytes, form: str) -> None:
        self._counts.record_response(form, status)
        if self._transport.is_closing():
            return
        if self._heads and number in self._heads:
            self._heads.remove(number)
            answer = answer[: answer.index(b"\r\n\r\n") + 4]
        if number == self._last:
            answer = answer.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
        responded = self._responses
        if number != responded:
            self._early[number] = answer
            self._unanswered += len(answer)
            return
        responded += 1
        if self._early:
            ready = [answer]
            while (following := self._early.pop(responded, None)) is not None:
                ready.append(following)
                responded += 1
            answer = b"".join(ready)
        self._responses = responded
        self._transport.write(answer)
        self._last_response = self._loop.time()
        if responded == self._requests:
            self._unanswered = 0
            if self._closing:
                self._end()
                return
            if self._held:
                self._account()
        if self._paused:
            self._resume()

    def _refuse(self, status: int, detail: str) -> None:
        """Respond to an unreadable request after all other responses, and close."""
        number = self._requests
        self._requests = number + 1
        self._closing = self._lingering = True
        self._respond(number, status, responses.problem(status, detail, close=True), "unreadable")

    # -- closing --------------------------------------------------------------------------------

    def drain(self) -> None:
        """Close after the outstanding responses."""
        if self._due or self._begun or self._unread:
            return
        self._close_after_answers()

    def abort(self) -> None:
        """Close now."""
        self._closing = True
        self._transport.abort()

    def sweep(self, now: float) -> None:
        """Close the connection if it exceeded a timeout."""
        if (self._stuck and now - self._stuck > WRITE_TIMEOUT) or (
            self._ended and now - self._ended > WRITE_TIMEOUT
        ):
            self.abort()
        elif self._since and now - self._since > self._service.request_timeout:
            self._time_out()
        elif (
            not self._due
            and not self._since
            and not self._closing
            and now - self._last_response > self._service.idle_timeout
        ):
            self._close_after_answers()

    def _time_out(self) -> None:
        """Refuse a request that did not arrive in time; close a silent connection."""
        if self._closing:
            return
        self._budget.refusals[Refusal.TIMEOUT] += 1
        if self._begun:
            timeout = self._service.request_timeout
            self._refuse(408, f"the request took longer than {timeout:g} s to arrive")
        else:
            self._close_after_answers()

    def _close_after_answers(self) -> None:
        self._closing = True
        if not self._due:
            self._end()

    def _end(self) -> None:
        """Close the connection.

        With unread data the kernel would reset it, and the response would be lost. After a refusal
        the rest of the request is therefore read and dropped for a moment.
        """
        self._ended = self._loop.time()
        if not self._lingering:
            self._transport.close()
            return
        self._transport.write_eof()
        self._loop.call_later(LINGER, self._transport.abort)

    def _pause(self) -> None:
        if not self._paused and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def _resume(self) -> None:
        """Go on reading if few requests wait, and the client takes its responses."""
        if (
            not self._paused
            or self._stuck
            or self._closing
            or self._requests - self._responses > MAX_PIPELINED // 2
            or self._unanswered > MAX_UNANSWERED
            or self._transport.is_closing()
        ):
            return
        self._paused = False
        # Later: this may be a response to a request that is just being parsed.
        self._loop.call_soon(self._continue)


def _document(body: bytes) -> object:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        raise UnreadableRequestError("the body is not JSON") from None
