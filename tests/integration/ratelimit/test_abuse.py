"""Limits of a connection: frames and bytes of a hostile client."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest

from engineroom.ratelimit.service import grpc as front
from engineroom.ratelimit.service import http, protocol_server
from engineroom.ratelimit.service.directory import FixedDirectory
from engineroom.ratelimit.service.engine import DecisionEngine, DecisionResult, MissingPolicy
from engineroom.ratelimit.service.metrics import ServiceCounts
from engineroom.ratelimit.service.top import Recordings
from tests.limiter import budget

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, GOAWAY, CONTINUATION = 0, 1, 3, 4, 7, 9
END_STREAM, END_HEADERS = 1, 4
INITIAL_WINDOW = 4
HEALTH = b"/grpc.health.v1.Health/Check"


class Front:
    """A service of the test's own loop, and its port."""

    def __init__(self, service: Any, port: int) -> None:
        self.service = service
        self.port = port
        self._peers: list[Peer] = []

    async def open(self) -> Peer:
        peer = Peer(*await asyncio.open_connection("127.0.0.1", self.port))
        self._peers.append(peer)
        return peer

    async def close(self) -> None:
        for peer in self._peers:
            peer.writer.close()
            with contextlib.suppress(ConnectionError):
                await peer.writer.wait_closed()


class Peer:
    """A client that sends frames by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def greet(self, settings: bytes = b"") -> None:
        self.send(PREFACE + frame(SETTINGS, 0, 0, settings))

    async def frames(self, seconds: float = 10) -> list[tuple[int, int, bytes]]:
        """Type, stream and payload of all that comes until the other side closes."""
        actual = []
        async with asyncio.timeout(seconds):
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    head = await self.reader.readexactly(9)
                    payload = await self.reader.readexactly(int.from_bytes(head[:3]))
                    actual.append((head[3], int.from_bytes(head[5:]), payload))
        return actual

    async def closed(self, seconds: float = 10) -> bytes:
        """All that comes until the other side closes."""
        got = b""
        async with asyncio.timeout(seconds):
            with contextlib.suppress(ConnectionError):
                got = await self.reader.read()
        return got


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def number(value: int, prefix: int, flags: int = 0) -> bytes:
    """HPACK's integers (RFC 7541, 5.1)."""
    most = (1 << prefix) - 1
    if value < most:
        return bytes((flags | value,))
    built = bytearray((flags | most,))
    value -= most
    while value >= 128:
        built.append(value & 127 | 128)
        value >>= 7
    built.append(value)
    return bytes(built)


def literal(name: bytes, value: bytes, flags: int = 0) -> bytes:
    """A header as it is; ``flags`` 0x40 puts it into the table."""
    return bytes((flags,)) + number(len(name), 7) + name + number(len(value), 7) + value


def head(path: bytes = HEALTH) -> bytes:
    return b"".join(
        literal(*pair)
        for pair in (
            (b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"l"),
            (b"content-type", b"application/grpc"), (b"te", b"trailers"),
        )
    )  # fmt: skip


def call(stream: int, body: bytes = b"\0\0\0\0\0") -> bytes:
    return frame(HEADERS, END_HEADERS, stream, head()) + frame(DATA, END_STREAM, stream, body)


def pings_back(found: list[tuple[int, int, bytes]], kind: int) -> list[int]:
    return [stream for entry, stream, _ in found if entry == kind]


async def until(holds: Callable[[], bool], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def serving(
    kind: Any, directory: Any = None, *, most: int = 10_000, held: int = 64 * 2**20
) -> AsyncIterator[Front]:
    counts = ServiceCounts()
    engine = DecisionEngine(directory or FixedDirectory({}), counts, Recordings())
    service = kind(engine, counts, budget(most, held), request_timeout=0.3)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(service.connection, "127.0.0.1", 0)
    service.start()
    built = Front(service, server.sockets[0].getsockname()[1])
    try:
        yield built
    finally:
        await built.close()
        server.close()
        await service.drain(0.1)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that takes seconds takes tenths of them."""
    for module in (front, http):
        monkeypatch.setattr(module, "WRITE_TIMEOUT", 0.3)
    monkeypatch.setattr(protocol_server, "IDLE_TIMEOUT", 0.6)
    monkeypatch.setattr(protocol_server, "SWEEP_SECONDS", 0.05)
    monkeypatch.setattr(front, "CALL_TIMEOUT", 0.6)


@pytest.fixture
async def h2() -> AsyncIterator[Front]:
    async with serving(front.GrpcService) as entry:
        yield entry


@pytest.fixture
async def h1() -> AsyncIterator[Front]:
    async with serving(http.HttpService) as entry:
        yield entry


async def answers(target: Front) -> bool:
    """Return whether a real client is served."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{target.port}") as channel:
        return bool(await channel.unary_unary(HEALTH.decode())(b"", timeout=5) == b"\x08\x01")


# -- gRPC -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", PREFACE[:10], PREFACE, PREFACE + b"\0\0\0\4"])
async def test_who_does_not_greet_loses_its_place(h2: Front, sent: bytes) -> None:
    peer = await h2.open()
    peer.send(sent)
    began = time.monotonic()
    await peer.closed()
    assert 0.2 < time.monotonic() - began < 5
    assert not h2.service.connections
    assert await answers(h2)


async def test_a_connection_without_calls_is_left_with_two_words(h2: Front) -> None:
    peer = await h2.open()
    peer.greet()
    peer.send(call(1))
    began = time.monotonic()
    actual = await peer.frames()
    assert 0.5 < time.monotonic() - began < 5
    last = [int.from_bytes(payload[:4]) for kind, _, payload in actual if kind == GOAWAY]
    assert last == [2**31 - 1, 1], "a notice first, since a call may be on its way"
    assert not h2.service.connections


async def test_a_client_that_comes_back_after_a_pause_is_served(h2: Front) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{h2.port}") as channel:
        check = channel.unary_unary(HEALTH.decode())
        for _ in range(3):
            assert await check(b"", timeout=5) == b"\x08\x01"
            await asyncio.sleep(0.8)
            await until(lambda: not h2.service.connections)


async def test_a_call_that_trickles_in_is_ended_and_others_go_on(
    h2: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol_server, "IDLE_TIMEOUT", 3.0)
    peer = await h2.open()
    peer.greet()
    peer.send(frame(HEADERS, END_HEADERS, 1, head()))
    for _ in range(12):
        peer.send(frame(DATA, 0, 1, b"\0"))
        await asyncio.sleep(0.05)
    peer.send(call(3))
    actual = await peer.frames()
    assert pings_back(actual, RESET) == [1]
    assert 3 in pings_back(actual, DATA)


async def test_headers_that_never_end_end_the_connection(h2: Front) -> None:
    peer = await h2.open()
    peer.greet()
    peer.send(frame(HEADERS, 0, 1, literal(b"a", b"b")))
    for _ in range(50):
        peer.send(frame(CONTINUATION, 0, 1, literal(b"a", b"b")))
    await peer.closed()
    assert not h2.service.connections
    assert await answers(h2)


@pytest.mark.parametrize(
    "block",
    [
        head() + literal(b"x", b"y" * 16_000) + literal(b"z", b"y" * 400),
        # A bomb: one entry of the table, told again and again.
        head() + literal(b"x", b"y" * 4000, 0x40) + b"\xbe" * 12_000,
        head() + literal(b"x", b"y") * 100,
    ],
    ids=["long", "bomb", "many"],
)
async def test_header_lists_beyond_the_bound_end_the_connection(
    h2: Front, block: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol_server, "IDLE_TIMEOUT", 60.0)
    h2.service.request_timeout = 60.0
    peer = await h2.open()
    peer.greet()
    size = 16_000
    parts = [block[at : at + size] for at in range(0, len(block), size)]
    for place, part in enumerate(parts):
        flags = END_HEADERS if place == len(parts) - 1 else 0
        peer.send(frame(CONTINUATION if place else HEADERS, flags | (not place), 1, part))
    actual = await peer.frames()
    assert not pings_back(actual, HEADERS), "there is no answer"
    assert not h2.service.connections
    assert await answers(h2)


async def test_calls_begun_and_reset_at_once_end_the_connection(h2: Front) -> None:
    peer = await h2.open()
    peer.greet()
    for stream in range(1, 8001, 2):
        peer.send(call(stream) + frame(RESET, 0, stream, (8).to_bytes(4)))
    actual = await peer.frames()
    assert pings_back(actual, GOAWAY)
    assert not h2.service.connections
    assert await answers(h2)


async def test_unfinished_calls_hold_no_more_than_their_budget(
    h2: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    h2.service.request_timeout = 30.0
    monkeypatch.setattr(front, "CALL_TIMEOUT", 30.0)
    peer = await h2.open()
    peer.greet()
    most = 0
    taken = asyncio.create_task(peer.frames(30))
    for stream in range(1, 129, 2):
        peer.send(frame(HEADERS, END_HEADERS, stream, head()))
        for _ in range(4):
            peer.send(frame(DATA, 0, stream, b"x" * 16_000))
        await peer.writer.drain()
        await asyncio.sleep(0.005)
        (connection,) = h2.service.connections
        held = sum(call.held for call in connection._calls.values())
        assert held == connection._held
        most = max(most, held)
    assert 500_000 < most <= front.MAX_HELD + 16_384
    for stream in range(1, 129, 2):
        peer.send(frame(RESET, 0, stream, (8).to_bytes(4)))
    peer.send(call(201))
    await until(lambda: not connection._calls)
    assert connection._held == 0
    peer.writer.close()
    actual = await taken
    refused = [payload for kind, _, payload in actual if kind == HEADERS and b"grpc" in payload]
    assert 201 in pings_back(actual, DATA), "the connection goes on"
    assert refused or len(pings_back(actual, HEADERS)) > 1


async def test_a_call_whose_answer_has_no_window_is_ended(h2: Front) -> None:
    peer = await h2.open()
    peer.greet(struct.pack(">HI", INITIAL_WINDOW, 0))
    peer.send(call(1))
    actual = await peer.frames()
    assert pings_back(actual, HEADERS) == [1]
    assert not pings_back(actual, DATA)
    assert pings_back(actual, RESET) == [1]
    assert not h2.service.connections, "and then it is idle"


@pytest.mark.parametrize("name", ["h1", "h2"])
async def test_connections_above_the_most_are_closed_and_make_room(name: str) -> None:
    kind = front.GrpcService if name == "h2" else http.HttpService
    async with serving(kind, most=3) as target:
        target.service.request_timeout = 30.0
        peers = [await target.open() for _ in range(3)]
        for peer in peers:
            if name == "h2":
                peer.greet()
                peer.send(call(1))
            else:
                peer.send(b"GET / HTTP/1.1\r\n\r\n")
            assert await peer.reader.read(1)
        await until(lambda: not target.service.budget._silent)
        assert len(target.service.connections) == 3
        assert await (await target.open()).closed() == b""
        peers[0].writer.close()
        await until(lambda: len(target.service.connections) == 2)
        another = await target.open()
        another.send(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
        if name == "h1":
            assert (await another.closed()).startswith(b"HTTP/1.1 404 ")
        else:
            assert await another.closed(), "its own settings at least"


# -- responses that the client does not read -------------------------------------------------------


def deaf(port: int) -> socket.socket:
    """A connection with little room for answers."""
    built = socket.socket()
    built.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    built.connect(("127.0.0.1", port))
    built.setblocking(False)
    return built


async def pour(made: socket.socket, chunk: Callable[[int], bytes], times: int) -> bool:
    """Send and never read; whether the other side closed."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(15):
            for turn in range(times):
                await loop.sock_sendall(made, chunk(turn))
            while True:
                await asyncio.sleep(0.05)
                await loop.sock_sendall(made, b"")
                made.send(b"\r\n")
    except ConnectionError:
        return True
    except TimeoutError:
        return False


async def test_http_that_takes_no_answers_is_closed(h1: Front) -> None:
    with deaf(h1.port) as built:
        closed = await pour(built, lambda _: b"GET / HTTP/1.1\r\n\r\n" * 500, 200)
    assert closed
    assert not h1.service.connections


async def test_grpc_that_takes_no_answers_is_closed(h2: Front) -> None:
    with deaf(h2.port) as built:
        await asyncio.get_running_loop().sock_sendall(
            built, PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW, 2**31 - 1))
            + frame(8, 0, 0, (2**31 - 70_000).to_bytes(4)),
        )  # fmt: skip

        def calls(turn: int) -> bytes:
            first = 1 + turn * 400
            return b"".join(call(stream) for stream in range(first, first + 400, 2))

        closed = await pour(built, calls, 500)
    assert closed
    assert not h2.service.connections
    assert await answers(h2)


class Undecided:
    """A directory that looks for ever."""

    def __init__(self) -> None:
        self.asked = 0

    def find(self, namespace: str, name: str) -> asyncio.Future[None]:
        self.asked += 1
        return asyncio.get_running_loop().create_future()


async def test_no_more_is_read_while_too_many_requests_wait() -> None:
    directory = Undecided()
    async with serving(http.HttpService, directory) as target:
        peer = await target.open()
        peer.send(b"GET /v1/forward/shop/api HTTP/1.1\r\n\r\n" * 100_000)
        await until(lambda: directory.asked > http.MAX_PIPELINED)
        await asyncio.sleep(0.5)
        # What came in one slice with the last of them is parsed whole.
        assert directory.asked <= http.MAX_PIPELINED + protocol_server.SLICE // 37 + 1
        for connection in list(target.service.connections):
            connection.abort()


class Seen:
    """A directory that knows nothing, and an engine's ear for what was asked."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}

    def decide(self, question: Any, done: Callable[..., None], *context: Any) -> DecisionResult:
        self.headers = dict(question.view.headers)
        return DecisionResult(None, missing=MissingPolicy.UNATTACHED)


async def test_a_header_that_is_sent_thousands_of_times_takes_time_in_proportion(
    h1: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    observed = Seen()
    monkeypatch.setattr(h1.service, "engine", observed)
    reported = b"".join(b"a:%d\r\n" % entry for entry in range(1500))
    cookies = b"Cookie: a=b\r\ncookie: c=d\r\n"
    peer = await h1.open()
    began = time.process_time()
    peer.send(
        b"GET /v1/forward/shop/api HTTP/1.1\r\n" + reported + cookies + b"Connection: close\r\n\r\n"
    )
    assert (await peer.closed()).startswith(b"HTTP/1.1 200 ")
    assert time.process_time() - began < 1.0
    assert observed.headers["a"] == ",".join(map(str, range(1500)))
    assert observed.headers["cookie"] == "a=b; c=d"
