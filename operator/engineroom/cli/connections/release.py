"""The installation of a cluster: its namespace, its Deployments and their pods.

Labels are no proof: a tenant may set any label on objects of its own namespace. The namespace comes
from the ValidatingWebhookConfiguration, which has no namespace itself and to whose Service the API
server sends every object of our kinds, or from the user. In it, objects are chosen by the names of
the release, and pods by their chain of controllers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from engineroom.api import GROUP
from engineroom.cli.errors import ForbiddenError, NotFoundError, UsageError
from engineroom.kube.client.resources import (
    DEPLOYMENTS,
    PODS,
    REPLICA_SETS,
    VALIDATING_WEBHOOKS,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engineroom.cli.connections.model import Document
    from engineroom.kube.client.resources import Resource

OPTION = "--system-namespace"
#: The environment variable of the option.
VARIABLE = "ENGINEROOM_SYSTEM_NAMESPACE"
FIX = f"name the namespace of the installation with {OPTION}"
#: Label of the installation's objects, and of those of anyone who copies it.
PART_OF = "app.kubernetes.io/part-of=engineroom"
#: Name of the webhook in the chart's configuration. A policy engine can register our group, too.
_WEBHOOK = f"workerpools.{GROUP}"
_WEBHOOKS_SUFFIX = "-webhooks"


class ObjectReader(Protocol):
    """Reads objects of a cluster. All methods raise CliError."""

    def read(self, resource: Resource, namespace: str | None, name: str) -> Document:
        """Return one object. Raises NotFoundError, ForbiddenError."""
        ...

    def read_all(
        self, resource: Resource, namespace: str | None, selector: str | None = None
    ) -> list[Document]:
        """Return the objects of a namespace, or of all namespaces if it is None."""
        ...


@dataclass(frozen=True, slots=True)
class Release:
    """One installation: its namespace, and the name of its webhooks' Service if that is read."""

    namespace: str
    webhooks_service: str = ""

    def deployment_name(self, component: str) -> str | None:
        """Return the name of a component's Deployment; None if the user named the namespace."""
        # What follows the component is a name suffix of kustomize.
        prefix, separator, suffix = self.webhooks_service.rpartition(_WEBHOOKS_SUFFIX)
        return f"{prefix}-{component}{suffix}" if separator else None

    def __str__(self) -> str:
        """Return the namespace and the release's webhooks."""
        return f"{self.namespace}/{self.webhooks_service}".removesuffix("/")


def registered_releases(configurations: Iterable[Document]) -> tuple[Release, ...]:
    """Return the installations that ValidatingWebhookConfigurations name, sorted."""
    releases = set()
    for configuration in configurations:
        for webhook in configuration.get("webhooks") or ():
            service = (webhook.get("clientConfig") or {}).get("service")
            if webhook.get("name") == _WEBHOOK and service:
                releases.add(Release(service["namespace"], service["name"]))
    return tuple(sorted(releases, key=str))


def find_release(cluster: ObjectReader, namespace: str | None) -> Release:
    """Return the installation in ``namespace``, or the only one of the cluster if it is None.

    Raises ForbiddenError or NotFoundError if its namespace is unknown, UsageError for several.
    """
    try:
        registered = registered_releases(cluster.read_all(VALIDATING_WEBHOOKS, None))
    except ForbiddenError as error:
        if namespace:
            return Release(namespace)
        raise ForbiddenError(
            "the namespace of the installation is unknown",
            why="you may not list ValidatingWebhookConfigurations, which name it",
            fix=FIX,
        ) from error
    if namespace:
        inside = [release for release in registered if release.namespace == namespace]
        registered = tuple(inside) or (Release(namespace),)
    if not registered:
        raise NotFoundError(
            "the namespace of the installation is unknown",
            why="no ValidatingWebhookConfiguration names it: Engineroom is not installed, or "
            "without its webhooks",
            fix=FIX,
        )
    if len(registered) > 1:
        raise UsageError(
            f"there are {len(registered)} installations in "
            + (f"namespace {namespace}" if namespace else "this cluster"),
            why=", ".join(map(str, registered)),
            fix="connect to the one you mean with --server" if namespace else FIX,
        )
    return registered[0]


def release_deployment(cluster: ObjectReader, release: Release, component: str) -> Document | None:
    """Return the Deployment of a component; None if it is not installed.

    Raises ForbiddenError, and UsageError if the namespace has several and no webhook names one.
    """
    name = release.deployment_name(component)
    if name is not None:
        try:
            return cluster.read(DEPLOYMENTS, release.namespace, name)
        except NotFoundError:
            return None
    # The user vouches for the namespace: write access to it includes the process itself.
    labels = f"{PART_OF},app.kubernetes.io/component={component}"
    deployments = cluster.read_all(DEPLOYMENTS, release.namespace, labels)
    if len(deployments) > 1:
        names = ", ".join(deployment["metadata"]["name"] for deployment in deployments)
        raise UsageError(
            f"namespace {release.namespace} has {len(deployments)} Deployments with the labels of "
            f"the component {component}",
            why=names,
            fix="connect to the one you mean with --server",
        )
    return deployments[0] if deployments else None


def deployment_pods(cluster: ObjectReader, deployment: Document) -> list[Document]:
    """Return the pods whose ReplicaSet belongs to the Deployment, without those being deleted.

    A pod that only has the labels is not among them.
    """
    metadata = deployment["metadata"]
    # Expressions of the selector would only narrow the list further; the controllers decide.
    labels = (deployment["spec"].get("selector") or {}).get("matchLabels") or {}
    selector = ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
    sets = cluster.read_all(REPLICA_SETS, metadata["namespace"], selector)
    owned = {
        replica_set["metadata"]["uid"]
        for replica_set in sets
        if _is_controlled_by(replica_set, "Deployment", {metadata["uid"]})
    }
    return [
        pod
        for pod in cluster.read_all(PODS, metadata["namespace"], selector)
        if _is_controlled_by(pod, "ReplicaSet", owned)
        and "deletionTimestamp" not in pod["metadata"]
    ]


def _is_controlled_by(document: Document, kind: str, uids: set[str]) -> bool:
    owners: list[dict[str, Any]] = document["metadata"].get("ownerReferences") or []
    return any(
        owner.get("controller") and owner.get("kind") == kind and owner.get("uid") in uids
        for owner in owners
    )
