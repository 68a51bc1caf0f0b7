"""Both ways with RQ 2 and RQ 3: plain RQ's jobs by our runtime, our jobs by ``rq worker``.

And our jobs by our runtime, which books starts and ends in its own way.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import urllib.request
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from engineroom.core.clock import FakeClock
from engineroom.tasks import (
    Every,
    Retry,
    Schedule,
    Scheduler,
    Task,
    Tasks,
    Unique,
    chain,
    fan_in,
    group,
)
from engineroom.tasks.outbox import Relay
from engineroom.tasks.outbox import add as into_outbox
from tests.integration import rq_versions
from tests.integration.runtime.lab import Lab, eventually
from tests.integration.tasks.work import (
    add,
    boom,
    fragile,
    nap,
    note,
    once_more,
    outcomes,
    patient,
    step,
    total,
)
from tests.support import ROOT, RedisServer, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    import psycopg
    from redis import Redis

HERE = Path(__file__).parent / "compat"
#: It imports six and does not say so.
DASHBOARD = ("rq-dashboard==0.9.0", "six==1.17.0")

if version("rq").startswith("2."):
    # This page looks for the interpreters of both versions itself.
    pytest.skip("run by the interpreter with RQ 3", allow_module_level=True)


@contextmanager
def running(*command: object, path: object = ROOT, **environment: str) -> Iterator[Any]:
    """A process for the length of a ``with`` block; its output when it is over."""
    plain = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    process = subprocess.Popen(
        [str(word) for word in command], cwd=ROOT, text=True,
        env={**plain, "PYTHONPATH": f"{ROOT / 'operator'}:{path}", **environment},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=20)


def queues(*names: str) -> str:
    """``ENGINEROOM_QUEUES`` of a runtime that works on these."""
    return json.dumps([{"name": name, "priority": 0} for name in names])


# -- plain RQ's jobs, our runtime ------------------------------------------------------------------

FINISHED: dict[str, Any] = {
    "function": 3, "string": 5, "call": 9, "method": "hello Ada", "callable": "hello, Ada",
    "static": "LOUD", "class": "Bob", "builtin": 9, "coroutine": 7, "meta": 21,
    "retried": "at last", "retried later": "at last", "asked again": "asked", "in": 10, "at": 11,
    "repeated": 3, "succeeded": 1, "dependent": [3, 5], "of a dependent": [[3, 5]],
    "despite a failure": 5, "one of many": 1, "another of many": 2, "of a group": 8,
    "serialized": 2,
}  # fmt: skip


@pytest.mark.parametrize("rq", rq_versions.versions())
def test_each_kind_of_job_that_rq_knows_runs_in_our_runtime(
    server: RedisServer, redis: Redis, rq: str
) -> None:
    python = rq_versions.interpreter(rq)

    def ask(*words: str) -> dict[str, Any]:
        command = [python, HERE / "plain_client.py", server.url, *words]
        told = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert told.returncode == 0, told.stderr
        return dict(json.loads(told.stdout))

    ids = ask("enqueue")
    settings = {
        "ENGINEROOM_REDIS_URL": server.url,
        "ENGINEROOM_POOL": "apps/compat",
        "ENGINEROOM_METRICS_PORT": "0",
    }

    def ended() -> bool:
        states = [
            redis.hget(f"rq:job:{job_id}", "status") for kind, job_id in ids.items()
            if kind not in ("never", "no result")
        ]  # fmt: skip
        again = redis.get(f"ticks:{ids['repeated']}")
        return set(states) <= {b"finished", b"failed"} and again == b"3"

    runtime = [python, "-m", "engineroom_worker"]
    with (
        running(
            *runtime, path=HERE, **settings, ENGINEROOM_POD_NAME="one",
            ENGINEROOM_QUEUES=queues("default"),
        ),
        running(
            *runtime, path=HERE, **settings, ENGINEROOM_POD_NAME="two",
            ENGINEROOM_QUEUES=queues("tagged"), ENGINEROOM_SERIALIZER="plain_jobs.Reversed",
        ),
    ):  # fmt: skip
        eventually(ended, "every job to end", 60)
        eventually(lambda: not redis.exists(f"rq:job:{ids['no result']}"), "the result to go")
    found = ask("look", json.dumps(ids))
    assert {kind: found[kind].get("result") for kind in FINISHED} == FINISHED
    assert {found[kind]["status"] for kind in FINISHED} == {"finished"}
    assert found["failed"]["error"] == ["ValueError: boom"]
    assert found["failed with a callback"]["status"] == found["failed"]["status"] == "failed"
    assert found["never"]["status"] == "deferred"
    assert found["meta"]["meta"] == {"given": 21, "seen": 42}
    said = {kind for kind, told in found.items() if told.get("said")}
    assert said == {"succeeded", "failed with a callback"}
    assert found["of a group"]["group"]
    assert set(ids) - set(FINISHED) == {"failed", "failed with a callback", "never", "no result"}
    # And to us they are jobs as ours are.
    tasks = Tasks(redis)
    assert {each.function for each in tasks.failures("default").failures} == {"plain_jobs.boom"}
    assert tasks.result(ids["method"]).value == "hello Ada"
    assert tasks.cancel(ids["never"]).canceled == (ids["never"],)


# -- our jobs, RQ's worker and our runtime ---------------------------------------------------------


def home_of(rq: str) -> Path:
    """Where the programs of a Python are that has that RQ, and what our jobs import."""
    if rq == "rq3":
        return Path(rq_versions.interpreter(rq)).parent
    home = ROOT / ".venv-rq2/bin"
    if not (home / "rq").exists():
        pytest.skip("no .venv-rq2 beside: make .venv-rq2/.made")
    return home


def worker_of(kind: str, rq: str, url: str) -> AbstractContextManager[Any]:
    """RQ's own worker or that of our runtime, on the queues of these jobs."""
    home = home_of(rq)
    if kind == "rq worker":
        return running(
            home / "rq", "worker", "--with-scheduler", "--url", url, "default", "other"
        )  # fmt: skip
    return running(
        home / "python", "-m", "engineroom_worker",
        ENGINEROOM_REDIS_URL=url, ENGINEROOM_POOL="apps/ours", ENGINEROOM_POD_NAME="ours",
        ENGINEROOM_METRICS_PORT="0", ENGINEROOM_QUEUES=queues("default", "other"),
    )  # fmt: skip


@pytest.mark.parametrize("rq", ["rq3", "rq2"])
@pytest.mark.parametrize("worker", ["rq worker", "engineroom_worker"])
def test_each_kind_of_our_jobs_runs_in(
    server: RedisServer, redis: Redis, database: psycopg.Connection[Any], worker: str, rq: str
) -> None:
    tasks = Tasks(redis)
    work = "tests.integration.tasks.work"
    once = [tasks.enqueue(Task(add, (1, 2), unique=Unique("a", until="end"))) for _ in range(2)]
    assert once[0].job_id == once[1].job_id
    tried = {
        "transient": tasks.enqueue(fragile, "away").job_id,
        "permanent": tasks.enqueue(Task(fragile, ("bug",), retry=Retry(3))).job_id,
        "poison": tasks.enqueue(Task(fragile, ("poison",), retry=Retry(3))).job_id,
    }
    postponed = tasks.enqueue(patient).job_id
    retried = tasks.enqueue(Task(boom, retry=Retry(2, (0, 1)), on_failure=note)).job_id
    shown = tasks.enqueue(Task(step, (3,), on_success=f"{work}.note", meta={"a": 1})).job_id
    flow = tasks.enqueue_flow(
        chain(
            Task(add, (1, 1)),
            fan_in(group(Task(add, (2,)), Task(add, (3,), queue="other")), Task(total)),
        )
    )
    # What hangs on a failure and may: it reads that its parent failed.
    despite = tasks.enqueue(
        Task(outcomes, depends_on=[tried["permanent"]], allow_failure=True)
    ).job_id
    later = tasks.enqueue(Task(add, (5,), delay=1)).job_id
    clock = FakeClock()
    start = clock.now().timestamp()
    schedule = Schedule("tick", Every(10, start=start), Task(add, (6,)))
    Tasks(redis, clock=clock).put_schedule(schedule)
    clock.advance(10)
    assert Scheduler(redis, clock).once()[0] == 1
    into_outbox(database, tasks, Task(add, (7,), job_id="promised"))
    Relay(database, redis).once()
    many = tasks.enqueue_many([Task(add, (at,), queue="other") for at in range(5)])
    stopped, never = (
        job.job_id
        for job in tasks.enqueue_flow(
            chain(Task(nap, (60,), on_stopped=note), Task(add, (8,)))
        ).jobs
    )
    finished = {
        once[0].job_id: 3, shown: "done", flow.jobs[-1].job_id: 5, later: 5, "promised": 7,
        many[4].job_id: 4, despite: ["failed"],
    }  # fmt: skip

    def status(job_id: str) -> str:
        return tasks.result(job_id).status

    def ended() -> bool:
        failed = {status(job_id) for job_id in (*tried.values(), retried)}
        return (
            {status(job_id) for job_id in finished} == {"finished"}
            and failed == {"failed"}
            and status(postponed) == "scheduled"
        )

    with worker_of(worker, rq, server.url):
        eventually(lambda: status(stopped) == "started", "the job that is to be stopped", 60)
        canceled = tasks.cancel(stopped, stop=True)
        assert (canceled.canceled, canceled.running) == ((never,), (stopped,))
        eventually(lambda: status(stopped) == "stopped", "the job to be stopped", 30)
        eventually(ended, "every job to end", 60)
        # The worker is not gone of it: it takes the next one.
        last = tasks.enqueue(Task(add, (9,), unique=Unique("a", until="end")))
        assert last.created
        eventually(lambda: status(last.job_id) == "finished", "the next job")
    assert {job_id: tasks.result(job_id).value for job_id in finished} == finished
    attempts = {kind: [each.category for each in tasks.attempts(tried[kind])] for kind in tried}
    assert attempts == {
        "transient": ["transient"] * 3, "permanent": ["permanent"], "poison": ["poison"],
    }  # fmt: skip
    assert {
        each.job_id: each.category for each in tasks.failures("default").failures
        if each.job_id in tried.values()
    } == {job_id: kind for kind, job_id in tried.items()}  # fmt: skip
    # The wait of the rule, 60 s, which RQ books in whole seconds, and the tries that it leaves.
    due = redis.zscore("rq:scheduled:default", postponed)
    assert due is not None
    assert 59 <= due - tasks.attempts(postponed)[0].at.timestamp() < 63
    assert redis.hget(f"rq:job:{postponed}", "retries_left") == b"2"
    progress = tasks.progress(shown)
    assert progress is not None
    assert (progress.fraction, progress.message) == (1.0, "step 3")
    # RQ calls on_failure for each try.
    noted = [each.decode() for each in redis.lrange("test:noted", 0, -1)]
    assert sorted(noted) == sorted([shown, stopped, *[retried] * 3])
    assert status(never) == "canceled"
    [ticked] = list(redis.scan_iter("rq:job:tick-*"))
    assert tasks.result(ticked.decode().removeprefix("rq:job:")).value == 6


@pytest.mark.parametrize("rq", ["rq3", "rq2"])
def test_a_retry_by_rule_is_booked_once_though_redis_goes_away_in_its_booking(
    tmp_path: Path, rq: str
) -> None:
    lab = Lab(str(home_of(rq) / "python"), tmp_path, durable=True)
    try:
        worker = lab.worker(stop_at="horse-ended")
        tasks = Tasks(lab.redis)
        job = tasks.enqueue(once_more).job_id
        horse = worker.stopped("horse-ended")
        lab.server.stop()
        os.kill(horse, signal.SIGCONT)
        eventually(lambda: "Redis" in worker.log.read_text(), "the outage to be noticed")
        lab.server.start()
        lab.becomes(job, "failed", 30)
        # What the job decided is in the process that waits for Redis, and nowhere else.
        assert [each.category for each in tasks.attempts(job)] == ["transient"] * 2
        assert lab.redis.hget(f"rq:job:{job}", "er_tried") == b"2"
        assert lab.traces() == {}
    finally:
        lab.close()


# -- rq-dashboard ----------------------------------------------------------------------------------


def test_rq_dashboard_shows_our_queues_and_jobs(
    server: RedisServer, redis: Redis, tasks: Tasks
) -> None:
    python = Path(rq_versions.cached(*DASHBOARD))
    failed = tasks.enqueue(boom)
    environment = {
        "ENGINEROOM_REDIS_URL": server.url, "ENGINEROOM_POOL": "apps/shown",
        "ENGINEROOM_POD_NAME": "shown", "ENGINEROOM_METRICS_PORT": "0",
        "ENGINEROOM_QUEUES": '[{"name": "default", "priority": 0}]',
    }  # fmt: skip
    port = free_port()
    command = [python.parent / "rq-dashboard", "--bind", "127.0.0.1", "-p", port, "-u", server.url]

    def read(path: str) -> Any:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/0/data/{path}.json") as answer:
                return json.load(answer)
        except OSError:
            return None

    def ids(queue: str, registry: str) -> set[str]:
        page = read(f"jobs/{queue}/{registry}/20/asc/1")
        return {job["id"] for job in page["jobs"]}

    runtime = [rq_versions.interpreter("rq3"), "-m", "engineroom_worker"]
    with running(*command), running(*runtime, **environment):
        eventually(lambda: tasks.result(failed.job_id).status == "failed", "the job to fail")
        flow = tasks.enqueue_flow(chain(Task(add, (1,), queue="mail"), Task(add, (2,))))
        one, two = (job.job_id for job in flow.jobs)
        later = tasks.enqueue(Task(add, (3,), queue="mail", delay=60, description="told so"))
        shown = eventually(lambda: read("queues"), "the dashboard to answer", 30)
        assert {each["name"] for each in shown["queues"]} == {"default", "mail"}
        [mail] = [each for each in shown["queues"] if each["name"] == "mail"]
        assert (mail["count"], mail["scheduled_job_registry_count"]) == (1, 1)
        assert ids("mail", "queued") == {one}
        assert ids("mail", "scheduled") == {later.job_id}
        assert ids("default", "deferred") == {two}
        assert ids("default", "failed") == {failed.job_id}
        job = read(f"job/{later.job_id}")
        assert (job["description"], job["origin"], job["status"]) == (
            "told so",
            "mail",
            "scheduled",
        )
        assert "RuntimeError: boom" in read(f"job/{failed.job_id}")["exc_info"]
        [worker] = read("workers")["workers"]
        assert worker["name"].startswith("shown.")
        assert worker["state"] == "idle"
