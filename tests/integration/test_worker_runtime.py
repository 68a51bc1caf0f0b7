"""The worker runtime on a real Redis, with RQ 2 and RQ 3: what it promises, and RQ unchanged."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest
import redis.asyncio

from engineroom.queue import commands, keys, recovery
from engineroom.tasks import Tasks
from tests.integration import rq_versions
from tests.integration.runtime.cutter import Cutter
from tests.integration.runtime.lab import HERE, POOL, Lab, eventually
from tests.support import ROOT, coverage_environment, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(params=rq_versions.versions(), scope="module")
def shared_lab(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lab]:
    made = Lab(rq_versions.interpreter(request.param), tmp_path_factory.mktemp("lab"), durable=True)
    made.ask("cleanup", queue="default")
    yield made
    made.close()


@pytest.fixture
def lab(shared_lab: Lab) -> Iterator[Lab]:
    """A Redis that is empty, with no workers; what is written to it survives its restart."""
    yield shared_lab
    shared_lab.reset()


def command(lab: Lab, act: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Run one of the operator's commands."""

    async def run() -> None:
        async with redis.asyncio.Redis(port=lab.server.port) as client:
            await act(client, *args, **kwargs)

    asyncio.run(run())


def heartbeat(lab: Lab, name: str) -> str:
    return (lab.redis.hget(keys.worker(name), "last_heartbeat") or b"").decode()


# -- what the operator reads -----------------------------------------------------------------------


def test_a_worker_describes_itself_idle_and_busy(lab: Lab) -> None:
    worker = lab.worker()
    worker.field("state", "idle")
    record = worker.record()
    assert record["er_pool"] == POOL
    assert record["er_pod"] == "pod-1"
    assert record["er_pod_uid"] == "uid-pod-1"
    assert record["er_job"] == record["er_drain"] == ""
    assert int(record["er_memory"]) > 1_000_000
    assert worker.name.startswith("pod-1.0.")
    assert len(worker.name) == len("pod-1.0.") + 8
    job = lab.enqueue("nap", 1)
    worker.field("er_job", job)
    record = worker.record()
    assert record["state"] == "busy"
    assert record["er_queue"] == "default"
    assert abs(float(record["er_job_started"]) - time.time()) < 2
    assert lab.redis.zscore(keys.started("default"), f"{job}:{record['er_execution']}")
    lab.becomes(job, "finished")
    worker.field("er_job", "")
    worker.field("state", "idle")
    assert lab.traces() == {}
    stats = {k.decode(): int(v) for k, v in lab.redis.hgetall(keys.stats("default")).items()}
    assert stats["finished"] == 1
    assert stats["busy_ms"] >= 1000
    assert stats["wait_ms"] < 1000


def test_heartbeats_come_within_five_seconds_idle_and_busy(lab: Lab) -> None:
    worker = lab.worker()
    worker.field("state", "idle")
    other = lab.worker("pod-2", queues=("other",))
    other.field("state", "idle")
    job = lab.enqueue("nap", 20)
    worker.field("er_job", job)
    seen: dict[str, list[tuple[float, str]]] = {worker.name: [], other.name: []}
    end = time.monotonic() + 9
    while time.monotonic() < end:
        for name, beats in seen.items():
            beat = heartbeat(lab, name)
            if not beats or beats[-1][1] != beat:
                beats.append((time.monotonic(), beat))
        time.sleep(0.05)
    for beats in seen.values():
        times = [at for at, _ in beats]
        assert len(times) >= 3
        assert max(b - a for a, b in itertools.pairwise(times[1:])) <= 5
    score = lab.redis.zscore(keys.started("default"), f"{job}:{worker.record()['er_execution']}")
    assert score is not None
    assert score > time.time() + 60


# -- drain, retire, suspend ------------------------------------------------------------------------


def test_a_busy_worker_drains_after_its_job_and_takes_no_other(lab: Lab) -> None:
    worker = lab.worker()
    first = lab.enqueue("nap", 2)
    worker.field("er_job", first)
    second = lab.enqueue("ran")
    command(lab, commands.request_drain, [(worker.name, "d1")])
    worker.field("er_drain", "draining", 1.5)
    assert worker.record()["er_drain_id"] == "d1"
    worker.field("er_drain", "drained")
    assert lab.status(first) == "finished"
    assert worker.record()["er_job"] == ""
    time.sleep(1.5)
    assert lab.status(second) == "queued"
    command(lab, commands.cancel_drain, [worker.name])
    lab.becomes(second, "finished", 1.5)
    worker.field("er_drain", "")


def test_an_idle_worker_drains_at_once_and_undrains_when_the_operator_is_gone(lab: Lab) -> None:
    worker = lab.worker()
    worker.field("state", "idle")
    asked = time.monotonic()
    command(lab, commands.request_drain, [(worker.name, "d2")], ttl=2)
    worker.field("er_drain", "drained", 1)
    assert time.monotonic() - asked < 1
    job = lab.enqueue("ran")
    lab.becomes(job, "finished", 6)
    assert time.monotonic() - asked > 1.9


@pytest.mark.parametrize("queues", [("default",), ("high", "default")])
def test_drained_is_never_said_while_a_job_can_still_be_taken(
    lab: Lab, queues: tuple[str, ...]
) -> None:
    """Drains and jobs race; whoever says drained takes nothing more until told otherwise."""
    worker = lab.worker(queues=queues)
    worker.field("state", "idle")
    for at in range(15):
        command(lab, commands.request_drain, [(worker.name, f"d{at}")])
        lab.enqueue("ran")
        worker.field("er_drain_id", f"d{at}")
        worker.field("er_drain", "drained")
        settled = lab.ran()
        held = worker.record()["er_job"]
        assert held == ""
        assert lab.ran() == settled
        command(lab, commands.cancel_drain, [worker.name])
        eventually(lambda: len(lab.ran()) > at, "the job to run after the drain")  # noqa: B023
    eventually(lambda: lab.traces() == {}, "no traces")


def test_a_retired_worker_never_works_again_and_ends_in_time(lab: Lab) -> None:
    worker = lab.worker(retired_seconds=3)
    worker.field("state", "idle")
    command(lab, commands.retire, [(worker.name, "r1")])
    worker.field("er_drain", "retired", 1)
    command(lab, commands.cancel_drain, [worker.name])
    command(lab, commands.request_drain, [(worker.name, "d")])
    lab.redis.delete(keys.drain(worker.name))
    job = lab.enqueue("ran")
    name = worker.name
    assert worker.process.wait(8) == 0
    assert lab.status(job) == "queued"
    assert not lab.redis.sismember(keys.pool_workers(POOL), name)


def test_suspension_of_the_pool_and_by_rq(lab: Lab) -> None:
    worker = lab.worker()
    worker.field("state", "idle")
    command(lab, commands.suspend, POOL, [worker.name])
    worker.field("state", "suspended", 1)
    job = lab.enqueue("ran")
    time.sleep(1.2)
    assert lab.status(job) == "queued"
    command(lab, commands.resume, POOL, [worker.name])
    lab.becomes(job, "finished", 1.5)
    lab.redis.set("rq:suspended", 1)
    worker.field("state", "suspended", 6)
    other = lab.enqueue("ran")
    time.sleep(1.2)
    assert lab.status(other) == "queued"
    lab.redis.delete("rq:suspended")
    lab.becomes(other, "finished", 3)


@pytest.mark.parametrize("queues", [("default",), ("high", "default")])
def test_a_paused_queue_rests_and_the_others_go_on(lab: Lab, queues: tuple[str, ...]) -> None:
    # One worker waits in BLMOVE, the other for pushes: both are waiting when the pause comes.
    worker = lab.worker(queues=queues)
    worker.field("state", "idle")
    lab.becomes(lab.enqueue("ran"), "finished")
    time.sleep(0.3)
    lab.redis.set(keys.paused("default"), "why")
    first, second = lab.enqueue("ran"), lab.enqueue("ran")
    if "high" in queues:
        lab.becomes(lab.enqueue("ran", queue="high"), "finished", 3)
    time.sleep(1.2)
    assert [lab.status(job) for job in (first, second)] == ["queued", "queued"]
    waiting = lab.redis.lrange(keys.queue("default"), 0, -1)
    assert waiting == [first.encode(), second.encode()]
    assert lab.redis.llen(keys.intermediate("default")) == 0
    assert Tasks(lab.redis).resume_queue("default")
    lab.becomes(second, "finished", 1.5)
    assert lab.ran()[-2:] == [first, second]


# -- leaving ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("queues", [("default",), ("high", "default")])
def test_an_idle_worker_leaves_at_once(lab: Lab, queues: tuple[str, ...]) -> None:
    worker = lab.worker(queues=queues)
    worker.field("state", "idle")
    lab.becomes(lab.enqueue("ran"), "finished")
    worker.field("er_job", "")
    time.sleep(0.3)
    name, asked = worker.name, time.monotonic()
    assert worker.end() == 0
    # Its wait for a job would take many seconds more; on a busy machine one is soon gone.
    assert time.monotonic() - asked < 3
    assert not lab.redis.sismember(keys.pool_workers(POOL), name)
    assert lab.redis.hget(keys.worker(name), "death")
    assert not lab.redis.sismember("rq:workers", keys.worker(name))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_does_not_kill_the_job(lab: Lab, number: int) -> None:
    worker = lab.worker()
    job = lab.enqueue("nap", 3)
    eventually(lambda: lab.ran("begun"), "the job to begin")
    waiting = lab.enqueue("ran")
    worker.signal(number)
    time.sleep(1.2)
    worker.signal(number)
    worker.signal(number)
    assert worker.process.wait(10) == 0
    assert lab.status(job) == "finished"
    assert lab.status(waiting) == "queued"


POINTS = ("blmoved", "taken", "prepared", "forked", "horse-begins", "horse-ended", "horse-booked")


@pytest.mark.parametrize("point", POINTS)
def test_sigterm_at_any_point_loses_and_doubles_nothing(lab: Lab, point: str) -> None:
    worker = lab.worker(stop_at=point)
    worker.field("state", "idle")
    time.sleep(0.2)
    job = lab.enqueue("ran")
    pid = worker.stopped(point)
    worker.signal(signal.SIGTERM)
    os.kill(pid, signal.SIGCONT)
    assert worker.end() == 0
    if lab.status(job) == "queued":
        # Put back, for it had not been started.
        assert lab.redis.lrange(keys.queue("default"), 0, -1) == [job.encode()]
        assert lab.ran() == []
        lab.worker("pod-2")
    lab.becomes(job, "finished")
    assert lab.ran() == [job]
    assert lab.traces() == {}


@pytest.mark.parametrize("policy", ["Fail", "Requeue"])
def test_a_job_past_the_deadline_is_let_go(lab: Lab, policy: str) -> None:
    worker = lab.worker(MAX_JOB_DURATION=2, ON_DEADLINE=policy)
    job = lab.enqueue("nap", 30)
    eventually(lambda: lab.ran("begun"), "the job to begin")
    lab.enqueue("ran")
    time.sleep(2.5)
    assert lab.status(job) == "started", "without SIGTERM there is no deadline"
    worker.signal(signal.SIGTERM)
    assert worker.process.wait(10) == 0
    assert lab.traces() == {}
    if policy == "Requeue":
        assert lab.status(job) == "queued"
        assert lab.redis.lindex(keys.queue("default"), 0) == job.encode()
        assert lab.redis.llen(keys.queue("default")) == 2
    else:
        described = lab.describe(job)
        assert described["status"] == "failed"
        assert "drain.maxJobDuration (2 s)" in described["error"]
        assert lab.redis.zscore(keys.failed("default"), job)


@pytest.mark.parametrize("policy", ["Fail", "Requeue"])
def test_a_drain_ends_a_job_past_the_deadline_and_the_worker_lives_on(
    lab: Lab, policy: str
) -> None:
    worker = lab.worker(MAX_JOB_DURATION=3, ON_DEADLINE=policy)
    job = lab.enqueue("nap", 30)
    eventually(lambda: lab.ran("begun"), "the job to begin")
    command(lab, commands.request_drain, [(worker.name, "d1")])
    lab.becomes(job, {"Fail": "failed", "Requeue": "queued"}[policy], 8)
    worker.field("er_drain", "drained", 3)
    assert worker.record()["er_job"] == ""
    assert lab.traces() == {}


def test_a_job_may_use_the_time_it_has_after_sigterm(lab: Lab) -> None:
    worker = lab.worker(MAX_JOB_DURATION=5)
    job = lab.enqueue("nap", 3)
    eventually(lambda: lab.ran("begun"), "the job to begin")
    worker.signal(signal.SIGTERM)
    assert worker.process.wait(10) == 0
    assert lab.status(job) == "finished"


# -- several queues --------------------------------------------------------------------------------


def test_priority_order_and_the_intermediate_list(lab: Lab) -> None:
    jobs = [lab.enqueue("ran", queue=queue) for queue in ("low", "high", "low", "high")]
    worker = lab.worker(queues=("high", "low"))
    lab.becomes(jobs[2], "finished")
    assert lab.ran() == [jobs[1], jobs[3], jobs[0], jobs[2]]
    worker.field("state", "idle")
    assert lab.traces() == {}


def test_round_robin_takes_turns(lab: Lab) -> None:
    a = [lab.enqueue("ran", queue="a") for _ in range(3)]
    b = [lab.enqueue("ran", queue="b") for _ in range(3)]
    lab.worker(queues=("a", "b"), DEQUEUE_STRATEGY="RoundRobin")
    lab.becomes(b[2], "finished")
    assert lab.ran() == [a[0], b[0], a[1], b[1], a[2], b[2]]


def test_random_runs_everything(lab: Lab) -> None:
    jobs = [lab.enqueue("ran", queue=queue) for queue in ("a", "b") * 4]
    lab.worker(queues=("a", "b"), DEQUEUE_STRATEGY="Random")
    eventually(lambda: sorted(lab.ran()) == sorted(jobs), "all jobs")


def test_a_waiting_worker_of_several_queues_hears_of_each_at_once(lab: Lab) -> None:
    # Names that begin with one another: Redis refuses such prefixes, and they must not be confused.
    worker = lab.worker(queues=("mail", "mail-slow", "other"))
    worker.field("state", "idle")
    time.sleep(0.5)
    slowest = 0.0
    for queue in ("mail-slow", "other", "mail") * 3:
        job = lab.enqueue("ran", queue=queue)
        asked = time.monotonic()
        lab.becomes(job, "finished")
        slowest = max(slowest, time.monotonic() - asked)
        time.sleep(0.2)
    assert slowest < 0.9, "pushed, not polled"


def test_without_tracking_several_queues_are_polled(lab: Lab) -> None:
    lab.redis.execute_command("ACL", "SETUSER", "default", "-client|tracking")
    try:
        worker = lab.worker(queues=("a", "b"))
        worker.field("state", "idle")
        time.sleep(1)
        for queue in ("b", "a"):
            lab.becomes(lab.enqueue("ran", queue=queue), "finished", 2.5)
        asked = time.monotonic()
        assert worker.end() == 0
        assert time.monotonic() - asked < 3
    finally:
        lab.redis.execute_command("ACL", "SETUSER", "default", "+@all")


# -- Redis gone ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("func", "queues"),
    [
        ("nap_quietly", ("default",)),
        ("nap_quietly", ("high", "default")),
        ("boom_quietly", ("default",)),
    ],
)
def test_redis_gone_while_a_job_runs_and_when_it_ends(
    lab: Lab, func: str, queues: tuple[str, ...]
) -> None:
    worker = lab.worker(queues=queues)
    worker.field("state", "idle")
    begun = lab.directory / "begun"
    fails = func == "boom_quietly"
    options: dict[str, Any] = {} if fails else {"retry": {"max": 2}}
    job = lab.enqueue(func, 2, str(begun), **options)
    eventually(begun.exists, "the job to begin")
    name = worker.name
    lab.server.stop()
    time.sleep(4)
    assert worker.process.poll() is None
    lab.server.start()
    outcome = "failed" if fails else "finished"
    lab.becomes(job, outcome, 6)
    described = lab.describe(job)
    assert described["result"] == (None if fails else 2)
    assert described["results"] == 1
    assert described["retries_left"] == (None if fails else 2)
    assert begun.read_text() == "begun\n"
    assert int(lab.redis.hget(keys.stats("default"), outcome) or 0) == 1
    lab.becomes(lab.enqueue("ran"), "finished", 8)
    assert worker.name == name
    assert lab.traces() == {}


def cut_at(lab: Lab, *needles: bytes) -> Cutter:
    """A proxy that loses the reply to the first request with all the needles in it."""
    return Cutter(lab.server.port, lambda request: all(needle in request for needle in needles))


@pytest.mark.parametrize("job", ["add", "boom_until"])
@pytest.mark.parametrize(
    "needles",
    [
        (b"EVALSHA", b"rq:suspended"),
        (b"start", b"PERSIST"),
        (b"engineroom:stats:", b"HINCRBY"),
    ],
    ids=["take", "start", "end"],
)
def test_a_reply_that_is_lost_changes_nothing(
    lab: Lab, needles: tuple[bytes, ...], job: str
) -> None:
    """The transaction was applied and nobody was told: sent again, it is not applied again."""
    fails = job == "boom_until"
    options: dict[str, Any] = {"retry": {"max": 3}} if fails else {}
    made = lab.enqueue(job, *([1] if fails else [1, 2]), **options)
    with cut_at(lab, *needles) as cutter:
        lab.worker(REDIS_URL=cutter.url)
        lab.becomes(made, "finished")
        # The job has ended as soon as Redis has applied it, before anybody reads the reply.
        eventually(lambda: cutter.cut == 1, "the reply to be lost")
        described = lab.describe(made)
        assert lab.ran() == [made] * (1 + fails)
        assert described["results"] == 1
        assert described["retries_left"] == (2 if fails else None)
        stats = lab.redis.hgetall(keys.stats("default"))
        assert int(stats[b"finished"]) == 1
        assert int(stats.get(b"failed", 0)) == fails
        lab.becomes(lab.enqueue("ran"), "finished")
        eventually(lambda: lab.traces() == {}, "no traces")
        lab.reset()


def test_dependents_run_though_the_reply_to_the_end_was_lost(lab: Lab) -> None:
    first = lab.enqueue("ran")
    second = lab.enqueue("ran", depends_on=first)
    with cut_at(lab, b"engineroom:stats:", b"HINCRBY") as cutter:
        lab.worker(REDIS_URL=cutter.url)
        lab.becomes(second, "finished")
        assert cutter.cut == 1
        assert lab.ran() == [first, second]
        lab.reset()


def test_a_job_whose_blmove_was_not_answered_is_put_back_from_the_intermediate_list(
    lab: Lab,
) -> None:
    with cut_at(lab, b"BLMOVE") as cutter:
        worker = lab.worker(REDIS_URL=cutter.url)
        worker.field("state", "idle")
        time.sleep(0.2)
        job = lab.enqueue("ran")
        eventually(lambda: cutter.cut, "the cut")
        for later in (0, 16):
            command(lab, recovery.return_strays, ["default"], time.time() + later)
        lab.becomes(job, "finished")
        assert lab.ran() == [job]
        eventually(lambda: lab.traces() == {}, "no traces")
        lab.reset()


def test_redis_back_empty_is_joined_anew(lab: Lab) -> None:
    worker = lab.worker()
    worker.field("state", "idle")
    lab.redis.flushall()
    lab.server.stop()
    time.sleep(1)
    lab.server.start()
    worker.field("er_pod_uid", "uid-pod-1", 8)
    assert worker.record()["queues"] == "default"
    lab.becomes(lab.enqueue("ran"), "finished", 8)
    command(lab, commands.request_drain, [(worker.name, "d")])
    worker.field("er_drain", "drained", 6)


def test_a_start_without_redis_waits_for_it(lab: Lab) -> None:
    lab.server.stop()
    worker = lab.worker()
    time.sleep(2)
    assert worker.process.poll() is None
    lab.server.start()
    lab.becomes(lab.enqueue("ran"), "finished", 10)


def test_sigterm_while_redis_is_away(lab: Lab) -> None:
    worker = lab.worker()
    worker.field("state", "idle")
    lab.server.stop()
    time.sleep(0.5)
    asked = time.monotonic()
    worker.signal(signal.SIGTERM)
    assert worker.process.wait(5) == 0
    assert time.monotonic() - asked < 2


# -- RQ as ever ------------------------------------------------------------------------------------


def test_results_and_their_expiry(lab: Lab) -> None:
    lab.worker()
    kept = lab.enqueue("add", 2, 3)
    brief = lab.enqueue("add", 2, 4, result_ttl=1)
    gone = lab.enqueue("add", 2, 5, result_ttl=0)
    lab.becomes(kept, "finished")
    described = lab.describe(kept)
    assert described["result"] == 5
    assert 400 < described["ttl"] <= 500
    eventually(lambda: not lab.redis.exists(keys.job(gone)), "a job without result to be deleted")
    eventually(lambda: not lab.redis.exists(keys.job(brief)), "a brief result to expire")
    assert lab.ran() == [kept, brief, gone]


def test_failure_and_the_pools_time_to_live_for_it(lab: Lab) -> None:
    lab.worker(DEAD_LETTER_TTL=1234)
    job = lab.enqueue("boom")
    own = lab.enqueue("boom", failure_ttl=55)
    lab.becomes(own, "failed")
    assert "RuntimeError: boom" in lab.describe(job)["error"]
    assert 1200 < lab.describe(job)["ttl"] <= 1234
    assert 40 < lab.describe(own)["ttl"] <= 55
    score = lab.redis.zscore(keys.failed("default"), job)
    assert score is not None
    assert 1200 < score - time.time() <= 1235
    assert int(lab.redis.hget(keys.stats("default"), "failed") or 0) == 2


def test_retries_at_once_and_after_an_interval(lab: Lab) -> None:
    lab.worker()
    at_once = lab.enqueue("boom_until", 2, retry={"max": 3})
    lab.becomes(at_once, "finished")
    assert lab.ran() == [at_once] * 3
    lab.redis.delete("test:booms", "test:ran")
    later = lab.enqueue("boom_until", 1, retry={"max": 1, "interval": 1})
    lab.becomes(later, "scheduled")
    assert lab.redis.zscore(keys.scheduled("default"), later)
    lab.becomes(later, "finished")
    assert lab.ran() == [later] * 2
    assert lab.traces() == {}


def test_callbacks(lab: Lab) -> None:
    lab.worker()
    good = lab.enqueue("ran", on_success="on_success", on_failure="on_failure")
    bad = lab.enqueue("boom", on_success="on_success", on_failure="on_failure")
    lab.becomes(bad, "failed")
    assert lab.ran("success") == [good]
    assert lab.ran("failure") == [bad]


def test_dependents(lab: Lab) -> None:
    first = lab.enqueue("nap", 0.3)
    second = lab.enqueue("ran", depends_on=first)
    bad = lab.enqueue("boom")
    anyway = lab.enqueue("ran", depends_on=bad, allow_failure=True)
    never = lab.enqueue("ran", depends_on=bad)
    lab.worker()
    lab.becomes(second, "finished")
    lab.becomes(anyway, "finished")
    assert lab.status(never) == "deferred"
    assert lab.ran().index(first) < lab.ran().index(second)


def test_scheduled_jobs_without_a_process_of_their_own(lab: Lab) -> None:
    worker = lab.worker(queues=("a", "b"))
    worker.field("state", "idle")
    jobs = [lab.enqueue("ran", queue=queue, seconds=1) for queue in ("a", "b")]
    busy = lab.enqueue("nap", 4, queue="a")
    worker.field("er_job", busy)
    # Promoted while the worker is busy, so that whoever counts the queue sees it.
    eventually(lambda: lab.status(jobs[0]) == "queued", "promotion while busy", 4)
    for job in jobs:
        lab.becomes(job, "finished")
    children = subprocess.run(
        ["ps", "--ppid", str(worker.process.pid), "-o", "pid="],
        capture_output=True,
        text=True,
        check=False,
    )
    assert children.stdout.split() == []


def test_the_scheduler_lock_is_handed_on(lab: Lab) -> None:
    first = lab.worker("pod-1", LOCK_SECONDS=1)
    first.field("state", "idle")
    second = lab.worker("pod-2", LOCK_SECONDS=1)
    second.field("state", "idle")
    first.end()
    lab.becomes(lab.enqueue("ran", seconds=1), "finished", 6)


def test_repeats(lab: Lab) -> None:
    lab.worker()
    lab.enqueue("ran", repeat={"times": 2})
    eventually(lambda: len(lab.ran()) == 3, "the job and its two repeats")


def test_stop_job_command(lab: Lab) -> None:
    worker = lab.worker()
    job = lab.enqueue("nap", 30, on_stopped="on_stopped", retry={"max": 3})
    eventually(lambda: lab.ran("begun"), "the job to begin")
    lab.ask("stop", job=job)
    lab.becomes(job, "stopped")
    eventually(lambda: lab.ran("stopped") == [job], "the callback")
    assert "stopped by user" in lab.describe(job)["error"]
    lab.becomes(lab.enqueue("ran"), "finished")
    assert worker.process.poll() is None
    assert lab.traces() == {}


def test_cancelled_while_running_stays_cancelled(lab: Lab) -> None:
    worker = lab.worker()
    job = lab.enqueue("nap", 1)
    eventually(lambda: lab.ran("begun"), "the job to begin")
    lab.ask("cancel", job=job)
    eventually(lambda: lab.ran() == [job], "the function to end")
    worker.field("er_job", "")
    lab.becomes(lab.enqueue("ran"), "finished")
    assert lab.status(job) in ("canceled", "finished")
    assert lab.traces() == {}


def test_a_job_that_enqueues_itself_again(lab: Lab) -> None:
    worker = lab.worker()
    job = lab.enqueue("again", 3, job_id="singleton")
    eventually(lambda: lab.ran() == [job] * 3, "three rounds")
    lab.becomes(job, "finished")
    worker.field("er_job", "")
    assert lab.traces() == {}


def test_time_out_and_a_work_horse_that_dies(lab: Lab) -> None:
    lab.worker()
    slow = lab.enqueue("nap", 30, job_timeout=1)
    dead = lab.enqueue("suicide", retry={"max": 1})
    lab.becomes(slow, "failed")
    assert "JobTimeoutException" in lab.describe(slow)["error"]
    lab.becomes(dead, "failed")
    assert lab.ran() == [dead, dead]
    assert "terminated unexpectedly" in lab.describe(dead)["error"]
    assert lab.traces() == {}


def test_json_serializer(lab: Lab) -> None:
    name = "rq.serializers.JSONSerializer"
    lab.worker(SERIALIZER=name)
    job = lab.enqueue("add", 20, 22, serializer=name)
    lab.becomes(job, "finished")
    assert lab.describe(job, serializer=name)["result"] == 42


def test_a_job_that_cannot_be_read_does_not_stop_the_others(lab: Lab) -> None:
    broken = lab.enqueue("ran")
    lab.redis.hset(keys.job(broken), "status", "nonsense")
    hollow = "no-data"
    lab.redis.hset(keys.job(hollow), "status", "queued")
    lab.redis.rpush(keys.queue("default"), hollow, "no-hash-at-all")
    good = lab.enqueue("ran")
    lab.worker()
    lab.becomes(good, "finished")
    assert lab.status(broken) == "failed"
    assert lab.redis.zscore(keys.failed("default"), broken)
    assert lab.traces() == {}


# -- the entry point -------------------------------------------------------------------------------


def run_entry(
    lab: Lab, changes: dict[str, str], workers: int = 1
) -> tuple[subprocess.Popen[str], int]:
    port = free_port()
    environment = {
        "PATH": os.environ["PATH"],
        **coverage_environment(),
        "PYTHONPATH": f"{ROOT / 'operator'}:{HERE}",
        "ENGINEROOM_REDIS_URL": lab.server.url,
        "ENGINEROOM_POOL": POOL,
        "ENGINEROOM_POD_NAME": "pod-9",
        "ENGINEROOM_QUEUES": '[{"name": "default", "priority": 0}]',
        "ENGINEROOM_WORKERS": str(workers),
        "ENGINEROOM_METRICS_PORT": str(port),
        **changes,
    }
    process = subprocess.Popen(
        [lab.python, "-m", "engineroom_worker"], env=environment, stderr=subprocess.PIPE, text=True
    )
    return process, port


def fetch(port: int, path: str) -> str:
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def test_supervised_workers_metrics_and_restart(lab: Lab) -> None:
    process, port = run_entry(lab, {}, workers=2)
    try:
        names = eventually(
            lambda: (n := lab.redis.smembers(keys.pool_workers(POOL))) and len(n) == 2 and n,
            "two workers",
        )
        jobs = [lab.enqueue("nap", 1) for _ in range(2)]
        eventually(lambda: 'state="busy"} 2' in fetch(port, "/metrics"), "both busy at once")
        for job in jobs:
            lab.becomes(job, "finished")
        lab.becomes(lab.enqueue("boom"), "failed")
        text = eventually(
            lambda: (t := fetch(port, "/metrics")) and 'state="idle"} 2' in t and t, "idle again"
        )
        assert f'rq_workers_success_total{{pool="{POOL}"}} 2' in text
        assert f'rq_workers_failed_total{{pool="{POOL}"}} 1' in text
        assert fetch(port, "/healthz") == "ok\n"
        # One of them dies under a job: another takes its slot, and its horse dies with it.
        long = lab.enqueue("nap", 20)
        eventually(lambda: lab.ran("begun")[-1:] == [long], "the long job to begin")
        holder = next(
            name
            for name in (n.decode() for n in names)
            if lab.redis.hget(keys.worker(name), "er_job") == long.encode()
        )
        pid = int(lab.redis.hget(keys.worker(holder), "pid") or 0)
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: len(lab.redis.smembers(keys.pool_workers(POOL))) == 3, "a new worker")
        assert "engineroom_worker_restarts_total" in fetch(port, "/metrics")
        asked = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert time.monotonic() - asked < 2
        assert long not in lab.ran()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        assert process.stderr is not None
        process.stderr.close()


def test_bad_configuration_and_missing_rq_are_one_line_and_78(lab: Lab, tmp_path: Path) -> None:
    cases: list[dict[str, str]] = [
        {"ENGINEROOM_QUEUES": "default"},
        {"ENGINEROOM_REDIS_URL": "http://user:secret@redis"},
        {"ENGINEROOM_POOL": "nothing"},
        {"ENGINEROOM_MAX_JOB_DURATION": "1h"},
        {"ENGINEROOM_SERIALIZER": "no.such.Thing"},
    ]
    for changes in cases:
        process, _ = run_entry(lab, changes)
        _, error = process.communicate(timeout=20)
        assert process.returncode == 78
        assert len(error.strip().splitlines()) == 1, error
        assert next(iter(changes)) in error
        assert "secret" not in error
    blocker = tmp_path / "without"
    blocker.mkdir()
    (blocker / "rq.py").write_text("raise ImportError('no rq')\n")
    process, _ = run_entry(lab, {"PYTHONPATH": f"{blocker}:{ROOT / 'operator'}"})
    _, error = process.communicate(timeout=20)
    assert process.returncode == 78
    assert "RQ is not installed in this image; add rq>=2.4" in error


def test_importable_by_the_oldest_python_it_promises() -> None:
    import ast

    for path in sorted((ROOT / "operator" / "engineroom_worker").rglob("*.py")):
        tree = ast.parse(path.read_text(), feature_version=(3, 9))
        imported = {
            name.split(".")[0]
            for node in ast.walk(tree)
            for name in (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
        }
        import sys

        foreign = imported - sys.stdlib_module_names - {"rq", "redis", "engineroom_worker"}
        assert foreign == set(), f"{path.name} imports {foreign}"
        json.dumps(sorted(imported))
