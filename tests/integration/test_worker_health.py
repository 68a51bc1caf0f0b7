"""What a worker tells of itself for others to see how it is, and what ends one that hangs."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from engineroom.tasks import Health, Task, Tasks
from tests.integration import rq_versions
from tests.integration.runtime.lab import POOL, Lab, eventually
from tests.support import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=rq_versions.versions())
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(rq_versions.interpreter(request.param), tmp_path_factory.mktemp("lab"))
    yield made
    made.close()


def test_a_worker_tells_its_job_its_time_memory_and_processor(lab: Lab) -> None:
    tasks = Tasks(lab.redis)
    process = lab.worker()
    process.field("state", "idle")
    # Idle it needs next to nothing, once its start is no longer what it tells of.
    eventually(lambda: tasks.workers()[0].cpu is not None, "a first figure")
    eventually(lambda: (tasks.workers()[0].cpu or 0.0) < 0.02, "an idle worker's figure")
    job = tasks.enqueue(Task("runtime_jobs.spin", (6,), timeout=60)).job_id
    eventually(lambda: (tasks.workers()[0].cpu or 0.0) > 0.05, "the job's processor time")
    [worker] = tasks.workers("default")
    assert (worker.health, worker.job, worker.pool, worker.pod) == (
        Health.WELL, job, POOL, "pod-1",
    )  # fmt: skip
    assert worker.memory is not None
    assert worker.memory > 1_000_000
    assert worker.host
    assert process.record()["er_job_timeout"] == "60"
    assert worker.job_started is not None
    lab.becomes(job, "finished")
    process.field("er_job_timeout", "")
    process.kill()
    [silent] = tasks.workers()
    assert silent.name == worker.name


_HANGS = """
import time
from engineroom_worker.observability.metrics import STUCK_SECONDS, SharedMetrics
from engineroom_worker.watchdog import watch
metrics = SharedMetrics(1)
metrics.set(0, "looped", time.monotonic() - STUCK_SECONDS - {late})
metrics.set(0, "alive", {alive})
watch(metrics, 0, pace=0.05)
time.sleep(1)
"""


@pytest.mark.parametrize(("late", "alive", "code"), [("1", 1, 70), ("-100", 1, 0), ("1", 0, 0)])
def test_a_worker_whose_loop_does_not_turn_is_ended(late: str, alive: int, code: int) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _HANGS.format(late=late, alive=alive)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "operator")},
        check=False,
        capture_output=True,
        timeout=20,
    )
    assert ended.returncode == code
