"""One WorkerPool under test, with a queue and a book of its own."""

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
    """A pod template of the shop's image."""
    worker = {
        "name": "worker",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "resources": {"requests": {"cpu": "10m", "memory": "48Mi"}},
        **container,
    }
    return {"spec": {"containers": [worker]}}


class Pool:
    """A pool in the namespace `e2e`. `name` is its queue's and its book's too."""

    def __init__(self, installation: Installation, redis: Forward, name: str) -> None:
        self.name = name
        self.installation = installation
        self.kube = installation.kube
        self._redis = redis
        self._orders = 0

    @property
    def client(self) -> redis.Redis:
        """Redis, where the pool's queue is."""
        return self._redis.client

    def create(self, **spec: Any) -> None:
        """Make it; what is not said is autoscaled, quick, and of the shop's image."""
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
        """Merge into its spec."""
        self.kube.patch("workerpools", NAMESPACE, self.name, {"spec": spec})

    def scale(self, replicas: int) -> None:
        """`kubectl scale`."""
        self.installation.kubectl(
            "scale", "workerpool", self.name, "-n", NAMESPACE, f"--replicas={replicas}"
        )

    def get(self) -> Object:
        """The object."""
        return self.kube.get("workerpools", NAMESPACE, self.name)

    def condition(self, kind: str) -> Object:
        """One of its conditions."""
        return condition(self.get(), kind)

    def pods(self) -> list[Object]:
        """Its pods, those on their way out included."""
        return self.kube.all("pods", NAMESPACE, selector=f"engineroom.dev/pool={self.name}")

    def enqueue(
        self,
        durations: Sequence[float],
        *,
        job: str = "fulfil",
        timeout: int = 600,
        retry: Retry | None = None,
    ) -> list[str]:
        """Enqueue orders; their job ids."""
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
        """What became of its orders."""
        return shop.account(self.client, self.name)

    def started(self) -> int:
        """Orders begun so far."""
        return int(self.client.hlen(f"shop:{self.name}:started"))

    def finished(self) -> int:
        """Orders finished so far."""
        return shop.finished(self.client, self.name)

    def wait_condition(self, kind: str, status: str, reason: str | None, seconds: float) -> Object:
        """The condition once it is so."""

        def look() -> Object | None:
            found = self.condition(kind)
            fits = found["status"] == status and reason in (None, found["reason"])
            return found if fits else None

        return wait_for(
            look, seconds, lambda: f"{kind}={status} {reason or ''}; it is {self.condition(kind)}"
        )

    def wait_finished(self, orders: int, seconds: float) -> None:
        """Return when so many orders are finished."""
        wait_for(
            lambda: self.finished() >= orders,
            seconds,
            lambda: f"{orders} orders finished; {self.finished()} are; {self.get().get('status')}",
        )

    def wait_started(self, orders: int, seconds: float) -> None:
        """Return when so many orders have begun."""
        wait_for(
            lambda: self.started() >= orders,
            seconds,
            lambda: f"{orders} orders begun; {self.started()} are; {self.get().get('status')}",
        )

    def wait_size(self, ready: int, seconds: float) -> None:
        """Return when exactly so many pods exist and are ready."""

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
        """Remove it, and what it left in Redis. Its pods are not waited for."""
        self.kube.delete("workerpools", NAMESPACE, self.name)
        for pod in self.pods():
            self.kube.delete("pods", NAMESPACE, pod["metadata"]["name"], grace=0)

    def story(self) -> str:
        """What is worth reading after a test has failed."""
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
    """Whether the pod is ready and stays."""
    return (
        "deletionTimestamp" not in pod["metadata"] and condition(pod, "Ready")["status"] == "True"
    )
