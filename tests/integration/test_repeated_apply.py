"""Applying the same text again changes nothing, by kubectl and by several managers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from engineroom.kube.client.resources import Resource
from tests.integration.test_admission import kubectl
from tests.unit.api.policies import FULL, policy
from tests.unit.api.specs import pool
from tests.unit.chart.rendering import render

if TYPE_CHECKING:
    from engineroom.kube.client.client import Client
    from tests.cluster.api import Cluster

#: Kinds of the chart with list items that the API server fills in.
CHART_KINDS = {
    "NetworkPolicy": Resource("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy"),
    "Deployment": Resource("apps", "v1", "deployments", "Deployment"),
}

OBJECTS = {
    "a pool with schedules": pool(
        {
            "spec.autoscaling": {
                "schedules": [{"name": "morning", "cron": "0 8 * * *", "minReplicas": 2}]
            },
            "spec.schedules": [{"name": "clean", "every": "1h", "function": "shop.jobs.clean"}],
        }
    ),
    "a small policy": policy(),
    "a policy with every field": policy({"spec": FULL}),
}


def in_namespace(obj: dict[str, Any], namespace: str) -> dict[str, Any]:
    metadata = {"name": obj["metadata"]["name"], "namespace": namespace}
    return {**obj, "metadata": metadata}


@pytest.mark.parametrize("name", OBJECTS)
async def test_kubectl_apply_reports_unchanged_the_second_time(
    control_plane: Cluster, namespace: str, name: str
) -> None:
    obj = in_namespace(OBJECTS[name], namespace)
    for options in ((), ("--server-side",)):
        first, text = await kubectl(control_plane, "apply", *options, "-f", "-", stdin=obj)
        assert first == 0, text
        _, before = await kubectl(control_plane, *_version(obj, namespace))

        _, text = await kubectl(control_plane, "apply", *options, "-f", "-", stdin=obj)

        _, after = await kubectl(control_plane, *_version(obj, namespace))
        assert after == before
        if not options:
            assert text.split()[-1] == "unchanged"


def _version(obj: dict[str, Any], namespace: str) -> tuple[str, ...]:
    kind, name = obj["kind"], obj["metadata"]["name"]
    return ("get", kind, name, "-n", namespace, "-o", "jsonpath={.metadata.resourceVersion}")


@pytest.mark.parametrize("name", OBJECTS)
async def test_a_second_manager_applies_the_same_text_without_conflict(
    client: Client, namespace: str, name: str
) -> None:
    obj = in_namespace(OBJECTS[name], namespace)
    plural = {"WorkerPool": "workerpools", "RateLimitPolicy": "ratelimitpolicies"}[obj["kind"]]
    resource = Resource("engineroom.dev", "v1alpha1", plural, obj["kind"])

    await _apply_by_two(client, resource, obj)

    # The first write after the creation stores the default of status; the next one nothing.
    one = await client.apply(resource, obj, force=False, field_manager="flux")
    other = await client.apply(resource, obj, force=False, field_manager="argocd")
    assert other["metadata"]["resourceVersion"] == one["metadata"]["resourceVersion"]


async def test_the_charts_objects_are_applied_by_two_managers_without_conflict(
    client: Client, namespace: str
) -> None:
    applied = set()
    for obj in render({"limiter": {"enabled": True}}):
        resource = CHART_KINDS.get(obj["kind"])
        if resource is not None:
            applied.add(obj["kind"])
            moved = {**obj, "metadata": {**obj["metadata"], "namespace": namespace}}
            await _apply_by_two(client, resource, moved)
    assert applied == set(CHART_KINDS)


async def _apply_by_two(client: Client, resource: Resource, obj: dict[str, Any]) -> None:
    first = await client.apply(resource, obj, force=False, field_manager="flux")
    again = await client.apply(resource, obj, force=False, field_manager="flux")
    second = await client.apply(resource, obj, force=False, field_manager="argocd")
    for repeated in (again, second):
        assert repeated["spec"] == first["spec"]
        assert repeated["metadata"]["generation"] == first["metadata"]["generation"]
