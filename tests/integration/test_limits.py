"""Limits and priorities in the runtime, with RQ 2 and RQ 3: kept, and nothing blocked or lost."""

from __future__ import annotations

import asyncio
import itertools
import time
from datetime import datetime
from typing import TYPE_CHECKING

import pytest
import redis.asyncio

from engineroom.queue import keys, recovery
from engineroom.tasks import Limit, Retry, Task, Tasks
from tests.integration import rq_versions
from tests.integration.runtime.lab import POOL, Lab, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=rq_versions.versions(), scope="module")
def shared_lab(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lab]:
    made = Lab(rq_versions.interpreter(request.param), tmp_path_factory.mktemp("lab"))
    yield made
    made.close()


@pytest.fixture
def lab(shared_lab: Lab) -> Iterator[Lab]:
    yield shared_lab
    shared_lab.reset()


@pytest.fixture
def tasks(lab: Lab) -> Tasks:
    return Tasks(lab.redis)


def nap(seconds: float, limit: Limit | None = None, **more: object) -> Task:
    return Task("runtime_jobs.nap", (seconds,), limit=limit, **more)  # type: ignore[arg-type]


def at_once(lab: Lab, jobs: list[str], queue: str = "default") -> int:
    """The most jobs that were seen running at once until all had ended."""
    most = 0

    def ended() -> bool:
        nonlocal most
        most = max(most, lab.redis.zcard(keys.started(queue)))
        return all(lab.status(job) == "finished" for job in jobs)

    eventually(ended, "all jobs to end", 30)
    return most


def nothing_left(lab: Lab) -> None:
    patterns = ("engineroom:slots:*", "engineroom:held:*", "engineroom:limited:*")
    left = [key for pattern in patterns for key in lab.redis.keys(pattern)]
    assert left == []
    assert lab.traces() == {}


def test_a_queue_runs_no_more_than_its_limit_at_once(lab: Lab, tasks: Tasks) -> None:
    workers = [lab.worker(f"pod-{at}") for at in range(3)]
    for worker in workers:
        worker.field("state", "idle")
    tasks.limit_queue("default", concurrency=2)
    # Long enough to overlap on a machine with other work.
    jobs = [tasks.enqueue(nap(1.5)).job_id for _ in range(5)]
    jobs += [lab.enqueue("nap", 1.5)]
    assert at_once(lab, jobs) == 2
    tasks.unlimit_queue("default")
    more = [each.job_id for each in tasks.enqueue_many([nap(1.5)] * 3)]
    assert at_once(lab, more) == 3
    nothing_left(lab)


def test_jobs_that_idle_workers_are_handed_keep_to_their_limit(lab: Lab, tasks: Tasks) -> None:
    for at in range(3):
        lab.worker(f"pod-{at}").field("state", "idle")
    # They wait in BLMOVE, which knows no limits: each that gets a job has to ask.
    limit = Limit("customer-7", concurrency=1)
    jobs = [tasks.enqueue(nap(0.4, limit)).job_id for _ in range(3)]
    assert at_once(lab, jobs) == 1
    nothing_left(lab)


def test_a_key_at_its_limit_stands_in_nobodys_way(lab: Lab, tasks: Tasks) -> None:
    limit = Limit("customer-7", concurrency=1)
    jobs = [each.job_id for each in tasks.enqueue_many([nap(0.4, limit)] * 3)]
    # It ends when the test allows it: the second worker has the time that it needs for the others.
    urgent = tasks.enqueue(Task("runtime_jobs.wait_for_release", limit=limit, priority=9)).job_id
    other = tasks.enqueue(nap(0, Limit("customer-8", concurrency=1))).job_id
    free = lab.enqueue("nap", 0)
    for at in range(2):
        lab.worker(f"pod-{at}")
    eventually(lambda: tasks.counts(["default"])[0].held == 3, "three to be set aside")
    lab.becomes(free, "finished")
    lab.becomes(other, "finished")
    assert lab.status(urgent) == "started"
    lab.redis.set("test:released", 1)
    assert at_once(lab, [*jobs, urgent]) == 1
    # One after the other, in the order of the queue.
    assert [job for job in lab.ran("begun") if job in (*jobs, urgent)] == [urgent, *jobs]
    nothing_left(lab)


@pytest.mark.parametrize("what", ["queue", "key"])
def test_a_rate_is_kept(lab: Lab, tasks: Tasks, what: str) -> None:
    limit = Limit("mail", rate="4/s") if what == "key" else None
    if what == "queue":
        tasks.limit_queue("default", rate="4/s")
    jobs = [each.job_id for each in tasks.enqueue_many([nap(0, limit)] * 10)]
    for at in range(2):
        lab.worker(f"pod-{at}", queues=("other", "default"))
    began = time.monotonic()
    at_once(lab, jobs)
    # Four at once, the other six a quarter of a second apart.
    assert 1.4 < time.monotonic() - began < 6
    stamps = sorted(_started(lab, job) for job in jobs)
    assert all(stamps[at + 5] - stamps[at] > 0.2 for at in range(5))
    assert sorted(lab.ran()) == sorted(jobs)
    nothing_left(lab)


def _started(lab: Lab, job: str) -> float:
    stamp = lab.redis.hget(keys.job(job), "started_at").decode()
    return datetime.fromisoformat(stamp).timestamp()


def test_the_place_of_a_killed_worker_comes_back(lab: Lab, tasks: Tasks) -> None:
    limit = Limit("customer-7", concurrency=1)
    first = lab.worker("pod-1")
    lost = tasks.enqueue(nap(30, limit)).job_id
    first.field("er_job", lost)
    # Heartbeats keep the place.
    before = lab.redis.zscore(keys.slots("customer-7"), lost)
    lab.redis.publish(keys.worker_channel(first.name), '{"command": "engineroom-wake"}')
    eventually(lambda: lab.redis.zscore(keys.slots("customer-7"), lost) > before, "a heartbeat")
    second = lab.worker("pod-2")
    waits = tasks.enqueue(nap(0, limit)).job_id
    eventually(lambda: tasks.counts(["default"])[0].held == 1, "it to be set aside")
    name = first.name
    first.kill()
    assert recovered(lab, name) == recovery.RecoveryAction.FAILED
    lab.becomes(waits, "finished", 5)
    # Without an operator the lease ends by itself; here it is made to.
    third = tasks.enqueue(nap(30, limit)).job_id
    second.field("er_job", third)
    second.kill()
    fourth = tasks.enqueue(nap(0, limit)).job_id
    lab.worker("pod-3")
    eventually(lambda: tasks.counts(["default"])[0].held == 1, "it to be set aside")
    lab.redis.zadd(keys.slots("customer-7"), {third: time.time() - 1})
    lab.redis.zadd(keys.limited("default"), {"customer-7": time.time() - 1})
    lab.becomes(fourth, "finished", 5)
    assert tasks.counts(["default"])[0].held == 0


def recovered(lab: Lab, name: str) -> recovery.RecoveryAction:
    heartbeat = lab.redis.hget(keys.worker(name), "last_heartbeat").decode()

    async def recover() -> recovery.RecoveryAction:
        async with redis.asyncio.Redis(port=lab.server.port) as client:
            dead = recovery.DeadWorker(
                name, POOL, datetime.fromisoformat(heartbeat).timestamp(), ("default",)
            )
            policy = recovery.RecoveryPolicy()
            return (await recovery.recover(client, dead, policy, time.time())).action

    return asyncio.run(recover())


def test_jobs_that_are_set_aside_are_counted_emptied_and_moved(lab: Lab, tasks: Tasks) -> None:
    limit = Limit("customer-7", concurrency=1)
    worker = lab.worker()
    running = tasks.enqueue(nap(4, limit)).job_id
    worker.field("er_job", running)
    held = [each.job_id for each in tasks.enqueue_many([nap(0, limit)] * 6)]
    lab.worker("pod-2")
    eventually(lambda: tasks.counts(["default"])[0].held == 6, "six to be set aside")
    # Idle workers look at them again whenever anything changes.
    lab.ask("cancel", job=held[0])
    assert tasks.move_jobs("default", "other", limit=2) == 2
    assert tasks.empty_queue("default", confirm="default") == 3
    assert tasks.counts(["default"])[0].held == 0
    assert [lab.status(job) for job in held] == ["canceled", "queued", "queued", "", "", ""]
    lab.worker("pod-3", queues=("other",))
    lab.becomes(held[2], "finished")
    assert lab.ran().count(held[1]) == lab.ran().count(held[2]) == 1


def test_a_job_enqueued_anew_while_set_aside_runs_once(lab: Lab, tasks: Tasks) -> None:
    limit = Limit("customer-7", concurrency=1)
    worker = lab.worker()
    running = tasks.enqueue(Task("runtime_jobs.wait_for_release", limit=limit)).job_id
    worker.field("er_job", running)
    held = tasks.enqueue(nap(0, limit)).job_id
    second = lab.worker("pod-2")
    eventually(lambda: tasks.counts(["default"])[0].held == 1, "it to be set aside")
    # Nobody sets it aside once more: it stands in the queue, and an old entry for it aside.
    second.end()
    lab.redis.hset(keys.job(held), "enqueued_at", "2026-01-31T12:00:00.000000Z")
    lab.redis.rpush(keys.queue("default"), held)
    lab.redis.set("test:released", 1)
    lab.becomes(held, "finished")
    time.sleep(0.5)
    assert lab.ran().count(held) == 1
    eventually(lambda: lab.redis.zcard(keys.limited("default")) == 0, "nothing set aside")


def test_what_rq_puts_at_the_end_takes_the_place_of_its_priority(lab: Lab, tasks: Tasks) -> None:
    tasks.pause_queue("default")
    plain = [lab.enqueue("nap", 0) for _ in range(3)]
    due = tasks.enqueue(nap(0, delay=0.5, priority=9)).job_id
    worker = lab.worker()
    eventually(lambda: _list(lab)[:1] == [due], "the scheduled job at the head")
    assert _list(lab) == [due, *plain]
    worker.end()
    lab.redis.delete(keys.queue("default"))
    tasks.resume_queue("default")
    # What fails is tried again at once, before what came in the meantime.
    retried = tasks.enqueue(Task("runtime_jobs.boom_until", (2,), priority=9, retry=Retry(2)))
    others = [lab.enqueue("ran") for _ in range(3)]
    lab.worker("pod-2")
    lab.becomes(others[-1], "finished")
    assert lab.ran() == [retried.job_id] * 3 + others


def _list(lab: Lab) -> list[str]:
    return [each.decode() for each in lab.redis.lrange(keys.queue("default"), 0, -1)]


def test_many_keys_at_their_limits_are_set_aside_a_look_at_a_time(lab: Lab, tasks: Tasks) -> None:
    """Jobs of ten customers, two workers: none twice, all of them."""
    limits = [Limit(f"customer-{at}", concurrency=1) for at in range(10)]
    jobs = tasks.enqueue_many(
        [Task("runtime_jobs.ran", limit=limit) for limit in limits for _ in range(6)]
    )
    blocked = tasks.enqueue_many([nap(0.5, limits[0])] * 2)
    for at in range(2):
        lab.worker(f"pod-{at}")
    at_once(lab, [each.job_id for each in itertools.chain(jobs, blocked)])
    assert sorted(set(lab.ran())) == sorted(lab.ran())
    assert len(lab.ran()) == len(jobs) + 2
    nothing_left(lab)
