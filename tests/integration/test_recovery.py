"""Workers killed at every step between queue and booked end: nothing lost, nothing twice."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis.asyncio

from engineroom.queue import keys, recovery
from engineroom.queue.observe import _time
from engineroom.queue.recovery import DeadWorker, RecoveryAction, RecoveryOutcome, RecoveryPolicy
from tests.integration import rq_versions
from tests.integration.runtime.lab import HERE, POOL, Lab, WorkerProcess, eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

ALWAYS = RecoveryPolicy(requeue_orphans="Always")
NEVER = RecoveryPolicy(requeue_orphans="Never")


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


def with_redis(lab: Lab, act: Callable[[Any], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with redis.asyncio.Redis(port=lab.server.port) as client:
            return await act(client)

    return asyncio.run(run())


def dead(lab: Lab, name: str, queues: tuple[str, ...] = ("default",)) -> DeadWorker:
    beat = _time(lab.redis.hget(keys.worker(name), "last_heartbeat"))
    return DeadWorker(name, POOL, beat, queues)


def recover(
    lab: Lab,
    worker: DeadWorker,
    policy: RecoveryPolicy = RecoveryPolicy(),  # noqa: B008
) -> RecoveryOutcome:
    outcome = with_redis(lab, lambda client: recovery.recover(client, worker, policy, time.time()))
    assert isinstance(outcome, RecoveryOutcome)
    return outcome


def killed_at(
    lab: Lab, point: str, func: str = "ran", *args: Any, **options: Any
) -> tuple[WorkerProcess, str, str]:
    """A worker that was killed at a point, its name and the job that it had in hand."""
    queues = options.pop("queues", ("default",))
    worker = lab.worker(options.pop("pod", "pod-1"), queues, stop_at=point)
    worker.field("state", "idle")
    name = worker.name
    job = lab.enqueue(func, *args, queue=queues[-1], **options)
    worker.stopped(point)
    worker.kill()
    return worker, name, job


def assert_no_trace_of(lab: Lab, name: str) -> None:
    assert not lab.redis.exists(keys.worker(name), keys.executions_of_worker(name))
    assert not lab.redis.sismember(keys.pool_workers(POOL), name)
    assert not lab.redis.sismember("rq:workers", keys.worker(name))


ONE, TWO = ("default",), ("high", "default")


@pytest.mark.parametrize(
    ("point", "queues", "action", "runs"),
    [
        ("taken", ONE, RecoveryAction.RETURNED, 1),
        ("taken", TWO, RecoveryAction.RETURNED, 1),
        ("prepared", ONE, RecoveryAction.REQUEUED, 1),
        ("prepared", TWO, RecoveryAction.REQUEUED, 1),
        ("forked", ONE, RecoveryAction.REQUEUED, 1),
        ("horse-begins", ONE, RecoveryAction.REQUEUED, 1),
        # The function had run and nothing said so yet: the job is run again, as it must.
        ("horse-ended", ONE, RecoveryAction.REQUEUED, 2),
        ("horse-booked", ONE, RecoveryAction.NOTHING, 1),
        ("done", TWO, RecoveryAction.NOTHING, 1),
    ],
)
def test_killed_at_each_step(
    lab: Lab, point: str, queues: tuple[str, ...], action: RecoveryAction, runs: int
) -> None:
    _, name, job = killed_at(lab, point, queues=queues)
    if point == "forked":
        # The horse may have got to its end before its worker stopped.
        time.sleep(0.3)
        if lab.status(job) == "finished":
            action, runs = RecoveryAction.NOTHING, 1
        elif lab.ran():
            runs = 2
    outcome = recover(lab, dead(lab, name, queues), ALWAYS)
    assert outcome.action is action
    assert_no_trace_of(lab, name)
    assert recover(lab, dead(lab, name, queues), ALWAYS).action is RecoveryAction.NOTHING
    lab.worker("pod-2", queues)
    lab.becomes(job, "finished")
    assert lab.ran() == [job] * runs
    assert int(lab.redis.hget(keys.stats("default"), "finished") or 0) == 1
    eventually(lambda: lab.traces() == {}, "no traces")


def test_killed_between_blmove_and_saying_so(lab: Lab) -> None:
    """Nobody knows who took it: it goes back when it has lain there for long enough."""
    _, name, job = killed_at(lab, "blmoved")
    assert recover(lab, dead(lab, name), ALWAYS).action is RecoveryAction.NOTHING
    assert lab.redis.lrange(keys.intermediate("default"), 0, -1) == [job.encode()]
    at = time.time()

    def stray(now: float) -> Any:
        return with_redis(lab, lambda client: recovery.return_strays(client, ["default"], now))

    assert stray(at) == {}
    assert stray(at + 14) == {}
    assert stray(at + 16) == {"default": [job]}
    assert stray(at + 17) == {}
    lab.worker("pod-2")
    lab.becomes(job, "finished")
    assert lab.ran() == [job]
    assert lab.traces() == {}
    stray(at + 18)
    assert not lab.redis.exists(keys.strays("default"))


@pytest.mark.parametrize("point", ["blmoved", "taken"])
def test_a_slow_worker_whose_job_was_put_back_does_not_run_it(lab: Lab, point: str) -> None:
    slow = lab.worker("pod-1", stop_at=point)
    slow.field("state", "idle")
    job = lab.enqueue("ran")
    pid = slow.stopped(point)
    at = time.time()
    with_redis(lab, lambda client: recovery.return_strays(client, ["default"], at))
    with_redis(lab, lambda client: recovery.return_strays(client, ["default"], at + 16))
    lab.worker("pod-2")
    lab.becomes(job, "finished")
    os.kill(pid, 18)
    lab.becomes(lab.enqueue("ran"), "finished")
    time.sleep(0.5)
    assert lab.ran().count(job) == 1
    assert slow.process.poll() is None
    eventually(lambda: lab.traces() == {}, "no traces")


@pytest.mark.parametrize("point", ["prepared", "horse-ended"])
def test_a_worker_that_comes_back_does_not_book_over_its_successor(lab: Lab, point: str) -> None:
    zombie = lab.worker("pod-1", stop_at=point)
    zombie.field("state", "idle")
    job = lab.enqueue("add", 1, 2)
    pid = zombie.stopped(point)
    zombie.signal(19)
    outcome = recover(lab, dead(lab, zombie.name), ALWAYS)
    assert outcome.action is RecoveryAction.REQUEUED
    heir = lab.worker("pod-2")
    lab.becomes(job, "finished")
    described = lab.describe(job)
    os.kill(pid, 18)
    zombie.signal(18)
    lab.becomes(lab.enqueue("ran"), "finished")
    time.sleep(0.7)
    again = lab.describe(job)
    assert again["results"] == described["results"] == 1
    assert again["worker"] == described["worker"] == heir.name
    assert int(lab.redis.hget(keys.stats("default"), "finished") or 0) == 2
    eventually(lambda: lab.traces() == {}, "no traces")


def test_a_job_dies_with_its_worker(lab: Lab) -> None:
    """Else it would go on while the operator gives it to another."""
    worker = lab.worker()
    lab.enqueue("nap", 30)
    eventually(lambda: lab.ran("begun"), "the job to begin")
    task = Path(f"/proc/{worker.process.pid}/task/{worker.process.pid}/children")
    horses = [int(pid) for pid in task.read_text().split()]
    assert len(horses) == 1
    worker.kill()
    eventually(lambda: not Path(f"/proc/{horses[0]}").exists(), "the work horse to die", 3)


def test_a_living_worker_is_left_alone(lab: Lab) -> None:
    worker = lab.worker()
    job = lab.enqueue("nap", 6)
    eventually(lambda: lab.ran("begun"), "the job to begin")
    seen = dead(lab, worker.name)
    eventually(lambda: dead(lab, worker.name) != seen, "a heartbeat")
    assert recover(lab, seen, ALWAYS).action is RecoveryAction.ALIVE
    lab.becomes(job, "finished")
    assert lab.ran() == [job]


def test_retry_is_followed_to_its_end(lab: Lab) -> None:
    _, name, job = killed_at(lab, "prepared", retry={"max": 1})
    first = recover(lab, dead(lab, name))
    assert (first.action, first.job, first.queue, first.crashes) == (
        RecoveryAction.REQUEUED,
        job,
        "default",
        1,
    )
    assert lab.describe(job)["retries_left"] == 0
    worker = lab.worker("pod-2", stop_at="prepared")
    worker.stopped("prepared")
    name = worker.name
    worker.kill()
    assert recover(lab, dead(lab, name)).action is RecoveryAction.FAILED
    described = lab.describe(job)
    assert described["status"] == "failed"
    assert f"Worker {name} of pod pod-2 died (its pod is gone)." in described["error"]
    assert lab.redis.zscore(keys.failed("default"), job)
    assert 29 * 86400 < described["ttl"] <= 30 * 86400
    assert lab.ran() == []
    assert lab.traces() == {}


def test_retry_with_an_interval_is_scheduled(lab: Lab) -> None:
    _, name, job = killed_at(lab, "prepared", retry={"max": 2, "interval": [1, 50]})
    assert recover(lab, dead(lab, name)).action is RecoveryAction.SCHEDULED
    assert lab.status(job) == "scheduled"
    due = lab.redis.zscore(keys.scheduled("default"), job)
    assert due is not None
    assert abs(due - time.time() - 1) < 2
    lab.worker("pod-2")
    lab.becomes(job, "finished", lab.lock_seconds)
    assert lab.ran() == [job]


def test_a_job_that_takes_down_workers_is_set_aside(lab: Lab) -> None:
    job = ""
    for round_ in (1, 2, 3):
        worker = lab.worker(f"pod-{round_}", stop_at="prepared")
        worker.field("state", "idle") if not job else None
        job = job or lab.enqueue("ran", retry={"max": 9})
        worker.stopped("prepared")
        name = worker.name
        worker.kill()
        outcome = recover(lab, dead(lab, name))
        assert outcome.crashes == round_
        assert outcome.action is (
            RecoveryAction.POISONED if round_ == 3 else RecoveryAction.REQUEUED
        )
    assert "set aside: it has taken down 3 workers" in lab.describe(job)["error"]
    assert lab.redis.llen(keys.queue("default")) == 0
    assert 0 < lab.redis.ttl(keys.crashes(job)) <= 72 * 3600


def test_callbacks_and_dependents_of_a_failed_orphan_are_seen_to(lab: Lab) -> None:
    _, name, job = killed_at(lab, "prepared", on_failure="on_failure")
    anyway = lab.enqueue("ran", depends_on=job, allow_failure=True)
    never = lab.enqueue("ran", depends_on=job)
    assert recover(lab, dead(lab, name), NEVER).action is RecoveryAction.FAILED
    lab.worker("pod-2")
    lab.becomes(anyway, "finished")
    eventually(lambda: lab.ran("failure") == [job], "the failure callback")
    assert lab.status(never) == "deferred"
    assert not lab.redis.exists(keys.settle("default"))


def test_what_is_left_to_a_worker_that_dies_too_is_seen_to(lab: Lab) -> None:
    _, name, job = killed_at(lab, "prepared", on_failure="on_failure")
    anyway = lab.enqueue("ran", depends_on=job, allow_failure=True)
    assert recover(lab, dead(lab, name), NEVER).action is RecoveryAction.FAILED
    second = lab.worker("pod-2", stop_at="settling", SETTLING_SECONDS=1)
    second.stopped("settling")
    second.kill()
    assert lab.redis.lrange(keys.settle("default"), 0, -1) == [job.encode()]
    lab.worker("pod-3", SETTLING_SECONDS=1, LOCK_SECONDS=1)
    lab.becomes(anyway, "finished")
    eventually(lambda: lab.ran("failure") == [job], "the failure callback")
    eventually(lambda: not lab.redis.exists(keys.settle("default")), "nothing left to settle")
    assert lab.redis.keys("engineroom:settling:*") == []


def test_a_worker_without_a_record_any_more(lab: Lab) -> None:
    _, name, job = killed_at(lab, "prepared")
    lab.redis.delete(keys.worker(name), keys.executions_of_worker(name))
    assert recover(lab, DeadWorker(name, POOL, None, ("default",)), ALWAYS).job == job
    assert lab.status(job) == "queued"
    assert_no_trace_of(lab, name)
    assert lab.traces() == {}


def test_the_scheduler_lock_of_a_dead_worker_is_freed(lab: Lab) -> None:
    worker = lab.worker()
    worker.field("state", "idle")
    eventually(lambda: lab.redis.get("rq:scheduler-lock:default"), "the lock")
    name = worker.name
    worker.kill()
    recover(lab, dead(lab, name))
    lab.worker("pod-2").field("state", "idle")
    lab.becomes(lab.enqueue("ran", seconds=1), "finished", lab.lock_seconds)


# -- beside RQ's own maintenance -------------------------------------------------------------------


def expire(lab: Lab, job: str, name: str) -> None:
    """As if no heartbeat had come for so long that RQ takes the execution for abandoned."""
    execution = (lab.redis.hget(keys.worker(name), "er_execution") or b"").decode()
    lab.redis.zadd(keys.started("default"), {f"{job}:{execution}": time.time() - 10})


CLEANER = """
import json, os, signal, sys
import redis, rq
from rq.registry import StartedJobRegistry
connection = redis.Redis.from_url(sys.argv[1])
if sys.argv[2] == 'stall':
    # Stop where RQ has read and decided, and has not written.
    from redis.client import Pipeline
    execute = Pipeline.execute
    def stalled(self, *args, **kwargs):
        if any(entry[0][0] == 'ZREMRANGEBYSCORE' for entry in self.command_stack):
            open(sys.argv[3], 'w').close()
            os.kill(os.getpid(), signal.SIGSTOP)
        return execute(self, *args, **kwargs)
    Pipeline.execute = stalled
StartedJobRegistry('default', connection=connection).cleanup()
"""


def cleaner(lab: Lab, mode: str) -> subprocess.Popen[bytes]:
    marker = lab.directory / "stalled"
    return subprocess.Popen(
        [lab.python, "-c", CLEANER, lab.server.url, mode, str(marker)],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(HERE)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def test_an_expired_execution_is_decided_on_once_beside_rqs_cleanup(lab: Lab) -> None:
    """RQ has read the entry and stalls; recovery waits it out, and then finds it settled."""
    _, name, job = killed_at(lab, "prepared", retry={"max": 5})
    expire(lab, job, name)
    process = cleaner(lab, "stall")
    try:
        eventually((lab.directory / "stalled").exists, "RQ to stall")
        assert recover(lab, dead(lab, name), ALWAYS).action is RecoveryAction.DEFERRED
        assert recover(lab, dead(lab, name), ALWAYS).action is RecoveryAction.DEFERRED
        os.kill(process.pid, 18)
        process.wait(10)
        time.sleep(recovery.SETTLING_SECONDS)
        assert recover(lab, dead(lab, name), ALWAYS).action is RecoveryAction.SETTLED
    finally:
        process.kill()
        process.wait()
    assert lab.redis.lrange(keys.queue("default"), 0, -1) == [job.encode()]
    assert lab.describe(job)["retries_left"] == 4


def test_what_recovery_has_renewed_rqs_cleanup_leaves_alone(lab: Lab) -> None:
    _, name, job = killed_at(lab, "prepared", retry={"max": 5})
    expire(lab, job, name)
    assert recover(lab, dead(lab, name)).action is RecoveryAction.DEFERRED
    lab.ask("cleanup", queue="default")
    assert lab.status(job) == "started"
    time.sleep(recovery.SETTLING_SECONDS + 0.1)
    assert recover(lab, dead(lab, name)).action is RecoveryAction.REQUEUED
    lab.ask("cleanup", queue="default")
    assert lab.redis.lrange(keys.queue("default"), 0, -1) == [job.encode()]
    assert lab.describe(job)["retries_left"] == 4


def test_recovery_from_many_sides_at_once_decides_once(lab: Lab) -> None:
    """Operators, a worker's maintenance and RQ's cleanup all come upon the same orphans."""
    workers = [lab.worker(f"pod-{at}", stop_at="prepared") for at in range(3)]
    for worker in workers:
        worker.field("state", "idle")
    jobs = [lab.enqueue("ran", retry={"max": 5}) for _ in workers]
    orphans = []
    for worker in workers:
        worker.stopped("prepared")
        orphans.append((worker.name, worker.record()["er_job"]))
        worker.kill()
    for name, job in orphans:
        expire(lab, job, name)
    cleaners = [cleaner(lab, "now") for _ in range(2)]

    async def operators() -> None:
        async with redis.asyncio.Redis(port=lab.server.port) as client:
            for _ in range(12):
                await asyncio.gather(
                    *(
                        recovery.recover(client, dead(lab, name), RecoveryPolicy(), time.time())
                        for name, _ in orphans
                        for _ in range(3)
                    )
                )
                await asyncio.sleep(0.3)

    asyncio.run(operators())
    for process in cleaners:
        process.wait(20)
    queued = lab.redis.lrange(keys.queue("default"), 0, -1)
    assert sorted(queued) == sorted(job.encode() for job in jobs)
    lab.worker("pod-9")
    for job in jobs:
        lab.becomes(job, "finished")
    assert sorted(lab.ran()) == sorted(jobs)
    assert all(lab.describe(job)["retries_left"] == 4 for job in jobs)


def test_a_workers_own_maintenance_settles_what_no_operator_does(lab: Lab) -> None:
    _, name, job = killed_at(lab, "prepared", retry={"max": 1}, on_failure="on_failure")
    expire(lab, job, name)
    lab.redis.rpush(keys.intermediate("default"), "gone")
    second = lab.worker("pod-2", grace=0)
    lab.becomes(job, "finished")
    assert lab.ran() == [job]
    assert lab.ran("failure") == []
    second.end()
    _, name, job = killed_at(lab, "prepared", pod="pod-3", on_failure="on_failure")
    expire(lab, job, name)
    lab.worker("pod-4", grace=0)
    lab.becomes(job, "failed")
    assert "no heartbeat" in lab.describe(job)["error"]
    eventually(lambda: lab.ran("failure") == [job], "the failure callback")


def test_many_jobs_under_workers_that_keep_being_killed(lab: Lab) -> None:
    """A walk at random: kill -9 and SIGTERM any time; each job ends well exactly once booked."""
    import random

    dice = random.Random(7)
    jobs = [lab.enqueue("nap", 0.02, queue=dice.choice("ab")) for _ in range(60)]
    queues = ("a", "b")
    pods: list[WorkerProcess] = []
    deadline = time.monotonic() + 60
    number = 0

    def finished() -> int:
        return sum(lab.status(job) == "finished" for job in jobs)

    while finished() < len(jobs):
        assert time.monotonic() < deadline, [lab.status(job) for job in jobs]
        while len(pods) < 2:
            number += 1
            pods.append(lab.worker(f"pod-{number}", queues))
        for pod in pods:
            _ = pod.name
        time.sleep(dice.random() * 0.8)
        victim = pods.pop(dice.randrange(len(pods)))
        name = victim.name
        if dice.random() < 0.7:
            victim.kill()
            assert recover(lab, dead(lab, name, queues), ALWAYS).action is not RecoveryAction.ALIVE
        else:
            victim.end()
        with_redis(lab, lambda client: recovery.return_strays(client, queues, time.time(), 0.5))
    for pod in pods:
        pod.end()
    assert all(lab.describe(job)["results"] == 1 for job in jobs)
    total = sum(int(lab.redis.hget(keys.stats(queue), "finished") or 0) for queue in queues)
    assert total == len(jobs)
    eventually(lambda: lab.traces() == {}, f"no traces: {json.dumps(lab.traces())}")
    assert set(jobs) == set(lab.ran())
