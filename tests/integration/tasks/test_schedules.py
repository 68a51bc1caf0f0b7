"""Schedules in Redis: each tick once, however many schedulers run and whenever they are killed."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from rq.job import Job

from engineroom.core.clock import FakeClock, SystemClock
from engineroom.tasks import (
    AsyncScheduler,
    Cron,
    Every,
    InvalidTaskError,
    Missed,
    Once,
    Schedule,
    ScheduleNotFoundError,
    ScheduleOwnedError,
    Scheduler,
    Task,
    Tasks,
)
from engineroom.tasks.enqueueing.task import EnqueueRules
from engineroom.tasks.redis_steps import BatchStep, run
from engineroom.tasks.schedules.model import INDEX
from engineroom.tasks.schedules.store import declare, owned, owners
from engineroom.tasks.schedules.ticking import tick
from tests.integration.pools import eventually as in_time
from tests.integration.runtime.lab import eventually
from tests.integration.tasks.work import add
from tests.support import redis_server

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
            if isinstance(step, BatchStep) and len(step.commands) > 1:
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


# -- owners ----------------------------------------------------------------------------------------

OWNER = "shop/mail"


def declared(
    redis: Redis, clock: FakeClock, *schedules: Schedule, owner: str = OWNER
) -> dict[str, str]:
    return run(redis, declare(owner, "lease-1", schedules, EnqueueRules(), clock.now()))


def names(tasks: Tasks) -> list[str]:
    return sorted(each.name for each in tasks.schedules())


def writes(redis: Redis) -> int:
    """What Redis itself counts as changes of its data."""
    return int(redis.info("persistence")["rdb_changes_since_last_save"])


def test_an_owner_has_exactly_what_it_declares(
    redis: Redis, tasks: Tasks, clock: FakeClock
) -> None:
    tasks.put_schedule(Schedule("mine", Every(60), Task(add)))
    one, two = Schedule("one", Every(60), Task(add)), Schedule("two", Every(60), Task(add))
    assert declared(redis, clock, one, two) == {}
    assert declared(redis, clock, Schedule("other", Every(9), Task(add)), owner="shop/fax") == {}
    before = writes(redis)
    assert declared(redis, clock, one, two) == {}
    assert writes(redis) == before
    assert run(redis, owners()) == {OWNER: "lease-1", "shop/fax": "lease-1"}
    declared(redis, clock, two)
    assert names(tasks) == ["mine", "other", "two"]
    assert [(each.name, each.owner) for each in run(redis, owned(OWNER))] == [("two", OWNER)]
    declared(redis, clock)
    assert names(tasks) == ["mine", "other"]
    assert run(redis, owners()) == {"shop/fax": "lease-1"}
    declared(redis, clock, owner="shop/fax")
    tasks.remove_schedule("mine")
    assert redis.keys() == []


def test_nobody_touches_what_is_another_s(redis: Redis, tasks: Tasks, clock: FakeClock) -> None:
    tasks.put_schedule(Schedule("a", Every(60), Task(add, (1,))))
    assert declared(
        redis, clock, Schedule("a", Every(9), Task(add)), Schedule("b", Every(9), Task(add))
    ) == {"a": ""}
    assert declared(redis, clock, Schedule("b", Every(7), Task(add)), owner="x/y") == {"b": OWNER}
    before = writes(redis)
    for refused in (
        lambda: tasks.put_schedule(Schedule("b", Every(60), Task(add))),
        lambda: tasks.remove_schedule("b"),
        lambda: tasks.pause_schedule("b"),
        lambda: tasks.resume_schedule("b"),
    ):
        with pytest.raises(ScheduleOwnedError, match="WorkerPool shop/mail"):
            refused()
    assert writes(redis) == before
    # Taking it out of the spec takes its own alone.
    declared(redis, clock)
    assert [(each.name, each.trigger) for each in tasks.schedules()] == [("a", Every(60))]


def test_a_changed_task_keeps_the_tick_that_is_due_and_a_changed_time_does_not(
    redis: Redis, tasks: Tasks, clock: FakeClock
) -> None:
    declared(redis, clock, Schedule("a", Every(60), Task(add, (1,))))
    start = clock.now().timestamp()
    clock.advance(90)
    declared(redis, clock, Schedule("a", Every(60), Task(add, (2,))))
    assert tasks.schedule("a").next == start + 60
    declared(redis, clock, Schedule("a", Every(61), Task(add, (2,))))
    assert (tasks.schedule("a").next or 0) > start + 90


def test_what_is_suspended_does_not_tick_and_makes_up_for_nothing(
    redis: Redis, tasks: Tasks, clock: FakeClock
) -> None:
    start = clock.now().timestamp()
    quiet = Schedule("a", Every(60), Task(add), Missed.RUN_ALL, paused=True)
    declared(redis, clock, quiet)
    tasks.put_schedule(Schedule("b", Every(60), Task(add), Missed.RUN_ALL))
    tasks.pause_schedule("b")
    # Who puts the same again, as an application does when it starts, does not resume it.
    tasks.put_schedule(Schedule("b", Every(60), Task(add), Missed.RUN_ALL))
    scheduler = Scheduler(redis, clock)
    clock.advance(600)
    assert scheduler.once() == (0, None)
    assert [each.paused for each in tasks.schedules()] == [True, True]
    declared(redis, clock, Schedule("a", Every(60), Task(add), Missed.RUN_ALL))
    tasks.resume_schedule("b")
    assert scheduler.once() == (0, start + 660)
    clock.advance(60)
    assert scheduler.once()[0] == 2
    assert [each.dropped for each in tasks.schedules()] == [0, 0]


def test_one_can_be_run_at_once_beside_its_ticks(
    redis: Redis, tasks: Tasks, clock: FakeClock, work: Callable[..., None]
) -> None:
    tasks.put_schedule(Schedule("a", Every(60), Task(add, (1,), {"right": 2}, result_ttl=60)))
    tasks.pause_schedule("a")
    job_id = tasks.run_schedule("a")
    work()
    assert tasks.result(job_id).value == 3
    assert (tasks.schedule("a").last_job, tasks.schedule("a").last) == (job_id, None)
    with pytest.raises(ScheduleNotFoundError):
        tasks.run_schedule("b")


def test_dropped_ticks_are_counted(redis: Redis, tasks: Tasks, clock: FakeClock) -> None:
    for missed in Missed:
        tasks.put_schedule(Schedule(missed.value, Every(60), Task(add), missed, grace=90))
    clock.advance(10 * 60 + 1)
    Scheduler(redis, clock).once()
    told = {each.name: (each.dropped, each.last_job) for each in tasks.schedules()}
    last = f"{clock.now().timestamp() - 1:.0f}"
    assert told == {
        "skip": (8, f"skip-{last}"),
        "run_once": (9, f"run_once-{last}"),
        "run_all": (0, f"run_all-{last}"),
    }


def test_one_that_cannot_be_read_keeps_up_nobody(
    redis: Redis, tasks: Tasks, clock: FakeClock
) -> None:
    for name in ("a", "b", "c"):
        tasks.put_schedule(Schedule(name, Every(60), Task(add)))
    redis.hset("engineroom:schedule:a", "spec", '{"trigger": {"kind": "moon"}}')
    redis.delete("engineroom:schedule:b")
    clock.advance(60)
    scheduler = Scheduler(redis, clock)
    assert scheduler.once()[0] == 1
    assert [job.partition("-")[0] for job in waiting(redis)] == ["c"]
    assert redis.zscore(INDEX, "b") is None
    assert (redis.zscore(INDEX, "a") or 0) > clock.now().timestamp()


# -- on an event loop ------------------------------------------------------------------------------


def lateness(redis: Redis, due: dict[str, float]) -> list[float]:
    late = []
    for job_id in waiting(redis):
        enqueued = Job.fetch(job_id, connection=redis).enqueued_at
        assert enqueued is not None
        late.append(enqueued.timestamp() - due[job_id.partition("-")[0]])
    return late


async def soon(redis: Redis, count: int) -> None:
    await in_time(f"{count} jobs", lambda: redis.llen("rq:queue:default") >= count, every=0.02)


async def test_one_that_leads_and_one_that_stands_by_tick_once_and_in_time_when_one_is_killed(
    server: RedisServer, redis: Redis, tasks: Tasks
) -> None:
    tasks, count = Tasks(redis), 200
    now = time.time()
    due = {f"s{at}": round(now + 0.5 + 2 * at / count, 3) for at in range(count)}
    for name, at in due.items():
        tasks.put_schedule(Schedule(name, Once(at), Task(add, (1,))))
    async with AsyncRedis(port=server.port) as one, AsyncRedis(port=server.port) as two:
        leads, stands_by = AsyncScheduler(one), AsyncScheduler(two, behind=lambda: 0.3)
        first = asyncio.create_task(leads.run())
        second = asyncio.create_task(stands_by.run())
        await soon(redis, count // 2)
        first.cancel()
        await soon(redis, count)
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
    assert Counter(job.partition("-")[0] for job in waiting(redis)) == dict.fromkeys(due, 1)
    # While both were there, the one that stands by had nothing to do.
    assert leads.fired >= count // 2 - 10
    late = lateness(redis, due)
    assert min(late) >= 0
    assert max(late) < 1


async def test_redis_away_means_late_and_not_lost() -> None:
    with redis_server(durable=True) as server, Redis(port=server.port) as sync:
        due = round(time.time() + 0.3, 3)
        Tasks(sync).put_schedule(Schedule("a", Once(due), Task(add), Missed.SKIP))
        async with AsyncRedis(port=server.port) as redis:
            scheduler = AsyncScheduler(redis)
            running = asyncio.create_task(scheduler.run())
            server.stop()
            await in_time("trouble", lambda: scheduler.trouble and time.time() > due)
            server.start()
            await soon(sync, 1)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        assert waiting(sync) == [f"a-{due:.17g}".replace(".", "_")]


async def test_a_backlog_of_many_does_not_hold_up_the_loop(
    server: RedisServer, redis: Redis, clock: FakeClock
) -> None:
    tasks = Tasks(redis, clock=clock)
    for at in range(60):
        line = Cron(f"{at} 2 * * *", "Europe/Berlin")
        tasks.put_schedule(Schedule(f"s{at}", line, Task(add), Missed.RUN_ALL))
    clock.advance(40 * 86400)
    turns: list[float] = []

    async def turn() -> None:
        while True:
            turns.append(time.thread_time())  # others on this machine do not count
            await asyncio.sleep(0)

    async with AsyncRedis(port=server.port) as connection:
        other = asyncio.create_task(turn())
        scheduler = AsyncScheduler(connection, clock)
        while (await scheduler.once())[0]:
            pass
        other.cancel()
    assert len(waiting(redis)) == 60 * 40
    gaps = [later - earlier for earlier, later in pairwise(turns)]
    # Decided all at once, it would be most of a second.
    assert max(gaps) < 0.3
