"""The chart's life cycle on a real cluster: install, test, upgrade, uninstall and install again.

It uses a separate cluster, because it removes the CRDs and webhooks of the whole cluster. The tests
depend on each other, in the order of this file.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.cluster import choose
from tests.cluster import images as building
from tests.cluster.api import ClusterError, Shape
from tests.cluster.process import Identity
from tests.deployed import images
from tests.deployed.installation import CHART, Installation, local_values
from tests.deployed.kube import KubeError, condition, wait_for
from tests.support import pool_document, shared_namespace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.deployed.kube import Object

RELEASE = "engineroom"
NAMESPACE = "chart-test"
SHOP = "chart-shop"
CRD = "workerpools.engineroom.dev"
RESTRICTED = {
    "pod-security.kubernetes.io/enforce": "restricted",
    "pod-security.kubernetes.io/enforce-version": "latest",
}


class Release:
    """A release of the chart, and actions on it."""

    def __init__(self, installation: Installation, folder: Path) -> None:
        self.installation = installation
        self.kube = installation.kube
        self._folder = folder

    def values(self, values: Object) -> str:
        """Write these values, on top of those of the local images, to a file."""
        base = local_values()
        # As it is delivered: two of each.
        del base["operator"], base["webhooks"], base["api"]
        path = self._folder / f"values-{secrets.token_hex(4)}.json"
        path.write_text(json.dumps({**base, **values}))
        return str(path)

    def upgrade(self, chart: Path = CHART, name: str = RELEASE, **values: Any) -> str:
        """Install or upgrade; return when all is ready."""
        redis = {**local_values()["redis"], **values.pop("redis", {})}
        return self.installation.helm(
            "upgrade", "--install", name, str(chart), "--namespace", NAMESPACE,
            "--values", self.values({"redis": redis, **values}), "--wait", "--timeout", "3m",
        )  # fmt: skip

    def uninstall(self, name: str = RELEASE) -> None:
        """Uninstall; return when everything is deleted."""
        self.installation.helm("uninstall", name, "--namespace", NAMESPACE, "--wait")

    def test(self) -> str:
        """Return the output of `helm test`. Raises ClusterError if a check fails."""
        return self.installation.helm("test", RELEASE, "--namespace", NAMESPACE, "--logs")

    def secret(self, name: str) -> dict[str, str]:
        """Return a Secret's data, decoded."""
        data = self.kube.get("secrets", NAMESPACE, name)["data"]
        return {key: base64.b64decode(value).decode() for key, value in data.items()}

    def authorities(self) -> list[str]:
        """Return the CA bundles by which the API server trusts the webhooks."""
        name = f"{NAMESPACE}-{RELEASE}-webhooks"
        configuration = self.kube.get("validatingwebhookconfigurations", None, name)
        return [webhook["clientConfig"]["caBundle"] for webhook in configuration["webhooks"]]

    def leftovers(self) -> set[str]:
        """List the existing objects of the release, of any kind."""
        kinds = (
            "deployments,statefulsets,pods,services,configmaps,secrets,serviceaccounts,roles,"
            "rolebindings,networkpolicies,poddisruptionbudgets,clusterroles,clusterrolebindings,"
            "validatingwebhookconfigurations"
        )
        names = self.installation.kubectl(
            "get", kinds, "--all-namespaces", "--output", "name",
            "--selector", "app.kubernetes.io/part-of=engineroom",
        )  # fmt: skip
        return set(names.split())

    def all_of_the_namespace(self) -> set[str]:
        """List all objects in the release's namespace, except Events."""
        kubectl = self.installation.kubectl
        kinds = set(
            kubectl("api-resources", "--namespaced", "--verbs=list", "--output", "name").split()
        ) - {"events", "events.events.k8s.io", "pods.metrics.k8s.io"}
        names = kubectl(
            "get", ",".join(sorted(kinds)), "--namespace", NAMESPACE, "--output", "name"
        )
        return set(names.split())


def pool(name: str, **spec: Any) -> Object:
    """Return a pool without work and so without pods."""
    return pool_document(
        SHOP,
        name,
        container={"name": "worker", "image": images.SHOP.name},
        **{"queues": [{"name": name}], "autoscaling": {"minReplicas": 0}, **spec},
    )


def namespace(name: str) -> Object:
    """Return a namespace that admits restricted pods only and shares the chart's Redis."""
    return shared_namespace(name, **RESTRICTED)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """A cluster with the images and without Engineroom."""
    owner = Identity.of(os.getpid())
    assert owner is not None
    archives = [
        building.build(image.dockerfile, image.target, image.name, image.context)
        for image in (images.ENGINEROOM, images.RUNTIME)
    ]
    # Two runs on one machine must not take each other's.
    cluster = choose.select(f"chart-{secrets.token_hex(4)}", owner=astuple(owner))
    cluster.up(Shape.NODE)
    release = Release(Installation(cluster), tmp_path_factory.mktemp("chart"))
    try:
        if release.kube.find("customresourcedefinitions", None, CRD) is not None:
            pytest.skip("Engineroom is installed on this cluster; these tests would remove it")
        images.load(cluster, archives)
        for name in (NAMESPACE, SHOP):
            release.kube.apply("namespaces", None, namespace(name))
        yield release
        clean(release)
    finally:
        cluster.down()


def clean(release: Release) -> None:
    """Restore a cluster that another session owns."""
    if RELEASE in release.installation.helm("list", "--namespace", NAMESPACE, "--short"):
        release.uninstall()
    release.installation.kubectl("delete", "crd", CRD, "--ignore-not-found")
    release.installation.kubectl("delete", "namespace", NAMESPACE, SHOP, "--wait=false")


def ready(release: Release, name: str) -> Object:
    """Return the pool once the operator reports that it matches its spec."""

    def look() -> Object | None:
        found = release.kube.get("workerpools", SHOP, name)
        current = found.get("status", {}).get("observedGeneration")
        settled = current == found["metadata"]["generation"]
        return found if settled and condition(found, "Ready")["status"] == "True" else None

    return wait_for(look, 60, f"pool {name} is ready")


def test_install_in_a_restricted_namespace(release: Release) -> None:
    release.upgrade()
    deployments = {
        d["metadata"]["name"]: d["status"].get("readyReplicas")
        for d in release.kube.all("deployments", NAMESPACE)
    }
    assert deployments == {
        "engineroom-operator": 2,
        "engineroom-webhooks": 2,
        "engineroom-api": 2,
    }
    for pod in release.kube.all("pods", NAMESPACE):
        assert condition(pod, "Ready")["status"] == "True"


def test_helm_test_passes(release: Release) -> None:
    output = release.test()
    lines = [line for line in output.splitlines() if line.startswith(("ok ", "FAIL "))]
    assert [line.split(":")[0] for line in lines] == [
        "ok    image runs",
        "ok    kinds are served",
        "ok    operator leads",
        "ok    right pool is admitted",
        "ok    wrong pool is refused",
        "ok    redis answers",
        "ok    api answers",
    ]
    # Its rights were its own, and are gone.
    accounts = {a["metadata"]["name"] for a in release.kube.all("serviceaccounts", NAMESPACE)}
    ours = {f"engineroom-{component}" for component in ("operator", "webhooks", "api")}
    assert accounts == {"default", *ours}


def test_a_valid_pool_runs_and_an_invalid_one_is_refused(release: Release) -> None:
    release.kube.create("workerpools", SHOP, pool("steady"))
    ready(release, "steady")
    # Nothing was to do yet, so there is nothing beside the pool itself.
    assert release.kube.all("deployments", SHOP) == []
    schedule = {"name": "never", "cron": "61 25 * * *", "minReplicas": 1}
    with pytest.raises(KubeError, match=r"denied the request.*cron"):
        release.kube.create("workerpools", SHOP, pool("x", autoscaling={"schedules": [schedule]}))


def test_an_upgrade_changes_only_the_given_values(release: Release) -> None:
    redis = release.kube.get("pods", NAMESPACE, "engineroom-redis-0")["metadata"]["uid"]
    names = ("engineroom-redis", "engineroom-api")
    before = [release.secret(name) for name in names], release.authorities()
    steady = release.kube.get("workerpools", SHOP, "steady")["metadata"]["resourceVersion"]
    release.upgrade(operator={"replicas": 1, "logLevel": "debug"}, limiter={"enabled": True})
    assert release.kube.get("deployments", NAMESPACE, "engineroom-limiter")
    operator = release.kube.get("deployments", NAMESPACE, "engineroom-operator")["spec"]
    assert operator["replicas"] == 1
    environment = operator["template"]["spec"]["containers"][0]["env"]
    assert {"name": "ENGINEROOM_LOG_LEVEL", "value": "DEBUG"} in environment
    assert ([release.secret(name) for name in names], release.authorities()) == before
    assert release.secret("engineroom-webhooks-tls")["tls.crt"]
    pod = release.kube.get("pods", NAMESPACE, "engineroom-redis-0")["metadata"]["uid"]
    assert pod == redis
    after = release.kube.get("workerpools", SHOP, "steady")["metadata"]["resourceVersion"]
    assert after == steady


def test_an_upgrade_updates_the_crds(release: Release, tmp_path: Path) -> None:
    chart = tmp_path / "engineroom"
    shutil.copytree(CHART, chart)
    path = chart / "files/crds" / f"{CRD}.yaml"
    definition = yaml.safe_load(path.read_text())
    column = {"name": "Tomorrow", "type": "string", "jsonPath": ".spec.suspend"}
    definition["spec"]["versions"][0]["additionalPrinterColumns"].append(column)
    path.write_text(yaml.safe_dump(definition))
    release.upgrade(chart, operator={"replicas": 1})
    assert "TOMORROW" in release.installation.kubectl("get", "workerpools", "-n", SHOP)
    release.upgrade(operator={"replicas": 1})
    assert "TOMORROW" not in release.installation.kubectl("get", "workerpools", "-n", SHOP)
    ready(release, "steady")


def test_helm_test_names_the_problem(release: Release) -> None:
    release.upgrade(test={"timeoutSeconds": 3}, operator={"replicas": 1})
    release.kube.patch(
        "statefulsets", NAMESPACE, "engineroom-redis", {"spec": {"replicas": 0}}, "scale"
    )
    release.installation.kubectl(
        "wait", "--for=delete", "pod/engineroom-redis-0", "-n", NAMESPACE, "--timeout=60s"
    )
    with pytest.raises(ClusterError):
        release.test()
    output = release.kube.logs(NAMESPACE, "engineroom-test", "test")
    failures = [line for line in output.splitlines() if line.startswith("FAIL")]
    assert [line.split(":")[0] for line in failures] == ["FAIL  redis answers", "FAIL  api answers"]
    assert failures[0].startswith("FAIL  redis answers: Redis does not answer")


def test_uninstall_keeps_pools_and_blocks_nothing(release: Release) -> None:
    release.uninstall()
    # Helm does not wait for pods on their way out.
    wait_for(
        lambda: release.leftovers() <= {"pod/engineroom-test"},
        60,
        lambda: f"gone: {release.leftovers()}",
    )
    before = {
        "configmap/kube-root-ca.crt",  # Kubernetes' own
        "serviceaccount/default",
        "lease.coordination.k8s.io/engineroom-operator",
        "pod/engineroom-test",
    }
    wait_for(
        lambda: release.all_of_the_namespace() <= before,
        60,
        lambda: f"gone: {release.all_of_the_namespace() - before}",
    )
    found = release.kube.get("workerpools", SHOP, "steady")
    assert not found["metadata"].get("finalizers")
    # Without the operator a pool can be made and deleted: nothing waits for who is not there.
    release.kube.create("workerpools", SHOP, pool("orphan"))
    release.kube.delete("workerpools", SHOP, "orphan")
    wait_for(
        lambda: release.kube.find("workerpools", SHOP, "orphan") is None, 20, "the pool is gone"
    )


def test_another_release_is_refused_with_the_owner_of_the_crds(release: Release) -> None:
    with pytest.raises(ClusterError, match="invalid ownership metadata"):
        release.upgrade(name="another")
    assert release.leftovers() <= {"pod/engineroom-test"}


def test_a_namespaced_installation_works_without_rights_elsewhere(release: Release) -> None:
    release.kube.create("workerpools", SHOP, pool("later"))
    release.upgrade(watchNamespaces=[SHOP], operator={"replicas": 1}, webhooks={"replicas": 1})
    ready(release, "steady")
    ready(release, "later")
    may = release.installation.run
    account = f"--as=system:serviceaccount:{NAMESPACE}:engineroom-operator"
    assert may("kubectl", "auth", "can-i", "patch", "deployments", "-n", SHOP, account) == "yes\n"
    for verb, what in (("list", "workerpools"), ("create", "secrets"), ("patch", "deployments")):
        with pytest.raises(ClusterError):
            may("kubectl", "auth", "can-i", verb, what, "-n", NAMESPACE, account)
    release.test()
    release.uninstall()


def test_the_kustomize_base_installs(release: Release, tmp_path: Path) -> None:
    shutil.copytree(images.ROOT / "deploy/kustomize", tmp_path / "kustomize")
    example = tmp_path / "kustomize/example"
    url = "redis://:abc@engineroom-redis.engineroom.svc:6379/0"
    (example / "redis.env").write_text(f"password=abc\nurl={url}\n")
    (example / "api.env").write_text(f"secret={secrets.token_hex(32)}\nadmin-password=\n")
    path = example / "kustomization.yaml"
    overlay = yaml.safe_load(path.read_text())
    values = local_values()
    repository, _, tag = values["redis"]["image"].rpartition(":")
    overlay["images"] = [
        {
            "name": "ghcr.io/engineroom-dev/engineroom",
            "newName": values["image"]["repository"],
            "newTag": values["image"]["tag"],
        },
        {"name": "docker.io/library/redis", "newName": repository, "newTag": tag},
    ]
    path.write_text(yaml.safe_dump(overlay))
    kubectl = release.installation.kubectl
    # Helm owned the CRDs; a change of the tool takes them over.
    kubectl("apply", "--server-side", "--force-conflicts", "-k", str(example))
    try:
        for workload in (
            "statefulset/engineroom-redis",
            "deployment/engineroom-webhooks",
            "deployment/engineroom-operator",
            "deployment/engineroom-api",
        ):
            kubectl("rollout", "status", workload, "-n", "engineroom", "--timeout=90s")
        release.kube.patch("workerpools", SHOP, "steady", {"spec": {"suspend": True}})
        ready(release, "steady")
    finally:
        objects = kubectl("kustomize", str(example))
        rest = [o for o in yaml.safe_load_all(objects) if o["kind"] != "CustomResourceDefinition"]
        kubectl("delete", "--filename", "-", stdin=yaml.safe_dump_all(rest))


def test_a_new_installation_adopts_the_pools(release: Release) -> None:
    # kubectl has taken the kinds over in the test before; Helm takes them back when told to.
    release.installation.helm(
        "install", RELEASE, str(CHART), "--namespace", NAMESPACE, "--take-ownership",
        "--force-conflicts", "--values", release.values({}), "--wait", "--timeout", "3m",
    )  # fmt: skip
    ready(release, "steady")
    release.uninstall()
    # As an installation was before the API was a part of it.
    release.upgrade(api={"enabled": False})
    redis = release.secret("engineroom-redis")
    assert release.kube.find("secrets", NAMESPACE, "engineroom-api") is None
    release.upgrade()
    assert release.secret("engineroom-redis") == redis
    assert release.secret("engineroom-api").keys() == {"secret", "admin-password"}
    ready(release, "steady")
    release.test()
