"""A pool's objects in the cluster: made, kept as the spec says, resized. All writes but status."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog

from engineroom.api import validation
from engineroom.core import reasons
from engineroom.core.errors import ConflictError
from engineroom.kube.errors import AlreadyExists, NotFound
from engineroom.kube.resources import DEPLOYMENTS, PDBS, PODS, SECRETS, SERVICE_ACCOUNTS
from engineroom.workers import objects
from engineroom.workers.views import DELETION_COST, RETIRED_COST, DeploymentView, deployment_view

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engineroom.kube.client import Client
    from engineroom.kube.events import Recorder
    from engineroom.kube.informer import Informer
    from engineroom.workers.decide import Decision
    from engineroom.workers.objects import Runtime
    from engineroom.workers.plan import Plan
    from engineroom.workers.pool import Pool
    from engineroom.workers.views import PodView

log = structlog.get_logger(__name__)


class Children:
    """Writes a pool's Deployment, ServiceAccount, budget, Redis Secret, and marks on pods."""

    def __init__(
        self,
        client: Client,
        recorder: Recorder,
        *,
        deployments: Informer[DeploymentView],
        budgets: Informer[str],
        runtime: Runtime,
        redis_url: str,
    ) -> None:
        self._client = client
        self._recorder = recorder
        self._deployments = deployments
        self._budgets = budgets
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
        *,
        only_if_unchanged: bool,
    ) -> DeploymentView:
        """Set the size. ``only_if_unchanged``: only if the Deployment is still as it was seen.

        Raises NotFound, and ConflictError when it changed meanwhile.
        """
        patch: dict[str, Any] = {"spec": {"replicas": replicas}}
        if only_if_unchanged:
            patch["metadata"] = {"resourceVersion": before.resource_version}
        try:
            answer = await self._client.merge_patch(DEPLOYMENTS, pool.namespace, pool.name, patch)
        except (NotFound, ConflictError):
            pool.written = None
            raise
        return self._wrote(pool, answer, before, decision)

    async def ensure(
        self,
        pool: Pool,
        plan: Plan,
        spec: dict[str, Any],
        before: DeploymentView | None,
        decision: Decision,
    ) -> DeploymentView | None:
        """All objects as the spec says; writes nothing when they are.

        Returns None while there is no Deployment because no Redis is known for it.
        """
        secret = self._worker_secret(pool, plan)
        if secret is None:
            return before
        if not pool.inputs:
            pool.inputs = objects.inputs_hash(spec, self._runtime, secret)
        if before is not None and not pool.own_generation:
            # A restarted operator trusts what it finds; from here on an edit by others shows.
            pool.own_generation = before.generation
        if (
            before is not None
            and before.inputs_hash == pool.inputs
            and before.generation == pool.own_generation
        ):
            await self._budget(pool, spec, before)
            return before
        model = validation.parse(pool.document(spec))
        if plan.redis_secret is None:
            await self._create_secret(pool, objects.redis_secret(model, pool.uid, self._redis_url))
        await self._client.apply(SERVICE_ACCOUNTS, objects.service_account(model, pool.uid))
        answer = await self._client.apply(
            DEPLOYMENTS,
            objects.deployment(
                model,
                pool.uid,
                replicas=decision.replicas if before is None else before.replicas,
                runtime=self._runtime,
                redis_secret=secret,
                inputs=pool.inputs,
            ),
        )
        after = self._wrote(pool, answer, before, decision)
        await self._budget(pool, spec, after)
        return after

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

    def _worker_secret(self, pool: Pool, plan: Plan) -> tuple[str, str] | None:
        """Secret and key that give workers the URL; None while there is no Redis at all."""
        if plan.redis_secret is not None:
            return plan.redis_secret
        if not self._redis_url:
            return None
        return objects.redis_secret_name(pool.name, self._redis_url), objects.REDIS_SECRET_KEY

    async def _create_secret(self, pool: Pool, secret: Mapping[str, Any]) -> None:
        # The operator may create Secrets and read none, so there is no looking first.
        try:
            await self._client.create(SECRETS, secret)
        except AlreadyExists:
            log.debug("redis secret is there already", pool=pool.key)

    async def _budget(self, pool: Pool, spec: dict[str, Any], deployment: DeploymentView) -> None:
        """The disruption budget; made with the first pod, for an idle pool needs none."""
        if deployment.replicas and self._budgets.get(pool.namespace, pool.name) is None:
            model = validation.parse(pool.document(spec))
            await self._client.apply(PDBS, objects.disruption_budget(model, pool.uid))

    def _wrote(
        self,
        pool: Pool,
        answer: Mapping[str, Any],
        before: DeploymentView | None,
        decision: Decision,
    ) -> DeploymentView:
        after = deployment_view(answer)
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
