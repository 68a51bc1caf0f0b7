"""Schedules in Redis: each tick once, however many schedulers run and whenever they are killed."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from redis import Redis
from rq.job import Job

from engineroom.core.clock import FakeClock, SystemClock
from engineroom.tasks import (
    Cron,
    Every,
    InvalidTaskError,
    Missed,
    Once,
    Schedule,
    ScheduleNotFoundError,
    Scheduler,
    Task,
    Tasks,
)
from engineroom.tasks.schedules import INDEX, tick
from engineroom.tasks.steps import Batch, run
from tests.integration.runtime.lab import eventually
from tests.integration.tasks.work import add

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support import RedisServer


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def tasks(redis: Redis, clock: FakeClock) -> Tasks:
    return Tasks(redis, clock=clock)


def waiting(redis: Redis, queue: str = "default") -> list[str]:
    return [each.decode() for each in redis.lrange(f"rq:queue:{queue}", 0, -1)]


def test_a_tick_is_a_plain_job(
    redis: Redis, tasks: Tasks, clock: FakeClock, work: Callable[..., None]
) -> None:
    start = clock.now().timestamp()
    assert tasks.put_schedule(
        Schedule("sum", Every(60), Task(add, (1,), {"right": 2}, meta={"a": 1}))
    )
    scheduler = Scheduler(redis, clock)
    assert scheduler.once() == (0, start + 60)
    clock.advance(60)
    assert scheduler.once() == (1, start + 120)
    assert scheduler.once()[0] == 0
    [job_id] = waiting(redis)
    job = Job.fetch(job_id, connection=redis)
    assert (job.args, job.kwargs, job.meta, job.origin) == ((1,), {"right": 2}, {"a": 1}, "default")
    work()
    assert tasks.result(job_id).value == 3
    [known] = tasks.schedules()
    assert (known.last, known.next, known.queue) == (start + 60, start + 120, "default")


def test_storing_the_same_again_changes_nothing(
    redis: Redis, tasks: Tasks, clock: FakeClock
) -> None:
    schedule = Schedule("a", Every(60), Task(add, (1,)))
    assert tasks.put_schedule(schedule)
    clock.advance(90)
    assert not tasks.put_schedule(schedule)
    assert Scheduler(redis, clock).once()[0] == 1
    tasks.put_schedule(Schedule("a", Every(600), Task(add, (2,))))
    assert tasks.schedules()[0].next == clock.now().timestamp() - 90 + 600
    tasks.remove_schedule("a")
    assert tasks.schedules() == []
    assert redis.keys("engineroom:*") == []
    with pytest.raises(ScheduleNotFoundError):
        tasks.remove_schedule("a")


def test_all_kinds_are_stored_and_listed_page_by_page(tasks: Tasks, clock: FakeClock) -> None:
    triggers = {
        "cron": Cron("0 3 * * *", "Europe/Berlin"),
        "every": Every(7, jitter=3, start=2),
        "once": Once(clock.now().timestamp() + 5),
    }
    for name, trigger in triggers.items():
        tasks.put_schedule(Schedule(name, trigger, Task(add), Missed.SKIP, 3))
    first = tasks.schedules(limit=2)
    rest = tasks.schedules(after=first[-1].name, limit=2)
    assert {each.name: each.trigger for each in first + rest} == triggers
    assert {each.missed for each in first} == {Missed.SKIP}


@pytest.mark.parametrize(("missed", "count"), [("skip", 0), ("run_once", 1), ("run_all", 120)])
def test_after_an_outage(
    redis: Redis, tasks: Tasks, clock: FakeClock, missed: str, count: int
) -> None:
    tasks.put_schedule(Schedule("a", Every(60), Task(add, (1,)), Missed(missed), grace=20))
    clock.advance(2 * 3600 + 30)
    scheduler = Scheduler(redis, clock)
    assert sum(scheduler.once()[0] for _ in range(4)) == count
    ids = waiting(redis)
    assert len(set(ids)) == len(ids) == count
    clock.advance(30)
    assert scheduler.once()[0] == 1


def test_what_is_over_stays_listed_and_quiet(redis: Redis, tasks: Tasks, clock: FakeClock) -> None:
    tasks.put_schedule(Schedule("a", Once(clock.now().timestamp() + 5), Task(add)))
    clock.advance(6)
    assert Scheduler(redis, clock).once() == (1, None)
    assert tasks.schedules()[0].next is None
    clock.advance(1e6)
    assert Scheduler(redis, clock).once() == (0, None)


def test_a_scheduler_that_read_before_another_fired_fires_nothing(
    redis: Redis, tasks: Tasks, clock: FakeClock
) -> None:
    for at in range(60):
        tasks.put_schedule(Schedule(f"s{at}", Every(60), Task(add, (at,))))
    clock.advance(61)
    # The slow one is stopped at each of its steps, while another does all; then it goes on.
    slow = tick(clock.now())
    step = next(slow)
    fired = 0
    try:
        while True:
            replies = run(redis, _only(step))
            fired += run(redis, tick(clock.now()))[0]
            if isinstance(step, Batch) and len(step.commands) > 1:
                assert sum(replies) == 0
            step = slow.send(replies)
    except StopIteration:
        pass
    assert fired == 60
    assert len(waiting(redis)) == len(set(waiting(redis))) == 60


def _only(step):  # type: ignore[no-untyped-def]
    return (yield step)


def test_a_change_between_look_and_tick_wins(redis: Redis, tasks: Tasks, clock: FakeClock) -> None:
    tasks.put_schedule(Schedule("a", Every(60), Task(add, (1,), queue="old")))
    clock.advance(61)
    slow = tick(clock.now())
    rows = run(redis, _only(next(slow)))
    fire = slow.send(rows)
    due = redis.zscore(INDEX, "a")
    tasks.put_schedule(Schedule("a", Every(60), Task(add, (1,), queue="new")))
    redis.zadd(INDEX, {"a": due})
    assert run(redis, _only(fire)) == [0]
    Scheduler(redis, clock).once()
    assert (waiting(redis, "old"), len(waiting(redis, "new"))) == ([], 1)


def test_many_loops_enqueue_each_tick_once_and_in_time(server: RedisServer, redis: Redis) -> None:
    tasks, count = Tasks(redis), 300
    now = time.time()
    due = {f"s{at}": round(now + 1 + at / count, 3) for at in range(count)}
    for name, at in due.items():
        tasks.put_schedule(Schedule(name, Once(at), Task(add, (1,))))
    stop = threading.Event()
    clients = [Redis(port=server.port) for _ in range(3)]
    loops = [
        threading.Thread(target=Scheduler(client, SystemClock()).run, args=(stop,))
        for client in clients
    ]
    for loop in loops:
        loop.start()
    eventually(lambda: redis.llen("rq:queue:default") >= count, "all to be enqueued")
    stop.set()
    for loop in loops:
        loop.join(5)
    for client in clients:
        client.close()
    names = Counter(job.partition("-")[0] for job in waiting(redis))
    assert names == dict.fromkeys(due, 1)
    late = []
    for job_id in waiting(redis):
        enqueued = Job.fetch(job_id, connection=redis).enqueued_at
        assert enqueued is not None
        late.append(enqueued.timestamp() - due[job_id.partition("-")[0]])
    assert min(late) >= 0
    assert max(late) < 1


def test_what_cannot_be_scheduled_is_refused_and_nothing_stored(
    redis: Redis, tasks: Tasks, clock: FakeClock
) -> None:
    past = clock.now().timestamp() - 1
    for schedule in (
        Schedule("a b", Every(60), Task(add)),
        Schedule("a", Once(past), Task(add)),
        Schedule("a", Every(60), Task(add, delay=3)),
        Schedule("a", Every(60), Task(add, (threading.Lock(),))),
        Schedule("a", Every(60), Task(add), grace=-1),
    ):
        with pytest.raises(InvalidTaskError):
            tasks.put_schedule(schedule)
    assert redis.keys() == []
