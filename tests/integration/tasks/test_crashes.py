"""A process is killed at every step of its work and started again: what is lost, what is doubled.

Each scenario of ``mortal`` is lived through once whole, and then once for each step and each way of
dying at it: before the step, in the middle of sending it, after its answer. Jobs are then run by
RQ's own worker, and counted by what they did.
"""

from __future__ import annotations

import signal
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis

from engineroom.queue import keys
from engineroom.tasks import Task, Tasks
from tests.integration.forks import FORKS
from tests.integration.tasks import mortal
from tests.integration.tasks.conftest import Deaf
from tests.integration.tasks.mortal import SIDES
from tests.integration.tasks.work import count, second_time

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

    from tests.support import RedisServer


class Story:
    """One scenario, lived and died as told."""

    def __init__(self, scenario: str, server: RedisServer, address: str) -> None:
        self.scenario = scenario
        self.redis = Redis(port=server.port)
        self.tasks = Tasks(self.redis)
        self._port, self._address = server.port, address

    def live(self, at: int = -1, side: str = "") -> str:
        """One process; the steps it began. It dies exactly where it was told to."""
        steps = FORKS.Array("c", 1000)
        told = (self.scenario, self._port, self._address, steps, at, side)
        process = FORKS.Process(target=mortal.play, args=told)
        process.start()
        process.join(30)
        assert process.exitcode == (0 if at < 0 else -signal.SIGKILL), (at, side)
        return str(steps.value.decode())

    def deaths(self, database: psycopg.Connection[Any]) -> Iterator[tuple[int, str]]:
        """Begin anew for each death, the last as if nothing had happened; yields after it."""
        self._begin(database)
        steps = self.live()
        assert steps
        yield -1, "never"
        for at, kind in enumerate(steps):
            for side in SIDES[kind]:
                self._begin(database)
                self.live(at, side)
                yield at, side

    def done(self, *queues: str) -> Counter[str]:
        """Run all that waits, and count what was done."""
        Deaf(list(queues or ("default",)), connection=self.redis).work(burst=True)
        found = self.redis.hgetall("test:done")
        return Counter({name.decode(): int(times) for name, times in found.items()})

    def _begin(self, database: psycopg.Connection[Any]) -> None:
        self.redis.flushall()
        self.redis.script_flush()  # or the first life alone would have to send the scripts
        database.execute("TRUNCATE orders, engineroom_outbox")
        mortal.prepare(self.scenario, self.redis)
        if self.scenario == "requeue":
            names = [f"plain-{at}" for at in range(5)]
            self.tasks.enqueue_many([Task(second_time, (name,)) for name in names])
            self.done()


@pytest.fixture
def story(request: pytest.FixtureRequest, server: RedisServer, address: str) -> Iterator[Story]:
    told = Story(request.param, server, address)
    with closing(told.redis):
        yield told


def lives(scenario: str) -> Any:
    return pytest.mark.parametrize("story", [scenario], indirect=True, ids=[scenario])


def split(done: Counter[str]) -> tuple[dict[str, int], dict[str, int]]:
    """What unique jobs did, and what the others did."""
    return (
        {name: times for name, times in done.items() if name.startswith("unique")},
        {name: times for name, times in done.items() if name.startswith("plain")},
    )


@lives("batch")
def test_enqueue_many(story: Story, database: psycopg.Connection[Any]) -> None:
    doubled: set[int] = set()
    for at, side in story.deaths(database):
        written = story.redis.llen("rq:queue:default")
        # A transaction of four is in or not in.
        assert written in (0, 4, 8, 10), (at, side)
        inside = {
            story.tasks.redis.hget(f"rq:job:{each.decode()}", "description").decode()
            for each in story.redis.lrange("rq:queue:default", 0, -1)
        }
        if at >= 0:
            story.live()
        unique, plain = split(story.done())
        assert unique == {f"unique-{each}": 1 for each in range(4)}, (at, side)
        # Without a key the same call writes the same work again: exactly what was in is doubled.
        again = {name for name in plain if any(name in each for each in inside) and at >= 0}
        assert plain == {f"plain-{each}": 1 + (f"plain-{each}" in again) for each in range(6)}
        doubled.add(sum(plain.values()) - 6)
    assert doubled == {0, 1, 4, 6}


@lives("one")
def test_enqueue(story: Story, database: psycopg.Connection[Any]) -> None:
    doubled = []
    for at, side in story.deaths(database):
        if at >= 0:
            story.live()
        unique, plain = split(story.done())
        assert unique == {"unique-1": 1}, (at, side)
        doubled += [(at, side)] * (plain["plain-1"] - 1)
        assert plain["plain-1"] in (1, 2)
    # One way only: it was written, and nobody lived to know.
    assert {side for _, side in doubled} == {"after"}
    assert len(doubled) == 1


@lives("flow")
def test_enqueue_flow(story: Story, database: psycopg.Connection[Any]) -> None:
    doubled = 0
    for at, side in story.deaths(database):
        whole = list(story.redis.scan_iter("rq:job:*-0"))
        assert len(list(story.redis.scan_iter("rq:job:*-[0-3]"))) == 4 * len(whole), (at, side)
        if at >= 0:
            story.live()
        unique, plain = split(story.done())
        assert unique == {f"unique-{each}": 1 for each in range(4)}, (at, side)
        times = plain["plain-0"]
        assert plain == {f"plain-{each}": times for each in range(4)}, (at, side)
        assert times in (1, 2)
        doubled += times - 1
    assert doubled == 1


@lives("cancel")
def test_cancelling_a_flow(story: Story, database: psycopg.Connection[Any]) -> None:
    for at, side in story.deaths(database):
        begun = story.redis.hget("rq:job:f-0", "status") == b"canceled"
        # From the first step on nothing of it runs, also if nobody ever does the rest.
        assert story.done() == ({} if begun else dict.fromkeys(map("plain-{}".format, range(4)), 1))
        if begun:
            story.live()
            states = {story.redis.hget(f"rq:job:f-{each}", "status") for each in range(4)}
            assert states == {b"canceled"}, (at, side)
            assert not story.redis.exists("rq:deferred:default")


@lives("outbox")
def test_outbox_and_relay(story: Story, database: psycopg.Connection[Any]) -> None:
    def rows(table: str) -> int:
        [(number,)] = database.execute(f"SELECT count(*) FROM {table}").fetchall()  # noqa: S608
        return int(number)

    for at, side in story.deaths(database):
        # What has run before the rest comes must not run again; each order has five jobs.
        done = sum(story.done().values())
        assert done <= 5 * rows("orders"), (at, side)
        assert done == 5 * rows("orders") or rows("engineroom_outbox"), (at, side)
        if at >= 0:
            story.live()
        expected = [
            name for each in range(2)
            for name in (f"plain-{each}", f"unique-{each}", *(f"flow-{each}-{n}" for n in range(3)))
        ]  # fmt: skip
        assert story.done() == dict.fromkeys(expected, 1), (at, side)
        assert rows("engineroom_outbox") == 0


@lives("after_commit")
def test_after_the_commit(story: Story, database: psycopg.Connection[Any]) -> None:
    lost = []
    for at, side in story.deaths(database):
        if at >= 0:
            story.live()
        assert database.execute("SELECT count(*) FROM orders").fetchall() == [(1,)]
        done = story.done()["plain-1"]
        assert done <= 1
        lost += [(at, side)] * (1 - done)
    # Lost if and only if it dies between the commit and the one write to Redis: after the answer
    # of the commit, before that write, or in the middle of it.
    assert len(lost) == 3
    assert [side for _, side in lost] == ["after", "before", "torn"]


@lives("scheduler")
def test_scheduler(story: Story, database: psycopg.Connection[Any]) -> None:
    for at, side in story.deaths(database):
        if at >= 0:
            story.live()
        assert story.done() == {"plain-often": 3, "plain-seldom": 1}, (at, side)


@lives("requeue")
def test_requeueing_by_filter(story: Story, database: psycopg.Connection[Any]) -> None:
    for at, side in story.deaths(database):
        if at >= 0:
            story.live()
        counted = [
            int(story.redis.hget(each, "requeued") or 0)
            for each in story.redis.scan_iter("engineroom:requeue:*")
        ]
        assert sum(counted) == 5, (at, side)
        assert story.done() == {f"plain-{each}": 1 for each in range(5)}, (at, side)


@lives("move")
def test_moving(story: Story, database: psycopg.Connection[Any]) -> None:
    for at, side in story.deaths(database):
        here, there = (story.redis.lrange(keys.queue(each), 0, -1) for each in ("default", "other"))
        assert len({*here, *there}) == len(here) + len(there) == 5, (at, side)
        if at >= 0:
            story.live()
        assert not story.redis.exists("rq:queue:default")
        assert story.done("other") == {f"plain-{each}": 1 for each in range(5)}, (at, side)


@lives("empty")
def test_emptying(story: Story, database: psycopg.Connection[Any]) -> None:
    redis = story.redis
    kept = {"emptied-1", "emptied-2", "aside-1"}

    def there() -> set[str]:
        found = redis.scan_iter("rq:job:*", _type="hash")
        return {each.decode().removeprefix("rq:job:") for each in found}

    def listed(*lists: Any) -> list[str]:
        return [each.decode() for key in lists for each in redis.lrange(key, 0, -1)]

    touched = set()
    for at, side in story.deaths(database):
        waiting = listed(keys.queue("default"), keys.held("default", "k"))
        taken_out = listed(*redis.hkeys(keys.emptying("default")))
        # All of it or nothing has been begun, and each job has its place until it goes.
        assert len(waiting) in (0, 9), (at, side)
        assert not (waiting and taken_out), (at, side)
        assert sorted([*waiting, *taken_out]) == sorted(there() - kept), (at, side)
        assert story.tasks.counts(["default"])[0].emptying == len(taken_out)
        touched.add(len(taken_out))
        late = ""
        if not waiting:
            # From the first step on nothing of it runs, and what comes is no part of it.
            late = story.tasks.enqueue(Task(count, ("plain-late",))).job_id
            assert story.done() == {"plain-late": 1}, (at, side)
        if at >= 0:
            story.live()
        assert there() - {late} == kept, (at, side)
        # What hung on a job that is gone is cancelled, wherever the first life ended.
        assert {redis.hget(keys.job(each), "status") for each in kept} == {b"canceled"}, (at, side)
        assert not redis.exists("rq:deferred:default")
        assert redis.keys("engineroom:emptying:*") == []
        assert story.done() == ({"plain-late": 1} if late else {}), (at, side)
    assert len(touched) > 3


@lives("recover")
def test_recovery_of_orphans(story: Story, database: psycopg.Connection[Any]) -> None:
    for at, side in story.deaths(database):
        if at >= 0:
            story.live()
        # One is tried again, one has failed, the one that nobody had started is there once.
        assert story.redis.llen("rq:queue:default") == 2, (at, side)
        assert story.redis.zcard("rq:failed:default") == 1, (at, side)
        assert not story.redis.exists(
            "rq:workers", "rq:wip:default", "rq:worker:w1", "rq:worker:w2"
        )
        crashes = [
            int(story.redis.get(each)) for each in story.redis.scan_iter("engineroom:crashes:*")
        ]
        assert crashes == [1, 1], (at, side)
        assert story.redis.hget("engineroom:stats:default", "failed") == b"1", (at, side)
        assert story.done() == {"plain-w1": 1, "plain-stray": 1}, (at, side)
