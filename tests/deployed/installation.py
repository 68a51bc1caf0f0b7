"""Installs Engineroom on a cluster by its Helm chart, as a user does."""

from __future__ import annotations

import base64
import json
import subprocess
import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tests.cluster import images as building
from tests.cluster.api import ClusterError, Shape
from tests.cluster.progress import step
from tests.deployed import images
from tests.deployed.forward import Forward
from tests.deployed.kube import Kube
from tests.support import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cluster.api import Cluster

NAMESPACE = "engineroom-system"
RELEASE = "engineroom"
CHART = ROOT / "charts/engineroom"
REDIS_SERVICE = "engineroom-redis"


def local_values() -> dict[str, Any]:
    """Return the chart's values for locally built images and a machine with two cores."""

    def image(name: str) -> dict[str, str]:
        repository, _, tag = name.rpartition(":")
        return {"repository": repository, "tag": tag, "pullPolicy": "IfNotPresent"}

    return {
        "image": image(images.ENGINEROOM.name),
        "runtime": {"image": image(images.RUNTIME.name)},
        "operator": {"replicas": 1},
        "webhooks": {"replicas": 1},
        "api": {"enabled": False},
        "redis": {"image": building.full_name(building.REDIS)},
    }


class Installation:
    """A cluster with Engineroom installed."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.kube = Kube(cluster.kubeconfig)

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Return the output of kubectl. Raises ClusterError with its error message."""
        return self.run("kubectl", *arguments, stdin=stdin)

    def helm(self, *arguments: str) -> str:
        """Return the output of helm. Raises ClusterError with its error message."""
        return self.run("helm", *arguments)

    def run(self, *command: str, stdin: str | None = None) -> str:
        """Run a program with this cluster's kubeconfig."""
        done = subprocess.run(
            command,
            env=self.cluster.env(),
            input=stdin if stdin is not None else "",
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            message = (done.stderr or done.stdout).strip()
            raise ClusterError(f"{' '.join(command[:3])} failed: {message}")
        return done.stdout

    def upgrade(self, values: dict[str, Any] | None = None) -> None:
        """Install or upgrade the chart with these values; return when it is ready."""
        merged = _merge(local_values(), values or {})
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(merged, file)
            file.flush()
            with step("helm install"):
                self.helm(
                    "upgrade", "--install", RELEASE, str(CHART), "--namespace", NAMESPACE,
                    "--create-namespace", "--values", file.name, "--wait", "--timeout", "4m",
                )  # fmt: skip

    def redis(self) -> Forward:
        """Forward a local port to the chart's Redis."""
        secret = self.kubectl(
            "get", "secret", REDIS_SERVICE, "-n", NAMESPACE, "-o", "jsonpath={.data.password}"
        )
        return Forward(self.cluster.env(), NAMESPACE, f"svc/{REDIS_SERVICE}", 6379, secret)

    def redis_url(self) -> str:
        """Return the URL of the chart's Redis for pods, including its password."""
        data = self.kubectl(
            "get", "secret", REDIS_SERVICE, "-n", NAMESPACE, "-o", "jsonpath={.data.url}"
        )
        return base64.b64decode(data).decode()


@contextmanager
def installed(cluster: Cluster, values: dict[str, Any] | None = None) -> Iterator[Installation]:
    """Start the cluster and install Engineroom. The caller stops the cluster."""
    archives = images.build()
    cluster.up(Shape.NODE)
    images.load(cluster, archives)
    installation = Installation(cluster)
    installation.upgrade(values)
    yield installation


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged
