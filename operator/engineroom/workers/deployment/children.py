"""Writes of a pool's objects: Deployment, account, budget, Redis Secret, and marks on pods."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any

import structlog

from engineroom.api import ANNOTATION_EQUIPPED
from engineroom.core.errors import ConflictError
from engineroom.kube.client.errors import AlreadyExists, NotFound
from engineroom.kube.client.resources import DEPLOYMENTS, PDBS, PODS, SECRETS, SERVICE_ACCOUNTS
from engineroom.kube.runtime.ownership import check_owner, create_child
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
    from engineroom.kube.client.resources import ObjectRef
    from engineroom.workers.objects import RuntimeImage
    from engineroom.workers.plan import Plan
    from engineroom.workers.projections import PodView

log = structlog.get_logger(__name__)

_RENAME = "delete it, or rename the pool"
_NAME_ACCOUNT = (
    "to use it, name it in spec.template.spec.serviceAccountName (the author needs the right to "
    "create pods), else delete it"
)


class ChildWriter:
    """Writes the objects of pools; every method returns what the API server has afterwards."""

    def __init__(self, client: Client, *, runtime: RuntimeImage, redis_url: str) -> None:
        self._client = client
        self._runtime = runtime
        self._redis_url = redis_url

    def inputs(self, pool: ObjectRef, plan: Plan, spec: Mapping[str, Any]) -> str:
        """Return the fingerprint of what the objects are made from; "" while there is no Redis."""
        secret = self._worker_secret(pool, plan)
        return "" if secret is None else objects.inputs_hash(spec, self._runtime, secret)

    async def resize(
        self, pool: ObjectRef, before: DeploymentView, replicas: int, inputs: str
    ) -> DeploymentView:
        """Set the size; a smaller one only if the Deployment is still as it was seen.

        Raises NotFound, and ConflictError if it changed meanwhile.
        """
        if replicas > before.replicas and equipped(before, inputs):
            return await self._scale_up(pool, before, replicas)
        metadata: dict[str, Any] = {"annotations": {ANNOTATION_EQUIPPED: inputs}}
        if replicas < before.replicas:
            metadata = {"resourceVersion": before.resource_version}
        patch = {"metadata": metadata, "spec": {"replicas": replicas}}
        return deployment_view(
            await self._client.merge_patch(DEPLOYMENTS, pool.namespace, pool.name, patch)
        )

    async def _scale_up(
        self, pool: ObjectRef, before: DeploymentView, replicas: int
    ) -> DeploymentView:
        """Use the scale subresource: the API server has less to merge while a job waits.

        The answer has no generation, so the next one is assumed. If another write came in between,
        that is wrong: the Deployment then looks edited and is applied once more.
        """
        patch = {"spec": {"replicas": replicas}}
        scale = await self._client.merge_patch(
            DEPLOYMENTS, pool.namespace, pool.name, patch, subresource="scale"
        )
        return dataclasses.replace(
            before,
            resource_version=scale["metadata"]["resourceVersion"],
            generation=before.generation + 1,
            replicas=scale["spec"]["replicas"],
        )

    async def apply(
        self, pool: ObjectRef, plan: Plan, model: WorkerPool, replicas: int, inputs: str
    ) -> DeploymentView:
        """Apply the Deployment with ``replicas`` pods, and before it what its pods need."""
        secret = self._worker_secret(pool, plan)
        assert secret is not None  # noqa: S101 # nosec B101 - inputs are "" without
        if replicas:
            await self.equip(pool, plan, model)
        return deployment_view(
            await self._client.apply(
                DEPLOYMENTS,
                objects.deployment(
                    model,
                    pool.uid,
                    replicas=replicas,
                    runtime=self._runtime,
                    redis_secret=secret,
                    inputs=inputs,
                ),
            )
        )

    async def check_deployment(self, pool: ObjectRef) -> None:
        """Check that no other owner has a Deployment of the pool's name. Raises NotOwnedError."""
        try:
            found = await self._client.get(DEPLOYMENTS, pool.namespace, pool.name)
        except NotFound:
            return
        check_owner(pool, DEPLOYMENTS, found, _RENAME)

    async def equip(self, pool: ObjectRef, plan: Plan, model: WorkerPool) -> None:
        """Create what only pods need: account, budget, Redis Secret. Raises NotOwnedError.

        They are made with the first pod, so ten thousand idle pools are a third of the objects. An
        annotation of the Deployment, written with the size, says that they exist: a restarted
        operator reads it there. A pool whose template names an account gets none.
        """
        budget = objects.disruption_budget(model, pool.uid)
        writes = [create_child(self._client, pool, PDBS, budget, _RENAME)]
        if not objects.template_account(model):
            account = objects.service_account(model, pool.uid)
            writes.append(
                create_child(self._client, pool, SERVICE_ACCOUNTS, account, _NAME_ACCOUNT)
            )
        if plan.redis is None and self._redis_url:
            writes.append(self._create_secret(model, pool.uid))
        await asyncio.gather(*writes)

    async def _create_secret(self, model: WorkerPool, uid: str) -> None:
        secret = objects.redis_secret(model, uid, self._redis_url)
        try:
            await self._client.create(SECRETS, secret)
        except AlreadyExists:
            # Its name has the pool's uid, so it is an earlier write of ours.
            log.debug("Secret exists already", name=secret["metadata"]["name"])

    async def mark(self, pool: ObjectRef, pod: PodView) -> None:
        """Make the pod the cheapest to delete."""
        await self._annotate(pool, pod, {DELETION_COST: str(RETIRED_COST)})

    async def protect(self, pool: ObjectRef, pod: PodView, *, busy: bool) -> None:
        """Tell node autoscalers whether the pod may be moved now."""
        annotations = {
            SAFE_TO_EVICT: "false" if busy else "true",
            DO_NOT_DISRUPT: "true" if busy else None,
        }
        await self._annotate(pool, pod, annotations)

    async def _annotate(
        self, pool: ObjectRef, pod: PodView, annotations: Mapping[str, str | None]
    ) -> None:
        patch = {"metadata": {"uid": pod.uid, "annotations": annotations}}
        try:
            await self._client.merge_patch(PODS, pool.namespace, pod.name, patch)
        except (NotFound, ConflictError):
            log.debug("pod disappeared before it was annotated", pool=pool.name, pod=pod.name)

    def _worker_secret(self, pool: ObjectRef, plan: Plan) -> tuple[str, str] | None:
        """Return Secret and key that give workers the URL; None without any Redis."""
        if plan.redis is not None:
            return plan.redis.url
        if not self._redis_url:
            return None
        name = objects.redis_secret_name(pool.name, pool.uid, self._redis_url)
        return name, objects.REDIS_SECRET_KEY


def equipped(deployment: DeploymentView, inputs: str) -> bool:
    """Return whether what pods need beside the Deployment exists for the present spec."""
    return bool(inputs) and deployment.equipped == inputs
