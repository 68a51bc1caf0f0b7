"""The cluster as commands see it, behind the kubeconfig or the API process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping
    from socket import socket

    from engineroom.cli.connections.model import Document, Event, Installation, Pod, Pool
    from engineroom.kube.client.resources import ObjectRef, Resource


class Cluster(Protocol):
    """The operations of commands on a cluster. All methods raise CliError."""

    @property
    def server(self) -> str:
        """The URL of the API server."""
        ...

    @property
    def namespace(self) -> str:
        """The namespace that the kubeconfig's context names."""
        ...

    def pools(self, namespace: str | None, selector: str | None = None) -> tuple[Pool, ...]:
        """The pools of a namespace, of all where it is None; sorted by id."""
        ...

    def pool(self, namespace: str, name: str) -> Pool:
        """One pool. Raises NotFoundError."""
        ...

    def pods(self, namespace: str | None, pool: str | None = None) -> tuple[Pod, ...]:
        """The worker pods of a pool or of all pools, with their use where it is measured."""
        ...

    def pod(self, namespace: str, name: str) -> Pod:
        """One pod. Raises NotFoundError."""
        ...

    def events(self, obj: ObjectRef) -> tuple[Event, ...]:
        """Return the object's events, latest first; none if they may not be read."""
        ...

    def installation(self) -> Installation:
        """Return the parts of Engineroom that are installed."""
        ...

    def patch_pool(self, pool: Pool, patch: Document, *, dry_run: bool = False) -> Pool:
        """Merge ``patch`` into the pool; what the server made of it."""
        ...

    def scale_pool(self, pool: Pool, replicas: int, *, dry_run: bool = False) -> int:
        """Set the size through the scale subresource; the size the server took."""
        ...

    def annotate_pod(
        self, pod: Pod, annotations: Mapping[str, str | None], *, dry_run: bool = False
    ) -> Pod:
        """Set annotations, or remove those that are None."""
        ...

    def read(self, resource: Resource, namespace: str | None, name: str) -> Document:
        """One object as the API server has it. Raises NotFoundError."""
        ...

    def read_all(
        self, resource: Resource, namespace: str | None, selector: str | None = None
    ) -> list[Document]:
        """The objects of a namespace, of all where it is None."""
        ...

    def open_port(self, namespace: str, pod: str, port: int) -> socket:
        """A connection to a port of a pod, through the API server."""
        ...

    def bearer(self) -> str | None:
        """The token that it is logged in with, asked for anew; None where there is none."""
        ...
