"""Units of work over a real Redis, a real RQ queue and a real PostgreSQL."""

# ruff: noqa: PT012, SIM117, S608 - the blocks are what is tested

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import redis
import redis.asyncio
import sqlalchemy
from rq import Queue

from engineroom.core.transactions.participants import (
    ConnectionParticipant,
    QueueParticipant,
    RedisParticipant,
)
from engineroom.core.transactions.unit import AsyncUnitOfWork, UnitOfWork
from tests.postgres import postgres_server
from tests.support import RedisServer, redis_server

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """The connection string of a PostgreSQL of this module's own."""
    with postgres_server() as running:
        yield running


@pytest.fixture
def table(database: str) -> str:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS orders")
        connection.execute("CREATE TABLE orders (id int PRIMARY KEY)")
    return database


def rows(database: str) -> list[int]:
    with psycopg.connect(database) as connection:
        return [row[0] for row in connection.execute("SELECT id FROM orders ORDER BY id")]


def test_redis_gets_all_or_nothing(client: redis.Redis) -> None:
    with UnitOfWork() as unit:
        store = unit.enlist(RedisParticipant(client))
        store.commands.set("a", 1)
        with pytest.raises(ValueError, match="no"), unit.nested():
            store.commands.set("b", 1)
            raise ValueError("no")
        assert client.keys() == []
    assert client.keys() == [b"a"]
    with pytest.raises(ValueError, match="no"), UnitOfWork() as unit:
        unit.enlist(RedisParticipant(client)).commands.set("c", 1)
        raise ValueError("no")
    assert client.keys() == [b"a"]


async def test_async_redis(server: RedisServer, client: redis.Redis) -> None:
    async with redis.asyncio.Redis.from_url(server.url) as other:
        async with AsyncUnitOfWork() as unit:
            unit.enlist(RedisParticipant(other)).commands.set("a", 1)
            assert client.keys() == []
    assert client.keys() == [b"a"]


def test_jobs_are_enqueued_by_the_commit(client: redis.Redis) -> None:
    queue = Queue("mail", connection=client)
    with UnitOfWork() as unit:
        job = unit.enlist(QueueParticipant(queue)).enqueue("os.getpid")
        assert queue.job_ids == []
    assert queue.job_ids == [job.id]
    with pytest.raises(ValueError, match="no"), UnitOfWork() as unit:
        unit.enlist(QueueParticipant(queue)).enqueue("os.getpid")
        raise ValueError("no")
    assert queue.job_ids == [job.id]


def test_a_database_that_refuses_keeps_the_jobs_back(client: redis.Redis, table: str) -> None:
    queue = Queue("mail", connection=client)
    for expected in ([1], [1]):
        with psycopg.connect(table) as connection:
            try:
                with UnitOfWork() as unit:
                    unit.enlist(ConnectionParticipant(connection))
                    unit.enlist(QueueParticipant(queue)).enqueue("os.getpid")
                    connection.execute("INSERT INTO orders VALUES (1)")
            except psycopg.errors.UniqueViolation:
                pass
        assert rows(table) == expected
    assert len(queue.job_ids) == 1


def test_redis_away_keeps_the_database_back(table: str) -> None:
    with redis_server() as away:
        other = redis.Redis.from_url(away.url)
        away.stop()
        with psycopg.connect(table) as connection, pytest.raises(redis.ConnectionError):
            with UnitOfWork() as unit:
                unit.enlist(ConnectionParticipant(connection))
                connection.execute("INSERT INTO orders VALUES (1)")
                unit.enlist(RedisParticipant(other)).commands.set("a", 1)
        other.close()
    assert rows(table) == []


def insert(connection: Any, number: int) -> None:
    statement = f"INSERT INTO orders VALUES ({number})"
    is_alchemy = isinstance(connection, sqlalchemy.Connection)
    connection.execute(sqlalchemy.text(statement) if is_alchemy else statement)


@pytest.mark.parametrize("library", ["psycopg", "sqlalchemy"])
def test_savepoints_of_a_database(table: str, library: str) -> None:
    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(table), poolclass=None
    )
    connection: Any = psycopg.connect(table) if library == "psycopg" else engine.connect()
    with connection:
        with UnitOfWork() as unit:
            unit.enlist(ConnectionParticipant(connection))
            insert(connection, 1)
            with pytest.raises(ValueError, match="no"), unit.nested():
                insert(connection, 2)
                raise ValueError("no")
            with unit.nested():
                insert(connection, 3)
        with pytest.raises(ValueError, match="no"), UnitOfWork() as unit:
            unit.enlist(ConnectionParticipant(connection))
            insert(connection, 4)
            raise ValueError("no")
    engine.dispose()
    assert rows(table) == [1, 3]


async def test_an_async_connection(table: str) -> None:
    async with await psycopg.AsyncConnection.connect(table) as connection:
        async with AsyncUnitOfWork() as unit:
            unit.enlist(ConnectionParticipant(connection))
            await connection.execute("INSERT INTO orders VALUES (1)")
            with pytest.raises(ValueError, match="no"):
                async with unit.nested():
                    await connection.execute("INSERT INTO orders VALUES (2)")
                    raise ValueError("no")
    assert rows(table) == [1]


def test_a_connection_that_commits_by_itself_is_refused(table: str) -> None:
    with psycopg.connect(table, autocommit=True) as connection:
        with pytest.raises(ValueError, match="autocommit"):
            ConnectionParticipant(connection)
