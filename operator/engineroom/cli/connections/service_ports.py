"""Connects to a Service of the cluster by forwarding to a ready pod behind it.

The connection goes through the API server, as with `kubectl port-forward`, but no local port is
opened: no other program on the machine can use it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from engineroom.cli.errors import NotFoundError, UnreachableError, UsageError
from engineroom.kube.client.resources import PODS, SERVICES

if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket

    from engineroom.cli.connections.model import Document
    from engineroom.kube.client.resources import Resource

#: The domain of a cluster where no other is configured.
_CLUSTER_DOMAIN = ".cluster.local"


class PortOpener(Protocol):
    """Reads objects of a cluster and connects to ports of its pods. All methods raise CliError."""

    def read(self, resource: Resource, namespace: str | None, name: str) -> Document:
        """Return one object. Raises NotFoundError, ForbiddenError."""
        ...

    def read_all(
        self, resource: Resource, namespace: str | None, selector: str | None = None
    ) -> list[Document]:
        """Return the objects of a namespace, or of all namespaces if it is None."""
        ...

    def open_port(self, namespace: str, pod: str, port: int) -> socket:
        """Connect to a port of a pod through the API server."""
        ...


def service_connector(
    cluster: PortOpener, host: str, port: int, namespace: str, *, unambiguous: bool = False
) -> Callable[[], socket] | None:
    """Return a function that connects to a Service by its host name; None if it names none.

    A name without a namespace is looked up in ``namespace``. Raises NotFoundError if the Service
    does not exist, UnreachableError if it has no ready pod. With ``unambiguous``, raises UsageError
    for a Service of another namespace whose host name may also be one outside the cluster.
    """
    reference = service_of(host, namespace)
    if reference is None:
        return None
    service_namespace, name = reference
    try:
        service = cluster.read(SERVICES, service_namespace, name)
    except NotFoundError as error:
        if not _is_cluster_name(host):
            return None
        raise NotFoundError(
            f"Service {service_namespace}/{name} does not exist",
            why="the Redis URL names it",
            fix="name another pool with --pool, or give the URL in ENGINEROOM_REDIS_URL",
        ) from error
    if unambiguous and service_namespace != namespace and not _is_cluster_name(host):
        raise UsageError(
            f"the host {host} of the Redis URL is ambiguous",
            why="it may be a host outside the cluster, or the Service "
            f"{service_namespace}/{name} of others",
            fix=f"write {host}.svc for the Service or {host}. for the other host into the Secret, "
            "or give the URL in ENGINEROOM_REDIS_URL",
        )
    selector = (service["spec"] or {}).get("selector")
    if not selector:
        return None
    labels = ",".join(f"{key}={value}" for key, value in sorted(selector.items()))
    ready = [pod for pod in cluster.read_all(PODS, service_namespace, labels) if is_ready(pod)]
    if not ready:
        raise UnreachableError(
            f"Service {service_namespace}/{name} has no ready pod",
            why="its pods are not running, or not ready yet",
            fix=f"`kubectl get pods -n {service_namespace} -l {labels}` shows why",
        )
    pod = ready[0]
    target = target_port(service, pod, port)

    def connect() -> socket:
        return cluster.open_port(service_namespace, pod["metadata"]["name"], target)

    return connect


def service_of(host: str, namespace: str) -> tuple[str, str] | None:
    """Return namespace and name of the Service that a host name may mean; None if it cannot be."""
    if not host[:1].isalpha() or host == "localhost":
        return None
    if _is_cluster_name(host):
        labels = host.rstrip(".").removesuffix(_CLUSTER_DOMAIN).removesuffix(".svc").split(".")
        # Of three, the first is one pod of a StatefulSet: any pod behind its Service will do.
        return (labels[-1], labels[-2]) if len(labels) in (2, 3) and all(labels) else None
    # With a dot at its end a name is complete, and so outside the cluster.
    labels = host.split(".")
    if len(labels) == 1:
        return namespace, labels[0]
    return (labels[1], labels[0]) if len(labels) == 2 and labels[1] else None


def _is_cluster_name(host: str) -> bool:
    """Return whether a host name can only be one of a Service.

    A label `svc` elsewhere proves nothing: cache.eu.svc.example.com is a host of example.com.
    """
    return host.rstrip(".").removesuffix(_CLUSTER_DOMAIN).endswith(".svc")


def target_port(service: Document, pod: Document, port: int) -> int:
    """Return the container's port behind a port of the Service."""
    target: Any = port
    for service_port in service["spec"].get("ports") or ():
        if service_port["port"] == port:
            target = service_port.get("targetPort", port)
    if isinstance(target, int):
        return target
    for container in pod["spec"]["containers"]:
        for container_port in container.get("ports") or ():
            if container_port.get("name") == target:
                return int(container_port["containerPort"])
    return port


def is_ready(pod: Document) -> bool:
    """Return whether a pod is ready and is not being deleted."""
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return "deletionTimestamp" not in pod["metadata"] and any(
        condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions
    )
