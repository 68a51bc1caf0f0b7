"""WorkerPool, put in order: observe, decide, act, say so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog

from engineroom.api import LABEL_POOL, validation
from engineroom.api.validation.pod_security import Level
from engineroom.core import reasons
from engineroom.core.errors import (
    ConflictError,
    DependencyError,
    InvalidSpecError,
    MeasurementError,
    SecretError,
)
from engineroom.kube.client.errors import Forbidden, Invalid, NotFound
from engineroom.kube.client.resources import DEPLOYMENTS, NAMESPACES, PODS, WORKERPOOLS
from engineroom.kube.runtime.status_pacing import StatusPacer
from engineroom.queue import commands, deadletters
from engineroom.workers import recovering
from engineroom.workers.children import Children
from engineroom.workers.decide import Decision, Observation, decide
from engineroom.workers.drain.plan import (
    Leave,
    busy_pods,
    named_to_leave,
    plan_leave,
    retired_pods,
    to_protect,
    unaccounted,
    with_named,
)
from engineroom.workers.job_schedules import declarations
from engineroom.workers.job_schedules.declarations import Declarations
from engineroom.workers.job_schedules.schedule_runner import ScheduleHost
from engineroom.workers.plan import Plan, plan_of
from engineroom.workers.projections import deployment_view, pod_view
from engineroom.workers.redis_connections import Address, Link, Links, Secrets, reason_of
from engineroom.workers.rightsizing.monitor import Monitor
from engineroom.workers.state import NEVER, Pool
from engineroom.workers.status import Seen, invalid_status, pool_status

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engineroom.api.v1alpha1.workerpool import WorkerPool
    from engineroom.kube.runtime.controller import Context, Record
    from engineroom.kube.runtime.informer import Informer
    from engineroom.queue.observe import PoolFacts, WorkerFacts
    from engineroom.workers.job_schedules.declarations import ScheduleFacts, ScheduleStore
    from engineroom.workers.objects import Runtime
    from engineroom.workers.projections import DeploymentView, PodView

log = structlog.get_logger(__name__)

#: Seconds between looks: at a pool that works, at one whose pods leave, at one that is blind.
LOOK_ACTIVE, LOOK_LEAVING, LOOK_BLIND = 1.0, 0.2, 2.0
#: A pool that was looked at a moment ago is not looked at again for each push (seconds).
LEAST_BETWEEN_LOOKS = 0.1
#: Figures in status (depths, ages) wait: a pool's are written every 2 s at most, and those of all
#: pools 10 times a second at most, so that a thousand busy pools do not fill the API server with
#: them. All else is written at once (seconds).
STATUS_FIGURES_EVERY, STATUS_FIGURES_GAP = 2.0, 0.1
#: A drain request lives this long in Redis, and is renewed when half of it is gone (seconds).
DRAIN_TTL = 60.0
#: Changes of pods within so long are looked at together (seconds).
PODS_TOGETHER = 0.05
#: How often idle pools are checked against lost pushes (seconds).
RESYNC = 10.0
#: A key of the queue that is no pool: the look at all idle pools at once.
RESYNC_KEY = "resync"
#: Another: what all pools' workers use.
USE_KEY = "use"
#: Seconds between rounds of that, and how much must have been watched before less is recommended.
USE_INTERVAL, USE_PATIENCE = 30.0, 3600.0


class WorkerPoolController:
    """Reconciles WorkerPools: Deployment, size, drain, recovery, status."""

    kind = WORKERPOOLS

    def __init__(
        self,
        runtime: Runtime,
        redis_url: str,
        schedules: ScheduleStore,
        *,
        use_interval: float = USE_INTERVAL,
        use_patience: float = USE_PATIENCE,
    ) -> None:
        self._schedules = schedules
        self._runtime = runtime
        self._redis_url = redis_url
        self._use = (use_interval, use_patience)
        self._pools: dict[str, Pool] = {}
        self._pace = StatusPacer(STATUS_FIGURES_GAP)
        self._context: Context
        self._children: Children
        self._pods: Informer[PodView]
        self._secrets: Secrets
        self._links: Links
        self._monitor: Monitor
        self._declarations: Declarations
        self._host: ScheduleHost

    # -- what happens outside --------------------------------------------------------------------

    async def start(self, context: Context) -> None:
        """Make the caches of children; connections to Redis open as pools need them."""
        self._context = context
        self._pods = context.informer(PODS, LABEL_POOL, pod_view, on_index=self._pod_changed)
        self._children = Children(
            context.client,
            context.recorder,
            deployments=context.informer(
                DEPLOYMENTS,
                LABEL_POOL,
                deployment_view,
                on_index=lambda _pool: None,
                on_change=self._deployment_changed,
            ),
            runtime=self._runtime,
            redis_url=self._redis_url,
        )
        self._secrets = Secrets(context.client, context.clock)
        self._links = Links(context.clock, on_queue=self._pushed, on_turn=self._link_turned)
        interval, patience = self._use
        self._monitor = Monitor(
            context.client,
            context.recorder,
            context.clock,
            self._pods,
            interval=interval,
            patience=patience,
            namespaces=context.namespaces,
        )
        self._declarations = Declarations(context, self._schedules)
        secrets = Secrets(context.client, context.clock)
        self._host = ScheduleHost(context, self._schedules, secrets, self._redis_url)
        self._host.start()
        gauge = context.gauge
        gauge("engineroom_schedule_jobs", "Jobs that schedules made.", lambda: self._host.fired)
        gauge(
            "engineroom_schedule_late_seconds",
            "From the latest tick to its job.",
            lambda: self._host.late,
        )
        gauge(
            "engineroom_schedule_blind",
            "Redis servers whose schedules cannot be looked at.",
            lambda: self._host.blind,
        )
        context.queue.add_after(RESYNC_KEY, RESYNC)
        context.queue.add(USE_KEY)

    async def stop(self) -> None:
        """Close the connections to Redis."""
        await self._host.stop()
        await self._links.close()

    def changed(self, key: str, obj: Record | None) -> None:
        """The pool is new, different or gone (None)."""
        self._host.changed(key, obj)
        pool = self._pools.get(key)
        if pool is not None and (obj is None or obj.uid != pool.uid):
            self._declarations.leave(pool)
            self._unlink(pool)
            del self._pools[key]
            self._context.queue.forget(key)

    def _pod_changed(self, key: str) -> None:
        # Pods tell of every small step of theirs, and many at once: one look for all of them.
        self._context.queue.add_after(key, PODS_TOGETHER)

    def _deployment_changed(self, key: str, view: DeploymentView | None) -> None:
        pool = self._pools.get(key)
        if pool is None:
            return
        before, pool.sight = pool.sight, view
        if view is None and pool.written and (before is None or before.uid == pool.written.uid):
            pool.written = None  # deleted before the cache had told of our last write
        if view is None or before is None or not view.same_sight(before):
            self._context.queue.add(key)

    def _pushed(self, key: str) -> None:
        """Redis says that a queue of the pool changed."""
        pool = self._pools.get(key)
        if pool is None:
            return
        since = self._context.clock.monotonic() - pool.looked
        if since >= LEAST_BETWEEN_LOOKS:
            self._context.queue.add(key, urgent=True)
        else:
            self._context.queue.add_after(key, LEAST_BETWEEN_LOOKS - since)

    def _link_turned(self, link: Link) -> None:
        """Redis went away or came back: whatever was not heard meanwhile is looked at."""
        for key, pool in self._pools.items():
            # A Redis that came back may have lost its schedules.
            if pool.link is link and not (pool.idle and link.up and pool.declared is None):
                self._context.queue.add(key)
        if link.up:
            self._context.queue.add_after(RESYNC_KEY, 0.0)

    # -- the reconcile ---------------------------------------------------------------------------

    async def reconcile(self, key: str) -> float | None:
        """Make the pool as its spec says; returns the seconds until to look again."""
        if key == RESYNC_KEY:
            return await self._resync()
        if key == USE_KEY:
            return await self._monitor.round(self._pools.values())
        record = self._context.store.get(key)
        if record is None or record.deleting:
            if record is not None and key in self._pools:
                self._declarations.leave(self._pools[key])
            return await self._declarations.clear(key)
        pool = self._remember(record)
        obj = record.load()
        spec, old = obj.get("spec") or {}, obj.get("status") or {}
        pool.drain_pods = named_to_leave(obj["metadata"].get("annotations"))
        try:
            plan = pool.plan = pool.plan or plan_of(await self._parse(pool, spec))
        except InvalidSpecError as error:
            now = self._context.clock.now()
            await self._tell(pool, old, invalid_status(old, error, pool.generation, now))
            # Nothing but a new spec heals it; a namespace's label may change unheard.
            return RESYNC if validation.escalations(pool.document(spec)) else None
        pool.looked = self._context.clock.monotonic()
        try:
            return await self._reconcile(pool, plan, spec, old)
        except NotFound:
            # The pool, a child or the namespace went away in between; look again at what is there.
            log.debug("something vanished", pool=key)
            return LOOK_LEAVING

    async def _reconcile(
        self, pool: Pool, plan: Plan, spec: dict[str, Any], old: Mapping[str, Any]
    ) -> float | None:
        facts, redis_trouble = await self._observe(pool, plan)
        schedules = await self._tend_schedules(pool, plan, facts, old)
        deployment = self._children.deployment(pool)
        pods = with_named(self._pods.by_index(pool.key), pool.drain_pods)
        crews = _crews(facts)
        retired = _retired(deployment, pods, crews)
        decision = self._decide(pool, plan, facts, deployment, pods, crews, redis_trouble)

        self._children.prepare(pool, plan, spec)
        leave, apply_trouble = Leave(), None
        try:
            if deployment is not None and decision.replicas + retired > deployment.replicas:
                # Before anything else: somebody waits for it.
                if not self._children.equipped(pool, deployment):
                    await self._children.equip(pool, plan, pool.parse(spec))
                deployment = await self._children.resize(
                    pool, deployment, decision.replicas + retired, decision
                )
            deployment = await self._children.ensure(pool, plan, spec, deployment, decision)
            if deployment is not None and facts is not None and pool.link is not None:
                leave = await self._shrink(pool, pool.link, deployment, decision, pods, facts)
                for pod, busy in to_protect(pods, crews, facts.at):
                    await self._children.protect(pool, pod, busy=busy)
                await self._steer(pool, pool.link, plan, pods, facts)
        except (Invalid, Forbidden) as error:
            if isinstance(error, Forbidden) and error.namespace_terminating:
                return None
            apply_trouble = (reasons.APPLY_REFUSED, str(error)[:1024])

        sized = await self._monitor.settle(pool, plan.right_sizing, old, pods, facts)
        seen = Seen(
            generation=pool.generation,
            now=self._context.clock.now(),
            deployment=self._children.deployment(pool),
            pods=pods,
            facts=facts,
            decision=decision,
            leaving=leave.leaving,
            busy_workers=sum(worker.busy for worker in facts.workers) if facts else 0,
            jobs_per_minute=_per_minute(pool, facts),
            scaled=pool.scaled,
            schedules=schedules,
            refused=pool.declared.refused if pool.declared else {},
            redis_trouble=redis_trouble,
            apply_trouble=apply_trouble,
            sized=sized,
        )
        pool.scaled = False
        waits = [await self._tell(pool, old, pool_status(pool.name, plan, old, seen))]
        waits.append(_again(pool, facts, pods, decision, leave))
        waits.append(declarations.next_look(schedules, plan, self._context.clock.now().timestamp()))
        if apply_trouble is not None:
            waits.append(RESYNC)
        again = min((wait for wait in waits if wait is not None), default=None)
        # What is looked at later than that is watched for lost pushes like one that never is.
        pool.idle = again is None or again > RESYNC
        return again

    async def _tend_schedules(
        self, pool: Pool, plan: Plan, facts: PoolFacts | None, old: Mapping[str, Any]
    ) -> Sequence[ScheduleFacts] | None:
        """Make sure of the pool's schedules; None when they cannot be looked at."""
        if not plan.jobs and pool.declared is None and not self._declarations.owes(pool.key):
            return ()
        if facts is None or pool.link is None:
            return None
        schedules = await self._declarations.look(pool, plan, pool.link)
        for name, count in declarations.newly_missed(old, schedules):
            ticks = "1 tick was" if count == 1 else f"{count} ticks were"
            self._context.recorder.record(
                pool.reference,
                "Warning",
                reasons.SCHEDULE_MISSED,
                f"schedule {name}: {ticks} not run in time, and not made up for by its policy",
            )
        return schedules

    async def _parse(self, pool: Pool, spec: dict[str, Any]) -> WorkerPool:
        """The spec's model; what is beyond restricted is measured by the namespace's label."""
        if validation.escalations(pool.document(spec)):
            namespace = await self._context.client.get(NAMESPACES, None, pool.namespace)
            pool.level = Level.of(namespace["metadata"].get("labels"))
        return pool.parse(spec)

    def _remember(self, record: Record) -> Pool:
        """The pool's memory; a new spec makes the plan anew, a new object everything."""
        pool = self._pools.get(record.key)
        if pool is None or pool.uid != record.uid:
            if pool is not None:
                self._unlink(pool)
            pool = self._pools[record.key] = Pool(record.namespace, record.name, record.uid)
        if pool.generation != record.generation:
            self._unlink(pool)
            pool.generation = record.generation
            pool.plan, pool.inputs, pool.told = None, "", NEVER
        return pool

    # -- observe and decide ----------------------------------------------------------------------

    async def _observe(
        self, pool: Pool, plan: Plan
    ) -> tuple[PoolFacts | None, tuple[str, str] | None]:
        """What Redis says, or (reason, message) of what keeps it from saying it."""
        try:
            link = await self._link(pool, plan)
            return await link.observer.look(pool.key, plan.queues), None
        except SecretError as error:
            self._unlink(pool)
            self._doubt(pool, plan)
            return None, (error.reason, str(error))
        except MeasurementError as error:
            self._doubt(pool, plan)
            return None, (reason_of(error), str(error))
        except DependencyError as error:
            return None, (reasons.REDIS_UNREACHABLE, f"the address cannot be read: {error}")

    async def _link(self, pool: Pool, plan: Plan) -> Link:
        address = await self._address(pool, plan)
        if pool.link is None or pool.address != address:
            self._unlink(pool)
            pool.link = self._links.join(address, pool.key, plan.queues)
            pool.address = address
        return pool.link

    async def _address(self, pool: Pool, plan: Plan) -> Address:
        if plan.redis_secret is None:
            if not self._redis_url:
                raise SecretError(
                    reasons.SECRET_NOT_FOUND,
                    "the installation has no Redis of its own; set spec.redis.urlSecretRef",
                )
            return Address(self._redis_url)
        url = await self._secrets.value(pool.namespace, *plan.redis_secret)
        ca = ""
        if plan.redis_ca_secret is not None:
            ca = await self._secrets.value(pool.namespace, *plan.redis_ca_secret)
        return Address(url, ca, plan.redis_insecure)

    def _doubt(self, pool: Pool, plan: Plan) -> None:
        for reference in (plan.redis_secret, plan.redis_ca_secret):
            if reference is not None:
                self._secrets.doubt(pool.namespace, reference[0])

    def _unlink(self, pool: Pool) -> None:
        if pool.link is not None and pool.plan is not None:
            self._links.leave(pool.link, pool.key, pool.plan.queues)
        pool.link = pool.address = None

    def _decide(
        self,
        pool: Pool,
        plan: Plan,
        facts: PoolFacts | None,
        deployment: DeploymentView | None,
        pods: Sequence[PodView],
        crews: Mapping[str, Sequence[WorkerFacts]],
        trouble: tuple[str, str] | None,
    ) -> Decision:
        if facts is not None:
            held = any(worker.busy for worker in facts.workers)
            pool.memory.fold(facts, held or facts.backlog > 0 or facts.running > 0)
        retired = _retired(deployment, pods, crews)
        observation = Observation(
            at=self._context.clock.now().timestamp() if facts is None else facts.at,
            facts=facts,
            current=None if deployment is None else max(0, deployment.replicas - retired),
            busy_pods=busy_pods(pods, crews),
            outage=trouble[1] if trouble else "",
        )
        return decide(plan, observation, pool.memory)

    # -- act -------------------------------------------------------------------------------------

    async def _shrink(
        self,
        pool: Pool,
        link: Link,
        deployment: DeploymentView,
        decision: Decision,
        pods: Sequence[PodView],
        facts: PoolFacts,
    ) -> Leave:
        """One step of everybody who leaves; the next look takes the next one."""
        leave = plan_leave(
            pods,
            _crews(facts),
            replicas=deployment.replicas,
            target=decision.replicas,
            rolling=deployment.rolling,
        )
        await self._ask(pool, link, leave, {worker.name for worker in facts.workers})
        for pod in leave.mark:
            await self._children.mark(pool, pod)
        by = leave.shrink_by
        if not by and not pods and not facts.workers:
            # Asked for pods that never came to be (quota, admission): there is nobody to drain.
            by = max(0, deployment.replicas - decision.replicas)
        if by:
            try:
                # What was counted must still be so: else somebody else would go.
                size = max(0, deployment.replicas - by)
                await self._children.resize(pool, deployment, size, decision)
            except ConflictError:
                log.debug("deployment changed before it shrank", pool=pool.key)
            else:
                pool.memory.removals.extend([facts.at] * by)
        return leave

    async def _ask(self, pool: Pool, link: Link, leave: Leave, registered: set[str]) -> None:
        """Put what is wanted of each worker into Redis, where that is news or running out."""
        now = self._context.clock.monotonic()
        wanted = {name for name, _ in leave.drain}
        retiring = {name for name, _ in leave.retire}
        due = [pair for pair in leave.drain if now - pool.asked.get(pair[0], NEVER) > DRAIN_TTL / 2]
        called_back = {*leave.cancel, *(pool.asked.keys() & registered - wanted - retiring)}
        if due:
            await commands.request_drain(link.redis, due, ttl=DRAIN_TTL)
        if called_back:
            await commands.cancel_drain(link.redis, sorted(called_back))
        if leave.retire:
            await commands.retire(link.redis, leave.retire)
        pool.asked.update((name, now) for name, _ in due)
        for name in pool.asked.keys() - wanted - retiring:
            del pool.asked[name]

    async def _steer(
        self, pool: Pool, link: Link, plan: Plan, pods: Sequence[PodView], facts: PoolFacts
    ) -> None:
        """Suspension as the spec says, and the jobs of workers that died."""
        if plan.suspend != facts.suspended:
            names = [worker.name for worker in facts.workers]
            act = commands.suspend if plan.suspend else commands.resume
            await act(link.redis, pool.key, names)
        await self._trim(pool, link, plan, facts)
        await recovering.recover_dead(
            link.redis,
            self._context.client,
            self._context.recorder,
            pool.reference,
            plan,
            facts,
            pods,
        )
        recorder = self._context.recorder
        recovering.tell_stuck(recorder, pool.reference, facts, pods)
        if facts.at - pool.ghosts >= recovering.GHOSTS_EVERY:
            pool.ghosts = facts.at
            await recovering.clear_ghosts(link.redis, recorder, pool.reference, plan, facts)

    async def _trim(self, pool: Pool, link: Link, plan: Plan, facts: PoolFacts) -> None:
        """Failed jobs beyond what the spec keeps go, a step of each queue's at a look."""
        pool.trimming = False
        if plan.dead_letter_jobs is None:
            return
        for queue in facts.queues:
            if queue.failed <= plan.dead_letter_jobs:
                continue
            gone = await deadletters.trim(link.redis, queue.name, plan.dead_letter_jobs)
            pool.trimming = pool.trimming or gone == deadletters.STEP
            if gone:
                self._context.recorder.record(
                    pool.reference,
                    "Normal",
                    reasons.DEAD_LETTERS_DROPPED,
                    f"the oldest failed jobs of queue {queue.name} were dropped: it keeps "
                    f"{plan.dead_letter_jobs} by spec.deadLetter.maxJobs",
                )

    # -- say so ----------------------------------------------------------------------------------

    async def _tell(
        self, pool: Pool, old: Mapping[str, Any], status: dict[str, Any]
    ) -> float | None:
        """Write the status if it differs, mere figures not too often.

        Returns the seconds until held-back figures are due.
        """
        if status == old:
            return None
        now = self._context.clock.monotonic()
        if _verdicts(status) == _verdicts(old):
            if pool.due is None:
                pool.due = self._pace.slot(now, pool.told + STATUS_FIGURES_EVERY)
            if pool.due > now:
                return pool.due - now
        pool.due = None
        metadata = {"namespace": pool.namespace, "name": pool.name, "uid": pool.uid}
        answer = await self._context.client.apply_status(
            WORKERPOOLS, {"metadata": metadata, "status": status}
        )
        pool.told = now
        self._context.store.wrote(answer)
        return None

    # -- idle pools ------------------------------------------------------------------------------

    async def _resync(self) -> float:
        """Idle pools, against lost pushes: one EXISTS for a hundred queues that stay quiet."""
        by_link: dict[int, tuple[Link, list[Pool]]] = {}
        for pool in self._pools.values():
            if pool.idle and pool.link is not None:
                by_link.setdefault(id(pool.link), (pool.link, []))[1].append(pool)
        for link, pools in by_link.values():
            names = [name for pool in pools if pool.plan for name in pool.plan.queues]
            try:
                quiet = await link.observer.quiet(names)
            except MeasurementError:
                quiet = set()
            for pool in pools:
                if pool.plan is not None and not quiet.issuperset(pool.plan.queues):
                    self._context.queue.add(pool.key)
        return RESYNC


_FIGURES = (
    "queues",
    "schedules",
    "waitingJobs",
    "jobsPerMinute",
    "busyWorkers",
    "decision",
    "readyReplicas",
    "replicas",
)


def _verdicts(status: Mapping[str, Any]) -> dict[str, Any]:
    """A status without the figures that change all the time."""
    rest = {key: value for key, value in status.items() if key not in _FIGURES}
    rest["conditions"] = [
        (c["type"], c["status"], c.get("reason"), c.get("observedGeneration"))
        for c in rest.get("conditions") or ()
    ]
    return rest


def _crews(facts: PoolFacts | None) -> dict[str, list[WorkerFacts]]:
    """Registered workers by pod name.

    One with an old heartbeat counts: right after an outage of Redis everybody's is old. The dead
    among them are taken off the list by recovery, which looks at the pods too.
    """
    crews: dict[str, list[WorkerFacts]] = {}
    if facts is not None:
        for worker in facts.workers:
            if worker.state != "expired":
                crews.setdefault(worker.pod, []).append(worker)
    return crews


def _retired(
    deployment: DeploymentView | None,
    pods: Sequence[PodView],
    crews: Mapping[str, Sequence[WorkerFacts]],
) -> int:
    """Pods of the Deployment's size that will take no job again, and so count for nothing."""
    if deployment is None:
        return 0
    return unaccounted(retired_pods(pods, crews), pods, deployment.replicas)


def _again(
    pool: Pool,
    facts: PoolFacts | None,
    pods: Sequence[PodView],
    decision: Decision,
    leave: Leave,
) -> float | None:
    """Seconds until to look again; None: when something outside says so."""
    if facts is None:
        return LOOK_BLIND
    waits: list[float] = []
    if pool.trimming or leave.drain or leave.retire or leave.mark or leave.shrink_by:
        waits.append(LOOK_LEAVING)
    elif pods or facts.workers or facts.backlog or facts.running:
        waits.append(LOOK_ACTIVE)
    if pool.ended:
        waits.append(RESYNC)  # jobsPerMinute has to come down to zero
    if decision.again_in is not None:
        waits.append(max(0.05, decision.again_in))
    due = [queue.next_due for queue in facts.queues if queue.next_due is not None]
    if due:
        waits.append(max(0.02, min(due) - facts.at))
    return min(waits, default=None)


def _per_minute(pool: Pool, facts: PoolFacts | None) -> int:
    """Jobs that ended in the last minute, from the queues' totals."""
    if facts is None:
        return 0
    total = sum(queue.finished_total + queue.failed_total for queue in facts.queues)
    past = [(at, count) for at, count in pool.ended if facts.at - 60.0 <= at <= facts.at]
    if not past or facts.at - past[-1][0] >= 5.0:
        past.append((facts.at, total))
    ended = max(0, total - past[0][1])
    # Nothing to remember of a minute in which nothing ended and nothing can end.
    pool.ended = tuple(past) if ended or facts.running or facts.backlog else ()
    return ended
