"""Workers as they are listed, and ghosts that are taken off the lists."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from rq import Queue
from rq import Worker as StockWorker

from engineroom.queue import stale_workers
from engineroom.tasks import AsyncTasks, Health, Tasks
from engineroom.tasks.inspection.workers import health_of
from tests.integration.tasks.work import add

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from tests.support import RedisServer

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.fixture
def stock(redis: Redis) -> Iterator[StockWorker]:
    worker = StockWorker(["default", "mail"], connection=redis, name="stock")
    worker.register_birth()
    yield worker
    with contextlib.suppress(Exception):
        worker.register_death()


def ours(redis: Redis, name: str, **fields: str) -> None:
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    said = {
        "state": "busy", "queues": "default", "last_heartbeat": stamp, "birth": stamp,
        "hostname": "node-1", "pid": "7", "er_pool": "apps/mail", "er_pod": "pod-1",
        "er_memory": "5000000", "er_cpu": "0.250", "er_job": "j1", "er_job_timeout": "180",
        "er_job_started": str(datetime.now(UTC).timestamp()), **fields,
    }  # fmt: skip
    redis.hset(f"rq:worker:{name}", mapping=said)
    redis.expire(f"rq:worker:{name}", 480)
    redis.sadd("rq:workers", f"rq:worker:{name}")
    redis.sadd("rq:workers:default", f"rq:worker:{name}")


def test_workers_are_listed_ours_and_stock(redis: Redis, tasks: Tasks, stock: StockWorker) -> None:
    ours(redis, "pod-1.0.aa")
    mine, theirs = tasks.workers()
    assert (mine.name, mine.health, mine.state, mine.job) == (
        "pod-1.0.aa", Health.WELL, "busy", "j1",
    )  # fmt: skip
    assert (mine.memory, mine.cpu, mine.pool, mine.pod) == (5_000_000, 0.25, "apps/mail", "pod-1")
    assert (mine.host, mine.pid, mine.queues) == ("node-1", 7, ("default",))
    assert mine.job_started is not None
    assert (theirs.name, theirs.health, theirs.queues) == (
        "stock", Health.WELL, ("default", "mail"),
    )  # fmt: skip
    assert theirs.heartbeat is not None
    assert theirs.birth is not None
    assert (theirs.pool, theirs.memory, theirs.cpu) == ("", None, None)
    assert [each.name for each in tasks.workers("mail")] == ["stock"]
    assert tasks.workers("nowhere") == []


def test_the_job_of_a_stock_worker_is_shown(redis: Redis, tasks: Tasks, stock: StockWorker) -> None:
    job = Queue("default", connection=redis).enqueue(add, 1)
    stock.prepare_execution(job)
    stock.prepare_job_execution(job)
    [worker] = tasks.workers()
    assert worker.job == job.id


@pytest.mark.parametrize(
    ("silent", "mine", "running", "timeout", "health"),
    [
        (5.0, True, None, None, Health.WELL),
        (20.0, True, None, None, Health.SILENT),
        (20.0, False, None, None, Health.WELL),
        (500.0, False, None, None, Health.SILENT),
        (None, True, None, None, Health.GHOST),
        (1.0, True, 200.0, 180.0, Health.WELL),
        (1.0, True, 301.0, 180.0, Health.OVERDUE),
        (1.0, True, 9999.0, -1.0, Health.WELL),
        (1.0, True, 9999.0, None, Health.WELL),
    ],
)
def test_how_a_worker_is(
    silent: float | None, mine: bool, running: float | None, timeout: float | None, health: Health
) -> None:
    def ago(seconds: float | None) -> datetime | None:
        return None if seconds is None else NOW - timedelta(seconds=seconds)

    found = health_of(
        now=NOW,
        heartbeat=ago(silent),
        ours=mine,
        job_started=ago(running),
        job_timeout=timeout,
    )
    assert found is health


def test_ghosts_are_taken_off_and_nobody_else(
    redis: Redis, tasks: Tasks, stock: StockWorker
) -> None:
    ours(redis, "living")
    tasks.create_queue("default")
    # Its hash has expired.
    redis.sadd("rq:workers", "rq:worker:expired")
    redis.sadd("rq:workers:default", "rq:worker:expired")
    # Something was written to its hash after that.
    redis.hset("rq:worker:late", mapping={"state": "idle", "queues": "mail"})
    redis.sadd("rq:workers", "rq:worker:late")
    redis.sadd("rq:workers:mail", "rq:worker:late")
    # The same, but it names a job, which recovery has to give back.
    redis.hset("rq:worker:holding", mapping={"er_job": "j9"})
    redis.sadd("rq:workers", "rq:worker:holding")
    # Silent for long, and its hash will expire: RQ's own worker with a long time to live.
    ours(redis, "patient", last_heartbeat="2026-01-01T00:00:00.000000Z")
    shown = {each.name: each.health for each in tasks.workers()}
    assert shown["expired"] is shown["late"] is shown["holding"] is Health.GHOST
    assert sorted(tasks.clear_ghosts()) == ["expired", "late"]
    assert tasks.clear_ghosts() == []
    left = {"holding", "living", "patient", "stock"}
    assert {each.name for each in tasks.workers()} == left
    assert redis.smembers("rq:workers:mail") == {b"rq:worker:stock"}
    assert redis.exists("rq:worker:late") == 0


async def test_the_operator_clears_those_of_its_queues(redis: Redis, server: RedisServer) -> None:
    from redis.asyncio import Redis as AsyncRedis

    for name, queue in (("one", "default"), ("two", "mail")):
        redis.sadd("rq:workers", f"rq:worker:{name}")
        redis.sadd(f"rq:workers:{queue}", f"rq:worker:{name}")
    async with AsyncRedis(port=server.port) as client:
        assert await stale_workers.clear(client, ["default"], datetime.now(UTC)) == ["one"]
        assert [each.name for each in await AsyncTasks(client).workers()] == ["two"]
        assert await AsyncTasks(client).clear_ghosts() == ["two"]
    assert redis.smembers("rq:workers") == set()
