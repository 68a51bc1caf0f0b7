"""Emptying and moving a queue that others take from and put into meanwhile."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis

from engineroom.queue import keys
from engineroom.tasks import Limit, Task, Tasks, chain
from engineroom.tasks.inspection.queues import LISTS, STEP
from tests.integration.tasks.work import add

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support import RedisServer


class Busy(Redis):
    """A client between whose round trips others do something."""

    between: Callable[[], object] = staticmethod(lambda: None)

    def execute_command(self, *words: Any, **options: Any) -> Any:
        self.between()
        return super().execute_command(*words, **options)

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Any:
        self.between()
        return super().pipeline(transaction, shard_hint)


@pytest.fixture
def busy(server: RedisServer) -> Iterator[Busy]:
    with contextlib.closing(Busy(port=server.port)) as client:
        yield client


def states(redis: Redis) -> dict[str, str]:
    """The status of each job that is there."""
    return {
        key.decode().removeprefix("rq:job:"): redis.hget(key, "status").decode()
        for key in redis.scan_iter("rq:job:*", _type="hash")
    }


def take(redis: Redis) -> str | None:
    """The head of the queue, taken and begun as a worker does."""
    taken = redis.lpop(keys.queue("default"))
    if taken is None:
        return None
    job = str(taken.decode())
    redis.hset(keys.job(job), "status", "started")
    return job


def nothing_stranded(redis: Redis, places: set[str]) -> None:
    """Each job that waits has a place, and nobody waits for one that is gone."""
    queued = {job for job, status in states(redis).items() if status == "queued"}
    assert queued == places
    for key in redis.scan_iter("rq:job:*:dependents"):
        parent = key.decode().removeprefix("rq:job:").removesuffix(":dependents")
        assert redis.exists(keys.job(parent)), parent
    assert redis.keys("engineroom:emptying:*") == []


@pytest.mark.parametrize("pace", [1, 7, STEP])
def test_what_workers_take_and_what_comes_meanwhile_is_left_alone(
    redis: Redis, busy: Busy, tasks: Tasks, pace: int
) -> None:
    """Flows of two stand in the queue by their first job; others act before each round trip."""
    taken: set[str] = set()
    came: set[str] = set()
    flows = 2 * STEP + 30
    for at in range(flows):
        tasks.enqueue_flow(chain(Task(add, (at,)), Task(add, (at,))), flow_id=f"f{at}")

    def others() -> None:
        if len(came) > 3 * STEP:
            return
        begun = bool(came) or redis.llen(keys.queue("default")) != flows - len(taken)
        for _ in range(pace):
            job = take(redis)
            if job is not None and job not in came:
                taken.add(job)
            if not begun:
                continue
            new = [
                Task(add, (1,)), Task(add, (2,), at_front=True), Task(add, (3,), priority=9),
            ]  # fmt: skip
            came.update(each.job_id for each in tasks.enqueue_many(new))

    busy.between = others
    gone = Tasks(busy).empty_queue("default", confirm="default")
    busy.between = lambda: None
    left = states(redis)
    assert gone == flows - len(taken)
    # Children of what runs wait on; those of what was deleted are cancelled.
    for at in range(flows):
        child = left[f"f{at}-1"]
        assert child == ("deferred" if f"f{at}-0" in taken else "canceled"), at
        assert (f"f{at}-0" in left) == (f"f{at}-0" in taken), at
    assert came <= set(left)
    here = {each.decode() for each in redis.lrange(keys.queue("default"), 0, -1)}
    nothing_stranded(redis, here)


def test_a_child_that_comes_while_its_parent_is_deleted_is_not_stranded(
    redis: Redis, busy: Busy, tasks: Tasks
) -> None:
    flow = tasks.enqueue_flow(chain(Task(add, (1,)), Task(add, (2,))), flow_id="f")
    parent = flow.jobs[0].job_id
    asked = []

    def others() -> None:
        child = Task(add, (3,), job_id=f"child-{len(asked)}", depends_on=[parent])
        asked.extend(tasks.enqueue_many([child]))

    busy.between = others
    Tasks(busy).empty_queue("default", confirm="default")
    assert len(asked) > 2
    here = {each.decode() for each in redis.lrange(keys.queue("default"), 0, -1)}
    # Of a parent that is gone RQ says that it has finished: such a child runs.
    assert set(states(redis).values()) <= {"canceled", "queued"}
    nothing_stranded(redis, here)


def test_beside_real_workers_each_job_runs_or_is_deleted(
    redis: Redis, tasks: Tasks, server: RedisServer
) -> None:
    flows = 600
    for at in range(flows):
        tasks.enqueue_flow(chain(Task(add, (at,)), Task(add, (at,))), flow_id=f"f{at}")
    stop = threading.Event()
    ran: list[str] = []

    def worker() -> None:
        with contextlib.closing(Redis(port=server.port)) as client:
            while not stop.is_set():
                job = take(client)
                if job is None:
                    time.sleep(0.001)
                else:
                    ran.append(job)

    threads = [threading.Thread(target=worker) for _ in range(2)]
    for thread in threads:
        thread.start()
    while len(ran) < 20:
        time.sleep(0.001)
    gone = tasks.empty_queue("default", confirm="default")
    stop.set()
    for thread in threads:
        thread.join()
    assert gone + len(ran) == flows
    left = states(redis)
    for at in range(flows):
        child = left[f"f{at}-1"]
        assert child == ("deferred" if f"f{at}-0" in ran else "canceled"), at
    nothing_stranded(redis, set())


def set_aside(redis: Redis, tasks: Tasks, key: str = "customer-7", number: int = 5) -> list[str]:
    """Jobs as workers set them aside by a limit: out of the queue, into the list of their key."""
    jobs = tasks.enqueue_many([Task(add, (at,), limit=Limit(key, 1)) for at in range(number)])
    redo(redis)
    return [each.job_id for each in jobs]


def redo(redis: Redis) -> None:
    """Set aside whatever limited jobs stand in the queue, as each look of a worker does."""
    for each in redis.lrange(keys.queue("default"), 0, -1):
        job = each.decode()
        limit, at = redis.hmget(keys.job(job), "er_limit", "enqueued_at")
        if limit is not None and redis.lrem(keys.queue("default"), 1, job):
            redis.hset(keys.job(job), "er_held", at)
            redis.rpush(keys.held("default", limit.decode()), job)
            redis.zadd(keys.limited("default"), {limit.decode(): time.time() + 10})


@pytest.mark.timeout(20)
def test_emptying_takes_what_limits_keep_aside_though_workers_set_it_aside_again(
    redis: Redis, busy: Busy, tasks: Tasks
) -> None:
    held = [*set_aside(redis, tasks), *set_aside(redis, tasks, "customer-8", 2 * STEP)]
    tasks.enqueue(Task(add, (1,)))
    busy.between = lambda: redo(redis)
    assert Tasks(busy).empty_queue("default", confirm="default") == len(held) + 1
    assert states(redis) == {}
    assert redis.keys("engineroom:held:*") == redis.keys("engineroom:limited:*") == []


@pytest.mark.timeout(20)
def test_moving_takes_what_limits_keep_aside_though_workers_set_it_aside_again(
    redis: Redis, busy: Busy, tasks: Tasks
) -> None:
    held = [*set_aside(redis, tasks), *set_aside(redis, tasks, "customer-8", STEP)]
    last = tasks.enqueue(Task(add, (1,))).job_id
    busy.between = lambda: redo(redis)
    assert Tasks(busy).move_jobs("default", "other") == len(held) + 1
    there = [each.decode() for each in redis.lrange(keys.queue("other"), 0, -1)]
    assert sorted(there) == sorted([*held, last])
    assert there[-1] == last
    assert redis.keys("engineroom:held:*") == redis.keys("engineroom:limited:*") == []
    assert redis.hget(keys.job(held[0]), "er_held") is None


def test_an_entry_aside_of_a_job_that_was_enqueued_anew_is_no_reason_to_delete_it(
    redis: Redis, tasks: Tasks
) -> None:
    [job] = set_aside(redis, tasks, number=1)
    redis.hset(keys.job(job), mapping={"enqueued_at": "2026-01-31T12:00:00.000000Z", "origin": "o"})
    redis.rpush(keys.queue("o"), job)
    assert tasks.empty_queue("default", confirm="default") == 0
    assert tasks.move_jobs("default", "other") == 0
    assert states(redis) == {job: "queued"}
    assert redis.keys("engineroom:held:*") == []


def test_an_id_that_comes_again_meanwhile_is_another_job(
    redis: Redis, busy: Busy, tasks: Tasks
) -> None:
    """As one whose time to live is over does."""
    first = tasks.enqueue(Task(add, (1,), job_id="nightly"))
    again = []

    def others() -> None:
        if not redis.exists(keys.queue("default")) and not again:
            redis.delete(keys.job(first.job_id))
            again.append(tasks.enqueue(Task(add, (2,), job_id="nightly")))

    busy.between = others
    assert Tasks(busy).empty_queue("default", confirm="default") == 0
    assert len(again) == 1
    assert states(redis) == {"nightly": "queued"}
    nothing_stranded(redis, {"nightly"})


def test_two_at_once_and_one_that_was_broken_off_delete_each_job_once(
    redis: Redis, busy: Busy, tasks: Tasks
) -> None:
    number = STEP + 9
    for at in range(number):
        tasks.enqueue_flow(chain(Task(add, (at,)), Task(add, (at,))), flow_id=f"f{at}")
    gone = []
    calls = 0

    def others() -> None:
        nonlocal calls
        calls += 1
        if calls % 50 == 0 and calls < 500:
            gone.append(tasks.empty_queue("default", confirm="default"))
        if calls == 320:
            raise InterruptedError

    busy.between = others
    with contextlib.suppress(InterruptedError):
        gone.append(Tasks(busy).empty_queue("default", confirm="default"))
    gone.append(tasks.empty_queue("default", confirm="default"))
    assert sum(gone) == number
    assert states(redis) == {f"f{at}-1": "canceled" for at in range(number)}
    nothing_stranded(redis, set())


def test_limits_of_many_keys_are_emptied_and_moved(redis: Redis, tasks: Tasks) -> None:
    number = LISTS + 3

    def put_aside() -> None:
        limited = [Task(add, limit=Limit(f"customer-{at}", 1)) for at in range(number)]
        tasks.enqueue_many(limited)
        redo(redis)

    put_aside()
    assert tasks.move_jobs("default", "other") == number
    put_aside()
    # A key whose jobs are gone, as deleting them by hand leaves it.
    redis.zadd(keys.limited("default"), {"nobody": 0})
    assert tasks.empty_queue("default", confirm="default") == number
    assert tasks.empty_queue("other", confirm="other") == number
    assert states(redis) == {}
    assert redis.keys("engineroom:[hle]*") == []
