"""Wake-ups: the changes of pods, Deployments and queues after which a pool is looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engineroom.api import LABEL_POOL
from engineroom.kube.client.resources import DEPLOYMENTS, PODS
from engineroom.workers.next_look import RESYNC
from engineroom.workers.projections import deployment_view, pod_view
from engineroom.workers.quiet import not_quiet
from engineroom.workers.tenancy.redis_tenancy import RENEW_KEY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engineroom.kube.runtime.controller import Context
    from engineroom.kube.runtime.informer import Informer
    from engineroom.workers.memory import PoolMemory
    from engineroom.workers.projections import DeploymentView, PodView
    from engineroom.workers.redis_connections import SharedConnection

#: A pool that was looked at a moment ago is not looked at again for each push (seconds).
LEAST_BETWEEN_LOOKS = 0.1
#: Changes of pods within this time lead to one reconcile (seconds).
PODS_TOGETHER = 0.05
#: Key on the queue of the check of idle pools; it is no pool.
RESYNC_KEY = "resync"


class PoolWakeUps:
    """Queues the pools that a change concerns; ``memories`` are those of the controller."""

    def __init__(self, context: Context, memories: Mapping[str, PoolMemory]) -> None:
        self._queue = context.queue
        self._clock = context.clock
        self._memories = memories

    def open_caches(self, context: Context) -> tuple[Informer[PodView], Informer[DeploymentView]]:
        """Return the caches of pods and of Deployments, whose changes wake their pools."""
        pods = context.informer(PODS, LABEL_POOL, pod_view, on_index=self.pod_changed)
        deployments = context.informer(
            DEPLOYMENTS,
            LABEL_POOL,
            deployment_view,
            on_index=lambda _pool: None,
            on_change=self.deployment_changed,
        )
        return pods, deployments

    def pod_changed(self, key: str) -> None:
        """Look at the owner of a pod, once for all of its pods that change together."""
        self._queue.add_after(key, PODS_TOGETHER)

    def deployment_changed(self, key: str, view: DeploymentView | None) -> None:
        """Look at a pool whose Deployment changed, unless nothing that counts did."""
        memory = self._memories.get(key)
        if memory is not None and memory.applied.deployment.cache_changed(view):
            self._queue.add(key)

    def queue_changed(self, key: str) -> None:
        """Look at a pool for which Redis pushed a change of a queue."""
        memory = self._memories.get(key)
        if memory is None:
            return
        since = self._clock.monotonic() - memory.looked
        if since >= LEAST_BETWEEN_LOOKS:
            self._queue.add(key, urgent=True)
        else:
            self._queue.add_after(key, LEAST_BETWEEN_LOOKS - since)

    def connection_changed(self, connection: SharedConnection) -> None:
        """Look at all pools of a Redis that went away, or that came back without some pushes."""
        for key, memory in self._memories.items():
            # A Redis that came back may have lost its schedules.
            unaffected = memory.idle and connection.up and memory.schedules is None
            if memory.redis.connection is connection and not unaffected:
                self._queue.add(key)
        if connection.up:
            self._queue.add_after(RESYNC_KEY, 0.0)
            # It may have lost the owners of its queues.
            self._queue.add_after(RENEW_KEY, 0.0)

    def namespace_changed(self, namespace: str) -> None:
        """Look at the pools of a namespace that gained or lost the label of the shared Redis."""
        for key, memory in self._memories.items():
            if memory.namespace == namespace:
                self._queue.add(key)

    async def check_idle(self) -> float:
        """Look at idle pools whose queues are not quiet, because a push may get lost.

        Returns the seconds until the next check.
        """
        idle = [
            (key, memory.redis.queues, memory.redis.connection)
            for key, memory in self._memories.items()
            if memory.idle and memory.redis.connection is not None
        ]
        for key in await not_quiet(idle):
            self._queue.add(key)
        return RESYNC
