from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cluster import choose
from tests.cluster.api import Cluster, ClusterError
from tests.cluster.current import Current
from tests.cluster.kind import Kind
from tests.cluster.local import Local

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("value", "kind"), [("current", Current), ("kind", Kind), ("local", Local)]
)
def test_the_environment_says_which_cluster(
    monkeypatch: pytest.MonkeyPatch, value: str, kind: type
) -> None:
    monkeypatch.setenv("CLUSTER", value)
    cluster = choose.select("here")
    assert isinstance(cluster, kind)


@pytest.mark.parametrize(("docker", "kind"), [(True, Kind), (False, Local)])
def test_unsaid_it_is_kind_only_where_docker_answers(
    monkeypatch: pytest.MonkeyPatch, docker: bool, kind: type
) -> None:
    monkeypatch.delenv("CLUSTER", raising=False)
    monkeypatch.setattr(choose, "docker_answers", lambda: docker)
    assert isinstance(choose.select("here"), kind)


def test_an_unknown_value_is_refused_with_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTER", "minikube")
    with pytest.raises(ClusterError, match="current, kind or local"):
        choose.select()


def test_a_docker_command_without_an_engine_is_no_docker(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    docker = tmp_path / "docker"
    docker.write_text("#!/bin/sh\nexit 1\n")
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert not choose.docker_answers()


@pytest.mark.parametrize(
    "cluster", [Current(), Kind("here"), Local("here")], ids=["current", "kind", "local"]
)
def test_every_kind_offers_the_whole_interface(cluster: object) -> None:
    members = {name for name in dir(Cluster) if not name.startswith("_")}
    assert members <= set(dir(cluster))


@pytest.mark.parametrize("name", ["", "Upper", "a b", "-a", "a-", "../x", "x" * 31])
def test_a_name_that_could_not_be_a_namespace_is_refused(name: str) -> None:
    with pytest.raises(ClusterError, match="cannot be a cluster's name"):
        Local(name)
