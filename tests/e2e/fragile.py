"""A user's own Redis that can be made unreachable for a while without losing its data."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from tests.cluster import images as building
from tests.deployed import shop
from tests.deployed.forward import Forward
from tests.deployed.kube import condition, wait_for
from tests.e2e.pool import NAMESPACE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.deployed.installation import Installation

_PASSWORD = "fragile"
# Away as long as the file is there. The log is written before an answer is given.
_RUN = f"""
while true; do
  while [ -e /data/away ]; do sleep 0.2; done
  redis-server --dir /data --appendonly yes --appendfsync always --save '' --requirepass {_PASSWORD}
done
"""


class FragileRedis:
    """One Redis in the tests' namespace."""

    def __init__(self, installation: Installation, name: str) -> None:
        self.name = name
        self._installation = installation
        self._forward = Forward(
            installation.cluster.env(),
            NAMESPACE,
            f"pod/{name}",
            6379,
            base64.b64encode(_PASSWORD.encode()).decode(),
        )

    def start(self) -> None:
        """Start it; return when it answers."""
        labels = {"app": self.name}
        container = {
            "name": "redis",
            "image": building.full_name(building.REDIS),
            "imagePullPolicy": "IfNotPresent",
            "command": ["sh", "-c", _RUN],
            "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            "readinessProbe": {
                "exec": {"command": ["redis-cli", "-a", _PASSWORD, "-e", "ping"]},
                "periodSeconds": 1,
            },
        }
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": self.name, "labels": labels},
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "containers": [container],
                "volumes": [{"name": "data", "emptyDir": {}}],
            },
        }
        # Unready is not gone: the address stays, as that of a server that was restarted does.
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": self.name},
            "spec": {"selector": labels, "ports": [{"port": 6379}]},
        }
        url = f"redis://:{_PASSWORD}@{self.name}.{NAMESPACE}.svc:6379/0"
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": self.name},
            "data": {"url": base64.b64encode(url.encode()).decode()},
        }
        for thing in (service, secret, pod):
            self._installation.kubectl("apply", "-n", NAMESPACE, "-f", "-", stdin=json.dumps(thing))
        wait_for(lambda: self._ready() == "True", 60, f"Redis {self.name} ready")

    def take_away(self) -> None:
        """Make it unreachable."""
        self._sh(f"touch /data/away && redis-cli -a {_PASSWORD} shutdown 2>/dev/null")

    def bring_back(self) -> None:
        """Make it reachable again, with all its data."""
        self._sh("rm /data/away")
        wait_for(lambda: self._ready() == "True", 30, f"Redis {self.name} ready again")

    def enqueue(self, name: str, durations: Sequence[float]) -> None:
        """Enqueue orders on the queue of that name, recorded under the same name."""
        shop.enqueue(self._forward.client, name, durations, queue=name)

    def finished(self, book: str) -> int:
        """Count the finished orders."""
        return shop.finished(self._forward.client, book)

    def account(self, book: str) -> shop.Account:
        """Return the outcome of the orders."""
        return shop.account(self._forward.client, book)

    def remove(self) -> None:
        """Remove it."""
        self._forward.close()
        for plural in ("pods", "services", "secrets"):
            self._installation.kube.delete(plural, NAMESPACE, self.name)

    def _ready(self) -> Any:
        pod = self._installation.kube.get("pods", NAMESPACE, self.name)
        return condition(pod, "Ready")["status"]

    def _sh(self, script: str) -> None:
        self._installation.kubectl("exec", "-n", NAMESPACE, self.name, "--", "sh", "-c", script)
