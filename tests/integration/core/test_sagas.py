"""Sagas are wholly done or wholly undone, none twice, wherever the coordinator dies."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import pytest_asyncio
import redis.asyncio

from engineroom.core.errors import PermanentError, TransientError
from engineroom.core.transactions.errors import (
    SagaFencedError,
    SagaStuckError,
    SagaUndoneError,
    SagaUnknownError,
)
from engineroom.core.transactions.journal import EntryKind, JournalEntry
from engineroom.core.transactions.pgsagalog import TABLES
from engineroom.core.transactions.saga import Coordinator, Saga, Step, StepContext
from tests.integration.core.sagas import LEASE, NAMES, TellingLog, opened, run_to_crash, sagas
from tests.integration.forks import FORKS
from tests.postgres import postgres_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from engineroom.core.transactions.journal import SagaLog
    from tests.support import RedisServer


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with postgres_server() as running:
        with psycopg.connect(running, autocommit=True) as connection:
            connection.execute(TABLES)
        yield running


@pytest.fixture(params=["redis", "postgres"])
def address(request: pytest.FixtureRequest) -> str:
    """Where the log is, and it is empty."""
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("server")
        return server.url
    place: str = request.getfixturevalue("database")
    with psycopg.connect(place, autocommit=True) as connection:
        connection.execute("TRUNCATE engineroom_sagas CASCADE")
    return place


@pytest.fixture
def log(address: str, client: redis.asyncio.Redis) -> SagaLog:
    return opened(address, client)


async def run_out(log: SagaLog, client: redis.asyncio.Redis, address: str, id_: str) -> None:
    """Have the saga's lease be over."""
    if "://" in address:
        await client.zadd("{engineroom:sagas}:open", {id_: 0})
        return
    async with await psycopg.AsyncConnection.connect(address) as connection:
        await connection.execute("UPDATE engineroom_sagas SET lease = now() WHERE id = %s", [id_])


@pytest_asyncio.fixture
async def client(server: RedisServer) -> AsyncIterator[redis.asyncio.Redis]:
    async with redis.asyncio.Redis.from_url(server.url) as opened:
        await opened.flushall()
        yield opened


async def effects(client: redis.asyncio.Redis, id_: str) -> tuple[str, ...]:
    """The steps in force, each followed by "!" if it ever took place more than once."""
    found = []
    for name in NAMES:
        key = f"{id_}/{name}"
        twice = int(await client.get(f"acted:{key}") or 0) > 1
        if await client.sismember("applied", key):
            found.append(name + "!" * twice)
    return tuple(found)


async def settled(coordinator: Coordinator, log: SagaLog, id_: str) -> str:
    """Recover until the saga has ended; its status, "none" if it never began."""
    async with asyncio.timeout(10):
        while True:
            await coordinator.recover()
            record = await log.read(id_)
            if record is None:
                return "none"
            if record.ended is not None:
                return record.status
            await asyncio.sleep(0.02)


async def writes(log: SagaLog, client: redis.asyncio.Redis, outcome: str) -> int:
    telling: Any = TellingLog(log, lambda _number, _side: None)
    try:
        await Coordinator(telling, sagas(client)).run("order", f"whole-{outcome}", outcome or None)
    except SagaUndoneError:
        assert outcome
    return int(telling.writes)


@pytest.mark.parametrize(
    ("address", "outcome", "back"),
    [
        ("redis", "", False),
        ("redis", "", True),
        ("redis", "c", False),
        ("redis", "c", True),
        ("postgres", "", True),
        ("postgres", "c", False),
    ],
    indirect=["address"],
)
async def test_killed_at_every_write_the_end_is_whole(
    log: SagaLog,
    client: redis.asyncio.Redis,
    server: RedisServer,
    address: str,
    outcome: str,
    back: bool,
) -> None:
    total = await writes(log, client, outcome)
    assert total >= 5
    one_by_one = asyncio.Lock()  # starting one asks for the end of others
    coordinator = Coordinator(log, sagas(client, back), lease=LEASE)

    async def crash(number: int, side: str) -> tuple[str, str, tuple[str, ...]]:
        id_ = f"{outcome}{number}{side}"
        words = (server.url, address, id_, outcome, number, side)
        async with one_by_one:
            # Forked of a process that has imported all: importing is most of a new one's time.
            process = FORKS.Process(target=run_to_crash, args=words)
            process.start()
            await asyncio.to_thread(process.join)
            assert process.exitcode == -signal.SIGKILL
            process.close()
        return id_, await settled(coordinator, log, id_), await effects(client, id_)

    ends = await asyncio.gather(
        *(crash(number, side) for number in range(total) for side in ("before", "after"))
    )
    wrong = [
        end
        for end in ends
        if end[1:] not in {("committed", NAMES), ("rolled_back", ()), ("none", ())}
    ]
    assert wrong == []
    statuses = [status for _, status, _ in ends]
    assert statuses.count("none") == 1  # only a saga that never began
    if outcome:
        assert "committed" not in statuses
    elif back:
        assert statuses.count("rolled_back") > statuses.count("committed") > 0
    else:
        assert "rolled_back" not in statuses


async def test_running_it_again_answers_and_does_nothing(
    log: SagaLog, client: redis.asyncio.Redis
) -> None:
    coordinator = Coordinator(log, sagas(client))
    first = await coordinator.run("order", "o-1")
    assert first == {"a": "did a", "b": "did b", "c": "did c"}
    assert await coordinator.run("order", "o-1") == first
    assert await effects(client, "o-1") == NAMES


async def test_a_failed_step_undoes_all_and_says_why(
    log: SagaLog, client: redis.asyncio.Redis
) -> None:
    coordinator = Coordinator(log, sagas(client))
    for _ in range(2):
        with pytest.raises(SagaUndoneError, match="b failed and all was undone: permanent"):
            await coordinator.run("order", "o-1", "b")
    assert await effects(client, "o-1") == ()
    assert not await client.exists("acted:o-1/c")


async def test_who_was_taken_over_may_do_nothing_more(
    log: SagaLog, client: redis.asyncio.Redis
) -> None:
    assert await log.begin("o-1", "order", None, "", 0.01) == 1
    with pytest.raises(SagaFencedError):
        await Coordinator(log, sagas(client)).run("order", "o-1")
    await asyncio.sleep(0.02)
    assert await log.claim(["other"], 15, 9) == []
    assert await log.claim(["order"], 15, 9) == [("o-1", 2)]
    assert await log.claim(["order"], 15, 9) == []
    assert not await log.append("o-1", 1, [JournalEntry(EntryKind.DOING, "a")], 15)
    assert not await log.renew("o-1", 1, 15)
    assert await log.append("o-1", 2, [JournalEntry(EntryKind.DOING, "a")], 15)


async def test_a_long_step_keeps_its_lease_and_a_lost_lease_ends_it(
    log: SagaLog,
    client: redis.asyncio.Redis,
    address: str,
) -> None:
    started = asyncio.Event()

    async def slow(_context: StepContext) -> None:
        started.set()
        await asyncio.sleep(3.0)

    coordinator = Coordinator(log, [Saga("slow", (Step("s", slow, slow),))], lease=0.3)
    running = asyncio.create_task(coordinator.run("slow", "o-1"))
    await started.wait()
    await asyncio.sleep(0.6)
    assert await log.claim(["slow"], 15, 9) == []
    claimed: list[tuple[str, int]] = []
    async with asyncio.timeout(10):
        # The coordinator may renew an expired lease that nobody has claimed yet.
        while not claimed:
            await run_out(log, client, address, "o-1")
            claimed = await log.claim(["slow"], 15, 9)
    assert claimed == [("o-1", 2)]
    with pytest.raises(SagaFencedError):
        await running


async def test_an_undo_that_fails_waits_for_a_person(log: SagaLog) -> None:
    broken = [True]

    def act(_context: StepContext) -> None:
        raise PermanentError("no")

    def undo(_context: StepContext) -> None:
        if broken[0]:
            raise PermanentError("redis://u:hunter2@h is away")

    coordinator = Coordinator(log, [Saga("s", (Step("x", act, undo),))], lease=0.05)
    with pytest.raises(SagaStuckError):
        await coordinator.run("s", "o-1")
    await asyncio.sleep(0.06)
    assert await coordinator.recover() == 0
    record = await log.read("o-1")
    assert record is not None
    assert record.status == "stuck"
    assert "hunter2" not in str(record)
    broken[0] = False
    await coordinator.resume("o-1")
    record = await log.read("o-1")
    assert record is not None
    assert record.status == "rolled_back"
    with pytest.raises(SagaUnknownError):
        await coordinator.resume("o-1")


async def test_what_heals_is_tried_again_under_the_same_key(log: SagaLog) -> None:
    keys: list[str] = []

    def act(context: StepContext) -> Any:
        keys.append(context.key)
        if len(keys) < 3:
            raise TransientError("soon")
        return {"tuple": (1, 2)}

    saga = Saga("s", (Step("x", act, lambda _: None),))
    answer = await Coordinator(log, [saga]).run("s", "o-1")
    assert answer == {"x": {"tuple": [1, 2]}}
    assert keys == ["o-1/x"] * 3


@pytest.mark.parametrize("answer", [object(), float("nan"), "x" * 70_000])
async def test_an_answer_that_the_log_cannot_hold_undoes(log: SagaLog, answer: Any) -> None:
    undone = []
    saga = Saga("s", (Step("x", lambda _: answer, lambda _: undone.append(1)),))
    with pytest.raises(SagaUndoneError):
        await Coordinator(log, [saga]).run("s", "o-1")
    assert undone == [1]


async def test_the_log_tells_who_what_when_page_by_page(
    log: SagaLog, client: redis.asyncio.Redis
) -> None:
    coordinator = Coordinator(log, sagas(client))
    for number in range(7):
        await coordinator.run("order", f"o-{number}", by="alice")
    ids, cursor = [], None
    for _ in range(4):
        page = await log.page(cursor=cursor, count=3)
        ids += [record.id for record in page.records]
        cursor = page.cursor
        if cursor is None:
            break
    assert ids == [f"o-{number}" for number in reversed(range(7))]
    newest = (await log.page(count=1)).records[0]
    assert (newest.name, newest.by, newest.status) == ("order", "alice", "committed")
    assert newest.duration is not None
    assert 0 < newest.duration < 5
    kinds = [(line.kind.value, line.step) for line in newest.entries]
    assert kinds[:3] == [("begin", ""), ("doing", "a"), ("done", "a")]


async def test_many_are_recovered_at_once(log: SagaLog, client: redis.asyncio.Redis) -> None:
    for number in range(60):
        await log.begin(f"o-{number}", "order", None, "", 0)
    assert await Coordinator(log, sagas(client)).recover(most=60) == 60
    assert await effects(client, "o-59") == NAMES


async def test_what_ended_is_forgotten_after_its_retention(
    client: redis.asyncio.Redis, server: RedisServer, database: str
) -> None:
    await Coordinator(opened(server.url, client, retention=100), sagas(client)).run("order", "o-1")
    assert 0 < await client.ttl("{engineroom:sagas}:saga:o-1") <= 100
    assert 0 < await client.ttl("{engineroom:sagas}:log:o-1") <= 100

    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("TRUNCATE engineroom_sagas CASCADE")
    log = opened(database, client, retention=0)
    for id_ in ("o-1", "o-2"):
        await Coordinator(log, sagas(client)).run("order", f"pg-{id_}")
    assert await log.read("pg-o-1") is None
    assert await log.read("pg-o-2") is not None
