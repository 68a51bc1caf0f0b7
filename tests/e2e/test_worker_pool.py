"""WorkerPools on real pods: their guarantees under load, changes and faults."""

from __future__ import annotations

import base64
import itertools
import json
import os
import random
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
from rq import Retry
from rq.job import Job

from engineroom.core import reasons
from tests.deployed.installation import NAMESPACE as SYSTEM
from tests.deployed.kube import wait_for
from tests.e2e.pool import NAMESPACE, QUICK, Pool, is_ready, template

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.deployed.installation import Installation
    from tests.e2e.fragile import FragileRedis

pytestmark = pytest.mark.timeout(240)


def mixed(orders: int, longest: float = 3.0, seed: int = 7) -> list[float]:
    """Return durations, most of them short."""
    chance = random.Random(seed)
    return [
        round(
            chance.uniform(0.05, 0.4) if chance.random() < 0.85 else chance.uniform(1, longest), 3
        )
        for _ in range(orders)
    ]


class Meanwhile:
    """Repeats an action every `every` seconds while the block runs."""

    def __init__(self, what: Callable[[], None], every: float) -> None:
        self._what = what
        self._every = every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.times = 0
        self.error: Exception | None = None

    def __enter__(self) -> Meanwhile:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            while not self._over.wait(self._every):
                self._what()
                self.times += 1
        except Exception as error:  # noqa: BLE001  raised again in the test's own thread
            self.error = error


def test_a_job_enqueued_on_an_empty_pool_runs_and_the_pool_goes_back_to_zero(pool: Pool) -> None:
    pool.create()
    pool.wait_condition("Ready", "True", None, 30)
    assert pool.pods() == []

    pool.enqueue([0.1])

    pool.wait_finished(1, 30)
    assert pool.get()["status"]["desiredReplicas"] >= 1
    pool.wait_size(0, 60)
    assert pool.account().clean


def test_the_pool_grows_in_one_step_and_shows_the_reason(pool: Pool) -> None:
    pool.create(workersPerPod=1, autoscaling={**QUICK, "maxReplicas": 3})
    pool.wait_condition("Ready", "True", None, 30)

    pool.enqueue([1.5] * 20)

    wait_for(
        lambda: pool.get()["status"].get("desiredReplicas") == 3,
        10,
        lambda: f"3 wanted: {pool.get()['status']}",
    )
    limited = pool.wait_condition("ScalingLimited", "True", reasons.AT_MAX_REPLICAS, 10)
    assert limited["message"]
    # From none straight to three: no size between was ever asked for.
    sizes = [
        event["message"]
        for event in pool.kube.all("events", NAMESPACE)
        if event["reason"] == reasons.SCALED_UP and event["involvedObject"]["name"] == pool.name
    ]
    assert len(sizes) == 1
    assert sizes[0].startswith("from 0 to 3 pods")
    pool.wait_finished(20, 90)
    assert pool.account().clean


def test_200_jobs_survive_constant_scaling(pool: Pool) -> None:
    pool.create(replicas=2)
    pool.wait_size(2, 60)
    pool.enqueue(mixed(200))
    sizes = itertools.cycle([4, 1, 3, 0, 2])

    # A new pod takes some seconds to its first job, more on a busy machine: with shorter steps most
    # pods would leave before it, and nothing would progress.
    with Meanwhile(lambda: pool.scale(next(sizes)), every=4.0) as moving:
        wait_for(lambda: moving.times >= 12, 120, lambda: f"12 steps; {moving.times} were made")
    pool.scale(4)
    pool.wait_finished(200, 120)

    account = pool.account()
    assert account.enqueued == account.finished == 200
    assert account.clean, account


def test_kubectl_scale_sets_and_reads_the_size(pool: Pool) -> None:
    pool.create(replicas=1)
    pool.wait_size(1, 60)

    pool.scale(2)
    pool.wait_size(2, 60)
    scale = pool.installation.kubectl(
        "get", "--raw", pool.kube.path("workerpools", NAMESPACE, pool.name) + "/scale"
    )
    assert '"replicas":2' in scale
    assert f"engineroom.dev/pool={pool.name}" in scale

    pool.scale(0)
    pool.wait_size(0, 60)


def test_a_suspended_pool_keeps_its_workers_and_takes_no_job(pool: Pool) -> None:
    pool.create(replicas=1)
    pool.wait_size(1, 60)
    pool.patch({"suspend": True})
    pool.wait_condition("ScalingActive", "False", reasons.SUSPENDED, 10)

    pool.enqueue([0.05] * 4)
    time.sleep(3)  # long enough for an idle worker to have taken them
    assert pool.started() == 0
    assert sum(is_ready(pod) for pod in pool.pods()) == 1

    pool.patch({"suspend": False})
    pool.wait_finished(4, 20)
    assert pool.account().clean


@pytest.mark.parametrize("on_deadline", ["Fail", "Requeue"])
def test_a_job_that_exceeds_the_drain_is_ended_gracefully(pool: Pool, on_deadline: str) -> None:
    pool.create(
        replicas=1,
        workersPerPod=1,
        drain={"maxJobDuration": "5s", "onDeadline": on_deadline},
    )
    pool.wait_size(1, 60)
    (job_id,) = pool.enqueue([120], timeout=600)
    pool.wait_started(1, 20)

    pool.scale(0)

    wanted = {"Fail": "failed", "Requeue": "queued"}[on_deadline]
    wait_for(
        lambda: Job.fetch(job_id, connection=pool.client).get_status() == wanted,
        60,
        lambda: f"{wanted}: {Job.fetch(job_id, connection=pool.client).get_status()}",
    )
    pool.wait_size(0, 60)
    if on_deadline == "Requeue":
        # It waits for the next worker; nothing else happened to it.
        assert pool.client.lrange(f"rq:queue:{pool.name}", 0, -1) == [job_id.encode()]


def test_a_rollout_under_load_loses_no_job(pool: Pool) -> None:
    pool.create(replicas=2)
    pool.wait_size(2, 60)
    before = {pod["metadata"]["name"] for pod in pool.pods()}
    pool.enqueue(mixed(120))
    pool.wait_started(10, 30)

    pool.patch({"template": {"metadata": {"annotations": {"example.com/release": "2"}}}})

    pool.wait_finished(120, 120)
    wait_for(
        lambda: not before & {pod["metadata"]["name"] for pod in pool.pods()},
        90,
        lambda: f"old pods gone: {before}, {[pod['metadata']['name'] for pod in pool.pods()]}",
    )
    pool.wait_size(2, 60)
    assert pool.account().clean, pool.account()


def test_the_job_of_a_worker_that_was_killed_runs_again(pool: Pool) -> None:
    pool.create(replicas=1, workersPerPod=1)
    pool.wait_size(1, 60)
    pool.enqueue([6], retry=Retry(3))
    pool.wait_started(1, 20)

    # SIGKILL to all of it at once, as on the loss of its node.
    pool.kube.delete("pods", NAMESPACE, pool.pods()[0]["metadata"]["name"], grace=0)

    pool.wait_finished(1, 60)
    account = pool.account()
    assert not account.lost
    assert not account.doubled
    assert account.killed == ("00000",)
    wait_for(
        lambda: any(
            event["reason"] in (reasons.JOB_REQUEUED, reasons.WORKER_LOST)
            and event["involvedObject"]["name"] == pool.name
            for event in pool.kube.all("events", NAMESPACE)
        ),
        15,
        "an event on the pool that tells of it",
    )


def test_an_operator_killed_in_the_middle_loses_no_job(
    pool: Pool, installation: Installation
) -> None:
    pool.create(replicas=3)
    pool.wait_size(3, 60)
    pool.enqueue(mixed(120))
    pool.wait_started(5, 30)
    sizes = itertools.cycle([1, 3])

    def kill_amid_scaling() -> None:
        pool.scale(next(sizes))
        time.sleep(random.Random(3).uniform(0.05, 0.5))  # another step of it each time
        for pod in installation.kube.all(
            "pods", SYSTEM, selector="app.kubernetes.io/component=operator"
        ):
            installation.kube.delete("pods", SYSTEM, pod["metadata"]["name"], grace=0)

    with Meanwhile(kill_amid_scaling, every=6.0) as killing:
        pool.wait_finished(120, 150)

    assert killing.times >= 1
    assert pool.account().clean, pool.account()
    pool.scale(1)
    pool.wait_size(1, 90)


def test_a_redis_outage_of_20_seconds_loses_no_job(pool: Pool, fragile_redis: FragileRedis) -> None:
    pool.create(
        workersPerPod=1,
        redis={"urlSecretRef": {"name": fragile_redis.name, "key": "url"}},
        autoscaling={**QUICK, "minReplicas": 2, "maxReplicas": 2},
    )
    pool.wait_size(2, 60)
    fragile_redis.enqueue(pool.name, [1.0] * 30)
    wait_for(lambda: fragile_redis.finished(pool.name) >= 4, 60, "4 orders finished")

    fragile_redis.take_away()
    away = time.monotonic()
    pool.wait_condition("RedisReachable", "False", reasons.REDIS_UNREACHABLE, 15)
    while time.monotonic() < away + 20:
        # The size is held: a failed measurement is no empty queue.
        assert pool.kube.get("deployments", NAMESPACE, pool.name)["spec"]["replicas"] == 2
        time.sleep(1)
    fragile_redis.bring_back()

    pool.wait_condition("RedisReachable", "True", None, 30)
    wait_for(
        lambda: fragile_redis.finished(pool.name) >= 30,
        90,
        lambda: f"30 orders finished; {fragile_redis.finished(pool.name)} are",
    )
    account = fragile_redis.account(pool.name)
    assert not account.lost, account


class TestProblemsAreReportedAndCleared:
    """A condition shows a problem within 10 s, and clears when the problem is fixed."""

    def test_image_without_rq(self, pool: Pool) -> None:
        # The system's own Python, beside the environment that has RQ.
        pool.create(replicas=1, template=template(command=["/usr/bin/python3"]))
        pods = wait_for(pool.pods, 30, "a pod")
        wait_for(
            lambda: any(
                status.get("restartCount", 0) or "terminated" in status.get("state", {})
                for pod in pool.pods()
                for status in pod["status"].get("containerStatuses", [])
            ),
            60,
            lambda: f"the worker ended: {pods[0]['status']}",
        )
        trouble = pool.wait_condition("Ready", "False", reasons.NO_RQ_IN_IMAGE, 10)
        assert "RQ" in trouble["message"]

        pool.patch({"template": template()})
        pool.wait_condition("Ready", "True", None, 60)
        pool.wait_size(1, 60)

    def test_wrong_redis_url(self, pool: Pool) -> None:
        secret(pool, "http://not.redis")
        pool.create(redis=reference(pool))
        pool.wait_condition("RedisReachable", "False", reasons.REDIS_URL_INVALID, 10)
        assert pool.condition("Ready")["status"] == "False"
        # The URL may hold a password: it is never shown.
        assert "not.redis" not in str(pool.get()["status"])

        secret(pool, pool.installation.redis_url())
        pool.wait_condition("Ready", "True", None, 40)

    def test_missing_secret(self, pool: Pool) -> None:
        pool.create(redis=reference(pool))
        pool.wait_condition("RedisReachable", "False", reasons.SECRET_NOT_FOUND, 10)

        secret(pool, pool.installation.redis_url())
        pool.wait_condition("Ready", "True", None, 40)
        pool.enqueue([0.1])
        pool.wait_finished(1, 40)

    def test_unreachable_redis(self, pool: Pool) -> None:
        # Nobody listens there.
        secret(pool, "redis://127.0.0.1:1/0")
        pool.create(redis=reference(pool))
        pool.wait_condition("RedisReachable", "False", reasons.REDIS_UNREACHABLE, 10)

        secret(pool, pool.installation.redis_url())
        pool.wait_condition("Ready", "True", None, 40)


def secret(pool: Pool, url: str) -> None:
    """Return the Secret that the pool's spec refers to."""
    body = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": f"{pool.name}-url"},
        "data": {"url": base64.b64encode(url.encode()).decode()},
    }
    pool.kube.apply("secrets", NAMESPACE, body)


def reference(pool: Pool) -> dict[str, object]:
    """Return `spec.redis` with a reference to that Secret."""
    return {"urlSecretRef": {"name": f"{pool.name}-url", "key": "url"}}


def test_jobs_are_managed_from_outside_the_cluster(pool: Pool) -> None:
    """The command finds Secret, Service and pod with the user's rights, without a URL or
    port-forward.
    """
    pool.create(suspend=True)
    first, *rest = pool.enqueue([0.1, 0.1, 0.1])
    environment = {**pool.installation.cluster.env(), "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("ENGINEROOM_REDIS_URL", None)

    def line(*arguments: str) -> list[str]:
        program = "from engineroom.cli.app.main import main; main()"
        command = [sys.executable, "-c", program, "-n", NAMESPACE, *arguments]
        command += ["--pool", pool.name, "-o", "name"]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    assert line("jobs", "list", "-q", pool.name) == [first, *rest]
    assert line("jobs", "cancel", first, "--yes") == [first]
    assert line("jobs", "list", "-q", pool.name, "-s", "waiting") == rest
    # More than fits one frame of the way through the API server.
    large = line("enqueue", "shop.none", "--arg", json.dumps("x" * 100_000), "--arg",
                 json.dumps("y" * 100_000), "-q", pool.name, "--delay", "1h")  # fmt: skip
    assert len(line("jobs", "show", *large)) == 1
    assert line("jobs", "list", "-q", pool.name, "-s", "scheduled") == large
    pool.patch({"suspend": False})
    pool.wait_finished(2, 60)
