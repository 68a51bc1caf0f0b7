"""Jobs and transactions of a real PostgreSQL: both or none, killed at every step."""

from __future__ import annotations

import asyncio
import json
import zlib
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import sqlalchemy
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import ConnectionError as RedisConnectionError
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from structlog.testing import capture_logs

from engineroom.core.clock import FakeClock
from engineroom.tasks import (
    AsyncTasks,
    InvalidTaskError,
    JSONSerializer,
    Task,
    Tasks,
    TasksUnavailableError,
    Unique,
    chain,
)
from engineroom.tasks.after_commit import async_transaction, enqueue_after_commit, transaction
from engineroom.tasks.outbox import CHUNK, Relay, add, add_async, add_flow, add_flow_async
from tests.integration.tasks.conftest import plain_session, sqlalchemy_session
from tests.integration.tasks.work import add as plus
from tests.support import free_port

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support import RedisServer


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
        kept = add(database, tasks, Task(plus, (1,), {"right": 1}))
    with database.transaction(force_rollback=True):
        add(database, tasks, Task(plus, (2,)))
    with pytest.raises(InvalidTaskError), database.transaction():
        add(database, tasks, Task(lambda: 0))
    assert redis.keys("rq:*") == []
    assert [each.job_id for each in relay.once()] == [kept]
    assert relay.once() == []
    assert queued(redis) == [kept]
    work()
    assert tasks.result(kept).value == 2


def test_sessions_and_coroutines_write_to_it_too(
    redis: Redis, address: str, database: psycopg.Connection[Any], session: Session, tasks: Tasks
) -> None:
    ids = [add(session, tasks, Task(plus, (1,)))]
    session.commit()
    add(session, tasks, Task(plus, (2,)))
    session.rollback()

    async def write() -> str:
        async with await psycopg.AsyncConnection.connect(address) as connection:
            return await add_async(connection, tasks, Task(plus, (3,)))

    ids.append(asyncio.run(write()))

    async def write_more() -> str:
        async with sqlalchemy_session(address) as opened, opened.begin():
            await add_async(opened, tasks, Task(plus, (4,), job_id="four"))
            return await add_flow_async(opened, tasks, chain(Task(plus, (5,)), Task(plus, (6,))))

    flow = asyncio.run(write_more())
    Relay(database, redis).once()
    assert queued(redis) == [*ids, "four", f"{flow}-0"]


def test_the_outbox_knows_what_the_application_said(
    redis: Redis, database: psycopg.Connection[Any], work: Callable[..., None]
) -> None:
    known = Tasks(redis, queues={"mail"}, max_bytes=100, serializer=JSONSerializer)
    mail = Task(plus, queue="mail")
    for bad in (Task(plus), replace(mail, args=("x" * 200,)), replace(mail, args=(b"",))):
        with pytest.raises(InvalidTaskError):
            add(database, known, bad)
        with pytest.raises(InvalidTaskError):
            add_flow(database, known, chain(bad))
    assert rows(database) == 0
    job = add(database, known, Task(plus, (1, 2), queue="mail"))
    Relay(database, redis).once()
    stored = zlib.decompress(redis.hget(f"rq:job:{job}", "data"))
    assert json.loads(stored) == ["tests.integration.tasks.work.add", None, [1, 2], {}]


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
    tasks: Tasks,
) -> None:
    ids = [add(database, tasks, Task(plus, (number,), result_ttl=0)) for number in range(5)]
    ids.append(add(database, tasks, Task(plus, (9,), unique=Unique("nine"))))
    add(database, tasks, Task(plus, (9,), unique=Unique("nine")))
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
    redis: Redis, database: psycopg.Connection[Any], tasks: Tasks
) -> None:
    ids = [add(database, tasks, Task(plus, (number,))) for number in range(3)]
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
    redis: Redis, address: str, database: psycopg.Connection[Any], tasks: Tasks
) -> None:
    for number in range(CHUNK + 10):
        add(database, tasks, Task(plus, (number,)))
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


INSERT = sqlalchemy.text("INSERT INTO orders VALUES (:id)")


@pytest.fixture(params=["psycopg", "session", "async psycopg", "async session"])
def within(
    request: pytest.FixtureRequest, server: RedisServer, address: str, database: object
) -> Callable[..., None]:
    """Enqueue tasks after a transaction that writes an order: ``(number, tasks, then)``."""

    def plainly(number: int, given: list[Task], then: Exception | None, port: int) -> None:
        tasks = Tasks(Redis(port=port))
        if request.param == "psycopg":
            with psycopg.connect(address) as connection, transaction(connection, tasks) as pending:
                connection.execute("INSERT INTO orders VALUES (%s)", (number,))
                for task in given:
                    pending.enqueue(task)
                if then is not None:
                    raise then
            return
        with plain_session(address) as session, session.begin():
            session.execute(INSERT, {"id": number})
            for task in given:
                enqueue_after_commit(session, tasks, task)
            if then is not None:
                raise then

    async def awaited(number: int, given: list[Task], then: Exception | None, port: int) -> None:
        async with AsyncRedis(port=port) as client:
            tasks = AsyncTasks(client)
            if request.param == "async psycopg":
                async with (
                    await psycopg.AsyncConnection.connect(address) as connection,
                    async_transaction(connection, tasks) as pending,
                ):
                    await connection.execute("INSERT INTO orders VALUES (%s)", (number,))
                    for task in given:
                        pending.enqueue(task)
                    if then is not None:
                        raise then
                return
            async with sqlalchemy_session(address) as session, session.begin():
                await session.execute(INSERT, {"id": number})
                for task in given:
                    enqueue_after_commit(session, tasks, task)
                if then is not None:
                    raise then

    def order(
        number: int, given: list[Task], then: Exception | None = None, port: int = server.port
    ) -> None:
        if request.param.startswith("async"):
            asyncio.run(awaited(number, given, then, port))
        else:
            plainly(number, given, then, port)

    return order


def orders(database: psycopg.Connection[Any]) -> list[int]:
    return [number for (number,) in database.execute("SELECT id FROM orders ORDER BY id")]


def test_with_the_transaction_or_not_at_all(
    redis: Redis, database: psycopg.Connection[Any], within: Callable[..., None]
) -> None:
    within(1, [Task(plus, (1,), job_id="a"), Task(plus, (2,), job_id="b", depends_on=["a"])])
    assert queued(redis) == ["a"]
    assert redis.hget("rq:job:b", "status") == b"deferred"
    with pytest.raises(ZeroDivisionError):
        within(2, [Task(plus, (1,))], ZeroDivisionError())
    with pytest.raises((psycopg.errors.UniqueViolation, sqlalchemy.exc.IntegrityError)):
        within(1, [Task(plus, (1,))])
    with pytest.raises(TasksUnavailableError):
        within(3, [Task(plus, (1,))], port=free_port())
    assert orders(database) == [1, 3]
    assert queued(redis) == ["a"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([Task(plus, job_id="x"), Task(plus, job_id="x")], r"tasks\[1\]\.job_id: is there twice"),
        (
            [Task(plus, depends_on=["x"]), Task(plus), Task(plus, job_id="x")],
            r"tasks\[0\]\.depends_on: names tasks\[2\], which comes later",
        ),
    ],
)
def test_tasks_that_do_not_go_together_are_refused_before_the_commit(
    redis: Redis,
    database: psycopg.Connection[Any],
    within: Callable[..., None],
    given: list[Task],
    said: str,
) -> None:
    with pytest.raises(InvalidTaskError, match=said):
        within(1, given)
    assert orders(database) == []
    assert redis.keys() == []


def test_what_redis_alone_refuses_is_logged_and_takes_nobody_along(
    redis: Redis, tasks: Tasks, within: Callable[..., None]
) -> None:
    tasks.enqueue(Task(plus, (0,), job_id="there"))
    once = Task(plus, (0,), queue="other", unique=Unique("once"), job_id="once")
    tasks.enqueue(once)
    canceled = tasks.enqueue(Task(plus, (0,), delay=60)).job_id
    tasks.cancel(canceled)
    with capture_logs() as logged:
        within(
            1,
            [
                Task(plus, (1,), job_id="first"),
                Task(plus, (2,), job_id="there"),
                once,
                Task(plus, (4,), job_id="in-vain", depends_on=[canceled]),
                Task(plus, (5,), job_id="last"),
            ],
        )
    assert queued(redis) == ["there", "first", "last"]
    told = [(each["log_level"], each["job"], each["reason"]) for each in logged if "job" in each]
    assert told == [("warning", "there", "exists"), ("warning", "in-vain", "parent canceled")]


def test_a_job_is_what_it_was_when_it_was_given(
    redis: Redis, database: psycopg.Connection[Any], work: Callable[..., None]
) -> None:
    values: list[Any] = [[1]]
    clock = FakeClock(datetime(2026, 3, 1, tzinfo=UTC))
    tasks = Tasks(redis, clock=clock)
    with transaction(database, tasks) as pending:
        job = pending.enqueue(Task("builtins.sum", values, job_id="sum"))
        values[0] = lambda: 0
        clock.advance(60)
    # But for its place in the queue: it waits from the commit on.
    times = redis.hmget("rq:job:sum", "created_at", "enqueued_at")
    assert times == [b"2026-03-01T00:00:00.000000Z", b"2026-03-01T00:01:00.000000Z"]
    work()
    assert tasks.result(job).value == 1
    with pytest.raises(InvalidTaskError, match="transaction: is over"):
        pending.enqueue(Task(plus))


def test_a_block_that_psycopg_rolls_back_in_silence_enqueues_nothing(
    redis: Redis, address: str, database: psycopg.Connection[Any], tasks: Tasks
) -> None:
    with transaction(database, tasks) as pending:
        pending.enqueue(Task(plus))
        raise psycopg.Rollback

    async def again() -> None:
        async with (
            await psycopg.AsyncConnection.connect(address) as connection,
            async_transaction(connection, AsyncTasks(AsyncRedis())) as pending,
        ):
            pending.enqueue(Task(plus))
            raise psycopg.Rollback

    asyncio.run(again())
    assert redis.keys() == []


def test_a_session_that_is_closed_or_fails_takes_nothing_into_its_next_transaction(
    redis: Redis, session: Session, tasks: Tasks
) -> None:
    enqueue_after_commit(session, tasks, Task(plus, job_id="closed"))
    session.close()
    session.commit()
    assert redis.keys() == []
    away = Tasks(Redis(port=free_port()))
    enqueue_after_commit(session, away, Task(plus, job_id="lost"))
    enqueue_after_commit(session, tasks, Task(plus, job_id="kept"))
    with pytest.raises(TasksUnavailableError):
        session.commit()
    # The session goes on, and what could be enqueued is.
    session.execute(sqlalchemy.text("INSERT INTO orders VALUES (7)"))
    enqueue_after_commit(session, tasks, Task(plus, job_id="next"))
    session.commit()
    assert queued(redis) == ["kept", "next"]


def test_savepoints_of_sessions_count(
    redis: Redis, address: str, session: Session, tasks: Tasks
) -> None:
    with session.begin_nested():
        enqueue_after_commit(session, tasks, Task(plus, job_id="a"))
        with session.begin_nested() as inner:
            enqueue_after_commit(session, tasks, Task(plus, job_id="b"))
            inner.rollback()
        # The name is free again.
        enqueue_after_commit(session, tasks, Task(plus, job_id="b"))
    with session.begin_nested() as outer:
        with session.begin_nested():
            enqueue_after_commit(session, tasks, Task(plus, job_id="c"))
        outer.rollback()
    session.commit()
    assert queued(redis) == ["a", "b"]

    async def again() -> None:
        async with (
            AsyncRedis(port=redis.connection_pool.connection_kwargs["port"]) as client,
            sqlalchemy_session(address) as opened,
        ):
            tasks = AsyncTasks(client)
            enqueue_after_commit(opened, tasks, Task(plus, job_id="x"))
            async with opened.begin_nested() as inner:
                enqueue_after_commit(opened, tasks, Task(plus, job_id="y"))
                await inner.rollback()
            async with opened.begin_nested():
                enqueue_after_commit(opened, tasks, Task(plus, job_id="z"))
            await opened.commit()
            enqueue_after_commit(opened, tasks, Task(plus, job_id="never"))
            await opened.rollback()
            await opened.commit()

    asyncio.run(again())
    assert queued(redis) == ["a", "b", "x", "z"]


def test_each_session_of_a_registry_is_its_own(
    redis: Redis, session: Session, tasks: Tasks
) -> None:
    registry = scoped_session(sessionmaker(session.get_bind()))
    enqueue_after_commit(registry, tasks, Task(plus, job_id="scoped"))
    session.execute(sqlalchemy.text("SELECT 1"))
    session.commit()
    with Session(session.get_bind()) as other, other.begin():
        other.execute(sqlalchemy.text("SELECT 1"))
    assert redis.keys() == []
    registry.commit()
    assert queued(redis) == ["scoped"]
    registry.remove()


def test_a_session_takes_its_own_kind_of_tasks(
    redis: Redis, address: str, database: psycopg.Connection[Any], session: Session, tasks: Tasks
) -> None:
    awaited: Any = AsyncTasks(AsyncRedis())
    with pytest.raises(InvalidTaskError, match="tasks: is of type AsyncTasks; use Tasks with this"):
        enqueue_after_commit(session, awaited, Task(plus))
    with pytest.raises(InvalidTaskError, match="tasks: is of type AsyncTasks; use Tasks with a pl"):
        transaction(database, awaited).__enter__()
    with pytest.raises(InvalidTaskError, match="tasks: is of type Task; give the application's"):
        add(database, Task(plus), tasks)  # type: ignore[arg-type]

    async def ask() -> None:
        async with sqlalchemy_session(address) as opened:
            enqueue_after_commit(opened, tasks, Task(plus))

    with pytest.raises(InvalidTaskError, match="tasks: is of type Tasks; use AsyncTasks with this"):
        asyncio.run(ask())
