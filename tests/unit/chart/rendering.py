"""The chart as Helm renders it."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster import binaries

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "charts/engineroom"
RELEASE = "engineroom"
NAMESPACE = "engineroom"

Object = dict[str, Any]

#: Sets of values that a promise must hold for.
VARIANTS: dict[str, Object] = {
    "defaults": {},
    "namespaced": {"watchNamespaces": ["shop", "blog"], "redis": {"secretNamespaces": ["shop"]}},
    "own redis": {"redis": {"enabled": False, "existingSecret": "elsewhere"}},
    "no redis": {"redis": {"enabled": False}, "api": {"enabled": False}},
    "redis by url": {"redis": {"enabled": False, "url": "rediss://:secret@redis.example:6380/0"}},
    "no webhooks": {"webhooks": {"enabled": False}},
    "cert-manager": {"webhooks": {"certManager": {"enabled": True}}},
    "no api": {"api": {"enabled": False}},
    "api": {"api": {"tlsSecret": "api-tls"}},
    "api, namespaced": {
        "watchNamespaces": ["shop", "blog"],
        "api": {
            "existingSecret": "elsewhere",
            "ingressFrom": [{"podSelector": {}}],
        },
    },
    "api, oidc": {
        "api": {
            "enabled": True,
            "roles": [{"name": "retrier", "permissions": ["namespace:jobs:retry"]}],
            "accounts": [{"name": "ada", "grants": [{"role": "retrier", "namespaces": ["shop"]}]}],
            "accountsSecret": "passwords",
            "oidc": {
                "issuer": "https://idp.example/realms/shop",
                "clientId": "engineroom",
                "existingSecret": "oidc",
                "url": "https://engineroom.example",
                "caConfigMap": "ca",
                "allowedNetworks": ["10.1.0.0/16"],
                "egressTo": [{"ipBlock": {"cidr": "10.1.2.3/32"}}],
                "port": 8443,
                "roleMapping": [
                    {"group": "ops", "grants": [{"role": "operator", "namespaces": ["*"]}]}
                ],
            },
        },
    },
    "persistent": {"redis": {"persistence": {"enabled": True, "storageClassName": "fast"}}},
    "limiter": {"limiter": {"enabled": True}},
    "everything": {
        "commonLabels": {"team": "platform"},
        "imagePullSecrets": [{"name": "registry"}],
        "image": {"digest": "sha256:" + "0" * 64},
        "watchNamespaces": [],
        "operator": {
            "replicas": 3,
            "podLabels": {"a": "b"},
            "podAnnotations": {"c": "d"},
            "nodeSelector": {"kubernetes.io/os": "linux"},
            "tolerations": [{"key": "x", "operator": "Exists"}],
            "affinity": {"podAntiAffinity": {}},
            "priorityClassName": "high",
            "topologySpreadConstraints": [
                {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
            ],
            "extraEnv": [{"name": "TZ", "value": "UTC"}],
            "serviceAccount": {"annotations": {"example.com/role": "r"}},
        },
        "webhooks": {"replicas": 3, "podLabels": {"a": "b"}, "priorityClassName": "high"},
        "limiter": {
            "enabled": True,
            "replicas": 3,
            "processes": 2,
            "namespaces": ["shop"],
            "podLabels": {"a": "b"},
        },
        "redis": {"podLabels": {"a": "b"}, "secretNamespaces": ["shop"]},
        "metrics": {
            "dashboards": {"enabled": True},
            "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        },
        "networkPolicy": {
            "apiServer": {"cidrs": ["198.51.100.1/32"]},
            "limiterClients": [{"podSelector": {"matchLabels": {"app": "nginx"}}}],
            "redisClients": [{"ipBlock": {"cidr": "198.51.100.0/24"}}],
            "metricsFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
            "extraEgress": [{"ports": [{"port": 26379}]}],
        },
    },
}


@cache
def helm() -> str:
    """The path of helm; without one the test is skipped."""
    found = shutil.which("helm")
    if found is not None:
        return found
    program = binaries.PROGRAMS["helm"].folder / "helm"
    if not program.exists():
        pytest.skip("helm is missing; `python -m tests.cluster build --shape node` builds it")
    return str(program)


def run(*arguments: str, values: Object | None = None) -> subprocess.CompletedProcess[str]:
    """Run helm with these values."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(values or {}, file)
        file.flush()
        command = [helm(), *arguments, "--values", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=False)


def render(
    values: Object | None = None, release: str = RELEASE, namespace: str = NAMESPACE
) -> list[Object]:
    """The chart's objects, hooks included. Fails the test where Helm refuses."""
    return _render(json.dumps(values or {}, sort_keys=True), release, namespace)


@cache
def _render(values: str, release: str, namespace: str) -> list[Object]:
    return render_chart(CHART, json.loads(values), release, namespace)


def render_chart(
    chart: Path, values: Object, release: str = RELEASE, namespace: str = NAMESPACE
) -> list[Object]:
    """Render the chart in a folder. Fails the test if Helm refuses."""
    done = run("template", release, str(chart), "--namespace", namespace, values=values)
    assert done.returncode == 0, done.stderr
    return [thing for thing in yaml.safe_load_all(done.stdout) if thing]


def refusal(values: Object) -> str:
    """Why Helm does not render these values."""
    done = run("template", RELEASE, str(CHART), values=values)
    assert done.returncode != 0, f"{values} should be refused"
    return done.stderr


def of(objects: list[Object], *kinds: str) -> list[Object]:
    """The objects of these kinds."""
    return [thing for thing in objects if thing["kind"] in kinds]


def named(objects: list[Object], kind: str, name: str) -> Object:
    """The one object of this kind and name."""
    (thing,) = [o for o in of(objects, kind) if o["metadata"]["name"] == name]
    return thing


def pods(objects: list[Object]) -> list[tuple[str, Object]]:
    """Name, and metadata with spec, of every pod or pod template."""
    found = [(t["metadata"]["name"], t) for t in of(objects, "Pod")]
    workloads = of(objects, "Deployment", "StatefulSet", "DaemonSet", "Job")
    return found + [(t["metadata"]["name"], t["spec"]["template"]) for t in workloads]


def containers(pod: Object) -> list[Object]:
    """All containers of a pod."""
    spec = pod["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]


def environment(container: Object) -> dict[str, Object]:
    """A container's variables by name."""
    return {variable["name"]: variable for variable in container["env"]}


def hook(thing: Object) -> str | None:
    """Which of Helm's hooks an object is for."""
    found = thing["metadata"].get("annotations", {}).get("helm.sh/hook")
    return None if found is None else str(found)


def matches(selector: Object, labels: dict[str, str]) -> bool:
    """Whether a label selector of equalities selects these labels."""
    return all(labels.get(key) == value for key, value in selector["matchLabels"].items())
