"""The WorkerPool controller: the order of one look at a pool, and its memory between two looks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engineroom.api.validation.pod_security import PodSecurityLevel
from engineroom.kube.client.resources import NAMESPACES, WORKERPOOLS
from engineroom.kube.runtime.reconciler import ObjectReconciler, earliest, unless_refused
from engineroom.kube.runtime.redis_addresses import RedisAddresses
from engineroom.workers.apply import PoolApplier
from engineroom.workers.decide import SizeDecision, decide_size
from engineroom.workers.deployment.children import ChildWriter
from engineroom.workers.deployment.writer import DeploymentTarget
from engineroom.workers.drain.plan import DrainPlan, pods_to_drain, with_requested
from engineroom.workers.job_schedules import declarations
from engineroom.workers.job_schedules.pool_schedules import PoolSchedules
from engineroom.workers.memory import PoolMemory
from engineroom.workers.next_look import RESYNC, after_refusal, next_look
from engineroom.workers.observe import PoolObservation, combine, ended_last_minute
from engineroom.workers.plan import Plan, needs_namespace, parse_pool, plan_of
from engineroom.workers.redis_connections import SharedConnections
from engineroom.workers.redis_measurement import RedisMeasurer
from engineroom.workers.rightsizing.monitor import ResourceMonitor
from engineroom.workers.status import FIGURES, StatusInputs, pool_status
from engineroom.workers.tenancy.redis_tenancy import RENEW_INTERVAL, RENEW_KEY, RedisTenancy
from engineroom.workers.tenancy.shared_redis import SharedRedisNamespaces
from engineroom.workers.wake_ups import RESYNC_KEY, PoolWakeUps

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from engineroom.core.conditions import Trouble
    from engineroom.kube.runtime.controller import Record
    from engineroom.kube.runtime.informer import Informer
    from engineroom.workers.job_schedules.declarations import ScheduleFacts, ScheduleStore
    from engineroom.workers.objects import RuntimeImage
    from engineroom.workers.projections import DeploymentView, PodView
    from engineroom.workers.rightsizing.monitor import SizingStatus

#: Key on the queue of the monitor's round; it is no pool.
USAGE_KEY = "use"
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
        runtime: RuntimeImage,
        redis_url: str,
        schedules: ScheduleStore,
        *,
        use_interval: float = USE_INTERVAL,
        use_patience: float = USE_PATIENCE,
        connections: Callable[..., SharedConnections] = SharedConnections,
    ) -> None:
        super().__init__()
        self._store = schedules
        self._runtime = runtime
        self._connect = connections
        self._redis_url = redis_url
        self._use_interval, self._use_patience = use_interval, use_patience
        self._pods: Informer[PodView]
        self._deployments: Informer[DeploymentView]
        self._connections: SharedConnections
        self._tenancy: RedisTenancy
        self._measurer: RedisMeasurer
        self._children: ChildWriter
        self._applier: PoolApplier
        self._monitor: ResourceMonitor
        self._schedules: PoolSchedules

    async def open(self) -> None:
        """See Reconciler. Connections to Redis open as pools need them."""
        context, client, clock = self.context, self.context.client, self.context.clock
        wake_ups = PoolWakeUps(context, self.memories)
        self._pods, self._deployments = wake_ups.open_caches(context)
        self._connections = self._connect(
            clock, on_queue=wake_ups.queue_changed, on_state=wake_ups.connection_changed
        )
        addresses = RedisAddresses(client, clock, self._redis_url)
        shared = SharedRedisNamespaces(context, wake_ups.namespace_changed)
        self._tenancy = RedisTenancy(context, shared, self.memories)
        self._measurer = RedisMeasurer(addresses, self._connections, self._tenancy)
        self._children = ChildWriter(client, runtime=self._runtime, redis_url=self._redis_url)
        self._applier = PoolApplier(context, self._children)
        self._monitor = ResourceMonitor(
            context, self._pods, interval=self._use_interval, patience=self._use_patience
        )
        self._schedules = PoolSchedules(context, self._store, self._redis_url)
        self._schedules.start()
        self.every(RESYNC_KEY, wake_ups.check_idle, first=RESYNC)
        self.every(USAGE_KEY, self._measure_usage)
        self.every(RENEW_KEY, self._tenancy.renew, first=RENEW_INTERVAL)

    async def close(self) -> None:
        """See Reconciler."""
        await self._schedules.stop()
        await self._connections.close()

    def changed(self, key: str, obj: Record | None) -> None:
        """See Controller."""
        self._schedules.changed(key, obj)
        self._tenancy.changed(key, obj)
        super().changed(key, obj)

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
            memory.level = PodSecurityLevel.of(namespace["metadata"].get("labels"))
        return plan_of(parse_pool(obj, memory.level))

    def look_at_invalid(self, memory: PoolMemory, obj: Mapping[str, Any]) -> float | None:
        """See ObjectReconciler. A label of the namespace changes without an event of the pool."""
        return RESYNC if needs_namespace(obj) else None

    def spec_changed(self, memory: PoolMemory) -> None:
        """See Reconciler."""
        self._measurer.leave(memory.key, memory.redis)
        memory.inputs = ""
        memory.spec_seen = self.context.clock.now().timestamp() if memory.generation else 0.0

    def forget(self, memory: PoolMemory) -> None:
        """See Reconciler."""
        memory.schedules = self._schedules.leave(memory.key, memory.schedules)
        self._measurer.end(memory.key, memory.redis)

    async def removed(self, key: str, memory: PoolMemory | None) -> float | None:
        """See ObjectReconciler. Removes the pool's schedules from Redis."""
        if memory is not None:
            memory.schedules = self._schedules.leave(memory.key, memory.schedules)
        return await self._schedules.clear(key)

    # -- observe and decide ----------------------------------------------------------------------

    async def observe(
        self, memory: PoolMemory, plan: Plan, obj: Mapping[str, Any]
    ) -> PoolObservation:
        """See ObjectReconciler."""
        memory.looked = self.context.clock.monotonic()
        facts, trouble = await self._measurer.measure(self.reference(memory), plan, memory.redis)
        deployment = self._deployment(memory)
        requested = pods_to_drain(obj["metadata"].get("annotations"))
        pods = with_requested(self._pods.by_index(memory.key), requested)
        now = self.context.clock.now().timestamp()
        return combine(now, facts, trouble, deployment, pods)

    def _deployment(self, memory: PoolMemory) -> DeploymentView | None:
        return memory.applied.deployment.newest(
            self._deployments.get(memory.namespace, memory.name)
        )

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
        pool, old = self.reference(memory), obj.get("status") or {}
        memory.inputs = memory.inputs or self._children.inputs(pool, plan, obj.get("spec") or {})
        target = DeploymentTarget(
            pool, plan, lambda: parse_pool(obj, memory.level), memory.inputs, decision
        )
        drain, refusal = await unless_refused(
            self._applier.apply(target, memory.applied, memory.demand, observation, memory.redis),
            DrainPlan(),
        )
        memory.schedules, schedules = await self._schedules.declare(
            pool,
            memory.generation,
            () if observation.refused else plan.jobs,
            None if observation.facts is None else memory.redis,
            memory.schedules,
            old,
        )
        memory.usage, sizing = await self._monitor.settle(
            pool, memory.usage, plan.right_sizing, old, observation.pods, observation.facts
        )
        return PoolOutcome(drain, refusal, schedules, sizing)

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
            scaled=memory.applied.deployment.take_scaled(),
            schedules=outcome.schedules,
            refused_schedules=memory.schedules.refused if memory.schedules else {},
            redis_trouble=observation.redis_trouble,
            refused=observation.refused,
            owned=memory.redis.owned if observation.facts or observation.refused else None,
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
                trimming=memory.applied.trimming,
                counting=bool(memory.ended_jobs),
            ),
            declarations.next_look(outcome.schedules, plan.jobs, now),
            after_refusal(outcome.refusal),
        )
        # A pool that is looked at later than that is checked for lost pushes, too.
        memory.idle = wait is None or wait > RESYNC
        return wait
