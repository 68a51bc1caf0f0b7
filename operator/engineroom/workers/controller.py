"""WorkerPool, put in order: observe, decide, act, say so. The only place here that acts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson
import structlog

from engineroom.api import validation
from engineroom.core import reasons
from engineroom.core.errors import (
    ConflictError,
    DependencyError,
    InvalidSpecError,
    MeasurementError,
    SecretError,
)
from engineroom.kube.errors import AlreadyExists, Forbidden, Invalid, NotFound
from engineroom.kube.resources import (
    DEPLOYMENTS,
    PDBS,
    PODS,
    SECRETS,
    SERVICE_ACCOUNTS,
    WORKERPOOLS,
    ObjectRef,
)
from engineroom.queue import commands
from engineroom.workers import objects, recovering
from engineroom.workers.decide import Decision, Observation, decide
from engineroom.workers.demand import Memory
from engineroom.workers.leave import Leave, busy_pods, plan_leave, retired_pods
from engineroom.workers.links import Address, Link, Links, Secrets, reason_of
from engineroom.workers.objects import Runtime
from engineroom.workers.plan import Plan, plan_of
from engineroom.workers.status import Seen, invalid_status, pool_status
from engineroom.workers.views import (
    DELETION_COST,
    RETIRED_COST,
    DeploymentView,
    PodView,
    deployment_view,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engineroom.core.clock import Clock
    from engineroom.kube.client import Client
    from engineroom.kube.events import Recorder
    from engineroom.kube.informer import Informer
    from engineroom.kube.queue import WorkQueue
    from engineroom.queue.observe import PoolFacts, WorkerFacts

log = structlog.get_logger(__name__)

#: Seconds between looks: at a pool that works, at one whose pods leave, at one that is blind.
LOOK_ACTIVE, LOOK_LEAVING, LOOK_BLIND = 1.0, 0.2, 2.0
#: A pool that was looked at a moment ago is not looked at again for each push (seconds).
LEAST_BETWEEN_LOOKS = 0.1
#: Figures in status (depths, ages) are written this often at most; all else at once (seconds).
STATUS_FIGURES_EVERY = 2.0
#: A drain request lives this long in Redis, and is renewed when half of it is gone (seconds).
DRAIN_TTL = 60.0
#: How often idle pools are checked against lost pushes (seconds).
RESYNC = 10.0


@dataclass(slots=True)
class Pool:
    """What the controller remembers of one pool; ten thousand of these must stay small."""

    namespace: str
    name: str
    uid: str
    generation: int = 0
    version: int = 0
    spec: bytes = b""
    status: Mapping[str, Any] = field(default_factory=dict)
    deleting: bool = False
    plan: Plan | None = None
    inputs: str = ""
    memory: Memory = field(default_factory=Memory)
    link: Link | None = None
    address: Address | None = None
    #: The Deployment as our last write returned it, until the cache has caught up.
    written: DeploymentView | None = None
    #: Generation of the Deployment after our own last write; another one is somebody's edit.
    own_generation: int = 0
    #: When each worker was last asked to drain (monotonic seconds).
    asked: dict[str, float] = field(default_factory=dict)
    looked: float = -1e9
    told: float = -1e9
    idle: bool = False
    scaled: bool = False
    finished: tuple[tuple[float, int], ...] = ()

    @property
    def key(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}"


class WorkerPoolController:
    """Reconciles WorkerPools: Deployment, size, drain, recovery, status."""

    kind = WORKERPOOLS

    def __init__(
        self,
        client: Client,
        clock: Clock,
        queue: WorkQueue,
        recorder: Recorder,
        *,
        deployments: Informer[DeploymentView],
        pods: Informer[PodView],
        budgets: Informer[str],
        runtime: Runtime,
        redis_url: str | None,
    ) -> None:
        self._client = client
        self._clock = clock
        self._queue = queue
        self._recorder = recorder
        self._deployments = deployments
        self._pods = pods
        self._budgets = budgets
        self._runtime = runtime
        self._redis_url = redis_url
        self._secrets = Secrets(client, clock)
        self._links = Links(clock, on_queue=self._pushed, on_turn=self._link_turned)
        self._pools: dict[str, Pool] = {}

    # -- what happens outside --------------------------------------------------------------------

    def changed(self, key: str, obj: Mapping[str, Any] | None) -> None:
        """The watch saw the pool ``key`` (None: it is gone); looks only when that matters."""
        if obj is None:
            self._forget(key)
            return
        meta = obj["metadata"]
        pool = self._pools.get(key)
        if pool is not None and pool.uid != meta["uid"]:
            self._forget(key)
            pool = None
        if pool is None:
            pool = Pool(meta["namespace"], meta["name"], meta["uid"])
            self._pools[key] = pool
        version = int(meta["resourceVersion"])
        if version <= pool.version:
            return  # older than what our own write returned
        known = pool.generation
        pool.version = version
        pool.deleting = "deletionTimestamp" in meta
        pool.status = obj.get("status") or {}
        if meta["generation"] != known:
            pool.generation = meta["generation"]
            pool.spec = orjson.dumps(obj.get("spec") or {})
            if pool.plan is not None:
                self._unlink(pool)
            pool.plan, pool.inputs = None, ""
            self._queue.add(key, urgent=known != 0)

    def child_changed(self, pool: str) -> None:
        """A Deployment or Pod of ``namespace/name`` changed."""
        if pool in self._pools:
            self._queue.add(pool)

    def _pushed(self, key: str) -> None:
        pool = self._pools.get(key)
        if pool is None:
            return
        since = self._clock.monotonic() - pool.looked
        if since >= LEAST_BETWEEN_LOOKS:
            self._queue.add(key, urgent=True)
        else:
            self._queue.add_after(key, LEAST_BETWEEN_LOOKS - since)

    def _link_turned(self, link: Link) -> None:
        """Redis went away or came back: whatever was not heard meanwhile is looked at."""
        for key, pool in self._pools.items():
            if pool.link is link and not (pool.idle and link.up):
                self._queue.add(key)
        if link.up:
            self._queue.add_after(RESYNC_KEY, 0.0)

    async def close(self) -> None:
        """Close the connections to Redis."""
        await self._links.close()

    # -- the reconcile ---------------------------------------------------------------------------

    async def reconcile(self, key: str) -> float | None:
        """Make the pool as its spec says; returns the seconds until to look again."""
        if key == RESYNC_KEY:
            return await self._resync()
        pool = self._pools.get(key)
        if pool is None or pool.deleting:
            return None
        try:
            plan = self._plan(pool)
        except InvalidSpecError as error:
            status = invalid_status(pool.status, error, pool.generation, self._clock.now())
            await self._tell(pool, status, force=True)
            return None
        pool.looked = self._clock.monotonic()
        try:
            return await self._reconcile(pool, plan)
        except NotFound:
            # The pool itself or its namespace went away in between; the watch will say so.
            log.debug("pool vanished", pool=key)
            return LOOK_BLIND

    async def _reconcile(self, pool: Pool, plan: Plan) -> float | None:
        facts, redis_trouble = await self._observe(pool, plan)
        deployment = self._deployment(pool)
        pods = self._pods.by_index(pool.key)
        crews = _crews(facts)
        busy = busy_pods(pods, crews)
        if facts is not None:
            held = any(worker.busy for worker in facts.workers)
            pool.memory.fold(facts, held or facts.backlog > 0 or facts.running > 0)
        retired = len(retired_pods(pods, crews))
        at = self._clock.now().timestamp() if facts is None else facts.at
        current = None if deployment is None else max(0, deployment.replicas - retired)
        decision = decide(
            plan,
            Observation(
                at=at,
                facts=facts,
                current=current,
                busy_pods=busy,
                outage=redis_trouble[1] if redis_trouble else "",
            ),
            pool.memory,
        )

        apply_trouble = None
        try:
            deployment = await self._grow(pool, deployment, decision, retired)
            deployment = await self._objects(pool, plan, deployment, decision, redis_trouble)
        except (Invalid, Forbidden) as error:
            if isinstance(error, Forbidden) and error.namespace_terminating:
                return None
            apply_trouble = (reasons.APPLY_REFUSED, str(error)[:1024])
        leave = Leave()
        if deployment is not None and facts is not None and pool.link is not None:
            leave = await self._shrink(pool, deployment, decision, pods, crews, facts)
            await self._suspend(pool, plan, facts)
            await recovering.recover_dead(
                pool.link.redis,
                self._client,
                self._recorder,
                _reference(pool),
                pool.namespace,
                pool.key,
                plan,
                facts,
                pods,
            )

        seen = Seen(
            generation=pool.generation,
            now=self._clock.now(),
            deployment=self._deployment(pool),
            pods=pods,
            facts=facts,
            decision=decision,
            replicas=deployment.replicas if deployment else 0,
            leaving=leave.leaving,
            busy_workers=sum(worker.busy for worker in facts.workers) if facts else 0,
            jobs_per_minute=_per_minute(pool, facts),
            scaled=pool.scaled,
            redis_trouble=redis_trouble,
            apply_trouble=apply_trouble,
        )
        status = pool_status(pool.name, plan, pool.status, seen)
        later = await self._tell(pool, status)
        pool.scaled = False
        again = self._again(pool, facts, pods, decision, leave, apply_trouble is not None)
        waits = [wait for wait in (again, later) if wait is not None]
        pool.idle = not waits and facts is not None
        return min(waits) if waits else None

    def _plan(self, pool: Pool) -> Plan:
        if pool.plan is None:
            model = validation.parse(_document(pool))
            pool.plan = plan_of(model)
        return pool.plan

    # -- observe ---------------------------------------------------------------------------------

    async def _observe(
        self, pool: Pool, plan: Plan
    ) -> tuple[PoolFacts | None, tuple[str, str] | None]:
        """What Redis says, or what keeps it from saying it."""
        try:
            link = await self._link(pool, plan)
            return await link.observer.look(pool.key, plan.queues), None
        except SecretError as error:
            self._unlink(pool)
            return None, (error.reason, str(error))
        except MeasurementError as error:
            return None, (reason_of(error), str(error))
        except DependencyError as error:
            return None, (reasons.REDIS_UNREACHABLE, f"the address cannot be read: {error}")

    async def _link(self, pool: Pool, plan: Plan) -> Link:
        address = await self._address(pool, plan)
        if pool.link is not None and pool.address == address:
            return pool.link
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

    def _unlink(self, pool: Pool) -> None:
        if pool.link is not None and pool.plan is not None:
            self._links.leave(pool.link, pool.key, pool.plan.queues)
        pool.link = pool.address = None

    def _deployment(self, pool: Pool) -> DeploymentView | None:
        """The Deployment as last seen or as our last write returned it, whichever is newer."""
        cached = self._deployments.get(pool.namespace, pool.name)
        written = pool.written
        if written is None:
            return cached
        if cached is not None and int(cached.resource_version) >= int(written.resource_version):
            pool.written = None
            return cached
        return written

    # -- act -------------------------------------------------------------------------------------

    async def _grow(
        self,
        pool: Pool,
        deployment: DeploymentView | None,
        decision: Decision,
        retired: int,
    ) -> DeploymentView | None:
        """Scale up before anything else is done: somebody waits for it."""
        if deployment is None or decision.replicas + retired <= deployment.replicas:
            return deployment
        size = decision.replicas + retired
        try:
            answer = await self._client.merge_patch(
                DEPLOYMENTS, pool.namespace, pool.name, {"spec": {"replicas": size}}
            )
        except NotFound:
            return None  # deleted by somebody; made anew below
        return self._wrote(pool, answer, deployment, decision)

    async def _objects(
        self,
        pool: Pool,
        plan: Plan,
        deployment: DeploymentView | None,
        decision: Decision,
        redis_trouble: tuple[str, str] | None,
    ) -> DeploymentView | None:
        """Deployment, ServiceAccount and budget as the spec says; nothing when they are already."""
        secret = self._worker_secret(pool, plan)
        if secret is None:
            return deployment
        if not pool.inputs:
            spec = orjson.loads(pool.spec)
            pool.inputs = objects.inputs_hash(spec, self._runtime, secret)
        inputs = pool.inputs
        if deployment is not None and not pool.own_generation:
            # A restarted operator trusts what it finds; from here on an edit by others shows.
            pool.own_generation = deployment.generation
        foreign = deployment is not None and deployment.generation != pool.own_generation
        fresh = deployment is not None and deployment.inputs_hash == inputs and not foreign
        if fresh:
            await self._budget(pool, deployment)
            return deployment
        model = validation.parse(_document(pool))
        if plan.redis_secret is None and self._redis_url:
            await self._create_secret(pool, objects.redis_secret(model, pool.uid, self._redis_url))
        await self._client.apply(SERVICE_ACCOUNTS, objects.service_account(model, pool.uid))
        replicas = decision.replicas if deployment is None else deployment.replicas
        answer = await self._client.apply(
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
        return self._wrote(pool, answer, deployment, decision)

    def _worker_secret(self, pool: Pool, plan: Plan) -> tuple[str, str] | None:
        """Secret and key that give workers the URL; None while there is no Redis at all."""
        if plan.redis_secret is not None:
            return plan.redis_secret
        if not self._redis_url:
            return None
        return objects.redis_secret_name(pool.name, self._redis_url), "url"

    async def _create_secret(self, pool: Pool, secret: Mapping[str, Any]) -> None:
        # The operator may create Secrets and read none, so there is no looking first.
        try:
            await self._client.create(SECRETS, secret)
        except AlreadyExists:
            log.debug("redis secret is there already", pool=pool.key)

    async def _budget(self, pool: Pool, deployment: DeploymentView | None) -> None:
        """The disruption budget; made with the first pod, for an idle pool needs none."""
        if deployment is None or deployment.replicas == 0:
            return
        if self._budgets.get(pool.namespace, pool.name) is None:
            model = validation.parse(_document(pool))
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
            up = after.replicas > was
            self._recorder.record(
                _reference(pool),
                "Normal",
                reasons.SCALED_UP if up else reasons.SCALED_DOWN,
                f"from {was} to {after.replicas} pods: {decision.sentence}",
            )
            log.info(
                "scaled", pool=pool.key, before=was, after=after.replicas, why=decision.sentence
            )
        return after

    async def _shrink(
        self,
        pool: Pool,
        deployment: DeploymentView,
        decision: Decision,
        pods: Sequence[PodView],
        crews: Mapping[str, Sequence[WorkerFacts]],
        facts: PoolFacts,
    ) -> Leave:
        """One step of everybody who leaves; the next look takes the next one."""
        leave = plan_leave(pods, crews, replicas=deployment.replicas, target=decision.replicas)
        await self._ask(pool, leave, {worker.name for worker in facts.workers})
        for pod in leave.mark:
            await self._mark(pool, pod)
        if leave.shrink_by:
            size = max(0, deployment.replicas - leave.shrink_by)
            try:
                answer = await self._client.merge_patch(
                    DEPLOYMENTS,
                    pool.namespace,
                    pool.name,
                    {
                        # What was counted must still be so: else somebody else would go.
                        "metadata": {"resourceVersion": deployment.resource_version},
                        "spec": {"replicas": size},
                    },
                )
            except ConflictError:
                pool.written = None
            else:
                pool.memory.removals.extend([facts.at] * leave.shrink_by)
                self._wrote(pool, answer, deployment, decision)
        elif not pods and deployment.replicas > decision.replicas and not facts.workers:
            # Asked for pods that never came to be (quota, admission): there is nobody to drain.
            answer = await self._client.merge_patch(
                DEPLOYMENTS,
                pool.namespace,
                pool.name,
                {
                    "metadata": {"resourceVersion": deployment.resource_version},
                    "spec": {"replicas": decision.replicas},
                },
            )
            self._wrote(pool, answer, deployment, decision)
        return leave

    async def _ask(self, pool: Pool, leave: Leave, registered: set[str]) -> None:
        """Put what is wanted of each worker into Redis, where that is news or running out."""
        assert pool.link is not None  # noqa: S101  looked at it a moment ago
        now = self._clock.monotonic()
        wanted = dict(leave.drain)
        due = [pair for pair in leave.drain if now - pool.asked.get(pair[0], -1e9) > DRAIN_TTL / 2]
        retiring = {name for name, _ in leave.retire}
        cancel = {*leave.cancel, *(pool.asked.keys() & registered - wanted.keys() - retiring)}
        redis = pool.link.redis
        if due:
            await commands.request_drain(redis, due, ttl=DRAIN_TTL)
        if cancel:
            await commands.cancel_drain(redis, sorted(cancel))
        if leave.retire:
            await commands.retire(redis, leave.retire)
        for name, _ in due:
            pool.asked[name] = now
        for name in list(pool.asked):
            if name not in wanted:
                del pool.asked[name]

    async def _mark(self, pool: Pool, pod: PodView) -> None:
        try:
            await self._client.merge_patch(
                PODS,
                pool.namespace,
                pod.name,
                {
                    "metadata": {
                        "uid": pod.uid,
                        "annotations": {DELETION_COST: str(RETIRED_COST)},
                    }
                },
            )
        except (NotFound, ConflictError):
            log.debug("pod went before it was marked", pool=pool.key, pod=pod.name)

    async def _suspend(self, pool: Pool, plan: Plan, facts: PoolFacts) -> None:
        assert pool.link is not None  # noqa: S101  looked at it a moment ago
        if plan.suspend != facts.suspended:
            workers = [worker.name for worker in facts.workers]
            act = commands.suspend if plan.suspend else commands.resume
            await act(pool.link.redis, pool.key, workers)

    # -- tell ------------------------------------------------------------------------------------

    async def _tell(
        self, pool: Pool, status: dict[str, Any], *, force: bool = False
    ) -> float | None:
        """Write the status if it differs; figures alone not too often. Seconds until it is due."""
        if status == pool.status:
            return None
        now = self._clock.monotonic()
        wait = pool.told + STATUS_FIGURES_EVERY - now
        if not force and wait > 0 and _without_figures(status) == _without_figures(pool.status):
            return wait
        try:
            answer = await self._client.apply_status(
                WORKERPOOLS,
                {
                    "metadata": {
                        "namespace": pool.namespace,
                        "name": pool.name,
                        "uid": pool.uid,
                    },
                    "status": status,
                },
            )
        except NotFound:
            return None
        pool.told = now
        pool.version = int(answer["metadata"]["resourceVersion"])
        pool.status = answer.get("status") or {}
        return None

    def _again(
        self,
        pool: Pool,
        facts: PoolFacts | None,
        pods: Sequence[PodView],
        decision: Decision,
        leave: Leave,
        refused: bool,
    ) -> float | None:
        if facts is None:
            return LOOK_BLIND
        waits: list[float] = []
        if leave.drain or leave.retire or leave.mark or leave.shrink_by:
            waits.append(LOOK_LEAVING)
        elif pods or facts.workers or facts.backlog or facts.running:
            waits.append(LOOK_ACTIVE)
        if refused:
            waits.append(RESYNC)
        if pool.finished:
            waits.append(RESYNC)  # jobsPerMinute has to come down to zero
        if decision.again_in is not None:
            waits.append(max(0.05, decision.again_in))
        for queue in facts.queues:
            if queue.next_due is not None:
                waits.append(max(0.02, queue.next_due - facts.at))
        return min(waits) if waits else None

    # -- looking again ---------------------------------------------------------------------------

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
                for pool in pools:
                    self._queue.add(pool.key)
                continue
            for pool in pools:
                if pool.plan is not None and not quiet.issuperset(pool.plan.queues):
                    self._queue.add(pool.key)
        return RESYNC

    def _forget(self, key: str) -> None:
        pool = self._pools.pop(key, None)
        if pool is not None:
            self._unlink(pool)
            self._queue.forget(key)


#: A key of the queue that is no pool: the look at all idle pools at once.
RESYNC_KEY = "resync"

_FIGURES = ("queues", "jobsPerMinute", "busyWorkers", "decision", "readyReplicas", "replicas")


def _without_figures(status: Mapping[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in status.items() if key not in _FIGURES}
    rest["conditions"] = [
        (c["type"], c["status"], c.get("reason")) for c in rest.get("conditions") or ()
    ]
    return rest


def _document(pool: Pool) -> dict[str, Any]:
    return {
        "apiVersion": WORKERPOOLS.api_version,
        "kind": WORKERPOOLS.kind,
        "metadata": {"namespace": pool.namespace, "name": pool.name, "uid": pool.uid},
        "spec": orjson.loads(pool.spec),
    }


def _reference(pool: Pool) -> ObjectRef:
    return ObjectRef(WORKERPOOLS.api_version, WORKERPOOLS.kind, pool.namespace, pool.name, pool.uid)


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


def _per_minute(pool: Pool, facts: PoolFacts | None) -> int:
    """Jobs that ended in the last minute, from the queues' totals."""
    if facts is None:
        return 0
    total = sum(queue.finished_total + queue.failed_total for queue in facts.queues)
    past = [(at, count) for at, count in pool.finished if facts.at - 60.0 <= at <= facts.at]
    if not past or facts.at - past[-1][0] >= 5.0:
        past.append((facts.at, total))
    done = max(0, total - past[0][1])
    # Nothing to remember of a minute in which nothing ended and nothing can end.
    pool.finished = tuple(past) if done or facts.running or facts.backlog else ()
    return done
