"""A real Redis for the tests of tasks, and a stock RQ worker in the test's own process.

Run with the interpreter of either virtual environment, they are tests of RQ 3 or of RQ 2.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import sqlalchemy
from redis import Redis
from rq import SimpleWorker
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from engineroom.tasks import Tasks
from engineroom.tasks.outbox import TABLE
from tests.postgres import postgres_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from tests.support import RedisServer


class Deaf(SimpleWorker):
    """RQ's worker without its ear for commands, whose thread takes a moment to end."""

    def subscribe(self) -> None:
        """Hear nothing."""

    def unsubscribe(self) -> None:
        """Nothing to end."""


def snapshot(redis: Redis) -> dict[str, Any]:
    """All that is in Redis, by value: two of the same are the same bytes to whoever reads them."""
    read: dict[bytes, Callable[[bytes], Any]] = {
        b"string": redis.get,
        b"hash": redis.hgetall,
        b"set": redis.smembers,
        b"list": lambda key: redis.lrange(key, 0, -1),
        b"zset": lambda key: redis.zrange(key, 0, -1, withscores=True),
        b"stream": redis.xrange,
    }
    return {
        key.decode(): (kind := redis.type(key), read[kind](key), redis.pexpiretime(key))
        for key in redis.scan_iter()
    }


@pytest.fixture
def redis(server: RedisServer) -> Iterator[Redis]:
    with contextlib.closing(Redis(port=server.port)) as client:
        client.flushall()
        yield client


@pytest.fixture
def tasks(redis: Redis) -> Tasks:
    return Tasks(redis)


@pytest.fixture
def work(redis: Redis) -> Callable[..., None]:
    """Run what waits on queues with RQ's own worker."""

    def run(*queues: str) -> None:
        Deaf(list(queues or ("default",)), connection=redis).work(burst=True)

    return run


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """Where a PostgreSQL of these tests' own listens."""
    with postgres_server() as running:
        yield running


@pytest.fixture
def database(address: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS engineroom_outbox, orders")
        connection.execute("CREATE TABLE orders (id int PRIMARY KEY)")
        connection.execute(TABLE)
        yield connection


def sqlalchemy_url(address: str) -> str:
    parts = dict(part.split("=") for part in address.split())
    return f"postgresql+psycopg://postgres@127.0.0.1:{parts['port']}/"


def plain_session(address: str) -> Session:
    return Session(sqlalchemy.create_engine(sqlalchemy_url(address), poolclass=NullPool))


@contextlib.asynccontextmanager
async def sqlalchemy_session(address: str) -> AsyncIterator[AsyncSession]:
    engine = create_async_engine(sqlalchemy_url(address), poolclass=NullPool)
    async with AsyncSession(engine) as opened:
        yield opened


@pytest.fixture
def session(address: str, database: object) -> Iterator[Session]:
    with plain_session(address) as opened:
        yield opened
