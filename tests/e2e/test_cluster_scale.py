"""Simulated nodes: their pods are reported as running, and are deleted."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.cluster.api import Shape
from tests.cluster.local import Local
from tests.cluster.process import Identity

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(
    os.environ.get("CLUSTER", "local") != "local", reason="only a local cluster simulates nodes"
)


def kubectl(cluster: Local, *arguments: str) -> str:
    command = ["kubectl", *arguments]
    result = subprocess.run(command, env=cluster.env(), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def cluster() -> Iterator[Local]:
    identity = Identity.of(os.getpid())
    assert identity is not None
    cluster = Local(f"scale-{os.getpid()}", owner=(identity.pid, identity.started, identity.boot))
    try:
        cluster.up(Shape.SCALE)
        yield cluster
    finally:
        cluster.down()


def test_pods_of_deployments_run_and_are_deleted(cluster: Local) -> None:
    kubectl(cluster, "create", "deployment", "web", "--image=any", "--replicas=40")
    kubectl(cluster, "wait", "--for=condition=Available", "deployment/web", "--timeout=60s")
    pods = json.loads(kubectl(cluster, "get", "pods", "--output=json"))["items"]
    assert len({pod["spec"]["nodeName"] for pod in pods}) > 1
    assert all(pod["status"]["phase"] == "Running" for pod in pods)
    kubectl(cluster, "delete", "deployment", "web")
    kubectl(cluster, "wait", "--for=delete", "pods", "--selector=app=web", "--timeout=60s")


def test_jobs_complete(cluster: Local) -> None:
    kubectl(cluster, "create", "job", "once", "--image=any")
    kubectl(cluster, "wait", "--for=condition=Complete", "job/once", "--timeout=30s")
