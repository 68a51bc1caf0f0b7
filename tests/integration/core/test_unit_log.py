"""The log of units of work in a real Redis, also after the process was killed."""

from __future__ import annotations

import multiprocessing
import signal
from typing import TYPE_CHECKING

import pytest
import redis
import redis.asyncio

from engineroom.core.errors import RedisUnavailableError
from engineroom.core.transactions.participants import RedisParticipant
from engineroom.core.transactions.unit import AsyncUnitOfWork, UnitOfWork
from engineroom.core.transactions.unitlog import RedisUnitLog, UnitRecord, UnitStatus
from tests.integration.core.units import STEPS, run_to_crash

if TYPE_CHECKING:
    from tests.support import RedisServer


@pytest.mark.parametrize(
    ("step", "status", "keys"),
    [
        ("work", UnitStatus.RUNNING, 0),
        ("prepared", UnitStatus.COMMITTING, 0),
        ("first commit", UnitStatus.COMMITTING, 1),
        ("second commit", UnitStatus.COMMITTING, 2),
        ("end", UnitStatus.COMMITTED, 2),
    ],
)
def test_after_a_kill_the_log_tells_which_systems_to_check(
    server: RedisServer, client: redis.Redis, step: str, status: UnitStatus, keys: int
) -> None:
    assert step in STEPS
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=run_to_crash, args=(server.url, step))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    (record,) = RedisUnitLog(client).page().records
    assert (record.name, record.by, record.status) == ("both keys", "alice", status)
    assert client.exists("first", "second") == keys
    if status is UnitStatus.RUNNING:
        assert record.participants == ()
    else:
        assert record.participants == ("First", "Second")


async def test_an_async_unit_writes_by_an_async_client(server: RedisServer) -> None:
    async with redis.asyncio.Redis.from_url(server.url) as client:
        await client.flushall()
        log = RedisUnitLog(client)
        async with AsyncUnitOfWork(log=log, name="n", by="bob") as unit:
            unit.enlist(RedisParticipant(client)).commands.set("a", 1)
        page = await log.page()
        (record,) = page.records
        assert (record.id, record.status) == (unit.id, UnitStatus.COMMITTED)
        assert record.participants == ("RedisParticipant",)
        assert record.duration is not None


def test_pages_go_from_the_newest_and_old_records_expire(client: redis.Redis) -> None:
    log = RedisUnitLog(client, retention=60)
    for number in range(5):
        log.write(UnitRecord(f"u{number}", "n", "", UnitStatus.RUNNING, 1000.0 + number))
    first = log.page(count=2)
    assert [record.id for record in first.records] == ["u4", "u3"]
    rest = log.page(cursor=first.cursor, count=10)
    assert [record.id for record in rest.records] == ["u2", "u1", "u0"]
    assert rest.cursor is None
    assert 0 < client.ttl("{engineroom:units}:unit:u0") <= 60
    log.write(UnitRecord("new", "n", "", UnitStatus.RUNNING, 1063.0))
    members = [member.decode() for member in client.zrange("{engineroom:units}:index", 0, -1)]
    assert [member.partition(":")[2] for member in members] == ["u3", "u4", "new"]


def test_a_block_does_not_begin_while_the_log_is_away() -> None:
    ran = False
    absent = redis.Redis(port=1)
    with pytest.raises(RedisUnavailableError), UnitOfWork(log=RedisUnitLog(absent)):
        ran = True
    assert not ran
