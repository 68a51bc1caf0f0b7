"""Application of a decision to one pool: its Deployment, the pods that leave, and its jobs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engineroom.kube.runtime.object_memory import NEVER
from engineroom.queue import commands
from engineroom.workers import job_recovery
from engineroom.workers.deployment.latest import LatestDeployment
from engineroom.workers.deployment.writer import DeploymentWriter
from engineroom.workers.drain.plan import DrainPlan, plan_drain, pods_to_protect
from engineroom.workers.drain.requests import send_drain_requests

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from engineroom.kube.runtime.controller import Context
    from engineroom.queue.observe import PoolFacts
    from engineroom.workers.demand import DemandHistory
    from engineroom.workers.deployment.children import ChildWriter
    from engineroom.workers.deployment.writer import DeploymentTarget
    from engineroom.workers.observe import PoolObservation
    from engineroom.workers.projections import DeploymentView
    from engineroom.workers.redis_measurement import PoolConnection


@dataclass(slots=True)
class AppliedState:
    """The memory of one pool's writes, which later steps build on."""

    deployment: LatestDeployment = field(default_factory=LatestDeployment)
    #: When each worker was last asked to drain (monotonic seconds).
    drain_requests: dict[str, float] = field(default_factory=dict)
    #: When stale workers were last removed (Unix seconds).
    stale_workers_removed: float = NEVER
    #: More failed jobs are to be dropped than one step takes.
    trimming: bool = False


class PoolApplier:
    """Applies decisions, in the order of their urgency: jobs wait for a pool that grows.

    Each step updates the pool's ``AppliedState`` at once, because a later step may fail.
    """

    def __init__(self, context: Context, children: ChildWriter) -> None:
        self._clock = context.clock
        self._children = children
        self._deployments = DeploymentWriter(children, context.recorder)
        self._client = context.client
        self._recorder = context.recorder

    async def apply(
        self,
        target: DeploymentTarget,
        state: AppliedState,
        demand: DemandHistory,
        observation: PoolObservation,
        joined: PoolConnection,
    ) -> DrainPlan:
        """Write the Deployment, then take one step with pods that leave, and with jobs.

        Adds the pods that leave to ``demand.removals``. Without Redis only the Deployment is
        written. A pool that may not use its Redis loses all pods: each worker ends its job first.
        """
        if observation.refused:
            await self._deployments.stop(target, state.deployment, observation.deployment)
            return DrainPlan()
        deployment = await self._deployments.settle(
            target, state.deployment, observation.deployment, observation.retired
        )
        facts, connection = observation.facts, joined.connection
        if deployment is None or facts is None or connection is None:
            return DrainPlan()
        redis = connection.redis
        drain = plan_drain(
            observation.pods,
            observation.workers,
            replicas=deployment.replicas,
            target=target.decision.replicas,
            rolling=deployment.rolling,
        )
        await self._drain(target, state, redis, drain, facts)
        by = drain.shrink_by or _absent_pods(target, deployment, observation, facts)
        if by and await self._deployments.shrink(target, state.deployment, deployment, by):
            demand.removals.extend([facts.at] * by)
        for pod, busy in pods_to_protect(observation.pods, observation.workers, observation.at):
            await self._children.protect(target.pool, pod, busy=busy)
        await self._tend_jobs(target, state, redis, observation, facts)
        return drain

    async def _drain(
        self,
        target: DeploymentTarget,
        state: AppliedState,
        redis: Redis,
        drain: DrainPlan,
        facts: PoolFacts,
    ) -> None:
        """Take one step with every pod that leaves; the next look takes the next one."""
        registered = {worker.name for worker in facts.workers}
        state.drain_requests = await send_drain_requests(
            redis, drain, registered, state.drain_requests, self._clock.monotonic()
        )
        for pod in drain.mark:
            await self._children.mark(target.pool, pod)

    async def _tend_jobs(
        self,
        target: DeploymentTarget,
        state: AppliedState,
        redis: Redis,
        observation: PoolObservation,
        facts: PoolFacts,
    ) -> None:
        """Suspend or resume workers, recover dead workers' jobs, drop surplus failed jobs."""
        pool, plan, recorder = target.pool, target.plan, self._recorder
        if plan.suspend != facts.suspended:
            names = [worker.name for worker in facts.workers]
            command = commands.suspend if plan.suspend else commands.resume
            await command(redis, pool.key, names)
        state.trimming = await job_recovery.trim_failed_jobs(redis, recorder, pool, plan, facts)
        await job_recovery.recover_dead(
            redis, self._client, recorder, pool, plan, facts, observation.pods
        )
        job_recovery.report_stuck(recorder, pool, facts, observation.pods)
        if facts.at - state.stale_workers_removed >= job_recovery.STALE_WORKERS_INTERVAL:
            state.stale_workers_removed = facts.at
            await job_recovery.remove_stale_workers(redis, recorder, pool, plan, facts)


def _absent_pods(
    target: DeploymentTarget,
    deployment: DeploymentView,
    observation: PoolObservation,
    facts: PoolFacts,
) -> int:
    """Return how many pods too many never came to be (quota, admission), and need no drain."""
    if observation.pods or facts.workers:
        return 0
    return max(0, deployment.replicas - target.decision.replicas)
