"""Pipelined commands: replies in order, late replies dropped, a new connection after a fault."""

from __future__ import annotations

import asyncio
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest
import redis
import redis.asyncio
from redis.asyncio.connection import BlockingConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError

from engineroom.ratelimit.limits.decision import DecisionReason, DecisionSource
from engineroom.ratelimit.limits.limiter import AsyncLimiter
from engineroom.ratelimit.limits.model import Failure, FailureMode, Limit, Policy, Rate
from engineroom.ratelimit.limits.redis_calls.redis_clients import (
    close_shared_async,
    share_async_client,
)
from engineroom.redis.pipelined import (
    GRACE_SECONDS,
    PipelinedConnection,
    TaskPerCommand,
    command_sender,
)
from tests.support import RedisServer, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from engineroom.ratelimit.limits.decision import Decision
    from engineroom.redis.pipelined import CommandSender

POLICY = Policy("p", (Limit("a", Rate(5, 3600)),), Failure(timeout=2.0))


#: As the limiters set it, which answer instead of trying again.
ONCE = Retry(NoBackoff(), 0)


def client(server: RedisServer) -> redis.asyncio.Redis:
    return redis.asyncio.Redis(port=server.port, retry=ONCE)


def send(calls: CommandSender, *command: str) -> asyncio.Future[Any]:
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    calls.send(command, future.set_result)
    return asyncio.ensure_future(asyncio.wait_for(future, 10))


def soon(check: Callable[[], bool]) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + 10
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Path]:
    """The socket of a Redis that listens nowhere else, with the password ``secret``."""
    path = tmp_path / "redis.sock"
    process = subprocess.Popen(
        [
            *("redis-server", "--port", "0", "--unixsocket", str(path), "--save", ""),
            *("--requirepass", "secret", "--dir", str(tmp_path)),
        ],
        stdout=subprocess.DEVNULL,
    )
    try:
        soon(path.exists)
        yield path
    finally:
        process.terminate()
        process.wait(10)


def connections(store: redis.Redis) -> int:
    return sum(entry["name"] == "line" for entry in store.client_list())


@pytest.mark.parametrize(
    "make", [lambda own: PipelinedConnection(own.connection_pool), TaskPerCommand]
)
async def test_each_command_gets_its_reply(
    server: RedisServer, store: redis.Redis, make: Callable[[redis.asyncio.Redis], CommandSender]
) -> None:
    own = client(server)
    calls = make(own)
    replies = [send(calls, "ECHO", str(number)) for number in range(50)]
    wrong = send(calls, "NOSUCH")
    forgotten = send(calls, "EVALSHA", "0" * 40, "0")
    assert await asyncio.gather(*replies) == [b"%d" % number for number in range(50)]
    assert isinstance(await wrong, ResponseError)
    assert isinstance(await forgotten, NoScriptError)
    await calls.close()
    await own.aclose()


async def test_a_late_reply_is_dropped_and_delays_no_other_command(
    server: RedisServer, store: redis.Redis
) -> None:
    own = redis.asyncio.Redis(port=server.port, client_name="line")
    line = PipelinedConnection(own.connection_pool)
    await send(line, "PING")
    reported: list[Any] = []
    late = line.send(("BLPOP", "nothing", "0.2"), reported.append)
    behind = send(line, "ECHO", "behind")
    await asyncio.sleep(0)
    line.abandon(late)
    begun = time.monotonic()
    assert await send(line, "ECHO", "ahead") == b"ahead"
    assert time.monotonic() - begun < 0.2
    assert not behind.done()
    assert await behind == b"behind"
    assert reported == []
    # The old connection is closed after its last reply, before the grace period ends.
    begun = time.monotonic()
    await asyncio.to_thread(soon, lambda: connections(store) == 1)
    assert time.monotonic() - begun < GRACE_SECONDS * 0.6
    await line.close()
    await own.aclose()


async def test_a_call_that_waits_for_a_connection_can_be_given_up(
    server: RedisServer, store: redis.Redis
) -> None:
    own = client(server)
    line = PipelinedConnection(own.connection_pool)
    reported: list[Any] = []
    line.abandon(line.send(("INCR", "n"), reported.append))
    assert await send(line, "PING") == b"PONG"
    assert reported == []
    assert store.get("n") is None
    await line.close()
    await own.aclose()


async def test_calls_without_a_redis_are_told_so() -> None:
    own = redis.asyncio.Redis(port=free_port(), retry=ONCE)
    line = PipelinedConnection(own.connection_pool)
    assert isinstance(await send(line, "PING"), RedisConnectionError)
    await line.close()
    await own.aclose()


async def test_an_answer_that_comes_too_late_is_not_heard(
    server: RedisServer, store: redis.Redis
) -> None:
    failure = Failure(FailureMode.OPEN, timeout=0.05, breaker_failures=1000)
    policy = Policy("p", (Limit("a", Rate(5, 3600)),), failure)
    async with AsyncLimiter(policy, client(server)) as limiter:
        decisions: list[Decision] = []
        assert (await limiter.hit("me")).source is DecisionSource.REDIS
        store.client_pause(200)
        assert limiter.decide("me", 1, decisions.append) is None
        # Answered by Redis before this is.
        await asyncio.to_thread(soon, lambda: bool(store.ping()))
        async with asyncio.timeout(5):
            assert (await limiter.hit("you")).source is not DecisionSource.LEASE
        assert [decision.reason for decision in decisions] == [DecisionReason.FAILED_OPEN]
        assert limiter._batches.calls == 0
        assert limiter._batches.calls == 0
        assert (await limiter.hit("me")).source is DecisionSource.REDIS


async def test_calls_of_a_lost_connection_are_told_so_and_the_next_has_a_new_one() -> None:
    server = RedisServer()
    server.start()
    own = client(server)
    line = PipelinedConnection(own.connection_pool)
    try:
        await send(line, "PING")
        waiting = send(line, "BLPOP", "nothing", "0")
        server.stop()
        assert isinstance(await waiting, RedisConnectionError)
        server.start()
        assert await send(line, "PING") == b"PONG"
    finally:
        await line.close()
        await own.aclose()
        server.close()


async def test_what_is_no_reply_ends_the_connection() -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (text := await reader.read(4096)) and b"GARBAGE" not in text:
            writer.write(b"+OK\r\n" * (text.count(b"\r\n*") + 1))
        writer.write(b"this is not RESP\r\n")
        await reader.read()
        writer.close()

    listening = await asyncio.start_server(babble, "127.0.0.1", 0)
    own = redis.asyncio.Redis(port=listening.sockets[0].getsockname()[1])
    line = PipelinedConnection(own.connection_pool)
    try:
        assert await send(line, "PING") == b"OK"
        assert isinstance(await send(line, "GARBAGE"), RedisConnectionError)
        assert await send(line, "PING") == b"OK"
    finally:
        await line.close()
        await own.aclose()
        listening.close()


async def test_closing_ends_what_is_under_way(server: RedisServer, store: redis.Redis) -> None:
    own = client(server)
    line = PipelinedConnection(own.connection_pool)
    opening = send(line, "PING")
    await line.close()
    assert isinstance(await opening, RedisConnectionError)
    await send(line, "PING")
    waiting = send(line, "BLPOP", "nothing", "0")
    await line.close()
    assert isinstance(await waiting, RedisConnectionError)
    await own.aclose()


async def test_an_address_says_all_it_can(guarded: Path) -> None:
    for protocol in (2, 3):
        own = redis.asyncio.Redis.from_url(
            f"unix://:secret@{guarded}?db=3&protocol={protocol}", client_name="line"
        )
        async with AsyncLimiter(POLICY, own) as limiter:
            assert isinstance(limiter._sender, PipelinedConnection)
            decisions = await asyncio.gather(*(limiter.hit(f"{protocol}") for _ in range(7)))
            assert sum(decision.allowed for decision in decisions) == 5
            assert limiter.failed == 0
        assert await own.dbsize() == protocol - 1
        await own.aclose()


async def test_limiters_that_share_a_client_share_a_connection(
    server: RedisServer, store: redis.Redis
) -> None:
    own = redis.asyncio.Redis(port=server.port, client_name="line")
    shared = share_async_client(own)
    limiters = [AsyncLimiter(POLICY, shared) for _ in range(20)]
    await asyncio.gather(*(limiter.hit("me") for limiter in limiters))
    assert connections(store) == 1
    await limiters[0].close()
    assert (await limiters[1].hit("you")).allowed
    await close_shared_async(shared)
    await asyncio.to_thread(soon, lambda: not connections(store))
    await own.aclose()


async def test_a_pool_of_another_kind_keeps_its_ways(
    server: RedisServer, store: redis.Redis
) -> None:
    pool = BlockingConnectionPool(port=server.port, max_connections=1)
    own = redis.asyncio.Redis.from_pool(pool)
    assert isinstance(command_sender(own), TaskPerCommand)
    async with AsyncLimiter(POLICY, own) as limiter:
        decisions = await asyncio.gather(*(limiter.hit("me") for _ in range(7)))
        assert sum(decision.allowed for decision in decisions) == 5


async def test_entering_a_limiter_connects_and_decisions_take_that_connection(
    server: RedisServer, store: redis.Redis
) -> None:
    own = redis.asyncio.Redis(port=server.port, client_name="line")
    async with AsyncLimiter(POLICY, own) as limiter:
        assert connections(store) == 1
        assert (await limiter.hit("me")).source is DecisionSource.REDIS
        assert connections(store) == 1
    await own.aclose()
