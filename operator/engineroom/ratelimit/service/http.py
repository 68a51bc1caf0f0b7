"""The service over HTTP/1.1, as an asyncio protocol over httptools.

A no-op of this kind answers ten times as many requests a second as one over h11; see
docs/decisions/0013-the-limiters-protocols.md. What is here is only what the service needs: requests
with small bodies, answers of known length, keep-alive, pipelining with answers in order.

Bounds: head and body each up to MAX_HEAD and MAX_BODY bytes, MAX_PIPELINED requests of one
connection under way, so many connections, and a time for each request to be read and for each
answer to be taken.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httptools
import orjson
import structlog

from engineroom.ratelimit.service import request_parsing, responses, rls
from engineroom.ratelimit.service.request_parsing import Form, UnreadableError

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from engineroom.ratelimit.service.engine import Engine, Verdict
    from engineroom.ratelimit.service.metrics import Counts
    from engineroom.ratelimit.service.request_parsing import Question

log = structlog.get_logger(__name__)

#: Bytes of a request line with its headers, and of a body.
MAX_HEAD, MAX_BODY = 65_536, 65_536
#: Requests of one connection that wait for their answers before no more is read.
MAX_PIPELINED = 128
#: Connections at once; further ones are closed.
MAX_CONNECTIONS = 10_000
#: Seconds for a request to arrive whole, an idle connection, an answer to be taken.
READ_TIMEOUT, IDLE_TIMEOUT, WRITE_TIMEOUT = 5.0, 75.0, 5.0
#: Seconds that a refused request's remainder is read for.
LINGER = 1.0
_SWEEP = 1.0
_METHODS = {b"GET": "GET", b"POST": "POST", b"HEAD": "HEAD"}
_FORMS = {form.value: form for form in Form}
#: Names of headers as they were sent, and in lower case: the same few come again and again.
_names: dict[bytes, str] = {}
_MAX_NAMES, _MAX_NAME = 1024, 64
#: Who asks about which policy, by addresses that say nothing else; there are few.
_routes: dict[bytes, tuple[Form, str, str]] = {}
_MAX_ROUTES, _MAX_ROUTE = 4096, 1024


class HttpService:
    """Makes connections, and knows them."""

    def __init__(self, engine: Engine, counts: Counts) -> None:
        self.engine = engine
        self.counts = counts
        self.connections: set[HttpConnection] = set()
        self.draining = False
        self._empty = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.Task[None] | None = None

    def connection(self) -> HttpConnection:
        """For create_server."""
        return HttpConnection(self)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something beside."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def gone(self, connection: HttpConnection) -> None:
        """A connection is closed."""
        self.connections.discard(connection)
        if self.draining and not self.connections:
            self._empty.set()

    def start(self) -> None:
        """Begin to look after slow connections."""
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep())

    async def drain(self, seconds: float) -> None:
        """Answer what was asked, then close every connection; at most so long."""
        self.draining = True
        for each in list(self.connections):
            each.close_when_idle()
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


class HttpConnection(asyncio.Protocol):
    """One connection."""

    __slots__ = (
        "_answered", "_asked", "_body", "_bytes", "_closing", "_counts", "_early", "_engine",
        "_given", "_header_bytes", "_headers", "_heads", "_last", "_lingering", "_loop", "_parser",
        "_paused", "_repeated", "_service", "_since", "_stuck", "_transport", "_url",
    )  # fmt: skip

    def __init__(self, service: HttpService) -> None:
        self._service = service
        self._engine = service.engine
        self._loop = asyncio.get_running_loop()
        self._counts = service.counts
        # Requests are numbered: how many were read, and how many of them are answered.
        self._asked = self._given = 0
        # Answers that are there before those of earlier requests.
        self._early: dict[int, bytes] = {}
        # Requests whose answers go without their bodies, and the one after whose answer it closes.
        self._heads: set[int] = set()
        self._last = -1
        self._transport: Any = None
        self._paused = False
        self._closing = self._lingering = False
        # Monotonic seconds: since when a request is being read, and an answer not taken; 0: not.
        self._since = self._stuck = 0.0
        self._answered = self._loop.time()
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

    # -- asyncio's ------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Somebody connected."""
        self._transport = transport
        known = self._service.connections
        if self._service.draining or len(known) >= MAX_CONNECTIONS:
            self.abort()
            return
        known.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        """Gone; answers still to come go nowhere."""
        self._closing = True
        self._service.gone(self)

    def data_received(self, data: bytes) -> None:
        """Some bytes of requests."""
        if self._closing:
            return
        self._bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # A WebSocket's handshake, asked about: what would follow is no HTTP.
            self._close_after_answers()
        except httptools.HttpParserCallbackError:
            log.exception("a request could not be handled")
            self.abort()
        except httptools.HttpParserError:
            if not self._closing:
                self._refuse(400, "this is no HTTP request")
        else:
            # It is 0 where a request ended, and most come whole.
            if self._bytes:
                self._await_more()

    def eof_received(self) -> bool:
        """The other side sends no more; it still gets its answers."""
        self._close_after_answers()
        return self._due

    def pause_writing(self) -> None:
        """The other side does not take its answers."""
        self._stuck = self._loop.time()
        self._pause()

    def resume_writing(self) -> None:
        """It does again."""
        self._stuck = 0.0
        self._resume()

    # -- the parser's ---------------------------------------------------------------------------

    def on_url(self, url: bytes) -> None:
        """A part of the address."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header."""
        self._header_bytes += len(name) + len(value)
        key = _names.get(name)
        if key is None:
            key = name.decode("latin-1").lower()
            if len(_names) < _MAX_NAMES and len(name) <= _MAX_NAME:
                _names[name] = key
        text = value.decode("latin-1")
        headers = self._headers
        if key in headers:
            # Joined once all are here: one by one would take time by their number's square.
            if self._repeated is None:
                self._repeated = {}
            self._repeated.setdefault(key, [headers[key]]).append(text)
        else:
            headers[key] = text

    def on_headers_complete(self) -> None:
        """Head read."""
        if self._repeated is not None:
            for key, values in self._repeated.items():
                self._headers[key] = ("; " if key == "cookie" else ",").join(values)
            self._repeated = None
        if self._header_bytes + len(self._url) > MAX_HEAD:
            self._refuse(431, f"the head is longer than {MAX_HEAD} bytes")

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        if len(self._body) + len(body) > MAX_BODY:
            if not self._closing:
                self._refuse(413, f"the body is longer than {MAX_BODY} bytes")
            return
        self._body += body

    def on_message_complete(self) -> None:
        """A request is here whole."""
        if self._closing:
            return
        self._since = 0.0
        url, headers, body = self._url, self._headers, self._body
        self._next()
        parser, number = self._parser, self._asked
        self._asked = number + 1
        if number - self._given >= MAX_PIPELINED:
            self._pause()
        method = _METHODS.get(parser.get_method()) or self._method()
        if method == "HEAD":
            self._heads.add(number)
        if not parser.should_keep_alive() or self._service.draining:
            self._last, self._closing = number, True
        try:
            route = _routes.get(url)
            if route is None:
                self._ask(number, method, url, headers, body)
            else:
                form, namespace, name = route
                self._ask_for(number, form, namespace, name, "", "", method, headers)
        except UnreadableError as error:
            self._answer(number, 400, responses.problem(400, str(error)), "unreadable")

    # -- questions and answers ------------------------------------------------------------------

    @property
    def _due(self) -> bool:
        """Whether a request that was read has no answer yet."""
        return self._given != self._asked

    def _await_more(self) -> None:
        if not self._since:
            self._since = self._loop.time()
        if self._bytes > MAX_HEAD + MAX_BODY and not self._closing:
            self._refuse(431, f"the head is longer than {MAX_HEAD} bytes")

    def _method(self) -> str:
        return self._parser.get_method().decode("latin-1")

    def _ask(
        self, number: int, method: str, url: bytes, headers: dict[str, str], body: bytes
    ) -> None:
        target, _, query = url.decode("latin-1").partition("?")
        parts = target.split("/", 5)
        if len(parts) > 4 and parts[1] == "v1" and (form := _FORMS.get(parts[2])) is not None:
            namespace, name = request_parsing.segment(parts[3]), request_parsing.segment(parts[4])
            rest = parts[5] if len(parts) > 5 else ""
            if not rest and not query and len(url) <= _MAX_ROUTE:
                if len(_routes) >= _MAX_ROUTES:
                    _routes.clear()
                _routes[url] = form, namespace, name
            self._ask_for(number, form, namespace, name, rest, query, method, headers)
        elif target == "/v1/decide":
            if self._posted(number, method):
                self._decide(number, request_parsing.of_document(_document(body)))
        elif target == "/v1/explain":
            if self._posted(number, method):
                question = request_parsing.of_document(_document(body))
                self._service.spawn(self._explain(number, question))
        elif target == "/v1/charge":
            if self._posted(number, method):
                told = _document(body)
                question, spent = (
                    request_parsing.of_document(told),
                    request_parsing.response_headers(told),
                )
                self._service.spawn(self._charge(number, question, spent))
        elif target == "/json":
            if self._posted(number, method):
                self._as_json(number, body)
        else:
            self._answer(number, 404, responses.problem(404, "there is nothing here"), "none")

    def _ask_for(
        self, number: int, form: Form, namespace: str, name: str, rest: str, query: str,
        method: str, headers: dict[str, str],
    ) -> None:  # fmt: skip
        try:
            question = request_parsing.of_proxy(form, namespace, name, rest, query, method, headers)
        except UnreadableError as error:
            self._answer(number, *responses.unreadable(form, str(error)), "unreadable")
            return
        verdict = self._engine.ask(question, self._tell_proxy, number, form)
        if verdict is not None:
            self._tell_proxy(verdict, number, form)

    def _tell_proxy(self, verdict: Verdict, number: int, form: Form) -> None:
        status, answer = responses.to_proxy(form, verdict)
        self._answer(number, status, answer, form)

    def _decide(self, number: int, question: Question) -> None:
        verdict = self._engine.ask(question, self._tell_program, number)
        if verdict is not None:
            self._tell_program(verdict, number)

    def _tell_program(self, verdict: Verdict, number: int) -> None:
        self._answer(number, *responses.decided(verdict), "decide")

    async def _explain(self, number: int, question: Question) -> None:
        self._answer(number, *responses.explained(await self._engine.explain(question)), "explain")

    async def _charge(self, number: int, question: Question, spent: dict[str, str]) -> None:
        found = await self._engine.charge(question, spent)
        self._answer(number, *responses.charged(found), "charge")

    def _posted(self, number: int, method: str) -> bool:
        if method == "POST":
            return True
        self._answer(number, 405, responses.problem(405, "only POST is answered here"), "none")
        return False

    def _as_json(self, number: int, body: bytes) -> None:
        """Envoy's rate limit service in JSON, as envoyproxy/ratelimit offers it."""
        questions = rls.of_json(_document(body))

        def answered(found: rls.Rated) -> None:
            status = 429 if found.limited else 200
            told = responses.response(
                status, (("Content-Type", "application/json"),), orjson.dumps(found.document())
            )
            self._answer(number, status, told, "json")

        rls.rate(self._engine, questions, answered)

    def _answer(self, number: int, status: int, answer: bytes, form: str) -> None:
        self._counts.answered(form, status)
        if self._transport.is_closing():
            return
        if self._heads and number in self._heads:
            self._heads.remove(number)
            answer = answer[: answer.index(b"\r\n\r\n") + 4]
        if number == self._last:
            answer = answer.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
        given = self._given
        if number != given:
            self._early[number] = answer
            return
        given += 1
        if self._early:
            ready = [answer]
            while (following := self._early.pop(given, None)) is not None:
                ready.append(following)
                given += 1
            answer = b"".join(ready)
        self._given = given
        self._transport.write(answer)
        self._answered = self._loop.time()
        if self._closing and given == self._asked:
            self._end()
        elif self._paused and not self._stuck and self._asked - given <= MAX_PIPELINED // 2:
            self._resume()

    def _refuse(self, status: int, detail: str) -> None:
        """Answer what cannot be read, behind all other answers, and close."""
        number = self._asked
        self._asked = number + 1
        self._closing = self._lingering = True
        self._answer(number, status, responses.problem(status, detail, close=True), "unreadable")

    # -- the end --------------------------------------------------------------------------------

    def close_when_idle(self) -> None:
        """Close after the answers that are due."""
        if self._due or self._since:
            return
        self._close_after_answers()

    def abort(self) -> None:
        """Close now."""
        self._closing = True
        self._transport.abort()

    def sweep(self, now: float) -> None:
        """Close it if it takes too long over anything."""
        if self._stuck and now - self._stuck > WRITE_TIMEOUT:
            self.abort()
        elif self._since and now - self._since > READ_TIMEOUT and not self._closing:
            self._refuse(408, f"the request took longer than {READ_TIMEOUT:g} s to arrive")
        elif not self._due and not self._since and now - self._answered > IDLE_TIMEOUT:
            self._close_after_answers()

    def _close_after_answers(self) -> None:
        self._closing = True
        if not self._due:
            self._end()

    def _end(self) -> None:
        """Close. What is unread then would have the kernel reset the connection, and the answer be
        lost with it: after a refusal the rest is read and dropped for a moment."""
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
        if self._paused and not self._closing and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()


def _document(body: bytes) -> object:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        raise UnreadableError("the body is not JSON") from None
