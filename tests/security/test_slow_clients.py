"""Slow, silent and many clients of the API's HTTP server, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from typing import TYPE_CHECKING, Any, cast

import pytest
import uvicorn

from engineroom.console import http_server
from engineroom.console.http_server import (
    ApiServer,
    ConnectionGuard,
    ConnectionTimeouts,
    protocol_factory,
)
from engineroom.core.serving.connection_budget import BudgetLimits, ConnectionBudget, Refusal
from tests.cluster.certificates import Authority

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
GET = b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n"


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Read the body, or not; answer at once, or with a stream that never ends."""
    start = {"type": "http.response.start", "status": 200, "headers": []}
    if scope["path"] == "/stream":
        await send(start)
        while (await _soon(receive)) is None:
            await send({"type": "http.response.body", "body": b": beat\n", "more_body": True})
        return
    more = scope["path"] == "/"
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        more = message["more_body"]
    if scope["path"] == "/slow":
        await asyncio.sleep(0.3)
    await send({**start, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def _soon(receive: Any) -> Any:
    """Return a disconnect that is there within a moment; else None."""
    try:
        async with asyncio.timeout(0.1):
            while (message := await receive())["type"] != "http.disconnect":
                pass
            return message
    except TimeoutError:
        return None


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


class Served:
    """A running server."""

    def __init__(self, server: ApiServer, port: int, context: ssl.SSLContext | None) -> None:
        self.server = server
        self.port = port
        self.context = context
        self._writers: list[asyncio.StreamWriter] = []

    @property
    def budget(self) -> ConnectionBudget:
        return self.server.guard.budget

    async def open(self, sent: bytes, *, plain: bool = False) -> Client:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=None if plain else self.context
        )
        self._writers.append(writer)
        writer.write(sent)
        return Client(reader, writer)

    def close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def rest(self, seconds: float = 10) -> bytes:
        """Return all that comes until the server closes."""
        received = b""
        async with asyncio.timeout(seconds):
            with contextlib.suppress(ConnectionError):
                while part := await self.reader.read(65536):
                    received += part
        return received


@contextlib.asynccontextmanager
async def serving(
    limits: BudgetLimits, server_context: ssl.SSLContext | None = None,
    client_context: ssl.SSLContext | None = None,
) -> AsyncIterator[Served]:  # fmt: skip
    guard = ConnectionGuard(ConnectionBudget(limits), ConnectionTimeouts(0.3, 1024))
    config = uvicorn.Config(
        application, host="127.0.0.1", port=0, ws="none", lifespan="off", log_config=None,
        http=cast("Any", protocol_factory(guard, server_context)), timeout_keep_alive=30,
        timeout_graceful_shutdown=1,
    )  # fmt: skip
    server = ApiServer(config, guard)
    task = asyncio.create_task(server._serve())
    while not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    served = Served(server, server.servers[0].sockets[0].getsockname()[1], client_context)
    try:
        yield served
    finally:
        served.close()
        server.should_exit = True
        await task


@pytest.fixture(autouse=True)
def _soon_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "SWEEP_SECONDS", 0.05)
    monkeypatch.setattr(http_server, "BODY_WINDOW", 0.5)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving(BudgetLimits(20, 10)) as running:
        yield running


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", b""),
        (b"\r\n", b""),
        (b"GE", b"408"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: ", b"408"),
        (GET % b"x" + b"GET / HT", b"200"),
    ],
    ids=["silent", "line end", "method", "headers", "next"],
)
async def test_a_head_has_its_time(served: Served, sent: bytes, status: bytes) -> None:
    client = await served.open(sent)
    began = time.monotonic()
    received = await client.rest()
    assert 0.2 < time.monotonic() - began < 5
    assert received[9:12] == status
    assert received.count(b"HTTP/1.1 408 ") == (b"HT" in sent[-3:] or status == b"408")
    assert served.budget.refusals == {Refusal.TIMEOUT: 1}


async def test_line_ends_between_requests_do_not_hold_a_connection(served: Served) -> None:
    client = await served.open(GET % b"x")
    await client.reader.readuntil(b"\r\n\r\nok")
    client.writer.write(b"\r\n")
    began = time.monotonic()
    assert await client.rest() == b""
    assert time.monotonic() - began < 3, "not the time of an idle connection"


@pytest.mark.parametrize("path", [b"/", b"/unread"])
async def test_a_body_makes_progress(served: Served, path: bytes) -> None:
    client = await served.open(POST.replace(b" / ", b" " + path + b" "))
    received = asyncio.create_task(client.rest())
    began = time.monotonic()
    while not received.done():
        client.writer.write(b"x")
        await asyncio.sleep(0.05)
    assert 0.3 < time.monotonic() - began < 5
    expected = b"HTTP/1.1 408 " if path == b"/" else b"HTTP/1.1 200 "
    assert (await received).startswith(expected)
    assert served.budget.refusals == {Refusal.TIMEOUT: 1}


async def test_a_body_that_makes_progress_is_read(served: Served) -> None:
    client = await served.open(POST.replace(b"100000", b"4000"))
    for _ in range(20):
        client.writer.write(b"x" * 200)
        await asyncio.sleep(0.06)
    assert (await client.reader.readexactly(12)) == b"HTTP/1.1 200"


async def test_streams_and_slow_handlers_are_not_cut(served: Served) -> None:
    stream = await served.open(GET % b"stream")
    slow = await served.open((GET % b"slow") * 3)
    async with asyncio.timeout(10):
        await stream.reader.readuntil(b": beat\n")
        for _ in range(15):
            await stream.reader.readuntil(b": beat\n")
        for _ in range(3):
            await slow.reader.readuntil(b"\r\n\r\nok")
    assert not served.budget.refusals


async def test_an_address_has_its_connections_and_silent_ones_make_room(served: Served) -> None:
    streams = [await served.open(GET % b"stream") for _ in range(9)]
    for stream in streams:
        await stream.reader.readuntil(b": beat\n")
    silent = await served.open(b"")
    following = await served.open(GET % b"stream")
    await following.reader.readuntil(b": beat\n")
    assert await silent.rest() == b""
    refused = await served.open(GET % b"x")
    assert await refused.rest() == b""
    assert served.budget.refusals[Refusal.ADDRESS] == 2
    await streams[0].reader.readuntil(b": beat\n")


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /" + b"x" * 40_000,
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000,
        b"GET / HTTP/1.1\r\nX: " + b"y" * 40_000,
    ],
    ids=["url", "headers", "header"],
)
async def test_a_long_head_is_refused(served: Served, sent: bytes) -> None:
    client = await served.open(sent)
    assert (await client.rest()).startswith(b"HTTP/1.1 431 ")


async def test_requests_that_wait_on_one_connection_are_few(served: Served) -> None:
    client = await served.open((GET % b"stream") + (GET % b"x") * 10_000)
    received = await client.rest()
    assert received.count(b"HTTP/1.1 ") <= 1
    await _until(lambda: len(served.budget) == 0)


# -- TLS ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority = Authority(tmp_path_factory.mktemp("tls"))
    authority.ensure()
    certificate, key = authority.issue("api", "api", hosts=["IP:127.0.0.1"])
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    return server, ssl.create_default_context(cafile=authority.certificate)


async def test_tls_is_served(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    async with serving(BudgetLimits(20, 10), *contexts) as served:
        for _ in range(20):
            client = await served.open(b"GET /x HTTP/1.1\r\nConnection: close\r\n\r\n")
            assert (await client.rest()).endswith(b"\r\n\r\nok")
        await _until(lambda: len(served.budget) == 0)


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02"])
async def test_the_handshake_of_tls_has_the_time_of_a_head_and_counts(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext], sent: bytes
) -> None:
    async with serving(BudgetLimits(20, 3), *contexts) as served:
        began = time.monotonic()
        silent = [await served.open(sent, plain=True) for _ in range(4)]
        assert await silent[0].rest() == b"", "it made room"
        assert time.monotonic() - began < 0.3
        assert served.budget.refusals[Refusal.ADDRESS] == 1
        for client in silent:
            await client.rest()
        assert time.monotonic() - began < 5
        await _until(lambda: len(served.budget) == 0)
        client = await served.open(GET % b"x")
        assert await client.reader.readexactly(12) == b"HTTP/1.1 200"
