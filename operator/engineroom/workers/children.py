"""A pool's objects in the cluster: made, kept as the spec says, resized. All writes but status."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any

import structlog

from engineroom.api import ANNOTATION_EQUIPPED
from engineroom.core import reasons
from engineroom.core.errors import ConflictError
from engineroom.kube.client.errors import AlreadyExists, NotFound
from engineroom.kube.client.resources import DEPLOYMENTS, PDBS, PODS, SECRETS, SERVICE_ACCOUNTS
from engineroom.workers import objects
from engineroom.workers.projections import (
    DELETION_COST,
    DO_NOT_DISRUPT,
    RETIRED_COST,
    SAFE_TO_EVICT,
    DeploymentView,
    deployment_view,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engineroom.api.v1alpha1.workerpool import WorkerPool
    from engineroom.kube.client.client import Client
    from engineroom.kube.client.resources import Resource
    from engineroom.kube.runtime.events import Recorder
    from engineroom.kube.runtime.informer import Informer
    from engineroom.workers.decide import Decision
    from engineroom.workers.objects import Runtime
    from engineroom.workers.plan import Plan
    from engineroom.workers.projections import PodView
    from engineroom.workers.state import Pool

log = structlog.get_logger(__name__)


class Children:
    """Writes a pool's Deployment, ServiceAccount, budget, Redis Secret, and marks on pods."""

    def __init__(
        self,
        client: Client,
        recorder: Recorder,
        *,
        deployments: Informer[DeploymentView],
        runtime: Runtime,
        redis_url: str,
    ) -> None:
        self._client = client
        self._recorder = recorder
        self._deployments = deployments
        self._runtime = runtime
        self._redis_url = redis_url

    def deployment(self, pool: Pool) -> DeploymentView | None:
        """The Deployment as last seen or as our last write returned it, whichever is newer."""
        cached = self._deployments.get(pool.namespace, pool.name)
        written = pool.written
        if written is None:
            return cached
        if cached is not None and int(cached.resource_version) >= int(written.resource_version):
            pool.written = None
            return cached
        return written

    async def resize(
        self,
        pool: Pool,
        before: DeploymentView,
        replicas: int,
        decision: Decision,
    ) -> DeploymentView:
        """Set the size, smaller ones only if the Deployment is still as it was seen.

        Raises NotFound, and ConflictError when it changed meanwhile.
        """
        try:
            if replicas > before.replicas and self.equipped(pool, before):
                after = await self._scale_up(pool, before, replicas)
            else:
                metadata: dict[str, Any] = {"annotations": {ANNOTATION_EQUIPPED: pool.inputs}}
                if replicas < before.replicas:
                    metadata = {"resourceVersion": before.resource_version}
                patch = {"metadata": metadata, "spec": {"replicas": replicas}}
                after = deployment_view(
                    await self._client.merge_patch(DEPLOYMENTS, pool.namespace, pool.name, patch)
                )
        except (NotFound, ConflictError):
            pool.written = None
            raise
        return self._wrote(pool, after, before, decision)

    async def _scale_up(self, pool: Pool, before: DeploymentView, replicas: int) -> DeploymentView:
        """Through the scale subresource: the API server has less to merge while somebody waits.

        Its answer has no generation, so the next is assumed. Where that is wrong, because somebody
        else wrote in between, the Deployment looks edited and is applied once more.
        """
        patch = {"spec": {"replicas": replicas}}
        answer = await self._client.merge_patch(
            DEPLOYMENTS, pool.namespace, pool.name, patch, subresource="scale"
        )
        return dataclasses.replace(
            before,
            resource_version=answer["metadata"]["resourceVersion"],
            generation=before.generation + 1,
            replicas=answer["spec"]["replicas"],
        )

    async def ensure(
        self,
        pool: Pool,
        plan: Plan,
        spec: dict[str, Any],
        before: DeploymentView | None,
        decision: Decision,
    ) -> DeploymentView | None:
        """All objects as the spec says; writes nothing when they are.

        A pool that never had work has no objects at all: ten thousand of them cost the cluster
        their own entry and nothing else. Returns None then, and while no Redis is known.
        """
        secret = self._worker_secret(pool, plan)
        if secret is None or (before is None and decision.replicas == 0):
            return before
        if before is not None and not pool.own_generation:
            # A restarted operator trusts what it finds; from here on an edit by others shows.
            pool.own_generation = before.generation
        if (
            before is not None
            and before.inputs_hash == pool.inputs
            and before.generation == pool.own_generation
        ):
            return before
        model = pool.parse(spec)
        replicas = decision.replicas if before is None else before.replicas
        if replicas:
            await self.equip(pool, plan, model)
        answer = await self._client.apply(
            DEPLOYMENTS,
            objects.deployment(
                model,
                pool.uid,
                replicas=replicas,
                runtime=self._runtime,
                redis_secret=secret,
                inputs=pool.inputs,
            ),
        )
        return self._wrote(pool, deployment_view(answer), before, decision)

    def prepare(self, pool: Pool, plan: Plan, spec: dict[str, Any]) -> None:
        """Know what the objects are made from; cheap when nothing changed."""
        secret = self._worker_secret(pool, plan)
        if secret is not None and not pool.inputs:
            pool.inputs = objects.inputs_hash(spec, self._runtime, secret)

    def equipped(self, pool: Pool, deployment: DeploymentView) -> bool:
        """Whether what pods need beside the Deployment was made for the present spec."""
        return bool(pool.inputs) and deployment.equipped == pool.inputs

    async def equip(self, pool: Pool, plan: Plan, model: WorkerPool) -> None:
        """What only pods need: account, budget, Redis Secret. Made with the first pod.

        Ten thousand idle pools are so a third of the objects. That it was done stands in an
        annotation of the Deployment, written with the size: a restarted operator sees it there.
        """
        wanted = [
            (SERVICE_ACCOUNTS, objects.service_account(model, pool.uid)),
            (PDBS, objects.disruption_budget(model, pool.uid)),
        ]
        if plan.redis_secret is None and self._redis_url:
            # The operator may create Secrets and read none, so there is no looking first.
            secret = objects.redis_secret(model, pool.uid, self._redis_url)
            wanted.append((SECRETS, secret))
        await asyncio.gather(*(self._create(pool, kind, obj) for kind, obj in wanted))

    async def mark(self, pool: Pool, pod: PodView) -> None:
        """Make the pod the cheapest to delete."""
        cost = {DELETION_COST: str(RETIRED_COST)}
        try:
            await self._client.merge_patch(
                PODS,
                pool.namespace,
                pod.name,
                {"metadata": {"uid": pod.uid, "annotations": cost}},
            )
        except (NotFound, ConflictError):
            log.debug("pod went before it was marked", pool=pool.key, pod=pod.name)

    async def protect(self, pool: Pool, pod: PodView, *, busy: bool) -> None:
        """Tell node autoscalers whether the pod may be moved right now."""
        annotations = {
            SAFE_TO_EVICT: "false" if busy else "true",
            DO_NOT_DISRUPT: "true" if busy else None,
        }
        try:
            await self._client.merge_patch(
                PODS,
                pool.namespace,
                pod.name,
                {"metadata": {"uid": pod.uid, "annotations": annotations}},
            )
        except (NotFound, ConflictError):
            log.debug("pod went before it was annotated", pool=pool.key, pod=pod.name)

    def _worker_secret(self, pool: Pool, plan: Plan) -> tuple[str, str] | None:
        """Secret and key that give workers the URL; None while there is no Redis at all."""
        if plan.redis_secret is not None:
            return plan.redis_secret
        if not self._redis_url:
            return None
        return objects.redis_secret_name(pool.name, self._redis_url), objects.REDIS_SECRET_KEY

    async def _create(self, pool: Pool, kind: Resource, obj: Mapping[str, Any]) -> None:
        try:
            await self._client.create(kind, obj)
        except AlreadyExists:
            log.debug("object is there already", pool=pool.key, kind=kind.kind)

    def _wrote(
        self,
        pool: Pool,
        after: DeploymentView,
        before: DeploymentView | None,
        decision: Decision,
    ) -> DeploymentView:
        pool.written = after
        pool.own_generation = after.generation
        was = before.replicas if before is not None else 0
        if after.replicas != was:
            pool.scaled = True
            self._recorder.record(
                pool.reference,
                "Normal",
                reasons.SCALED_UP if after.replicas > was else reasons.SCALED_DOWN,
                f"from {was} to {after.replicas} pods; wanted {decision.sentence}",
            )
            log.info(
                "scaled", pool=pool.key, before=was, after=after.replicas, why=decision.sentence
            )
        return after
