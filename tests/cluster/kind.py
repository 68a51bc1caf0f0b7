"""A cluster created by kind, for machines with a Docker engine. Unit tests check its commands."""

from __future__ import annotations

import json
import os
from pathlib import Path

from .api import ClusterError, Shape
from .commands import Run, run
from .paths import clusters_directory

_CONTROL_PLANE = ("apiserver", "etcd", "controller-manager", "scheduler")
_SERVICES = ("kubelet", "containerd")
_MANIFESTS = "/etc/kubernetes/manifests"
_ASIDE = "/etc/kubernetes/stopped"
_CONFIGURATION = """\
kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
nodes:
  - role: control-plane
"""


class Kind:
    """A cluster of one container that is control plane and node; all shapes but `scale` are the
    same.
    """

    def __init__(self, name: str, *, run: Run = run) -> None:
        self.name = name
        self._run = run

    @property
    def kubeconfig(self) -> Path:
        return clusters_directory().parent / "kind" / self.name / "kubeconfig"

    @property
    def server(self) -> str:
        view = ["kubectl", f"--kubeconfig={self.kubeconfig}", "config", "view", "--output=json"]
        clusters = json.loads(self._run(view, ""))["clusters"]
        return str(clusters[0]["cluster"]["server"])

    def up(self, shape: Shape) -> None:
        if shape is Shape.SCALE:
            raise ClusterError("kind has no simulated nodes; use CLUSTER=local for --shape scale")
        self.kubeconfig.parent.mkdir(parents=True, exist_ok=True)
        if self.name in self._run(["kind", "get", "clusters"], "").split():
            export = ["kind", "export", "kubeconfig", "--name", self.name]
            self._run([*export, "--kubeconfig", str(self.kubeconfig)], "")
            return
        create = ["kind", "create", "cluster", "--name", self.name, "--wait", "120s"]
        self._run([*create, "--kubeconfig", str(self.kubeconfig), "--config", "-"], _CONFIGURATION)

    def down(self) -> None:
        delete = ["kind", "delete", "cluster", "--name", self.name]
        self._run([*delete, "--kubeconfig", str(self.kubeconfig)], "")
        self.kubeconfig.unlink(missing_ok=True)

    def load(self, image: str | Path) -> None:
        if Path(image).is_file():
            self._run(["kind", "load", "image-archive", str(image), "--name", self.name], "")
            return
        from .images import OWN, own

        if str(image) in OWN:
            self._run(
                ["kind", "load", "image-archive", str(own(str(image))), "--name", self.name], ""
            )
        else:
            self._run(["kind", "load", "docker-image", str(image), "--name", self.name], "")

    def env(self) -> dict[str, str]:
        return os.environ | {"KUBECONFIG": str(self.kubeconfig)}

    def stop(self, component: str) -> None:
        if component in _SERVICES:
            self._in_node("systemctl", "stop", component)
        else:
            manifest = _manifest(component)
            self._in_node("mkdir", "-p", _ASIDE)
            # The kubelet stops a static pod whose manifest goes away.
            self._in_node("mv", f"{_MANIFESTS}/{manifest}", f"{_ASIDE}/{manifest}")

    def start(self, component: str) -> None:
        if component in _SERVICES:
            self._in_node("systemctl", "start", component)
        else:
            manifest = _manifest(component)
            self._in_node("mv", f"{_ASIDE}/{manifest}", f"{_MANIFESTS}/{manifest}")
        wait = ["kubectl", f"--kubeconfig={self.kubeconfig}", "wait", "--for=condition=Ready"]
        self._run([*wait, "nodes", "--all", "--timeout=120s"], "")

    def restart(self, component: str) -> None:
        self.stop(component)
        self.start(component)

    def _in_node(self, *command: str) -> None:
        self._run(["docker", "exec", f"{self.name}-control-plane", *command], "")


def _manifest(component: str) -> str:
    if component not in _CONTROL_PLANE:
        names = ", ".join((*_CONTROL_PLANE, *_SERVICES))
        raise ClusterError(f"kind has no component {component}; it has: {names}")
    return "etcd.yaml" if component == "etcd" else f"kube-{component}.yaml"
