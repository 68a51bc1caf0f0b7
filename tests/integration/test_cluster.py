"""The local control plane, started for real."""

from __future__ import annotations

import json
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests.cluster.api import ClusterError, Shape
from tests.cluster.local import Local, remove_abandoned
from tests.cluster.process import Identity, components

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "pumps.test.engineroom.dev"},
    "spec": {
        "group": "test.engineroom.dev",
        "scope": "Namespaced",
        "names": {"plural": "pumps", "singular": "pump", "kind": "Pump"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object"}},
            }
        ],
    },
}
PUMP = {"apiVersion": "test.engineroom.dev/v1", "kind": "Pump", "metadata": {"name": "bilge"}}


def kubectl(cluster: Local, *arguments: str, stdin: object = None) -> str:
    result = subprocess.run(
        ["kubectl", *arguments],
        env=cluster.env(),
        input=None if stdin is None else json.dumps(stdin),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def processes(state: Path) -> list[Identity]:
    found = []
    for root in (state / "engineroom" / "clusters").glob("[!.]*"):
        identities = (component.identity() for component in components(root))
        found += [identity for identity in identities if identity is not None]
    return found


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A place for state apart from that of the user's clusters."""
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def cluster(state: Path) -> Iterator[Local]:
    cluster = Local("shared")
    try:
        cluster.up(Shape.CONTROL_PLANE)
        yield cluster
    finally:
        cluster.down()


def test_it_is_up_in_seconds_and_up_again_at_once(cluster: Local) -> None:
    before = cluster.status()
    started = time.monotonic()
    cluster.up(Shape.CONTROL_PLANE)
    assert time.monotonic() - started < 5
    assert cluster.status() == before
    assert set(before) == {"apiserver", "controller-manager", "etcd"}
    assert all(before.values())


def test_custom_resources_survive_a_restart_of_the_api_server(cluster: Local) -> None:
    kubectl(cluster, "apply", "-f", "-", stdin=CRD)
    kubectl(cluster, "wait", "--for=condition=Established", "crd/pumps.test.engineroom.dev")
    kubectl(cluster, "apply", "-f", "-", stdin=PUMP)
    cluster.restart("apiserver")
    assert "bilge" in kubectl(cluster, "get", "pumps")


def test_controllers_make_pods_of_deployments(cluster: Local) -> None:
    kubectl(cluster, "create", "deployment", "web", "--image=any", "--replicas=2")
    kubectl(cluster, "wait", "--for=create", "pod", "-l", "app=web", "--timeout=30s")
    kubectl(cluster, "delete", "deployment", "web")


def test_while_the_api_server_is_stopped_nothing_answers(cluster: Local) -> None:
    cluster.stop("apiserver")
    try:
        result = subprocess.run(
            ["kubectl", "get", "--raw=/readyz"], env=cluster.env(), capture_output=True, check=False
        )
        assert result.returncode != 0
    finally:
        cluster.start("apiserver")
    assert kubectl(cluster, "get", "--raw=/readyz") == "ok"


def test_an_unknown_component_is_refused_with_the_known_ones(cluster: Local) -> None:
    with pytest.raises(ClusterError, match="it has: apiserver, controller-manager, etcd"):
        cluster.stop("kubelet")


def test_another_shape_is_refused(cluster: Local) -> None:
    with pytest.raises(ClusterError, match="is up as control-plane"):
        cluster.up(Shape.SCALE)


def test_a_second_cluster_runs_beside_it_and_goes_without_trace(
    cluster: Local, state: Path
) -> None:
    second = Local("second")
    try:
        second.up(Shape.CONTROL_PLANE)
        assert second.server != cluster.server
        kubectl(second, "create", "configmap", "only-here")
        assert "only-here" not in kubectl(cluster, "get", "configmaps")
        identities = processes(state)
    finally:
        second.down()
    remaining = [identity for identity in identities if identity.alive()]
    assert len(identities) == 6
    assert len(remaining) == 3
    assert not second.kubeconfig.parent.exists()


def test_what_was_killed_in_the_middle_comes_up_again(cluster: Local, state: Path) -> None:
    kubectl(cluster, "create", "configmap", "kept")
    for identity in processes(state):
        identity.end(grace=0.0)
    cluster.up(Shape.CONTROL_PLANE)
    assert "kept" in kubectl(cluster, "get", "configmaps")


def test_a_private_cluster_goes_after_its_owner(cluster: Local, state: Path) -> None:
    gone = (1 << 22, 1, "an earlier boot")
    private = Local("private", owner=gone)
    try:
        private.up(Shape.CONTROL_PLANE)
        remove_abandoned()
        assert not private.kubeconfig.exists()
        assert all(cluster.status().values())
    finally:
        private.down()
