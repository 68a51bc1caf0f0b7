"""Priority: the order in a queue against a plain model, the bound on waiting, and nothing lost."""

from __future__ import annotations

import bisect
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rq import Queue
from rq.job import Job
from rq.scheduler import RQScheduler

from engineroom.core.clock import FakeClock
from engineroom.queue import priority as queue_priority
from engineroom.tasks import InvalidTaskError, Missed, Schedule, Scheduler, Task, Tasks, chain
from engineroom.tasks.triggers import Every
from tests.integration.tasks.work import add, boom

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis


def waiting(redis: Redis, queue: str = "default") -> list[str]:
    return [each.decode() for each in redis.lrange(f"rq:queue:{queue}", 0, -1)]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(datetime(2026, 2, 28, 23, 59, 30, tzinfo=UTC))


@pytest.fixture
def timed(redis: Redis, clock: FakeClock) -> Tasks:
    return Tasks(redis, clock=clock)


def put(tasks: Tasks, job_id: str, priority: int = 0, **more: Any) -> str:
    return tasks.enqueue(Task(add, (1,), job_id=job_id, priority=priority, **more)).job_id


def test_urgent_jobs_come_first_and_in_their_order(redis: Redis, timed: Tasks) -> None:
    for name, priority in [("a", 0), ("u1", 9), ("b", 0), ("m", 3), ("u2", 9), ("c", 0)]:
        put(timed, name, priority)
    assert waiting(redis) == ["u1", "u2", "m", "a", "b", "c"]


def test_who_has_waited_as_long_as_a_priority_is_worth_is_not_overtaken(
    redis: Redis, timed: Tasks, clock: FakeClock
) -> None:
    put(timed, "old")
    clock.advance(queue_priority.MAX_BOOST + 1)
    put(timed, "young")
    put(timed, "urgent", 9)
    put(timed, "less", 1)
    assert waiting(redis) == ["old", "urgent", "less", "young"]


def test_stock_rq_enqueues_and_runs_in_the_same_order(
    redis: Redis, tasks: Tasks, work: Callable[..., None]
) -> None:
    queue = Queue("default", connection=redis)
    first = queue.enqueue(add, 1)
    urgent = tasks.enqueue(Task(add, (2,), priority=9))
    queue.enqueue(add, 3)
    more = tasks.enqueue_many([Task(add, (4,)), Task(add, (5,), priority=9)])
    assert waiting(redis)[:3] == [urgent.job_id, more[1].job_id, first.id]
    work()
    ended = {}
    for key in redis.keys("rq:job:*"):
        job = Job.fetch(key.decode()[7:], connection=redis)
        ended[job.id] = job.started_at
    assert sorted(ended, key=lambda each: ended[each])[:2] == [urgent.job_id, more[1].job_id]


def test_a_batch_keeps_its_order_and_is_written_whole(redis: Redis, timed: Tasks) -> None:
    batch = [Task(add, (at,), job_id=f"j{at}", priority=9 * (at % 3 == 0)) for at in range(100)]
    assert all(each.created for each in timed.enqueue_many(batch))
    urgent = [f"j{at}" for at in range(0, 100, 3)]
    assert waiting(redis) == urgent + [f"j{at}" for at in range(100) if at % 3]


def test_a_requeued_job_takes_the_place_of_its_priority(
    redis: Redis, tasks: Tasks, work: Callable[..., None]
) -> None:
    failed = [tasks.enqueue(Task(boom, priority=priority)).job_id for priority in (0, 9)]
    work()
    plain = put(tasks, "plain")
    tasks.requeue(failed[0])
    tasks.requeue(failed[1])
    assert waiting(redis) == [failed[1], plain, failed[0]]


def test_a_job_that_stock_rq_requeues_stands_at_the_end_and_misleads_nobody(
    redis: Redis, tasks: Tasks, work: Callable[..., None]
) -> None:
    failed = tasks.enqueue(Task(boom, priority=9)).job_id
    work()
    put(tasks, "plain")
    Job.fetch(failed, connection=redis).requeue()
    assert waiting(redis) == ["plain", failed]
    put(tasks, "urgent", 5)
    assert waiting(redis) == ["urgent", "plain", failed]


def test_moved_jobs_come_anew_and_keep_their_priority(
    redis: Redis, timed: Tasks, clock: FakeClock
) -> None:
    put(timed, "low")
    put(timed, "high", 9)
    clock.advance(7200)
    put(timed, "there", queue="other")
    timed.move_jobs("default", "other")
    assert waiting(redis, "other") == ["high", "there", "low"]
    put(timed, "next", 9, queue="other")
    assert waiting(redis, "other") == ["high", "next", "there", "low"]


def test_a_schedule_enqueues_by_priority(redis: Redis, clock: FakeClock) -> None:
    tasks = Tasks(redis, clock=clock)
    tasks.put_schedule(Schedule("often", Every(60), Task(add, (1,), priority=9)))
    clock.advance(61)
    put(tasks, "plain")
    assert Scheduler(redis, clock).once()[0] == 1
    assert len(waiting(redis)) == 2
    assert waiting(redis)[1] == "plain"


def test_a_priority_that_does_not_exist_is_refused(redis: Redis, tasks: Tasks) -> None:
    for priority in (-1, 10, 1.5, True, "9"):
        with pytest.raises(InvalidTaskError, match="priority"):
            tasks.enqueue(Task(add, (1,), priority=priority))  # type: ignore[arg-type]
    with pytest.raises(InvalidTaskError, match="at_front"):
        tasks.enqueue(Task(add, (1,), priority=1, at_front=True))
    assert redis.keys() == []


def test_a_step_stays_short_in_a_long_list(redis: Redis, timed: Tasks, clock: FakeClock) -> None:
    """Jobs that are too old to be overtaken stand before it, more than can be walked over."""
    count = queue_priority.WALK + 50_000
    old = "2026-02-28T20:00:00.000000Z"
    fill = f"""
    for at = 1, {count} do
      redis.call('RPUSH', 'rq:queue:default', 'old-' .. at)
      redis.call('HSET', 'rq:job:old-' .. at, 'enqueued_at', '{old}')
    end"""
    redis.eval(fill, 0)
    many = 2 * queue_priority.WALK // queue_priority.LIFT
    timed.enqueue_many([Task(add, (at,), job_id=f"new-{at}") for at in range(many)])
    clock.advance(1)
    redis.config_resetstat()
    put(timed, "urgent", 9)
    spent = redis.info("commandstats")["cmdstat_evalsha"]["usec"] / 1000
    assert spent < 50  # 4 ms on a machine with nothing else to do
    listed = waiting(redis)
    place = listed.index("urgent")
    # As far ahead as can be afforded, and before nobody that has waited too long.
    assert place == count + many - queue_priority.WALK // queue_priority.LIFT
    assert listed[:place] + listed[place + 1 :] == [
        *(f"old-{at + 1}" for at in range(count)),
        *(f"new-{at}" for at in range(many)),
    ]


# -- any order of events, against a model ----------------------------------------------------------


@dataclass
class Model:
    """A queue as a sorted list; each job has the time at which it counts as come."""

    jobs: list[tuple[float, int, str]] = field(default_factory=list)
    number: int = 0

    def add(self, at: float, job: str) -> None:
        self.number += 1
        bisect.insort(self.jobs, (at, self.number, job))

    @property
    def order(self) -> list[str]:
        return [job for _, _, job in self.jobs]


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 9)),
        st.tuples(st.just("stock"), st.just(0)),
        st.tuples(st.just("many"), st.integers(0, 9)),
        st.tuples(st.just("take"), st.integers(1, 4)),
        st.tuples(st.just("return"), st.integers(1, 4)),
        st.tuples(st.just("cancel"), st.integers(0, 100)),
        st.tuples(st.just("requeue"), st.integers(0, 100)),
        st.tuples(st.just("wait"), st.sampled_from([0.25, 100.0, 401.0, 3000.0])),
    ),
    max_size=60,
)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(EVENTS)
def test_the_order_is_that_of_the_model(redis: Redis, events: list[tuple[str, Any]]) -> None:
    redis.flushall()
    clock = FakeClock(datetime(2026, 2, 28, 23, 0, tzinfo=UTC))
    tasks = Tasks(redis, clock=clock)
    model, priorities, came = Model(), dict[str, int](), dict[str, float]()
    failed: list[str] = []

    def now() -> float:
        return clock.now().timestamp()

    def enters(job: str, priority: int) -> None:
        model.add(now() - queue_priority.SECONDS * priority, job)
        came[job] = now()

    for at, (event, word) in enumerate(events):
        if event == "add":
            enters(put(tasks, f"j{at}", word), word)
            priorities[f"j{at}"] = word
        elif event == "stock":
            stamp = clock.now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            fields = {"status": "queued", "enqueued_at": stamp, "origin": "default"}
            redis.hset(f"rq:job:j{at}", mapping=fields)
            redis.rpush("rq:queue:default", f"j{at}")
            enters(f"j{at}", 0)
            priorities[f"j{at}"] = 0
        elif event == "many":
            batch = [(f"j{at}-{each}", word if each % 2 else 0) for each in range(5)]
            tasks.enqueue_many(
                Task(add, (1,), job_id=job, priority=priority) for job, priority in batch
            )
            for job, priority in batch:
                enters(job, priority)
                priorities[job] = priority
        elif event == "take":
            for _ in range(min(word, len(model.jobs))):
                time_, _, job = model.jobs.pop(0)
                taken = redis.lpop("rq:queue:default")
                assert taken == job.encode()
                # Nobody who came later than a priority is worth went before anybody here.
                for _, _, left in model.jobs:
                    assert came[job] <= came[left] + queue_priority.SECONDS * priorities[job]
                redis.hset(f"rq:job:{job}", "status", "failed")
                redis.zadd("rq:failed:default", {job: time_})
                failed.append(job)
        elif event == "return":
            taken_back = [job for _, _, job in model.jobs[:word]]
            for _ in taken_back:
                redis.lpop("rq:queue:default")
            for job in reversed(taken_back):
                redis.lpush("rq:queue:default", job)
        elif event == "cancel" and model.jobs:
            _, _, job = model.jobs.pop(word % len(model.jobs))
            redis.lrem("rq:queue:default", 1, job)
            redis.delete(f"rq:job:{job}")
        elif event == "requeue" and failed:
            job = failed.pop(word % len(failed))
            tasks.requeue(job)
            stored = int(redis.hget(f"rq:job:{job}", "er_priority") or 0)
            assert stored == priorities[job]
            enters(job, stored)
        elif event == "wait":
            clock.advance(word)
        assert waiting(redis) == model.order
    # Nothing beside the list and the jobs themselves remembers the order.
    left = {key.decode() for key in redis.keys("engineroom:*")}
    assert left == set()


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    st.lists(
        st.tuples(st.sampled_from("FRE"), st.integers(0, 9), st.integers(0, 2000)), max_size=40
    )
)
def test_disorder_that_others_make_loses_and_doubles_nothing(
    redis: Redis, events: list[tuple[str, int, int]]
) -> None:
    """Whatever stands where: each job is there once, and those there keep their order."""
    redis.flushall()
    clock = FakeClock(datetime(2026, 2, 28, 23, 0, tzinfo=UTC))
    tasks = Tasks(redis, clock=clock)
    for at, (kind, priority, seconds) in enumerate(events):
        clock.advance(seconds)
        before = waiting(redis)
        if kind == "E":
            put(tasks, f"j{at}", priority)
        else:
            stamp = datetime.fromtimestamp(priority * 10**8, UTC).isoformat() if at % 2 else "?"
            redis.hset(f"rq:job:j{at}", "enqueued_at", stamp)
            (redis.lpush if kind == "F" else redis.rpush)("rq:queue:default", f"j{at}")
        after = waiting(redis)
        assert len(after) == len(before) + 1
        assert [each for each in after if each != f"j{at}"] == before


def test_walking_is_as_cheap_as_said(redis: Redis) -> None:
    """A place in the middle of 100,000 is found and taken in one short step."""
    clock = FakeClock(datetime(2026, 3, 1, 12, 0, tzinfo=UTC))
    tasks = Tasks(redis, clock=clock)
    tasks.enqueue_many([Task(add, (at,)) for at in range(5000)])
    clock.advance(queue_priority.MAX_BOOST + 60)
    tasks.enqueue_many([Task(add, (at,)) for at in range(5000)])
    put(tasks, "warm", 9)
    redis.config_resetstat()
    began = time.monotonic()
    put(tasks, "urgent", 9)
    assert time.monotonic() - began < 1
    assert redis.info("commandstats")["cmdstat_lindex"]["calls"] < 40
    assert waiting(redis).index("urgent") == 5001


# -- at the front ----------------------------------------------------------------------------------


def test_a_job_that_was_put_off_to_the_front_comes_to_stand_there(
    redis: Redis, tasks: Tasks
) -> None:
    put(tasks, "first")
    at = datetime.now(UTC) - timedelta(seconds=1)
    late = tasks.enqueue(Task(add, (1,), at_front=True, at=at)).job_id
    [later] = tasks.enqueue_many([Task(add, (1,), at_front=True, at=at)])
    flow = tasks.enqueue_flow(chain(Task(add, (1,), at_front=True, at=at), Task(add)), flow_id="f")
    scheduler = RQScheduler(["default"], connection=redis)
    scheduler.acquire_locks()
    try:
        scheduler.enqueue_scheduled_jobs()
    finally:
        scheduler.release_locks()
    assert waiting(redis)[-1] == "first"
    assert set(waiting(redis)[:-1]) == {late, later.job_id, flow.jobs[0].job_id}


def test_a_schedule_enqueues_at_the_front(redis: Redis, clock: FakeClock) -> None:
    tasks = Tasks(redis, clock=clock)
    task = Task(add, (1,), at_front=True)
    tasks.put_schedule(Schedule("often", Every(60), task, missed=Missed.RUN_ALL))
    put(tasks, "first")
    clock.advance(180)
    Scheduler(redis, clock).once()
    # What was missed stays in its order.
    ticks = [float(each.rpartition("-")[2].replace("_", ".")) for each in waiting(redis)[:-1]]
    assert len(ticks) == 3
    assert ticks == sorted(ticks)
    now = tasks.run_schedule("often")
    assert waiting(redis)[0] == now
    assert waiting(redis)[-1] == "first"
    tasks.put_schedule(Schedule("often", Every(60), Task(add, (1,))))
    assert tasks.run_schedule("often") == waiting(redis)[-1]
    with pytest.raises(InvalidTaskError, match="at_front"):
        tasks.put_schedule(Schedule("both", Every(60), Task(add, at_front=True, priority=1)))
