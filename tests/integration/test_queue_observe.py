"""Looks at queues and workers on a real Redis, and the pushes that announce changes."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from rq import Queue

from engineroom.core.clock import SystemClock
from engineroom.core.errors import MeasurementError
from engineroom.queue import keys
from engineroom.queue.invalidations import InvalidationListener
from engineroom.queue.observe import Observer
from tests.integration.pools import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.support import RedisServer


@pytest_asyncio.fixture
async def client(redis: RedisServer) -> AsyncIterator[AsyncRedis]:
    async with AsyncRedis.from_url(redis.url) as opened:
        yield opened


@pytest.fixture
def queue(redis: RedisServer) -> Iterator[Queue]:
    with Redis.from_url(redis.url) as connection:
        yield Queue("mail", connection=connection)


async def test_a_look_tells_what_waits_and_since_when(client, queue):
    queue.enqueue("time.sleep", 1)
    queue.enqueue("time.sleep", 1)
    queue.enqueue_in(timedelta(seconds=50), "time.sleep", 1)
    queue.connection.zadd(keys.started("mail"), {"a:1": time.time() + 60, "b:1": time.time() - 60})
    queue.connection.rpush(keys.settle("mail"), "dead")
    facts = await Observer(client, SystemClock()).observe("shop/mail", ["mail", "empty"])
    mail, empty = facts.queues
    assert (mail.waiting, mail.running, mail.scheduled, mail.due) == (2, 1, 1, 0)
    assert mail.backlog == 3
    assert mail.oldest_enqueued == pytest.approx(time.time(), abs=5)
    assert mail.next_due == pytest.approx(time.time() + 50, abs=5)
    assert (empty.demand, empty.scheduled) == (0, 0)
    assert not facts.quiet


async def test_looking_changes_nothing(client, queue):
    """RQ's own counting would have cleaned up the abandoned entry."""
    queue.connection.zadd(keys.started("mail"), {"b:1": 1})
    before = queue.connection.dbsize()
    await Observer(client, SystemClock()).observe("shop/mail", ["mail"])
    assert queue.connection.zcard(keys.started("mail")) == 1
    assert queue.connection.dbsize() == before


async def test_many_looks_at_once_share_round_trips(client, queue):
    queue.enqueue("time.sleep", 1)
    observer = Observer(client, SystemClock())
    before = queue.connection.info("stats")["total_commands_processed"]
    looks = await asyncio.gather(*(observer.observe(f"shop/{i}", ["mail"]) for i in range(50)))
    used = queue.connection.info("stats")["total_commands_processed"] - before
    assert [look.queues[0].waiting for look in looks] == [1] * 50
    assert used < 50 * 4


async def test_quiet_queues_are_told_from_the_others(client, queue):
    queue.enqueue("time.sleep", 1)
    names = [f"q{i}" for i in range(300)]
    quiet = await Observer(client, SystemClock()).quiet([*names, "mail"])
    assert quiet == set(names)


async def test_a_failed_look_is_an_error_and_never_a_zero(redis, client):
    observer = Observer(client, SystemClock())
    await observer.observe("shop/mail", ["mail"])
    redis.stop()
    with pytest.raises(MeasurementError):
        await observer.observe("shop/mail", ["mail"])


async def test_pushes_name_the_queue_and_come_back_after_a_restart(redis, client, queue):
    heard: list[str] = []
    ups: list[float] = []
    downs: list[str] = []
    push = InvalidationListener(
        client, on_queue=heard.append, on_up=lambda: ups.append(time.time()), on_down=downs.append
    )
    task = asyncio.create_task(push.run())
    try:
        await eventually("it listens", lambda: ups)
        queue.enqueue("time.sleep", 1)
        await eventually("it heard", lambda: "mail" in heard)
        redis.stop()
        await eventually("it noticed", lambda: downs)
        redis.start()
        await eventually("it listens again", lambda: len(ups) >= 2)
        heard.clear()
        queue.enqueue("time.sleep", 1)
        await eventually("it heard again", lambda: "mail" in heard)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_what_waits_in_a_paused_queue_asks_for_nobody(client, queue):
    queue.enqueue(print)
    await client.set(keys.paused("mail"), "")
    observer = Observer(client, SystemClock())
    [seen] = (await observer.observe("shop/mail", ["mail"])).queues
    assert (seen.paused, seen.waiting, seen.backlog, seen.demand) == (True, 1, 0, 0)
    await client.delete(keys.paused("mail"))
    [seen] = (await observer.observe("shop/mail", ["mail"])).queues
    assert (seen.paused, seen.backlog) == (False, 1)


async def test_what_a_limit_holds_back_asks_for_no_more_than_it_lets_run(client, queue):
    for _ in range(100):
        queue.enqueue(print)
    await client.zadd(keys.started("mail"), {"a:1": time.time() + 60})
    await client.hset(keys.limit("mail"), mapping={"concurrency": 2, "count": 30, "ms": 60000})
    observer = Observer(client, SystemClock())
    [seen] = (await observer.observe("shop/mail", ["mail"])).queues
    assert (seen.waiting, seen.backlog, seen.demand) == (100, 1, 2)
    assert (seen.concurrency, seen.rate, seen.burst) == (2, 0.5, 30)


async def test_of_jobs_set_aside_those_count_that_may_have_room(client, queue):
    at = time.time()
    assert await Observer(client, SystemClock()).quiet(["mail"]) == {"mail"}
    keyed = {"free": 0, "also": at - 5, "later": at + 20}
    await client.zadd(keys.limited("mail"), keyed)
    observer = Observer(client, SystemClock())
    facts = await observer.observe("shop/mail", ["mail"])
    [seen] = facts.queues
    assert (seen.limited_keys, seen.backlog) == (3, 2)
    assert seen.next_due == pytest.approx(at + 20)
    await client.zrem(keys.limited("mail"), "free", "also")
    facts = await observer.observe("shop/mail", ["mail"])
    assert (facts.queues[0].demand, facts.quiet) == (0, False)
    assert await observer.quiet(["mail"]) == set()
