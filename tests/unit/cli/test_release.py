"""Which installation a command finds, and which pods it takes for the installation's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from engineroom.cli.connections.release import (
    Release,
    deployment_pods,
    find_release,
    registered_releases,
    release_deployment,
)
from engineroom.cli.errors import CliError, ForbiddenError, NotFoundError, UsageError

from .test_redis_connection import Objects

if TYPE_CHECKING:
    from engineroom.cli.connections.model import Document

LABELS = {"app.kubernetes.io/part-of": "engineroom", "app.kubernetes.io/component": "api"}


def configuration(
    namespace: str, service: str = "engineroom-webhooks", webhook: str = "workerpools"
) -> Document:
    client = {"service": {"namespace": namespace, "name": service}}
    webhooks = [{"name": f"{webhook}.engineroom.dev", "clientConfig": client}]
    return {"metadata": {"name": f"{namespace}-{service}"}, "webhooks": webhooks}


def cluster_of(*configurations: Document, **objects: list[Document]) -> Objects:
    return Objects(validatingwebhookconfigurations=list(configurations), **objects)


def owned(kind: str, name: str, owner: Document | None, **metadata: Any) -> Document:
    """An object with the labels of the API, controlled by ``owner``."""
    reference = None if owner is None else {
        "kind": owner["kind"], "uid": owner["metadata"]["uid"], "controller": True
    }  # fmt: skip
    references = [reference] if reference else []
    return {
        "kind": kind,
        "metadata": {
            "name": name, "namespace": "system", "uid": f"uid-of-{name}", "labels": LABELS,
            "ownerReferences": references, **metadata,
        },
        "spec": {"selector": {"matchLabels": LABELS}},
    }  # fmt: skip


def test_the_webhooks_service_names_namespace_and_objects() -> None:
    release = find_release(cluster_of(configuration("system", "prod-webhooks-eu")), None)
    assert release.namespace == "system"
    assert release.deployment_name("api") == "prod-api-eu"
    assert Release("system").deployment_name("api") is None


def test_other_webhooks_for_the_same_kinds_name_no_installation() -> None:
    by_url = configuration("x")
    by_url["webhooks"][0]["clientConfig"] = {"url": "https://192.0.2.1"}
    policies = configuration("policies", "policies-webhooks", webhook="validate")
    assert registered_releases([by_url, policies, {"metadata": {"name": "empty"}}]) == ()


@pytest.mark.parametrize(
    ("namespaces", "named", "error", "parts"),
    [
        ((), None, NotFoundError, ["no ValidatingWebhookConfiguration", "--system-namespace"]),
        (("one", "two"), None, UsageError, ["one/", "two/", "--system-namespace"]),
    ],
)
def test_an_installation_that_is_not_clear_is_an_error_with_the_option(
    namespaces: tuple[str, ...], named: str | None, error: type[CliError], parts: list[str]
) -> None:
    with pytest.raises(error) as caught:
        find_release(cluster_of(*map(configuration, namespaces)), named)
    assert all(part in str(caught.value) for part in parts)


def test_the_option_chooses_and_needs_no_right_to_list_configurations() -> None:
    cluster = cluster_of(configuration("one"), configuration("two"))
    assert find_release(cluster, "two") == Release("two", "engineroom-webhooks")
    assert find_release(cluster, "three") == Release("three")
    cluster.denied = {"validatingwebhookconfigurations"}
    assert find_release(cluster, "two") == Release("two")
    with pytest.raises(ForbiddenError, match="--system-namespace"):
        find_release(cluster, None)


def test_two_installations_in_the_chosen_namespace_are_both_named() -> None:
    cluster = cluster_of(configuration("one", "a-webhooks"), configuration("one", "b-webhooks"))
    with pytest.raises(UsageError, match="one/a-webhooks, one/b-webhooks"):
        find_release(cluster, "one")


def test_a_deployment_is_found_by_its_name_or_alone_in_the_chosen_namespace() -> None:
    ours = owned("Deployment", "engineroom-api", None)
    older = owned("Deployment", "a-engineroom-api", None, creationTimestamp="2020-01-01T00:00:00Z")
    cluster = cluster_of(deployments=[older, ours])
    named = Release("system", "engineroom-webhooks")
    assert release_deployment(cluster, named, "api") is ours
    assert release_deployment(cluster, named, "limiter") is None
    with pytest.raises(UsageError, match="a-engineroom-api, engineroom-api"):
        release_deployment(cluster, Release("system"), "api")
    cluster.objects["deployments"] = [ours]
    assert release_deployment(cluster, Release("system"), "api") is ours
    assert release_deployment(cluster, Release("other"), "api") is None


def test_pods_are_those_of_the_deployments_replica_sets_whatever_others_are_labelled() -> None:
    deployment = owned("Deployment", "engineroom-api", None)
    other = owned("Deployment", "other", None)
    ours, theirs = owned("ReplicaSet", "ours", deployment), owned("ReplicaSet", "theirs", other)
    uncontrolled = owned("Pod", "uncontrolled", ours)
    uncontrolled["metadata"]["ownerReferences"][0]["controller"] = False
    deleted = owned("Pod", "deleted", ours, deletionTimestamp="2026-01-01T00:00:00Z")
    other_kind = owned("Pod", "other-kind", ours)
    other_kind["metadata"]["ownerReferences"][0]["kind"] = "StatefulSet"
    elsewhere = owned("Pod", "elsewhere", ours, namespace="tenant")
    pods = [
        owned("Pod", "bare", None), owned("Pod", "of-another", theirs), uncontrolled, deleted,
        other_kind, elsewhere, owned("Pod", "pod", ours),
    ]  # fmt: skip
    cluster = cluster_of(replicasets=[theirs, ours], pods=pods)
    names = [pod["metadata"]["name"] for pod in deployment_pods(cluster, deployment)]
    assert names == ["pod"]
