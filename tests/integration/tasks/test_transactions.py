"""Jobs and transactions of a real PostgreSQL: both or none, killed at every step."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import sqlalchemy
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from engineroom.tasks import InvalidTaskError, Task, Tasks, TasksUnavailableError, Unique
from engineroom.tasks.after_commit import enqueue_after_commit, transaction
from engineroom.tasks.outbox import CHUNK, Relay, add, add_async
from tests.integration.tasks.work import add as plus

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm import Session


def queued(redis: Redis) -> list[str]:
    return [each.decode() for each in redis.lrange("rq:queue:default", 0, -1)]


def rows(database: psycopg.Connection[Any]) -> int:
    [(count,)] = database.execute("SELECT count(*) FROM engineroom_outbox").fetchall()
    return int(count)


# -- the outbox ------------------------------------------------------------------------------------


def test_a_job_exists_if_and_only_if_its_transaction_commits(
    redis: Redis, database: psycopg.Connection[Any], tasks: Tasks, work: Callable[..., None]
) -> None:
    relay = Relay(database, redis)
    with database.transaction():
        kept = add(database, Task(plus, (1,), {"right": 1}))
    with database.transaction(force_rollback=True):
        add(database, Task(plus, (2,)))
    with pytest.raises(InvalidTaskError), database.transaction():
        add(database, Task(lambda: 0))
    assert redis.keys("rq:*") == []
    assert [each.job_id for each in relay.once()] == [kept]
    assert relay.once() == []
    assert queued(redis) == [kept]
    work()
    assert tasks.result(kept).value == 2


def test_sessions_and_coroutines_write_to_it_too(
    redis: Redis, address: str, database: psycopg.Connection[Any], session: Session
) -> None:
    ids = [add(session, Task(plus, (1,)))]
    session.commit()
    add(session, Task(plus, (2,)))
    session.rollback()

    async def write() -> str:
        async with await psycopg.AsyncConnection.connect(address) as connection:
            return await add_async(connection, Task(plus, (3,)))

    ids.append(asyncio.run(write()))
    Relay(database, redis).once()
    assert queued(redis) == ids


class Killed(BaseException):
    """The process is gone: nothing of its own code runs after this."""


class Mortal:
    """A connection of a relay that is killed before or after its nth call of PostgreSQL."""

    def __init__(self, connection: psycopg.Connection[Any], at: int) -> None:
        self._connection = connection
        self._left = at

    def transaction(self) -> Any:
        return self._connection.transaction()

    def execute(self, *words: Any) -> Any:
        self._left -= 1
        if self._left == 0:
            # The server sees the connection go, as of a process that was killed.
            self._connection.pgconn.finish()
            raise Killed
        return self._connection.execute(*words)


class Lossy(Redis):
    """A Redis whose answer to a batch is lost, after it was applied."""

    lose = True

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Any:
        pipeline = super().pipeline(transaction, shard_hint)
        execute = pipeline.execute

        def and_lose(*args: Any) -> Any:
            replies = execute(*args)
            if self.lose:
                raise RedisConnectionError("lost")
            return replies

        pipeline.execute = and_lose  # type: ignore[method-assign]
        return pipeline


@pytest.mark.parametrize("at", [1, 2])
def test_a_relay_that_is_killed_loses_and_doubles_nothing(
    redis: Redis,
    address: str,
    database: psycopg.Connection[Any],
    work: Callable[..., None],
    at: int,
) -> None:
    ids = [add(database, Task(plus, (number,), result_ttl=0)) for number in range(5)]
    ids.append(add(database, Task(plus, (9,), unique=Unique("nine"))))
    add(database, Task(plus, (9,), unique=Unique("nine")))
    mortal = psycopg.connect(address, autocommit=True)
    with pytest.raises((Killed, psycopg.OperationalError)):
        Relay(Mortal(mortal, at), redis).once()
    mortal.close()
    written = queued(redis)
    assert written == ([] if at == 1 else ids)
    # Even jobs that have run and left nothing are not run again.
    work()
    with psycopg.connect(address, autocommit=True) as next_one:
        done = Relay(next_one, redis).once()
    assert len(done) == 7
    assert sum(each.created for each in done) == (6 if at == 1 else 0)
    assert queued(redis) == (ids if at == 1 else [])
    assert rows(database) == 0


def test_a_lost_answer_of_redis_doubles_nothing(
    redis: Redis, database: psycopg.Connection[Any]
) -> None:
    ids = [add(database, Task(plus, (number,))) for number in range(3)]
    lossy = Lossy(connection_pool=redis.connection_pool)
    relay = Relay(database, lossy)
    with pytest.raises(TasksUnavailableError):
        relay.once()
    assert rows(database) == 3
    lossy.lose = False
    relay.once()
    assert queued(redis) == ids
    assert rows(database) == 0


def test_two_relays_share_the_work(
    redis: Redis, address: str, database: psycopg.Connection[Any]
) -> None:
    for number in range(CHUNK + 10):
        add(database, Task(plus, (number,)))
    with psycopg.connect(address, autocommit=True) as other:
        with other.transaction():
            locked = "SELECT id FROM engineroom_outbox ORDER BY id LIMIT 30 FOR UPDATE"
            other.execute(locked)
            assert len(Relay(database, redis).once()) == CHUNK - 20
        assert len(Relay(other, redis).once()) == 30
    assert len(set(queued(redis))) == CHUNK + 10


# -- after the commit ------------------------------------------------------------------------------


def test_psycopg_enqueues_after_the_commit(
    redis: Redis, database: psycopg.Connection[Any], tasks: Tasks
) -> None:
    with transaction(database, tasks) as pending:
        database.execute("INSERT INTO orders VALUES (1)")
        pending.enqueue(Task(plus, (1,)))
        assert queued(redis) == []
    assert len(queued(redis)) == 1

    def order(number: int, task: Task) -> None:
        with transaction(database, tasks) as pending:
            pending.enqueue(task)
            database.execute("INSERT INTO orders VALUES (%s)", (number,))

    with pytest.raises(psycopg.errors.UniqueViolation):
        order(1, Task(plus, (2,)))
    with pytest.raises(InvalidTaskError):
        order(2, Task(lambda: 0))
    assert len(queued(redis)) == 1
    assert database.execute("SELECT id FROM orders").fetchall() == [(1,)]
    with database.transaction(), pytest.raises(InvalidTaskError, match="outermost"):
        transaction(database, tasks).__enter__()


def test_a_session_enqueues_after_the_commit_and_savepoints_count(
    redis: Redis, session: Session, tasks: Tasks
) -> None:
    enqueue_after_commit(session, tasks, Task(plus, (1,), job_id="kept"))
    nested = session.begin_nested()
    enqueue_after_commit(session, tasks, Task(plus, (2,), job_id="inner"))
    nested.rollback()
    with session.begin_nested():
        enqueue_after_commit(session, tasks, Task(plus, (3,), job_id="released"))
    assert queued(redis) == []
    session.commit()
    assert queued(redis) == ["kept", "released"]
    enqueue_after_commit(session, tasks, Task(plus, (4,)))
    with session.begin_nested():
        enqueue_after_commit(session, tasks, Task(plus, (5,)))
    session.rollback()
    session.execute(sqlalchemy.text("SELECT 1"))
    session.commit()
    assert len(queued(redis)) == 2
    with pytest.raises(InvalidTaskError):
        enqueue_after_commit(session, tasks, Task(lambda: 0))
