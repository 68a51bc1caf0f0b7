"""Reads the state of the pool, its pods and the orders from the cluster."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import redis
import urllib3

from tests.deployed import shop
from tests.deployed.kube import KubeError

if TYPE_CHECKING:
    from tests.deployed.forward import Forward
    from tests.deployed.kube import Kube, Object


@dataclass(frozen=True)
class Snapshot:
    """The state at one time; `at` is seconds since the start of the watch."""

    at: float
    waiting: int
    running: int
    finished: int
    wanted: int
    pods: int
    ready: int
    draining: int
    decision: str


@dataclass
class Pods:
    """Ends and restarts of the pool's pods, from every state that the API server reported."""

    names: set[str] = field(default_factory=set)
    #: Reason of a failed container, by pod name.
    failures: dict[str, str] = field(default_factory=dict)
    restarts: dict[str, int] = field(default_factory=dict)

    def record(self, pod: Object) -> None:
        """Record one state of a pod."""
        name = pod["metadata"]["name"]
        self.names.add(name)
        for status in pod.get("status", {}).get("containerStatuses", []):
            self.restarts[name] = max(self.restarts.get(name, 0), status.get("restartCount", 0))
            for state in (status.get("state", {}), status.get("lastState", {})):
                ended = state.get("terminated")
                if ended and ended.get("exitCode") != 0:
                    self.failures[name] = f"{ended.get('reason')} ({ended.get('exitCode')})"


class Watcher:
    """Watches one pool and one record of orders."""

    def __init__(self, kube: Kube, forward: Forward, namespace: str, pool: str, book: str) -> None:
        self._kube = kube
        self._forward = forward
        self._namespace = namespace
        self._pool = pool
        self._book = book
        self._began = time.monotonic()
        self.pods = Pods()
        self.largest = 0
        threading.Thread(target=self._follow_pods, daemon=True).start()

    def snapshot(self) -> Snapshot:
        """Read the current state. Raises one of ``READ_ERRORS``."""
        client = self._forward.client
        status = self._kube.get("workerpools", self._namespace, self._pool).get("status", {})
        pods = self._kube.all("pods", self._namespace, selector=f"engineroom.dev/pool={self._pool}")
        leaving = sum("deletionTimestamp" in pod["metadata"] for pod in pods)
        snapshot = Snapshot(
            at=time.monotonic() - self._began,
            waiting=shop.waiting(client),
            running=shop.running(client),
            finished=shop.finished(client, self._book),
            wanted=status.get("desiredReplicas", 0),
            pods=len(pods),
            ready=status.get("readyReplicas", 0),
            draining=max(status.get("drainingReplicas", 0), leaving),
            decision=status.get("decision", ""),
        )
        self.largest = max(self.largest, snapshot.pods - leaving)
        return snapshot

    def _follow_pods(self) -> None:
        while True:
            try:
                # From 0: first the current state of all pods, then each change.
                for _, pod in self._kube.watch("pods", self._namespace, "0"):
                    labels = pod.get("metadata", {}).get("labels", {})
                    if labels.get("engineroom.dev/pool") == self._pool:
                        self.pods.record(pod)
            except Exception:  # noqa: BLE001  the API server is unavailable: try again
                time.sleep(1)


READ_ERRORS = (redis.RedisError, urllib3.exceptions.HTTPError, OSError, KubeError)
