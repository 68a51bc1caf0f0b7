"""Dropping failed jobs on a real Redis: the oldest, in bounded steps, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
import redis
import redis.asyncio

from engineroom.queue import deadletters, keys

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.support import RedisServer

QUEUE = "mail"


@pytest.fixture
def db(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis(port=server.port, decode_responses=True) as client:
        yield client
        client.flushall()


@pytest_asyncio.fixture
async def client(server: RedisServer) -> AsyncIterator[redis.asyncio.Redis]:
    async with redis.asyncio.Redis(port=server.port) as made:
        yield made


def fail(db: redis.Redis, job: str, expires: float) -> None:
    db.hset(keys.job(job), "status", "failed")
    db.set(f"rq:results:{job}", "a traceback")
    db.zadd(keys.failed(QUEUE), {job: expires})


def kept(db: redis.Redis) -> list[str]:
    return db.zrange(keys.failed(QUEUE), 0, -1)  # type: ignore[return-value]


async def test_the_oldest_go_with_all_that_is_theirs(db, client):
    for number in range(5):
        fail(db, f"job-{number}", expires=1000 + number)
    assert await deadletters.trim(client, QUEUE, keep=2) == 3
    assert kept(db) == ["job-3", "job-4"]
    left = {key for key in db.scan_iter() if "job-" in key}
    assert left == {"rq:job:job-3", "rq:results:job-3", "rq:job:job-4", "rq:results:job-4"}
    assert await deadletters.trim(client, QUEUE, keep=2) == 0


async def test_jobs_that_are_kept_for_ever_neither_count_nor_go(db, client):
    fail(db, "for-ever", expires=-1)
    for number in range(3):
        fail(db, f"job-{number}", expires=1000 + number)
    assert await deadletters.trim(client, QUEUE, keep=2) == 1
    assert kept(db) == ["for-ever", "job-1", "job-2"]


async def test_a_job_that_was_requeued_meanwhile_keeps_its_own(db, client):
    fail(db, "again", expires=1000)
    fail(db, "late", expires=2000)
    db.hset(keys.job("again"), "status", "queued")
    db.rpush(keys.queue(QUEUE), "again")
    await deadletters.trim(client, QUEUE, keep=1)
    assert kept(db) == ["late"]
    assert db.hget(keys.job("again"), "status") == "queued"
    assert db.lrange(keys.queue(QUEUE), 0, -1) == ["again"]


async def test_one_step_takes_a_bounded_number(db, client):
    for number in range(deadletters.STEP + 30):
        fail(db, f"job-{number:04d}", expires=1000 + number)
    assert await deadletters.trim(client, QUEUE, keep=10) == deadletters.STEP
    assert await deadletters.trim(client, QUEUE, keep=10) == 20
    assert len(kept(db)) == 10
