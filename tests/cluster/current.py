"""The cluster of the current kubeconfig. It belongs to its user: nothing in it is started, stopped
or broken.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from .api import ClusterError, Shape
from .commands import Run, run


class Current:
    """The cluster that `kubectl` uses now, by KUBECONFIG or the default file."""

    name = "current"

    def __init__(self, *, run: Run = run) -> None:
        self._run = run

    @property
    def kubeconfig(self) -> Path:
        """The first file, if KUBECONFIG names several."""
        first = os.environ.get("KUBECONFIG", "").split(os.pathsep)[0]
        return Path(first) if first else Path.home() / ".kube" / "config"

    @property
    def server(self) -> str:
        view = ["kubectl", "config", "view", "--minify", "--output=json"]
        return str(json.loads(self._run(view, ""))["clusters"][0]["cluster"]["server"])

    def up(self, shape: Shape) -> None:
        """Check that the cluster answers; it is assumed to have what the shape needs."""
        del shape
        if not self.kubeconfig.is_file():
            raise ClusterError(f"CLUSTER=current, but there is no kubeconfig {self.kubeconfig}")
        self._run(["kubectl", "version", "--output=json"], "")

    def down(self) -> None:
        """Do nothing, because the cluster was not started here."""

    def load(self, image: str | Path) -> None:
        raise ClusterError(
            f"{image} cannot be put on the nodes of a cluster that is not ours: "
            "push it to a registry that the cluster pulls from, and name that in the chart's values"
        )

    def env(self) -> dict[str, str]:
        return dict(os.environ)

    def stop(self, component: str) -> None:
        raise ClusterError(f"{component} of a cluster that is not ours is not stopped")

    def start(self, component: str) -> None:
        raise ClusterError(f"{component} of a cluster that is not ours is not started")

    def restart(self, component: str) -> None:
        self.stop(component)
