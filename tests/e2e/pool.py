"""One WorkerPool under test, with its own queue and record of orders."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from tests.deployed import images, shop
from tests.deployed.kube import condition, wait_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    import redis
    from rq import Retry

    from tests.deployed.forward import Forward
    from tests.deployed.installation import Installation
    from tests.deployed.kube import Object

NAMESPACE = "e2e"
#: What the chart is installed with.
VALUES: dict[str, Any] = {
    "redis": {"secretNamespaces": [NAMESPACE]},
    "rightSizing": {"intervalSeconds": 5},
}
#: Quick enough for a test, with everything else as a user has it.
QUICK = {
    "minReplicas": 0,
    "maxReplicas": 4,
    "targetLatency": "5s",
    "idleTimeout": "2s",
    "scaleDown": {"stabilizationWindow": "2s"},
}


def template(image: str = images.SHOP.name, **container: Any) -> Object:
    """Return a pod template of the shop's image."""
    worker = {
        "name": "worker",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "resources": {"requests": {"cpu": "10m", "memory": "48Mi"}},
        **container,
    }
    return {"spec": {"containers": [worker]}}


class Pool:
    """A pool in the namespace `e2e`. Its queue and its record of orders have the same `name`."""

    def __init__(self, installation: Installation, redis: Forward, name: str) -> None:
        self.name = name
        self.installation = installation
        self.kube = installation.kube
        self._redis = redis
        self._orders = 0

    @property
    def client(self) -> redis.Redis:
        """A client of the Redis with the pool's queue."""
        return self._redis.client

    def create(self, **spec: Any) -> None:
        """Create it. Defaults: autoscaled, quick, with the shop's image."""
        base: Object = {
            "queues": [{"name": self.name}],
            "workersPerPod": 2,
            "drain": {"maxJobDuration": "1m"},
            "template": template(),
        }
        if "replicas" not in spec:
            base["autoscaling"] = copy.deepcopy(QUICK)
        body = {
            "apiVersion": "engineroom.dev/v1alpha1",
            "kind": "WorkerPool",
            "metadata": {"name": self.name},
            "spec": {**base, **spec},
        }
        self.kube.create("workerpools", NAMESPACE, body)

    def patch(self, spec: Object) -> None:
        """Merge a patch into its spec."""
        self.kube.patch("workerpools", NAMESPACE, self.name, {"spec": spec})

    def scale(self, replicas: int) -> None:
        """Scale it by `kubectl scale`."""
        self.installation.kubectl(
            "scale", "workerpool", self.name, "-n", NAMESPACE, f"--replicas={replicas}"
        )

    def get(self) -> Object:
        """Get the object."""
        return self.kube.get("workerpools", NAMESPACE, self.name)

    def condition(self, kind: str) -> Object:
        """Return one of its conditions."""
        return condition(self.get(), kind)

    def pods(self) -> list[Object]:
        """List its pods, terminating ones included."""
        return self.kube.all("pods", NAMESPACE, selector=f"engineroom.dev/pool={self.name}")

    def enqueue(
        self,
        durations: Sequence[float],
        *,
        job: str = "fulfil",
        timeout: int = 600,
        retry: Retry | None = None,
    ) -> list[str]:
        """Enqueue orders; return their job ids."""
        ids = shop.enqueue(
            self.client,
            self.name,
            durations,
            queue=self.name,
            first=self._orders,
            job=job,
            timeout=timeout,
            retry=retry,
        )
        self._orders += len(durations)
        return ids

    def account(self) -> shop.Account:
        """Return the outcome of its orders."""
        return shop.account(self.client, self.name)

    def started(self) -> int:
        """Count the started orders."""
        return int(self.client.hlen(f"shop:{self.name}:started"))

    def finished(self) -> int:
        """Count the finished orders."""
        return shop.finished(self.client, self.name)

    def wait_condition(self, kind: str, status: str, reason: str | None, seconds: float) -> Object:
        """Wait for a status of a condition and return the condition."""

        def look() -> Object | None:
            current = self.condition(kind)
            fits = current["status"] == status and reason in (None, current["reason"])
            return current if fits else None

        return wait_for(
            look, seconds, lambda: f"{kind}={status} {reason or ''}; it is {self.condition(kind)}"
        )

    def wait_finished(self, orders: int, seconds: float) -> None:
        """Wait until this number of orders is finished."""
        wait_for(
            lambda: self.finished() >= orders,
            seconds,
            lambda: f"{orders} orders finished; {self.finished()} are; {self.get().get('status')}",
        )

    def wait_started(self, orders: int, seconds: float) -> None:
        """Wait until this number of orders has started."""
        wait_for(
            lambda: self.started() >= orders,
            seconds,
            lambda: f"{orders} orders begun; {self.started()} are; {self.get().get('status')}",
        )

    def wait_size(self, ready: int, seconds: float) -> None:
        """Wait until exactly this number of pods exists and is ready."""

        def look() -> bool:
            pods = self.pods()
            return len(pods) == ready == sum(is_ready(pod) for pod in pods)

        wait_for(
            look,
            seconds,
            lambda: (
                f"{ready} ready pods; there are "
                f"{[(pod['metadata']['name'], is_ready(pod)) for pod in self.pods()]}; "
                f"{self.get().get('status')}"
            ),
        )

    def delete(self) -> None:
        """Delete it and its keys in Redis, without waiting for its pods."""
        self.kube.delete("workerpools", NAMESPACE, self.name)
        for pod in self.pods():
            self.kube.delete("pods", NAMESPACE, pod["metadata"]["name"], grace=0)

    def story(self) -> str:
        """Return the details that help after a failed test."""
        lines = [f"--- pool {self.name}", str(self.get().get("status"))]
        for pod in self.pods():
            statuses = pod.get("status", {}).get("containerStatuses", [])
            lines.append(
                f"{pod['metadata']['name']} {pod['status'].get('phase')} "
                f"{pod['metadata'].get('deletionTimestamp', '')} "
                f"{[status.get('state') for status in statuses]}"
            )
            if statuses and "running" in statuses[0].get("state", {}):
                log = self.kube.logs(NAMESPACE, pod["metadata"]["name"], "worker")
                lines += log.splitlines()[-15:]
        events = self.installation.kubectl(
            "get", "events", "-n", NAMESPACE, "--sort-by=.lastTimestamp"
        )
        lines += [line for line in events.splitlines() if self.name in line][-25:]
        return "\n".join(lines)


def is_ready(pod: Object) -> bool:
    """Return True if the pod is ready and not terminating."""
    return (
        "deletionTimestamp" not in pod["metadata"] and condition(pod, "Ready")["status"] == "True"
    )
