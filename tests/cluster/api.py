"""The interface through which tests, demonstrations and benchmarks use a cluster."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from pathlib import Path


class ClusterError(Exception):
    """A cluster operation failed; the message says how to fix it."""


class Shape(StrEnum):
    """The size of a cluster.

    An API server alone stores objects, simulated nodes provide numbers, a real node runs pods.
    """

    CONTROL_PLANE = "control-plane"
    SCALE = "scale"
    NODE = "node"


@runtime_checkable
class Cluster(Protocol):
    """A Kubernetes cluster that a test may use, break and delete."""

    name: str

    @property
    def kubeconfig(self) -> Path:
        """Kubeconfig of a cluster administrator. Exists once the cluster runs."""

    @property
    def server(self) -> str:
        """The URL of the API server."""

    def up(self, shape: Shape) -> None:
        """Start the cluster, or its missing components; return when it answers.

        A cluster that already runs in this shape stays as it is.
        """

    def down(self) -> None:
        """Stop the cluster and remove all that it left on the machine, also after a crash."""

    def load(self, image: str | Path) -> None:
        """Load an image onto the nodes, from a docker archive or by the name of a built image."""

    def env(self) -> dict[str, str]:
        """Return this process' environment with KUBECONFIG set and kubectl on the PATH, for
        subprocesses.
        """

    def stop(self, component: str) -> None:
        """Stop a component, to inject a fault: `apiserver`, `etcd`, `scheduler`, `kubelet`, ..."""

    def start(self, component: str) -> None:
        """Start a stopped component; return when it is ready."""

    def restart(self, component: str) -> None:
        """`stop`, then `start`."""
