"""The objects of an installation, and of a tenant who copies them, for the command line's tests."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any

from tests.integration.test_cli import CODE, Place, until
from tests.unit.cli import samples

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

#: No kubelet forwards a port here: what the API server would forward to a pod of a namespace is
#: connected to the port that PORTS gives for that namespace. OPENED lists the pods.
FORWARDED = """
import json, os, socket
from engineroom.cli.connections.kubernetes_cluster import KubernetesCluster
def open_port(self, namespace, pod, port):
    with open(os.environ["OPENED"], "a") as file:
        file.write(f"{namespace} {pod} {port}\\n")
    return socket.create_connection(("127.0.0.1", json.loads(os.environ["PORTS"])[namespace]))
KubernetesCluster.open_port = open_port
"""
PROGRAM = [sys.executable, "-c", FORWARDED + CODE]
#: What each component's container declares.
PORTS = {"api": ("api", 8000), "limiter": ("metrics", 9090), "redis": ("redis", 6379)}
REDIS_PASSWORD = "the-installations-password"  # nosec B105
ADMIN_PASSWORD = "the-administrators-password"  # nosec B105


def labels(component: str) -> dict[str, str]:
    """The labels of the chart, which everyone may copy."""
    return {
        "app.kubernetes.io/name": "engineroom",
        "app.kubernetes.io/instance": "engineroom",
        "app.kubernetes.io/part-of": "engineroom",
        "app.kubernetes.io/component": component,
    }


def install(
    place: Place, *components: str, password: str = REDIS_PASSWORD, admin: str = ADMIN_PASSWORD
) -> dict[str, str]:
    """Create the chart's Deployments, Services and Secrets, with ready pods.

    Returns the name of each component's pod. Nothing in it depends on the namespace but the URL.
    """
    # Pods are refused until the namespace's account is there.
    until(lambda: "default" in place.kubectl("get", "serviceaccounts", "-o", "name"))
    url = f"redis://:{password}@engineroom-redis.{place.namespace}.svc:6379/0"
    secrets = {"redis": {"url": url}, "api": {"admin-password": admin}}
    items: list[dict[str, Any]] = [
        {
            "apiVersion": "v1", "kind": "Secret", "stringData": data,
            "metadata": {"name": f"engineroom-{name}", "labels": labels(name)},
        }
        for name, data in secrets.items()
    ]  # fmt: skip
    for component in components:
        items += [_service(component), _deployment(component)]
    bundle = {"apiVersion": "v1", "kind": "List", "items": items}
    place.kubectl("create", "-f", "-", document=bundle)
    return {component: _ready_pod(place, component) for component in components}


def _service(component: str) -> dict[str, Any]:
    name, port = PORTS.get(component, ("metrics", 8080))
    ports = [{"name": name, "port": 80 if component == "api" else port, "targetPort": name}]
    return {
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": f"engineroom-{component}", "labels": labels(component)},
        "spec": {"selector": labels(component), "ports": ports},
    }  # fmt: skip


def _deployment(component: str) -> dict[str, Any]:
    document = samples.deployment(component, wanted=1, lease="engineroom-operator")
    del document["status"]
    document["metadata"] = {"name": f"engineroom-{component}", "labels": labels(component)}
    document["spec"]["selector"] = {"matchLabels": labels(component)}
    template = document["spec"]["template"]
    template["metadata"] = {"labels": labels(component)}
    container = template["spec"]["containers"][0]
    name, port = PORTS.get(component, ("metrics", 8080))
    container["ports"] = [{"name": name, "containerPort": port}]
    reference = {"secretKeyRef": {"name": "engineroom-redis", "key": "url"}}
    container["env"].append({"name": "ENGINEROOM_REDIS_URL", "valueFrom": reference})
    template["spec"]["volumes"] = [{"name": "secrets", "secret": {"secretName": "engineroom-api"}}]
    return document | {"apiVersion": "apps/v1", "kind": "Deployment"}


def _ready_pod(place: Place, component: str) -> str:
    selector = ",".join(f"{key}={value}" for key, value in labels(component).items())

    def names() -> list[str]:
        return place.kubectl("get", "pods", "-l", selector, "-o", "name").split()

    until(lambda: bool(names()))
    (pod,) = names()
    place.status(pod, phase="Running", conditions=[{"type": "Ready", "status": "True"}])
    return pod.removeprefix("pod/")


@contextlib.contextmanager
def registered(place: Place) -> Iterator[str]:
    """Register the webhooks of an installation in the namespace; they are sent no object."""
    name = f"{place.namespace}-engineroom-webhooks"
    nowhere = {"matchLabels": {"kubernetes.io/metadata.name": "nowhere"}}
    place.kubectl("create", "-f", "-", document={
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": name},
        "webhooks": [{
            "name": "workerpools.engineroom.dev",
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "failurePolicy": "Ignore",
            "namespaceSelector": nowhere,
            "clientConfig": {
                "service": {"namespace": place.namespace, "name": "engineroom-webhooks"}
            },
            "rules": [{
                "apiGroups": ["engineroom.dev"], "apiVersions": ["v1alpha1"],
                "operations": ["CREATE"], "resources": ["workerpools"],
            }],
        }],
    })  # fmt: skip
    try:
        yield name
    finally:
        place.kubectl("delete", "validatingwebhookconfiguration", name)


@contextlib.contextmanager
def created(place: Place, document: dict[str, Any]) -> Iterator[None]:
    """Create an object, and delete it at the end of the block."""
    place.create(document)
    try:
        yield
    finally:
        name = f"{document['kind'].lower()}/{document['metadata']['name']}"
        place.kubectl("delete", name, "--force", "--wait=false")


@contextlib.contextmanager
def namespace(cluster: Any, name: str) -> Iterator[Place]:
    """A namespace for the length of the block."""
    place = Place(cluster, name)
    place.kubectl("create", "namespace", name)
    try:
        yield place
    finally:
        place.kubectl("delete", "namespace", name, "--wait=false")


class Recorder:
    """A port of an attacker: it records what arrives, and answers each connection with ``answer``.

    ``answer`` is a complete response of any protocol; the connection is closed after it.
    """

    def __init__(self, answer: bytes = b"") -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.received: list[bytes] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                connection.settimeout(5)
                with connection, contextlib.suppress(OSError):
                    self.received.append(connection.recv(65_536))
                    connection.sendall(self._answer)

    def close(self) -> None:
        """Stop listening."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def environment(folder: Path, ports: Mapping[str, int]) -> dict[str, str]:
    """What PROGRAM needs; ``ports`` are those of processes on this machine, by namespace."""
    return {"OPENED": str(folder / "opened"), "PORTS": json.dumps(dict(ports))}


def opened(folder: Path) -> list[list[str]]:
    """Namespace, pod and port of each forwarded connection."""
    path = folder / "opened"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []
