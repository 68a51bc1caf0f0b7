"""Resizes running pods in place, and reports what became of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import structlog

from engineroom.api import FIELD_MANAGER
from engineroom.core import reasons
from engineroom.core.errors import ConflictError, DependencyError, EngineroomError
from engineroom.kube.client.errors import Forbidden, NotFound
from engineroom.kube.client.resources import PODS
from engineroom.workers.projections import (
    RESIZE_DEFERRED,
    RESIZE_ERROR,
    RESIZE_IN_PROGRESS,
    RESIZE_INFEASIBLE,
)
from engineroom.workers.rightsizing import resizing
from engineroom.workers.rightsizing.pool_usage import ResizeRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engineroom.core.clock import Clock
    from engineroom.kube.client.client import Client
    from engineroom.kube.client.resources import ObjectRef
    from engineroom.kube.runtime.events import Recorder
    from engineroom.workers.projections import ContainerView, PodView
    from engineroom.workers.resources import ResourceAmounts
    from engineroom.workers.rightsizing.pool_usage import PoolUsage

log = structlog.get_logger(__name__)

#: The API server's version is read again after this time (seconds).
VERSION_TTL: Final = 3600.0
#: Pods of one pool that are resized in one reconcile.
RESIZES_AT_ONCE: Final = 10
#: A resize that the API server refused is requested again after this time, or if it changes.
REFUSED_RETRY: Final = 600.0
#: The cache shows our own resize within this time (seconds).
ECHO: Final = 10.0

ConditionValue = tuple[str, str, str]

_STATES: Final = (
    (RESIZE_INFEASIBLE, reasons.RESIZE_INFEASIBLE, "cannot be resized on its node"),
    (RESIZE_ERROR, reasons.RESIZE_FAILED, "is not resized yet; the kubelet tries again"),
    (RESIZE_DEFERRED, reasons.RESIZE_DEFERRED, "waits for room on its node"),
)


class PodResizer:
    """Requests resizes through the ``resize`` subresource of pods."""

    def __init__(self, client: Client, recorder: Recorder, clock: Clock) -> None:
        self._client = client
        self._recorder = recorder
        self._clock = clock
        #: When to read the version again (monotonic seconds), and whether it supports resizes.
        self._version: tuple[float, bool] = (float("-inf"), False)

    async def supported(self) -> bool:
        """Return whether the API server is new enough; it is asked once an hour."""
        now = self._clock.monotonic()
        if now >= self._version[0]:
            try:
                version = await self._client.request("GET", "/version")
            except Forbidden:
                version = {}
            self._version = (now + VERSION_TTL, resizing.supported(version))
        return self._version[1]

    async def resize(
        self, pool: ObjectRef, usage: PoolUsage, pods: Sequence[PodView]
    ) -> ConditionValue | None:
        """Request what differs from the recommendation; returns what became of all requests.

        None when every pod has the recommended resources.
        """
        running = [
            (pod, pod.worker)
            for pod in pods
            if pod.worker is not None and pod.worker.running and not pod.deleting
        ]
        resized = [
            pod.name
            for pod, container, target in self._wanted_resizes(usage, running)[:RESIZES_AT_ONCE]
            if await self._request(pool, usage, pod, container, target)
        ]
        if resized:
            resources = describe(usage.recommended)
            verb = "pod is" if len(resized) == 1 else "pods are"
            message = f"{len(resized)} {verb} being resized in place to {resources}"
            self._recorder.record(pool, "Normal", reasons.RESIZED, message)
        return _result(usage, running)

    def _wanted_resizes(
        self, usage: PoolUsage, running: Sequence[tuple[PodView, ContainerView]]
    ) -> list[tuple[PodView, ContainerView, ResourceAmounts]]:
        now = self._clock.monotonic()
        wanted = []
        for pod, container in running:
            pod_usage = usage.pods.get(pod.uid)
            use = None
            if pod_usage is not None:
                use = max(pod_usage.peak, pod_usage.memory or 0.0) or None
            target = resizing.plan_resize(container, usage.recommended, use)
            if target is None:
                usage.requests.pop(pod.uid, None)
                continue
            request = usage.requests.get(pod.uid)
            if request is None or request.target != target or now >= request.until:
                wanted.append((pod, container, target))
        for uid in usage.requests.keys() - {pod.uid for pod, _ in running}:
            del usage.requests[uid]
        return wanted

    async def _request(
        self,
        pool: ObjectRef,
        usage: PoolUsage,
        pod: PodView,
        container: ContainerView,
        target: ResourceAmounts,
    ) -> bool:
        """Request one resize; returns whether the API server accepted it."""
        try:
            await self._client.request(
                "PATCH",
                PODS.path(pool.namespace, pod.name, "resize"),
                params={"fieldManager": FIELD_MANAGER},
                body=resizing.resize_patch(container, pod.uid, target),
                content_type="application/strategic-merge-patch+json",
            )
        except (NotFound, ConflictError):
            log.debug("pod disappeared before it was resized", pool=pool.name, pod=pod.name)
            return False
        except DependencyError:
            raise
        except EngineroomError as error:
            # A quota, a LimitRange, admission, or a missing right.
            until = self._clock.monotonic() + REFUSED_RETRY
            message = f"pod {pod.name}: {error}"[:512]
            usage.requests[pod.uid] = ResizeRequest(target, until, message)
            return False
        usage.requests[pod.uid] = ResizeRequest(target, self._clock.monotonic() + ECHO)
        log.info("resized in place", pool=pool.name, pod=pod.name, to=target.resources())
        return True


def _result(
    usage: PoolUsage, running: Sequence[tuple[PodView, ContainerView]]
) -> ConditionValue | None:
    """Return what became of the resizes, the worst first."""
    refused = next((r.refused for r in usage.requests.values() if r.refused), None)
    if refused is not None:
        return "False", reasons.RESIZE_REFUSED, refused
    for state, reason, text in _STATES:
        for pod, container in running:
            if container.resize == state:
                return "False", reason, f"pod {pod.name} {text}: {container.resize_message}"
    if usage.requests or any(c.resize == RESIZE_IN_PROGRESS for _, c in running):
        return "False", reasons.RESIZING, "pods are being resized in place"
    for _, container in running:
        resources = resizing.needing_restart(container, usage.recommended)
        if resources:
            message = (
                f"{' and '.join(resources)} of container {container.name} would restart it "
                "(resizePolicy) and end its jobs; set it in spec.template instead"
            )
            return "False", reasons.RESIZE_NEEDS_RESTART, message
    return None


def describe(amounts: ResourceAmounts) -> str:
    """Return the amounts as text: ``requests.cpu 100m, limits.memory 64Mi``."""
    return ", ".join(
        f"{kind}.{resource} {value}"
        for kind, values in amounts.resources().items()
        for resource, value in values.items()
    )
