"""Simulated nodes for large numbers: KWOK reports their pods as running, but executes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import binaries
from .api import ClusterError
from .control_plane import ControlPlane, wait
from .process import Component
from .progress import step

if TYPE_CHECKING:
    from .client import Client
    from .layout import Layout

# Some, so that spreading has something to do; each large enough for thousands of pods.
_NODES = 20
_PODS_PER_NODE = 5000
_STAGES = Path(__file__).parent / "kwok.yaml"


class Scale:
    """The simulated nodes of one cluster."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._control_plane = ControlPlane(layout)
        self._kwok = Component(layout.root, "kwok")

    def prepare(self) -> None:
        """Do nothing before the control plane starts."""

    def start(self) -> None:
        with step("simulated nodes"):
            kubeconfig = self._control_plane.kubeconfig("kwok", "kwok", "system:masters")
            argv = [binaries.path_of("kwok"), f"--kubeconfig={kubeconfig}", f"--config={_STAGES}"]
            self._kwok.configure(argv, namespace=self._layout.namespace)
            self._kwok.start()
            client = self._control_plane.client()
            client.apply(_node(f"simulated-{number:02}") for number in range(_NODES))
            self._wait_for_nodes(client)

    def load(self, archive: Path, image: str) -> None:
        """Raise ClusterError: simulated nodes run no images."""
        raise ClusterError(
            f"nodes are simulated, {image} ({archive}) would never be run; use --shape node"
        )

    def wait(self, component: str) -> None:
        if component == "kwok":
            self._wait_for_nodes(self._control_plane.client())

    def _wait_for_nodes(self, client: Client) -> None:
        def ready() -> bool:
            nodes = client.get("/api/v1/nodes")["items"]
            return len(nodes) >= _NODES and all(_is_ready(node) for node in nodes)

        wait(ready, "the simulated nodes", self._kwok)


def _is_ready(node: dict[str, Any]) -> bool:
    conditions = node["status"].get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def _node(name: str) -> dict[str, Any]:
    room = {"cpu": "1000", "memory": "4Ti", "pods": str(_PODS_PER_NODE)}
    labels = {
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
    }
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "status": {"capacity": room, "allocatable": room},
    }
