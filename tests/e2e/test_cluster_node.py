"""The local node: its pods are real, and nothing of it remains."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cluster import images
from tests.cluster.api import Shape
from tests.cluster.local import Local
from tests.cluster.process import Identity, components

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(
    os.environ.get("CLUSTER", "local") != "local" or os.geteuid() != 0,
    reason="looks at what a local cluster leaves on the machine; needs root",
)

REDIS = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "redis"},
    "spec": {
        "selector": {"matchLabels": {"app": "redis"}},
        "template": {
            "metadata": {"labels": {"app": "redis"}},
            "spec": {
                "containers": [
                    {
                        "name": "redis",
                        "image": images.REDIS,
                        "imagePullPolicy": "IfNotPresent",
                        "ports": [{"containerPort": 6379}],
                        "readinessProbe": {"tcpSocket": {"port": 6379}, "periodSeconds": 1},
                        "resources": {
                            "requests": {"cpu": "10m", "memory": "16Mi"},
                            "limits": {"cpu": "500m", "memory": "64Mi"},
                        },
                    }
                ]
            },
        },
    },
}
SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "redis"},
    "spec": {"selector": {"app": "redis"}, "ports": [{"port": 6379}]},
}
BUDGET = {
    "apiVersion": "policy/v1",
    "kind": "PodDisruptionBudget",
    "metadata": {"name": "redis"},
    "spec": {"selector": {"matchLabels": {"app": "redis"}}, "minAvailable": 1},
}
POD = "deployment/redis"


def kubectl(cluster: Local, *arguments: str, stdin: object = None, check: bool = True) -> str:
    result = subprocess.run(
        ["kubectl", *arguments],
        env=cluster.env(),
        input=None if stdin is None else json.dumps(stdin),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0 or not check, result.stderr
    return result.stdout + result.stderr


def traces(name: str) -> list[str]:
    """List everything that a node cluster of this name could leave on the machine."""
    marked = f"engineroom-{name}"
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    leftovers = [mount for mount in mounts if marked in mount or f"/engineroom/{name}" in mount]
    patterns = (
        f"run/netns/{marked}",
        f"sys/fs/cgroup/{marked}",
        f"sys/fs/cgroup/*/{marked}",
        f"run/engineroom/{name}",
        f"var/lib/engineroom/{name}",
        f"var/lib/cni/results/{marked}-*",
    )
    for pattern in patterns:
        leftovers += map(str, Path("/").glob(pattern))
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (folder / "cmdline").read_bytes().decode(errors="replace")
            if f"/engineroom/{name}" in command or f"/clusters/{name}/" in command:
                leftovers.append(command.replace("\0", " "))
    return leftovers


@pytest.fixture(scope="module")
def cluster() -> Iterator[Local]:
    """A separate cluster, which these tests break and remove."""
    identity = Identity.of(os.getpid())
    assert identity is not None
    cluster = Local(f"node-{os.getpid()}", owner=(identity.pid, identity.started, identity.boot))
    try:
        cluster.up(Shape.NODE)
        cluster.load(images.REDIS)
        for thing in (REDIS, SERVICE, BUDGET):
            kubectl(cluster, "apply", "-f", "-", stdin=thing)
        available = ("wait", "--for=condition=Available", POD, "--timeout=60s")
        kubectl(cluster, *available)
        yield cluster
    finally:
        cluster.down()


def test_a_pod_runs_and_logs(cluster: Local) -> None:
    assert "Ready to accept connections" in kubectl(cluster, "logs", POD)


def test_a_pod_finds_a_service_by_name(cluster: Local) -> None:
    answer = kubectl(cluster, "exec", POD, "--", "redis-cli", "-h", "redis", "ping")
    assert answer.strip() == "PONG"


def test_names_outside_the_cluster_fail_to_resolve_at_once(cluster: Local) -> None:
    started = time.monotonic()
    kubectl(cluster, "exec", POD, "--", "getent", "hosts", "example.com", check=False)
    assert time.monotonic() - started < 5


def test_the_machine_reaches_pods_and_services(cluster: Local) -> None:
    addresses = (
        kubectl(cluster, "get", "service/redis", "--output=jsonpath={.spec.clusterIP}"),
        kubectl(cluster, "get", "pods", "--output=jsonpath={.items[0].status.podIP}"),
    )
    for address in addresses:
        with socket.create_connection((address, 6379), timeout=5) as connection:
            connection.sendall(b"PING\r\n")
            assert connection.recv(16) == b"+PONG\r\n"


def test_a_port_is_forwarded(cluster: Local) -> None:
    command = ["kubectl", "port-forward", POD, ":6379"]
    with subprocess.Popen(command, env=cluster.env(), stdout=subprocess.PIPE, text=True) as forward:
        try:
            assert forward.stdout is not None
            port = int(forward.stdout.readline().split("127.0.0.1:")[1].split()[0])
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                connection.sendall(b"PING\r\n")
                assert connection.recv(16) == b"+PONG\r\n"
        finally:
            forward.terminate()


def test_a_pod_is_resized_in_place(cluster: Local) -> None:
    pod = kubectl(cluster, "get", "pods", "--output=name").strip()
    limits = {"limits": {"cpu": "500m", "memory": "96Mi"}}
    patch = {"spec": {"containers": [{"name": "redis", "resources": limits}]}}
    kubectl(cluster, "patch", pod, "--subresource=resize", "--patch", json.dumps(patch))
    memory = "{.status.containerStatuses[0].resources.limits.memory}"
    kubectl(cluster, "wait", f"--for=jsonpath={memory}=96Mi", pod, "--timeout=30s")
    restarts = "--output=jsonpath={.status.containerStatuses[0].restartCount}"
    assert kubectl(cluster, "get", pod, restarts) == "0"


def test_a_disruption_budget_protects_the_last_pod(cluster: Local) -> None:
    output = kubectl(cluster, "drain", "engineroom", "--timeout=2s", "--force", check=False)
    kubectl(cluster, "uncordon", "engineroom")
    assert "disruption budget" in output


def test_usage_is_measured(cluster: Local) -> None:
    deadline = time.monotonic() + 60
    while "redis" not in (output := kubectl(cluster, "top", "pods", check=False)):
        assert time.monotonic() < deadline, output
        time.sleep(1)


def test_the_cluster_restarts_with_its_pods_after_all_processes_were_killed(cluster: Local) -> None:
    for component in components(cluster.kubeconfig.parent):
        identity = component.identity()
        assert identity is not None
        identity.end(grace=0.0)
    cluster.up(Shape.NODE)
    kubectl(cluster, "wait", "--for=condition=Available", POD, "--timeout=60s")
    answer = kubectl(cluster, "exec", POD, "--", "redis-cli", "-h", "redis", "ping")
    assert answer.strip() == "PONG"


def test_nothing_remains_after_a_crash(cluster: Local) -> None:
    assert traces(cluster.name), "the patterns find nothing of a cluster that is up"
    for component in components(cluster.kubeconfig.parent):
        identity = component.identity()
        assert identity is not None
        identity.end(grace=0.0)
    cluster.down()
    assert traces(cluster.name) == []
    assert not cluster.kubeconfig.parent.exists()
