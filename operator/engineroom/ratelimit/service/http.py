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
from collections import deque
from typing import TYPE_CHECKING, Any

import httptools
import orjson
import structlog

from engineroom.ratelimit.service import answers, asking, rls
from engineroom.ratelimit.service.asking import Form, UnreadableError

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from engineroom.ratelimit.service.asking import Question
    from engineroom.ratelimit.service.engine import Engine, Verdict
    from engineroom.ratelimit.service.metrics import Counts

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


class _Slot:
    """Place of an answer in the order of its connection's requests."""

    __slots__ = ("answer", "head", "last")

    def __init__(self, *, head: bool = False) -> None:
        self.answer: bytes | None = None
        self.head = head
        self.last = False


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
        "_answered", "_body", "_bytes", "_closing", "_engine", "_header_bytes", "_headers",
        "_lingering", "_loop", "_parser", "_paused", "_repeated", "_service", "_since", "_slots",
        "_stuck", "_transport", "_url",
    )  # fmt: skip

    def __init__(self, service: HttpService) -> None:
        self._service = service
        self._engine = service.engine
        self._loop = asyncio.get_running_loop()
        self._slots: deque[_Slot] = deque()
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
        if not self._since:
            self._since = self._loop.time()
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
            if self._bytes > MAX_HEAD + MAX_BODY and not self._closing:
                self._refuse(431, f"the head is longer than {MAX_HEAD} bytes")

    def eof_received(self) -> bool:
        """The other side sends no more; it still gets its answers."""
        self._close_after_answers()
        return bool(self._slots)

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
        method = _METHODS.get(self._parser.get_method()) or self._method()
        slot = _Slot(head=method == "HEAD")
        self._slots.append(slot)
        if len(self._slots) > MAX_PIPELINED:
            self._pause()
        keep = self._parser.should_keep_alive()
        url, headers, body = self._url, self._headers, self._body
        self._next()
        if not keep or self._service.draining:
            slot.last = self._closing = True
        try:
            route = _routes.get(url)
            if route is None:
                self._ask(slot, method, url, headers, body)
            else:
                self._ask_for(slot, *route, "", "", method, headers)
        except UnreadableError as error:
            self._answer(slot, 400, answers.problem(400, str(error)), "unreadable")

    # -- questions and answers ------------------------------------------------------------------

    def _method(self) -> str:
        return self._parser.get_method().decode("latin-1")

    def _ask(
        self, slot: _Slot, method: str, url: bytes, headers: dict[str, str], body: bytes
    ) -> None:
        target, _, query = url.decode("latin-1").partition("?")
        parts = target.split("/", 5)
        if len(parts) > 4 and parts[1] == "v1" and (form := _FORMS.get(parts[2])) is not None:
            namespace, name = asking.segment(parts[3]), asking.segment(parts[4])
            rest = parts[5] if len(parts) > 5 else ""
            if not rest and not query and len(url) <= _MAX_ROUTE:
                if len(_routes) >= _MAX_ROUTES:
                    _routes.clear()
                _routes[url] = form, namespace, name
            self._ask_for(slot, form, namespace, name, rest, query, method, headers)
        elif target == "/v1/decide":
            if self._posted(slot, method):
                self._engine.ask(
                    asking.of_document(_document(body)),
                    lambda verdict: self._answer(slot, *answers.decided(verdict), "decide"),
                )
        elif target == "/v1/explain":
            if self._posted(slot, method):
                question = asking.of_document(_document(body))
                self._service.spawn(self._explain(slot, question))
        elif target == "/v1/charge":
            if self._posted(slot, method):
                told = _document(body)
                question, spent = asking.of_document(told), asking.response_headers(told)
                self._service.spawn(self._charge(slot, question, spent))
        elif target == "/json":
            if self._posted(slot, method):
                self._as_json(slot, body)
        else:
            self._answer(slot, 404, answers.problem(404, "there is nothing here"), "none")

    def _ask_for(
        self, slot: _Slot, form: Form, namespace: str, name: str, rest: str, query: str,
        method: str, headers: dict[str, str],
    ) -> None:  # fmt: skip
        try:
            question = asking.of_proxy(form, namespace, name, rest, query, method, headers)
        except UnreadableError as error:
            self._answer(slot, *answers.unreadable(form, str(error)), "unreadable")
            return

        def to_proxy(verdict: Verdict) -> None:
            status, answer = answers.to_proxy(form, verdict)
            self._answer(slot, status, answer, form)

        self._engine.ask(question, to_proxy)

    async def _explain(self, slot: _Slot, question: Question) -> None:
        self._answer(slot, *answers.explained(await self._engine.explain(question)), "explain")

    async def _charge(self, slot: _Slot, question: Question, spent: dict[str, str]) -> None:
        found = await self._engine.charge(question, spent)
        self._answer(slot, *answers.charged(found), "charge")

    def _posted(self, slot: _Slot, method: str) -> bool:
        if method == "POST":
            return True
        self._answer(slot, 405, answers.problem(405, "only POST is answered here"), "none")
        return False

    def _as_json(self, slot: _Slot, body: bytes) -> None:
        """Envoy's rate limit service in JSON, as envoyproxy/ratelimit offers it."""
        questions = rls.of_json(_document(body))

        def answered(found: rls.Rated) -> None:
            status = 429 if found.limited else 200
            told = answers.response(
                status, (("Content-Type", "application/json"),), orjson.dumps(found.document())
            )
            self._answer(slot, status, told, "json")

        rls.rate(self._engine, questions, answered)

    def _answer(self, slot: _Slot, status: int, answer: bytes, form: str) -> None:
        self._service.counts.answered(form, status)
        if slot.head:
            answer = answer[: answer.index(b"\r\n\r\n") + 4]
        if slot.last:
            answer = answer.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
        slots = self._slots
        if not slots:
            return
        slot.answer = answer
        if len(slots) > 1 or slots[0] is not slot:
            ready = []
            while slots and slots[0].answer is not None:
                ready.append(slots.popleft().answer)
            if not ready:
                return
            answer = b"".join(each for each in ready if each is not None)
        else:
            slots.popleft()
        if not self._transport.is_closing():
            self._transport.write(answer)
            self._answered = self._loop.time()
        if self._closing and not slots:
            self._end()
        elif self._paused and not self._stuck and len(slots) <= MAX_PIPELINED // 2:
            self._resume()

    def _refuse(self, status: int, detail: str) -> None:
        """Answer what cannot be read, behind all other answers, and close."""
        slot = _Slot()
        self._slots.append(slot)
        self._closing = self._lingering = True
        self._answer(slot, status, answers.problem(status, detail, close=True), "unreadable")

    # -- the end --------------------------------------------------------------------------------

    def close_when_idle(self) -> None:
        """Close after the answers that are due."""
        if self._slots or self._since:
            return
        self._close_after_answers()

    def abort(self) -> None:
        """Close now."""
        self._closing = True
        self._slots.clear()
        self._transport.abort()

    def sweep(self, now: float) -> None:
        """Close it if it takes too long over anything."""
        if self._stuck and now - self._stuck > WRITE_TIMEOUT:
            self.abort()
        elif self._since and now - self._since > READ_TIMEOUT and not self._closing:
            self._refuse(408, f"the request took longer than {READ_TIMEOUT:g} s to arrive")
        elif not self._slots and not self._since and now - self._answered > IDLE_TIMEOUT:
            self._close_after_answers()

    def _close_after_answers(self) -> None:
        self._closing = True
        if not self._slots:
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
