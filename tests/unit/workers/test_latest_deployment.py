"""The newest state of a Deployment, from a cache that lags behind our own writes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from engineroom.workers.deployment.latest import LatestDeployment
from engineroom.workers.projections import DeploymentView, deployment_view


def view(version: int, *, replicas: int = 1, uid: str = "a", **status: Any) -> DeploymentView:
    return deployment_view(
        {
            "metadata": {
                "namespace": "shop",
                "name": "mail",
                "uid": uid,
                "resourceVersion": str(version),
                "generation": version,
            },
            "spec": {"replicas": replicas},
            "status": status,
        }
    )


def test_the_last_write_counts_until_the_cache_has_it() -> None:
    latest = LatestDeployment()
    latest.wrote(view(5, replicas=3))
    stale = view(4)
    assert latest.newest(stale) == view(5, replicas=3)
    current = view(6, replicas=2)
    assert latest.newest(current) is current
    assert latest.newest(None) is None


def test_a_deleted_deployment_takes_the_last_write_with_it() -> None:
    latest = LatestDeployment()
    latest.wrote(view(5))
    assert latest.cache_changed(None)
    assert latest.newest(None) is None


def test_the_deletion_of_a_predecessor_keeps_the_last_write() -> None:
    latest = LatestDeployment()
    latest.cache_changed(view(2, uid="old"))
    latest.wrote(view(5, uid="new"))
    assert latest.cache_changed(None)
    assert latest.newest(None) == view(5, uid="new")


def test_only_a_change_that_counts_needs_a_look() -> None:
    latest = LatestDeployment()
    assert latest.cache_changed(view(1))
    assert not latest.cache_changed(replace(view(1), resource_version="2"))
    assert latest.cache_changed(view(3, replicas=2))


def test_a_change_of_size_is_reported_once() -> None:
    latest = LatestDeployment(scaled=True)
    assert latest.take_scaled()
    assert not latest.take_scaled()
