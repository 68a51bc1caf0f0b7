"""The one interface through which tests, demonstrations and benchmarks use a cluster."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from pathlib import Path


class ClusterError(Exception):
    """The cluster cannot do what was asked; the message says what to do about it."""


class Shape(StrEnum):
    """How much of a cluster is wanted.

    Each is enough for more than it costs: an API server for what only writes objects, simulated
    nodes for numbers, a real node for pods.
    """

    CONTROL_PLANE = "control-plane"
    SCALE = "scale"
    NODE = "node"


@runtime_checkable
class Cluster(Protocol):
    """A Kubernetes cluster that a test may use, break and throw away."""

    name: str

    @property
    def kubeconfig(self) -> Path:
        """The kubeconfig of a cluster administrator. Exists once the cluster is up."""

    @property
    def server(self) -> str:
        """The URL of the API server."""

    def up(self, shape: Shape) -> None:
        """Start the cluster, or what is missing of it; return when it answers.

        A cluster that is already up in this shape is left as it is.
        """

    def down(self) -> None:
        """Stop the cluster and remove all it left on the machine, also after a crash."""

    def load(self, image: str | Path) -> None:
        """Make an image known to the nodes: a docker archive's path, or the name of a built
        image.
        """

    def env(self) -> dict[str, str]:
        """The environment for subprocesses: this one's, with KUBECONFIG set and kubectl on the
        PATH.
        """

    def stop(self, component: str) -> None:
        """Take a component away, as a fault would: `apiserver`, `etcd`, `scheduler`, `kubelet`,
        ...
        """

    def start(self, component: str) -> None:
        """Bring back what `stop` took; returns when it is up."""

    def restart(self, component: str) -> None:
        """`stop`, then `start`."""
