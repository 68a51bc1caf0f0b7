"""The writes that bring a pool's Deployment to the decided size and content."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from engineroom.core import reasons
from engineroom.core.errors import ConflictError
from engineroom.kube.client.errors import NotFound
from engineroom.workers.deployment.children import equipped

if TYPE_CHECKING:
    from collections.abc import Callable

    from engineroom.api.v1alpha1.workerpool import WorkerPool
    from engineroom.kube.client.resources import ObjectRef
    from engineroom.kube.runtime.events import Recorder
    from engineroom.workers.decide import SizeDecision
    from engineroom.workers.deployment.children import ChildWriter
    from engineroom.workers.deployment.latest import LatestDeployment
    from engineroom.workers.plan import Plan
    from engineroom.workers.projections import DeploymentView

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class DeploymentTarget:
    """The Deployment that a pool should have."""

    pool: ObjectRef
    plan: Plan
    #: Parses the whole spec, which is too large to remember for every pool.
    model: Callable[[], WorkerPool]
    #: Fingerprint of what the objects are made from; "" while there is no Redis.
    inputs: str
    decision: SizeDecision


class DeploymentWriter:
    """Writes Deployments and records an event for each change of a size.

    Every write updates the pool's ``LatestDeployment`` at once, because a later write may fail.
    """

    def __init__(self, children: ChildWriter, recorder: Recorder) -> None:
        self._children = children
        self._recorder = recorder

    async def settle(
        self,
        target: DeploymentTarget,
        latest: LatestDeployment,
        deployment: DeploymentView | None,
        retired: int,
    ) -> DeploymentView | None:
        """Grow the Deployment, then apply it if it is missing, outdated or edited.

        ``retired`` pods take no jobs any more and come on top of the decided size. Returns the
        Deployment as it is afterwards. Raises NotOwnedError if the pool does not own it.
        """
        await self._check_owner(target, deployment)
        size = target.decision.replicas + retired
        if deployment is not None and size > deployment.replicas:
            if not equipped(deployment, target.inputs):
                await self._children.equip(target.pool, target.plan, target.model())
            deployment = await self._resize(target, latest, deployment, size)
        if target.inputs and deployment is not None:
            latest.own_generation = latest.own_generation or deployment.generation
        if not must_apply(target, deployment, latest.own_generation):
            return deployment
        replicas = target.decision.replicas if deployment is None else deployment.replicas
        applied = await self._children.apply(
            target.pool, target.plan, target.model(), replicas, target.inputs
        )
        self._wrote(target, latest, deployment, applied)
        return applied

    async def stop(
        self,
        target: DeploymentTarget,
        latest: LatestDeployment,
        deployment: DeploymentView | None,
    ) -> None:
        """Set the size to zero and leave the template as it is."""
        if deployment is not None and deployment.replicas:
            await self._resize(target, latest, deployment, 0)

    async def _check_owner(
        self, target: DeploymentTarget, deployment: DeploymentView | None
    ) -> None:
        """Check a name that is free in the cache, or taken, before it is written."""
        if deployment is None and not must_apply(target, None, 0):
            return
        if deployment is None or deployment.owner != target.pool.uid:
            await self._children.check_deployment(target.pool)

    async def shrink(
        self,
        target: DeploymentTarget,
        latest: LatestDeployment,
        deployment: DeploymentView,
        by: int,
    ) -> bool:
        """Remove ``by`` pods if the Deployment is as it was seen: otherwise a busy pod might go.

        Returns whether they were removed.
        """
        try:
            await self._resize(target, latest, deployment, max(0, deployment.replicas - by))
        except ConflictError:
            log.debug("deployment changed before it shrank", pool=target.pool.key)
            return False
        return True

    async def _resize(
        self,
        target: DeploymentTarget,
        latest: LatestDeployment,
        before: DeploymentView,
        replicas: int,
    ) -> DeploymentView:
        try:
            after = await self._children.resize(target.pool, before, replicas, target.inputs)
        except (NotFound, ConflictError):
            latest.written = None
            raise
        self._wrote(target, latest, before, after)
        return after

    def _wrote(
        self,
        target: DeploymentTarget,
        latest: LatestDeployment,
        before: DeploymentView | None,
        after: DeploymentView,
    ) -> None:
        latest.wrote(after)
        size = before.replicas if before is not None else 0
        if after.replicas != size:
            latest.scaled = True
            self._record_scaling(target, size, after.replicas)

    def _record_scaling(self, target: DeploymentTarget, before: int, after: int) -> None:
        pool, arithmetic = target.pool, target.decision.sentence
        self._recorder.record(
            pool,
            "Normal",
            reasons.SCALED_UP if after > before else reasons.SCALED_DOWN,
            f"from {before} to {after} pods; wanted {arithmetic}",
        )
        log.info(
            "scaled",
            pool=pool.key,
            before=before,
            after=after,
            why=arithmetic,
        )


def must_apply(
    target: DeploymentTarget, deployment: DeploymentView | None, own_generation: int
) -> bool:
    """Return whether the Deployment is missing, outdated or edited.

    A pool that never had work has no objects at all. A restarted operator trusts what it finds;
    later edits by others show in the generation.
    """
    if not target.inputs or (deployment is None and target.decision.replicas == 0):
        return False
    if deployment is None:
        return True
    return deployment.inputs_hash != target.inputs or deployment.generation != own_generation
