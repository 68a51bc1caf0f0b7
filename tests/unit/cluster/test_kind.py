from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cluster.api import ClusterError, Shape
from tests.cluster.current import Current
from tests.cluster.kind import Kind

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class Recorder:
    """Takes commands instead of a machine that has kind."""

    def __init__(self, clusters: str = "") -> None:
        self.commands: list[str] = []
        self._clusters = clusters

    def __call__(self, command: Sequence[str], stdin: str = "") -> str:
        del stdin
        self.commands.append(" ".join(command))
        return self._clusters if list(command) == ["kind", "get", "clusters"] else ""


@pytest.fixture(autouse=True)
def state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


def test_up_creates_a_cluster_with_a_kubeconfig_of_its_own(state: Path) -> None:
    run = Recorder()
    Kind("here", run=run).up(Shape.NODE)
    kubeconfig = state / "engineroom/kind/here/kubeconfig"
    assert run.commands == [
        "kind get clusters",
        f"kind create cluster --name here --wait 120s --kubeconfig {kubeconfig} --config -",
    ]


def test_up_again_only_fetches_the_kubeconfig(state: Path) -> None:
    run = Recorder(clusters="other\nhere\n")
    Kind("here", run=run).up(Shape.CONTROL_PLANE)
    kubeconfig = state / "engineroom/kind/here/kubeconfig"
    assert run.commands[1:] == [
        f"kind export kubeconfig --name here --kubeconfig {kubeconfig}",
    ]


def test_down_deletes_that_cluster_only(state: Path) -> None:
    run = Recorder()
    Kind("here", run=run).down()
    kubeconfig = state / "engineroom/kind/here/kubeconfig"
    assert run.commands == [f"kind delete cluster --name here --kubeconfig {kubeconfig}"]


def test_an_archive_and_a_built_image_are_loaded_each_in_its_way(tmp_path: Path) -> None:
    run = Recorder()
    archive = tmp_path / "image.tar"
    archive.touch()
    cluster = Kind("here", run=run)
    cluster.load(archive)
    cluster.load("engineroom:local")
    assert run.commands == [
        f"kind load image-archive {archive} --name here",
        "kind load docker-image engineroom:local --name here",
    ]


def test_a_static_pod_stops_when_its_manifest_goes_and_starts_when_it_is_back() -> None:
    run = Recorder()
    cluster = Kind("here", run=run)
    cluster.restart("apiserver")
    in_node = [c.removeprefix("docker exec here-control-plane ") for c in run.commands]
    manifests, aside = "/etc/kubernetes/manifests", "/etc/kubernetes/stopped"
    assert in_node[:3] == [
        f"mkdir -p {aside}",
        f"mv {manifests}/kube-apiserver.yaml {aside}/kube-apiserver.yaml",
        f"mv {aside}/kube-apiserver.yaml {manifests}/kube-apiserver.yaml",
    ]


def test_the_kubelet_is_a_service_of_the_node() -> None:
    run = Recorder()
    Kind("here", run=run).stop("kubelet")
    assert run.commands == ["docker exec here-control-plane systemctl stop kubelet"]


def test_an_unknown_component_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ClusterError, match="apiserver, etcd"):
        Kind("here", run=Recorder()).stop("metrics-server")


def test_simulated_nodes_are_refused() -> None:
    with pytest.raises(ClusterError, match="CLUSTER=local"):
        Kind("here", run=Recorder()).up(Shape.SCALE)


def test_somebodys_cluster_is_neither_loaded_nor_broken() -> None:
    run = Recorder()
    cluster = Current(run=run)
    with pytest.raises(ClusterError, match="push it to a registry"):
        cluster.load("engineroom:local")
    with pytest.raises(ClusterError, match="not ours"):
        cluster.restart("apiserver")
    cluster.down()
    assert run.commands == []
