"""Clients that hold connections and memory of the limiter: others are served meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest
from ngh2 import NGH2Error

from engineroom.core.serving import get_server
from engineroom.core.serving.connection_budget import BudgetLimits, ConnectionBudget, Refusal
from engineroom.core.serving.get_server import TEXT, GetServer
from engineroom.ratelimit.service import grpc as front
from engineroom.ratelimit.service import http, protocol_server
from engineroom.ratelimit.service.protocol_server import SLICE
from tests.integration.ratelimit.test_abuse import (
    END_HEADERS,
    HEADERS,
    PREFACE,
    SETTINGS,
    Front,
    Undecided,
    answers,
    frame,
    literal,
    serving,
    until,
)
from tests.limiter import get, limiter_process

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import redis

    from tests.support import RedisServer

REQUEST = b"GET / HTTP/1.1\r\n\r\n"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that takes seconds takes tenths of them."""
    monkeypatch.setattr(protocol_server, "SWEEP_SECONDS", 0.05)
    for module in (front, http):
        monkeypatch.setattr(module, "WRITE_TIMEOUT", 0.3)


def refusals(target: Front) -> Mapping[Refusal, int]:
    return dict(target.service.budget.refusals)


@contextlib.contextmanager
def sockets(
    port: int, number: int, sent: bytes, host: str = "127.0.0.1"
) -> Iterator[list[socket.socket]]:
    """Open connections from an address, and send the same on each."""
    opened: list[socket.socket] = []
    try:
        for _ in range(number):
            opened.append(socket.create_connection(("127.0.0.1", port), 10, (host, 0)))
            with contextlib.suppress(ConnectionError):
                opened[-1].sendall(sent)
        yield opened
    finally:
        for connection in opened:
            connection.close()


# -- connections ----------------------------------------------------------------------------------


async def test_half_of_the_next_request_has_the_time_of_a_request() -> None:
    async with serving(http.HttpService) as target:
        peer = await target.open()
        began = time.monotonic()
        peer.send(REQUEST + b"GET / HT")
        received = await peer.closed()
        assert time.monotonic() - began < 5
    assert [part[:3] for part in received.split(b"HTTP/1.1 ")[1:]] == [b"404", b"408"]
    assert refusals(target) == {Refusal.TIMEOUT: 1}


@pytest.mark.parametrize("sent", [b"", b"\r\n", b"G"])
async def test_a_connection_without_a_request_is_closed_in_the_time_of_a_request(
    sent: bytes,
) -> None:
    async with serving(http.HttpService) as target:
        peer = await target.open()
        peer.send(sent)
        began = time.monotonic()
        received = await peer.closed()
        assert 0.2 < time.monotonic() - began < 5
    assert received.startswith(b"HTTP/1.1 408 ") == (sent == b"G")


@pytest.mark.parametrize(
    "sent",
    [
        frame(HEADERS, END_HEADERS, 1, literal(b"a", b"b"))[:-1],
        frame(HEADERS, END_HEADERS, 1)[:4],
        frame(HEADERS, 0, 1, literal(b"a", b"b")),
    ],
    ids=["frame", "head", "headers"],
)
async def test_half_of_a_call_has_the_time_of_a_request(sent: bytes) -> None:
    async with serving(front.GrpcService) as target:
        peer = await target.open()
        peer.greet()
        peer.send(sent)
        began = time.monotonic()
        await peer.closed()
        assert time.monotonic() - began < 5
    assert refusals(target) == {Refusal.TIMEOUT: 1}


async def test_a_silent_connection_makes_room_for_the_next() -> None:
    async with serving(http.HttpService, most=3) as target:
        target.service.request_timeout = 30.0
        silent = [await target.open() for _ in range(3)]
        await until(lambda: len(target.service.connections) == 3)
        peer = await target.open()
        peer.send(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
        assert (await peer.closed()).startswith(b"HTTP/1.1 404 ")
        assert await silent[0].closed() == b"", "the oldest"
        assert len(target.service.connections) == 2
    assert refusals(target) == {Refusal.ADDRESS: 1}


async def test_idle_connections_are_closed_soon_while_there_is_little_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(protocol_server, "SHORT_IDLE_TIMEOUT", 0.2)
    async with serving(http.HttpService, most=10) as target:
        peers = [await target.open() for _ in range(10)]
        for peer in peers:
            peer.send(REQUEST)
        # With the first that is closed there is room, and the others have the usual time.
        await until(lambda: len(target.service.connections) < 10)


def test_ten_thousand_silent_connections_of_an_address_keep_no_other_out(
    server: RedisServer, store: redis.Redis, tmp_path: Path
) -> None:
    assert store.ping()
    with (
        limiter_process(server.url, tmp_path) as limiter,
        sockets(limiter.http_port, 10_000, b""),
    ):
        assert get(f"{limiter.url}/")[0] == 404, "the same address is served"
        with sockets(limiter.http_port, 1, REQUEST, "127.0.0.2") as (other,):
            assert other.recv(100).startswith(b"HTTP/1.1 404 ")
        assert limiter.ready()["ready"]
        metrics = limiter.admin("/metrics")[1].splitlines()
    numbers = dict(line.rsplit(" ", 1) for line in metrics if not line.startswith("#"))
    assert 1990 < float(numbers["engineroom_ratelimit_http_connections"]) < 2010
    refused = numbers['engineroom_ratelimit_refused_connections_total{why="address"}']
    assert float(refused) >= 8000


# -- memory ---------------------------------------------------------------------------------------


def test_paths_that_a_byte_repeats_hold_little_memory(
    server: RedisServer, store: redis.Redis, tmp_path: Path
) -> None:
    """Fifty connections, each with a thousand calls that repeat a path of 3.5 KiB."""
    assert store.ping()
    head = b"".join(
        literal(*pair)
        for pair in ((b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"l"))
    )
    kind = literal(b"content-type", b"application/grpc")
    first = head + literal(b":path", b"/" + b"x" * 3500, 0x40) + kind
    sent = PREFACE + frame(SETTINGS, 0, 0) + frame(HEADERS, END_HEADERS, 1, first)
    for stream in range(3, 2048, 2):
        sent += frame(HEADERS, END_HEADERS, stream, head + b"\xbe" + kind)
    assert 50 * len(sent) < 5_000_000
    with limiter_process(server.url, tmp_path) as limiter:
        with sockets(limiter.grpc_port, 1, sent):
            time.sleep(0.5)  # what one connection costs was allocated once
        before = limiter.memory()
        with sockets(limiter.grpc_port, 50, sent):
            deadline = time.monotonic() + 1.5
            growth = 0
            while time.monotonic() < deadline:
                growth = max(growth, limiter.memory() - before)
                time.sleep(0.1)
            assert limiter.ready()["ready"]
    assert growth < 60 * 2**20, growth


async def test_requests_beyond_the_bytes_of_the_budget_are_refused_and_others_served() -> None:
    async with serving(http.HttpService, held=100_000) as target:
        target.service.request_timeout = 30.0
        head = b"POST /v1/decide HTTP/1.1\r\nContent-Length: 60000\r\n\r\n"
        first, second = await target.open(), await target.open()
        first.send(head + b"x" * 50_000)
        await until(lambda: target.service.budget.held > 50_000)
        second.send(head + b"x" * 59_000)
        assert (await second.closed()).startswith(b"HTTP/1.1 503 ")
        small = await target.open()
        small.send(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
        assert (await small.closed()).startswith(b"HTTP/1.1 404 ")
        first.send(b"x" * 10_000 + REQUEST)
        assert (await first.reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 400 ")
        await until(lambda: target.service.budget.held == 0)
    assert refusals(target) == {Refusal.MEMORY: 1}


async def test_requests_that_wait_hold_the_bytes_of_the_budget() -> None:
    directory = Undecided()
    async with serving(http.HttpService, directory, held=300_000) as target:
        peers = [await target.open() for _ in range(4)]
        request = b"GET /v1/forward/shop/api HTTP/1.1\r\nX: " + b"y" * 10_000 + b"\r\n\r\n"
        for peer in peers:
            peer.send(request * 20)
        await until(lambda: refusals(target).get(Refusal.MEMORY, 0) >= 2)
        assert target.service.budget.held <= 300_000
        for connection in list(target.service.connections):
            connection.abort()
        await until(lambda: target.service.budget.held == 0)


async def test_calls_beyond_the_bytes_of_the_budget_are_failed_and_others_answered() -> None:
    async with serving(front.GrpcService, held=150_000) as target:
        target.service.request_timeout = 30.0
        peer = await target.open()
        peer.greet()
        block = b"".join(
            literal(*pair)
            for pair in (
                (b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/x"),
                (b":authority", b"l"), (b"content-type", b"application/grpc"),
            )
        )  # fmt: skip
        for stream in range(1, 9, 2):
            peer.send(frame(HEADERS, END_HEADERS, stream, block))
            for _ in range(3):
                peer.send(frame(0, 0, stream, b"x" * 16_000))
                await asyncio.sleep(0.01)  # the window grows
        await until(lambda: bool(refusals(target).get(Refusal.MEMORY)))
        assert target.service.budget.held <= 150_000
        assert await answers(target)


async def test_many_tiny_requests_in_one_read_leave_few_responses_in_memory() -> None:
    async with serving(http.HttpService) as target:
        peer = await target.open()
        peer.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.reader._transport.pause_reading()  # type: ignore[attr-defined]
        most = 0
        for _ in range(200):
            peer.send(REQUEST * 1000)
            await asyncio.sleep(0)
            for connection in target.service.connections:
                most = max(most, connection._transport.get_write_buffer_size())
        await until(lambda: not target.service.connections)
    # The responses of one slice follow the limit.
    assert 0 < most < http.MAX_UNSENT + SLICE // len(REQUEST) * 300


# -- faults ---------------------------------------------------------------------------------------


async def _until_greeted(connection: Any) -> None:
    await until(lambda: connection._greeted)


class BrokenSession:
    """A session of which every call raises."""

    def __getattr__(self, name: str) -> Any:
        def fail(*_: object, **__: object) -> None:
            raise NGH2Error("broken")

        return fail


async def test_a_broken_session_is_closed_and_the_timeouts_of_others_go_on() -> None:
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    async with serving(front.GrpcService) as target:
        for step in ("data_received", "flush", "drain", "sweep"):
            peer = await target.open()
            peer.greet()
            await until(lambda: len(target.service.connections) == 1)
            (connection,) = target.service.connections
            await _until_greeted(connection)
            connection._session = BrokenSession()
            if step == "data_received":
                peer.send(b"\0\0\0\4")
            elif step == "flush":
                connection._flush_soon()
            elif step == "drain":
                connection.drain()
            else:
                connection._used = float("-inf")
            await peer.closed()
            await until(lambda: not target.service.connections)
        assert await answers(target)
    assert not failures


# -- probes and metrics ---------------------------------------------------------------------------


async def test_silent_connections_to_the_probes_keep_no_probe_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def healthy(_: Mapping[str, str]) -> tuple[int, str, bytes]:
        return 200, TEXT, b"ok\n"

    monkeypatch.setattr(get_server, "READ_TIMEOUT", 30.0)
    server = GetServer({"/healthz": healthy})
    port = await server.listen("127.0.0.1", 0)
    loop = asyncio.get_running_loop()

    def probe() -> list[tuple[int, str]]:
        with sockets(port, 300, b"GET /healthz HTTP/1.1\r\n"):
            return [get(f"http://127.0.0.1:{port}/healthz") for _ in range(3)]

    try:
        assert await loop.run_in_executor(None, probe) == [(200, "ok\n")] * 3
    finally:
        server.close()


def test_a_budget_counts_connections_and_bytes_and_forgets_them() -> None:
    class Closed:
        """A connection that counts how often it is closed."""

        def __init__(self) -> None:
            self.times = 0

        def abort(self) -> None:
            """Count."""
            self.times += 1

    budget = ConnectionBudget(BudgetLimits(3, 2, 100, 60))
    a, b, c, d, e = (Closed() for _ in range(5))
    assert budget.admit(a, "a")
    assert budget.admit(b, "a")
    budget.record_request(a)
    assert budget.admit(c, "a"), "b was silent"
    assert (a.times, b.times) == (0, 1)
    budget.record_request(c)
    assert not budget.admit(b, "a"), "none of its connections is silent"
    assert budget.admit(d, "b")
    budget.record_request(d)
    assert not budget.admit(e, "c"), "all connections are used, and none is silent"
    assert budget.hold(a, 60)
    assert not budget.hold(c, 1), "the address has its bytes"
    assert budget.hold(d, 40)
    assert not budget.hold(d, 41)
    assert budget.hold(a, 10)
    assert (budget.held, len(budget)) == (50, 3)
    for connection in (a, b, c, d, e):
        budget.release(connection)
    assert (budget.held, len(budget), budget._addresses, budget._silent) == (0, 0, {}, {})
    assert budget.refusals == {Refusal.ADDRESS: 2, Refusal.PROCESS: 1, Refusal.MEMORY: 2}
