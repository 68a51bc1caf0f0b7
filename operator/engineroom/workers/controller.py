"""The WorkerPool controller: a pool's Deployment, size, drain, recovery, schedules and status."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from engineroom.api import LABEL_POOL
from engineroom.api.validation.pod_security import Level
from engineroom.core.errors import (
    ConflictError,
    DependencyError,
    MeasurementError,
    SecretError,
)
from engineroom.kube.client.errors import NotFound
from engineroom.kube.client.resources import DEPLOYMENTS, NAMESPACES, PODS, WORKERPOOLS
from engineroom.kube.runtime.reconciler import (
    ObjectReconciler,
    earliest,
    unless_refused,
)
from engineroom.kube.runtime.redis_addresses import RedisAddresses, redis_trouble
from engineroom.queue import commands
from engineroom.workers import job_recovery
from engineroom.workers.children import ChildWriter, equipped, newest, record_scaling
from engineroom.workers.decide import SizeDecision, decide_size
from engineroom.workers.drain.plan import (
    DrainPlan,
    plan_drain,
    pods_to_drain,
    pods_to_protect,
    with_requested,
)
from engineroom.workers.drain.requests import send_drain_requests
from engineroom.workers.job_schedules import declarations
from engineroom.workers.job_schedules.declarations import ScheduleDeclarer
from engineroom.workers.job_schedules.schedule_runner import ScheduleRunner
from engineroom.workers.memory import PoolMemory
from engineroom.workers.next_look import RESYNC, next_look
from engineroom.workers.observe import PoolObservation, combine, ended_last_minute
from engineroom.workers.plan import Plan, needs_namespace, parse_pool, plan_of
from engineroom.workers.projections import deployment_view, pod_view
from engineroom.workers.quiet import not_quiet
from engineroom.workers.redis_connections import SharedConnection, SharedConnections
from engineroom.workers.rightsizing.monitor import ResourceMonitor
from engineroom.workers.status import FIGURES, StatusInputs, pool_status

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engineroom.api.v1alpha1.workerpool import WorkerPool
    from engineroom.core.conditions import Trouble
    from engineroom.kube.runtime.controller import Record
    from engineroom.kube.runtime.informer import Informer
    from engineroom.queue.observe import PoolFacts
    from engineroom.workers.job_schedules.declarations import ScheduleFacts, ScheduleStore
    from engineroom.workers.objects import Runtime
    from engineroom.workers.projections import DeploymentView, PodView
    from engineroom.workers.rightsizing.monitor import SizingStatus

log = structlog.get_logger(__name__)

#: A pool that was looked at a moment ago is not looked at again for each push (seconds).
LEAST_BETWEEN_LOOKS = 0.1
#: Changes of pods within so long lead to one look (seconds).
PODS_TOGETHER = 0.05
#: Keys on the queue that are no pools: the check of idle pools, and the round of the monitor.
RESYNC_KEY, USAGE_KEY = "resync", "use"
#: Seconds between rounds of the monitor, and of use to be watched before less is recommended.
USE_INTERVAL, USE_PATIENCE = 30.0, 3600.0


@dataclass(frozen=True, slots=True)
class PoolOutcome:
    """The results of the writes of one look."""

    drain: DrainPlan
    #: (reason, message) if the API server refused a write.
    refusal: Trouble | None
    #: None while the schedules cannot be read.
    schedules: Sequence[ScheduleFacts] | None
    sizing: SizingStatus | None


class WorkerPoolController(
    ObjectReconciler[PoolMemory, Plan, PoolObservation, SizeDecision, PoolOutcome]
):
    """Reconciles WorkerPools; see the modules of this package for what is decided and why."""

    kind = WORKERPOOLS
    figures = FIGURES

    def __init__(
        self,
        runtime: Runtime,
        redis_url: str,
        schedules: ScheduleStore,
        *,
        use_interval: float = USE_INTERVAL,
        use_patience: float = USE_PATIENCE,
        connections: type[SharedConnections] = SharedConnections,
    ) -> None:
        super().__init__()
        self._store = schedules
        self._runtime = runtime
        self._connect = connections
        self._redis_url = redis_url
        self._use_interval, self._use_patience = use_interval, use_patience
        self._pods: Informer[PodView]
        self._deployments: Informer[DeploymentView]
        self._children: ChildWriter
        self._addresses: RedisAddresses
        self._connections: SharedConnections
        self._monitor: ResourceMonitor
        self._declarer: ScheduleDeclarer
        self._runner: ScheduleRunner

    # -- caches, connections, wake-ups -----------------------------------------------------------

    async def open(self) -> None:
        """See Reconciler. Connections to Redis open as pools need them."""
        context, client, clock = self.context, self.context.client, self.context.clock
        self._pods = context.informer(PODS, LABEL_POOL, pod_view, on_index=self._pod_changed)
        self._deployments = context.informer(
            DEPLOYMENTS,
            LABEL_POOL,
            deployment_view,
            on_index=lambda _pool: None,
            on_change=self._deployment_changed,
        )
        self._children = ChildWriter(client, runtime=self._runtime, redis_url=self._redis_url)
        self._addresses = RedisAddresses(client, clock, self._redis_url)
        self._connections = self._connect(
            clock, on_queue=self._queue_changed, on_state=self._connection_changed
        )
        self._monitor = ResourceMonitor(
            client,
            context.recorder,
            clock,
            self._pods,
            interval=self._use_interval,
            patience=self._use_patience,
            namespaces=context.namespaces,
        )
        self._declarer = ScheduleDeclarer(context, self._store)
        addresses = RedisAddresses(client, clock, self._redis_url)
        self._runner = ScheduleRunner(context, self._store, addresses)
        self._runner.start()
        self._runner.register_gauges(context.gauge)
        self.every(RESYNC_KEY, self._resync, first=RESYNC)
        self.every(USAGE_KEY, self._measure_usage)

    async def close(self) -> None:
        """See Reconciler."""
        await self._runner.stop()
        await self._connections.close()

    def changed(self, key: str, obj: Record | None) -> None:
        """See Controller."""
        self._runner.changed(key, obj)
        super().changed(key, obj)

    def _pod_changed(self, key: str) -> None:
        # A pod changes at every small step, and many do at once: one look for all of them.
        self.context.queue.add_after(key, PODS_TOGETHER)

    def _deployment_changed(self, key: str, view: DeploymentView | None) -> None:
        memory = self.memories.get(key)
        if memory is None:
            return
        before, memory.cached = memory.cached, view
        written = memory.written
        if view is None and written and (before is None or before.uid == written.uid):
            memory.written = None  # deleted before the cache had our last write
        if view is None or before is None or not view.same_state(before):
            self.context.queue.add(key)

    def _queue_changed(self, key: str) -> None:
        """Look at a pool for which Redis pushed a change of a queue."""
        memory = self.memories.get(key)
        if memory is None:
            return
        since = self.context.clock.monotonic() - memory.looked
        if since >= LEAST_BETWEEN_LOOKS:
            self.context.queue.add(key, urgent=True)
        else:
            self.context.queue.add_after(key, LEAST_BETWEEN_LOOKS - since)

    def _connection_changed(self, connection: SharedConnection) -> None:
        """Look at all pools of a Redis that went away, or that came back without some pushes."""
        for key, memory in self.memories.items():
            # A Redis that came back may have lost its schedules.
            unaffected = memory.idle and connection.up and memory.schedules is None
            if memory.connection is connection and not unaffected:
                self.context.queue.add(key)
        if connection.up:
            self.context.queue.add_after(RESYNC_KEY, 0.0)

    async def _resync(self) -> float:
        """Look at idle pools whose queues are not quiet, because a push may get lost."""
        idle = [
            (memory.key, memory.plan.queues, memory.connection)
            for memory in self.memories.values()
            if memory.idle and memory.connection is not None and memory.plan is not None
        ]
        for key in await not_quiet(idle):
            self.context.queue.add(key)
        return RESYNC

    async def _measure_usage(self) -> float:
        return await self._monitor.round(
            [
                (self.reference(memory), memory.usage)
                for memory in self.memories.values()
                if memory.usage is not None
            ]
        )

    # -- memory ----------------------------------------------------------------------------------

    def remember(self, record: Record) -> PoolMemory:
        """See Reconciler."""
        return PoolMemory(record.namespace, record.name, record.uid)

    async def parse(self, memory: PoolMemory, obj: Mapping[str, Any]) -> Plan:
        """See Reconciler. What exceeds "restricted" is measured by the namespace's label."""
        if needs_namespace(obj):
            namespace = await self.context.client.get(NAMESPACES, None, memory.namespace)
            memory.level = Level.of(namespace["metadata"].get("labels"))
        return plan_of(parse_pool(obj, memory.level))

    def look_at_invalid(self, memory: PoolMemory, obj: Mapping[str, Any]) -> float | None:
        """See ObjectReconciler. A label of the namespace changes without an event of the pool."""
        return RESYNC if needs_namespace(obj) else None

    def spec_changed(self, memory: PoolMemory) -> None:
        """See Reconciler."""
        self._disconnect(memory)
        memory.inputs = ""
        memory.spec_seen = self.context.clock.now().timestamp() if memory.generation else 0.0

    def forget(self, memory: PoolMemory) -> None:
        """See Reconciler."""
        self._leave_schedules(memory)
        self._disconnect(memory)

    async def removed(self, key: str, memory: PoolMemory | None) -> float | None:
        """See ObjectReconciler. Removes the pool's schedules from Redis."""
        if memory is not None:
            self._leave_schedules(memory)
        return await self._declarer.clear(key)

    def _leave_schedules(self, memory: PoolMemory) -> None:
        memory.schedules = self._declarer.leave(memory.key, memory.schedules)

    def _disconnect(self, memory: PoolMemory) -> None:
        if memory.connection is not None and memory.plan is not None:
            self._connections.leave(memory.connection, memory.key, memory.plan.queues)
        memory.connection = memory.address = None

    # -- observe and decide ----------------------------------------------------------------------

    async def observe(
        self, memory: PoolMemory, plan: Plan, obj: Mapping[str, Any]
    ) -> PoolObservation:
        """See ObjectReconciler."""
        memory.looked = self.context.clock.monotonic()
        facts, trouble = await self._measure(memory, plan)
        deployment = self._deployment(memory)
        requested = pods_to_drain(obj["metadata"].get("annotations"))
        pods = with_requested(self._pods.by_index(memory.key), requested)
        now = self.context.clock.now().timestamp()
        return combine(now, facts, trouble, deployment, pods)

    async def _measure(
        self, memory: PoolMemory, plan: Plan
    ) -> tuple[PoolFacts | None, Trouble | None]:
        """Return what Redis says, or (reason, message) of why it cannot be measured."""
        try:
            address = await self._addresses.resolve(memory.namespace, plan.redis)
            if memory.connection is None or memory.address != address:
                self._disconnect(memory)
                memory.connection = self._connections.join(address, memory.key, plan.queues)
                memory.address = address
            return await memory.connection.observer.look(memory.key, plan.queues), None
        except (SecretError, DependencyError) as error:
            if isinstance(error, SecretError):
                self._disconnect(memory)
            if isinstance(error, (SecretError, MeasurementError)):
                self._addresses.doubt(memory.namespace, plan.redis)
            return None, redis_trouble(error)

    def _deployment(self, memory: PoolMemory) -> DeploymentView | None:
        cached = self._deployments.get(memory.namespace, memory.name)
        deployment = newest(cached, memory.written)
        if deployment is cached:
            memory.written = None
        return deployment

    def decide(self, memory: PoolMemory, plan: Plan, observation: PoolObservation) -> SizeDecision:
        """See ObjectReconciler."""
        if observation.facts is not None:
            memory.demand.fold(observation.facts, observation.busy)
        return decide_size(plan, observation.size_inputs, memory.demand)

    # -- apply -----------------------------------------------------------------------------------

    async def apply(
        self,
        memory: PoolMemory,
        plan: Plan,
        obj: Mapping[str, Any],
        observation: PoolObservation,
        decision: SizeDecision,
    ) -> PoolOutcome:
        """See ObjectReconciler. Growing comes before everything else: jobs wait for it."""
        old = obj.get("status") or {}
        drain, refusal = await unless_refused(
            self._apply_objects(memory, plan, obj, observation, decision), DrainPlan()
        )
        schedules = await self._declare_schedules(memory, plan, observation, old)
        pool = self.reference(memory)
        memory.usage, sizing = await self._monitor.settle(
            pool, memory.usage, plan.right_sizing, old, observation.pods, observation.facts
        )
        return PoolOutcome(drain, refusal, schedules, sizing)

    async def _apply_objects(
        self,
        memory: PoolMemory,
        plan: Plan,
        obj: Mapping[str, Any],
        observation: PoolObservation,
        decision: SizeDecision,
    ) -> DrainPlan:
        pool, deployment = self.reference(memory), observation.deployment
        memory.inputs = memory.inputs or self._children.inputs(pool, plan, obj.get("spec") or {})
        size = decision.replicas + observation.retired
        if deployment is not None and size > deployment.replicas:
            if not equipped(deployment, memory.inputs):
                await self._children.equip(pool, plan, parse_pool(obj, memory.level))
            deployment = await self._resize(memory, deployment, size, decision)
        if memory.inputs and deployment is not None:
            memory.own_generation = memory.own_generation or deployment.generation
        if _must_apply(memory, deployment, decision):
            replicas = decision.replicas if deployment is None else deployment.replicas
            model: WorkerPool = parse_pool(obj, memory.level)
            applied = await self._children.apply(pool, plan, model, replicas, memory.inputs)
            deployment = self._wrote(memory, deployment, applied, decision)
        if deployment is None or observation.facts is None or memory.connection is None:
            return DrainPlan()
        drain = await self._shrink(
            memory, memory.connection, deployment, observation, observation.facts, decision
        )
        for pod, busy in pods_to_protect(observation.pods, observation.workers, observation.at):
            await self._children.protect(pool, pod, busy=busy)
        await self._tend_jobs(memory, memory.connection, plan, observation, observation.facts)
        return drain

    async def _resize(
        self, memory: PoolMemory, before: DeploymentView, replicas: int, decision: SizeDecision
    ) -> DeploymentView:
        pool = self.reference(memory)
        try:
            after = await self._children.resize(pool, before, replicas, memory.inputs)
        except (NotFound, ConflictError):
            memory.written = None
            raise
        return self._wrote(memory, before, after, decision)

    def _wrote(
        self,
        memory: PoolMemory,
        before: DeploymentView | None,
        after: DeploymentView,
        decision: SizeDecision,
    ) -> DeploymentView:
        memory.written, memory.own_generation = after, after.generation
        size = before.replicas if before is not None else 0
        pool = self.reference(memory)
        if record_scaling(self.context.recorder, pool, size, after.replicas, decision.sentence):
            memory.scaled = True
        return after

    async def _shrink(
        self,
        memory: PoolMemory,
        connection: SharedConnection,
        deployment: DeploymentView,
        observation: PoolObservation,
        facts: PoolFacts,
        decision: SizeDecision,
    ) -> DrainPlan:
        """Take one step with every pod that leaves; the next look takes the next one."""
        drain = plan_drain(
            observation.pods,
            observation.workers,
            replicas=deployment.replicas,
            target=decision.replicas,
            rolling=deployment.rolling,
        )
        registered = {worker.name for worker in facts.workers}
        now = self.context.clock.monotonic()
        memory.drain_requests = await send_drain_requests(
            connection.redis, drain, registered, memory.drain_requests, now
        )
        for pod in drain.mark:
            await self._children.mark(self.reference(memory), pod)
        by = drain.shrink_by
        if not by and not observation.pods and not facts.workers:
            # Pods that never came to be (quota, admission) need no drain.
            by = max(0, deployment.replicas - decision.replicas)
        if by:
            try:
                # What was counted must still hold: otherwise a pod at work would go.
                await self._resize(memory, deployment, max(0, deployment.replicas - by), decision)
            except ConflictError:
                log.debug("deployment changed before it shrank", pool=memory.key)
            else:
                memory.demand.removals.extend([facts.at] * by)
        return drain

    async def _tend_jobs(
        self,
        memory: PoolMemory,
        connection: SharedConnection,
        plan: Plan,
        observation: PoolObservation,
        facts: PoolFacts,
    ) -> None:
        """Suspend or resume workers, recover dead workers' jobs, drop surplus failed jobs."""
        redis, pool, recorder = connection.redis, self.reference(memory), self.context.recorder
        if plan.suspend != facts.suspended:
            names = [worker.name for worker in facts.workers]
            command = commands.suspend if plan.suspend else commands.resume
            await command(redis, memory.key, names)
        memory.trimming = await job_recovery.trim_failed_jobs(redis, recorder, pool, plan, facts)
        await job_recovery.recover_dead(
            redis, self.context.client, recorder, pool, plan, facts, observation.pods
        )
        job_recovery.report_stuck(recorder, pool, facts, observation.pods)
        if facts.at - memory.stale_workers_removed >= job_recovery.STALE_WORKERS_INTERVAL:
            memory.stale_workers_removed = facts.at
            await job_recovery.remove_stale_workers(redis, recorder, pool, plan, facts)

    async def _declare_schedules(
        self, memory: PoolMemory, plan: Plan, observation: PoolObservation, old: Mapping[str, Any]
    ) -> Sequence[ScheduleFacts] | None:
        """Declare the pool's schedules and return them; None while Redis does not answer."""
        if not plan.jobs and memory.schedules is None and not self._declarer.owes(memory.key):
            return ()
        if observation.facts is None or memory.connection is None or memory.address is None:
            return None
        pool = self.reference(memory)
        memory.schedules, facts = await self._declarer.settle(
            pool,
            memory.generation,
            plan.jobs,
            memory.connection.redis,
            memory.address,
            memory.schedules,
        )
        declarations.record_missed(self.context.recorder, pool, old, facts)
        return facts

    # -- status ----------------------------------------------------------------------------------

    def status(
        self,
        memory: PoolMemory,
        plan: Plan,
        old: Mapping[str, Any],
        observation: PoolObservation,
        decision: SizeDecision,
        outcome: PoolOutcome,
    ) -> dict[str, Any]:
        """See ObjectReconciler."""
        per_minute, memory.ended_jobs = ended_last_minute(observation.facts, memory.ended_jobs)
        scaled, memory.scaled = memory.scaled, False
        inputs = StatusInputs(
            generation=memory.generation,
            now=self.context.clock.now(),
            spec_seen=memory.spec_seen,
            deployment=self._deployment(memory),
            inputs_hash=memory.inputs,
            pods=observation.pods,
            facts=observation.facts,
            decision=decision,
            leaving=outcome.drain.leaving,
            busy_workers=observation.busy_workers,
            jobs_per_minute=per_minute,
            scaled=scaled,
            schedules=outcome.schedules,
            refused_schedules=memory.schedules.refused if memory.schedules else {},
            redis_trouble=observation.redis_trouble,
            refusal=outcome.refusal,
            sizing=outcome.sizing,
        )
        return pool_status(memory.name, plan, old, inputs)

    def next_look(
        self,
        memory: PoolMemory,
        plan: Plan,
        observation: PoolObservation,
        decision: SizeDecision,
        outcome: PoolOutcome,
    ) -> float | None:
        """See ObjectReconciler."""
        now = self.context.clock.now().timestamp()
        wait = earliest(
            next_look(
                observation,
                decision,
                outcome.drain,
                trimming=memory.trimming,
                counting=bool(memory.ended_jobs),
            ),
            declarations.next_look(outcome.schedules, plan.jobs, now),
            None if outcome.refusal is None else RESYNC,
        )
        # A pool that is looked at later than that is checked for lost pushes, too.
        memory.idle = wait is None or wait > RESYNC
        return wait


def _must_apply(
    memory: PoolMemory, deployment: DeploymentView | None, decision: SizeDecision
) -> bool:
    """Return whether the Deployment is missing, outdated or edited.

    A pool that never had work has no objects at all. A restarted operator trusts what it finds;
    later edits by others show in the generation.
    """
    if not memory.inputs or (deployment is None and decision.replicas == 0):
        return False
    if deployment is None:
        return True
    return deployment.inputs_hash != memory.inputs or deployment.generation != memory.own_generation
