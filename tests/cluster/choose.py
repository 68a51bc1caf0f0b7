"""Selects the cluster that a command uses."""

from __future__ import annotations

import os
import shutil
import subprocess

from .api import Cluster, ClusterError

DEFAULT_NAME = "engineroom"


def select(name: str = DEFAULT_NAME, owner: tuple[int, int, str] | None = None) -> Cluster:
    """Return the cluster that the environment variable CLUSTER names: `current`, `kind` or `local`.

    By default it is kind if a Docker engine answers, else local. Nothing is started. `owner` marks
    a private cluster, see `local.Local`. Raises ClusterError for another value.
    """
    kind = os.environ.get("CLUSTER") or ("kind" if docker_answers() else "local")
    if kind == "current":
        from .current import Current

        return Current()
    if kind == "kind":
        from .kind import Kind

        return Kind(name)
    if kind == "local":
        from .local import Local

        return Local(name, owner=owner)
    raise ClusterError(
        f"CLUSTER={kind} is not known; set it to current, kind or local, or unset it"
    )


def docker_answers() -> bool:
    """Return True if a Docker engine answers; its command alone is not enough."""
    if shutil.which("docker") is None:
        return False
    command = ["docker", "version", "--format", "{{.Server.Version}}"]
    try:
        result = subprocess.run(command, capture_output=True, timeout=10, check=False)
    except subprocess.TimeoutExpired:
        return False
    return result.returncode == 0
