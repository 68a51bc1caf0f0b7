"""Right-sizing of real pods: limits change under a running job, and an out-of-memory kill is
healed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from rq import Retry

from engineroom.api.quantity import parse_quantity
from engineroom.core import reasons
from tests.deployed.kube import wait_for
from tests.e2e.pool import NAMESPACE, Pool, template

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.timeout(240)

MEBI = 2**20


def resources(limit: str) -> dict[str, Any]:
    return {"requests": {"cpu": "10m", "memory": "48Mi"}, "limits": {"memory": limit}}


def actual(pool: Pool) -> Sequence[dict[str, Any]]:
    """Return the resources that the kubelet gave the workers, and their restart counts."""
    statuses = [
        status
        for pod in pool.pods()
        for status in pod["status"].get("containerStatuses", [])
        if status["name"] == "worker"
    ]
    return [
        {**status.get("resources", {}), "restarts": status["restartCount"]} for status in statuses
    ]


def memory(amounts: dict[str, Any], kind: str) -> float:
    return float(parse_quantity(amounts.get(kind, {}).get("memory", 0))) / MEBI


def test_pods_are_resized_in_place_under_running_jobs(pool: Pool) -> None:
    pool.create(
        replicas=2,
        workersPerPod=1,
        rightSizing={"mode": "InPlace"},
        template=template(resources=resources("144Mi")),
    )
    pool.wait_size(2, 60)
    before = sorted(pod["metadata"]["uid"] for pod in pool.pods())
    pool.enqueue([76] * 8, job="gather")
    pool.wait_started(2, 30)

    wait_for(
        lambda: [memory(container, "limits") > 144 for container in actual(pool)] == [True] * 2,
        40,
        lambda: f"a larger limit: {actual(pool)} {pool.get()['status']}",
    )
    # By metrics-server: requests, too.
    wait_for(
        lambda: [memory(container, "requests") > 48 for container in actual(pool)] == [True] * 2,
        60,
        lambda: f"a larger request: {actual(pool)} {pool.get()['status']}",
    )
    pool.wait_finished(8, 60)
    assert pool.account().clean
    assert sorted(pod["metadata"]["uid"] for pod in pool.pods()) == before
    assert [container["restarts"] for container in actual(pool)] == [0, 0]
    deployment = pool.kube.get("deployments", NAMESPACE, pool.name)
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"] == resources("144Mi")
    pool.wait_condition("RightSized", "True", reasons.RESOURCES_FIT, 30)


def test_a_job_killed_for_memory_raises_the_limit_and_succeeds_on_retry(
    pool: Pool,
) -> None:
    pool.create(
        replicas=1,
        workersPerPod=1,
        rightSizing={"mode": "InPlace"},
        template=template(resources=resources("128Mi")),
    )
    pool.wait_size(1, 60)
    pool.enqueue([150], job="gather", retry=Retry(max=5, interval=3))

    pool.wait_finished(1, 120)
    status = pool.get()["status"]
    assert memory(status["recommendedResources"], "limits") > 128
    assert status["lastOutOfMemoryTime"]
    notes = [
        event["message"]
        for event in pool.kube.all("events", NAMESPACE)
        if event["reason"] == reasons.WORKER_OUT_OF_MEMORY
        and event["involvedObject"]["name"] == pool.name
    ]
    assert notes
    assert "was killed for memory at its limit of 128Mi" in notes[0]
    assert [memory(container, "limits") > 128 for container in actual(pool)] == [True]
