"""RateLimitPolicy: program the policies of a namespace, read their enforcers, write status.

All policies of a namespace are reconciled together, because they share a document and may conflict.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from engineroom.api import validation
from engineroom.api.v1alpha1.ratelimitpolicy import RateLimitPolicy
from engineroom.kube.client.resources import RATELIMITPOLICIES
from engineroom.kube.runtime.reconciler import GroupReconciler, earliest
from engineroom.kube.runtime.redis_addresses import RedisAddresses, redis_reference
from engineroom.ratelimit.distribution.compile import Candidate, compile_policy
from engineroom.ratelimit.reconcile.assignment import assign
from engineroom.ratelimit.reconcile.completeness import CompletenessMark
from engineroom.ratelimit.reconcile.documents import DocumentProgrammer, PolicyInput, ProgramResult
from engineroom.ratelimit.reconcile.facts import (
    UNREACHABLE_SECONDS,
    PolicyFacts,
    enforcer_counter,
    fallback_state,
    next_look,
    status_inputs,
)
from engineroom.ratelimit.reconcile.memory import PolicyMemory
from engineroom.ratelimit.reconcile.metrics import PolicyMetrics
from engineroom.ratelimit.reconcile.namespaces import Namespaces, NamespaceState
from engineroom.ratelimit.reconcile.orphans import OrphanSweep
from engineroom.ratelimit.reconcile.policy_stores import PolicyStores, RedisPolicyStore
from engineroom.ratelimit.reconcile.programming import NamespaceProgrammer
from engineroom.ratelimit.reconcile.status import (
    invalid_text,
    is_enforced,
    new_rejection,
    policy_status,
)
from engineroom.ratelimit.reconcile.status_round import write_statuses
from engineroom.ratelimit.reconcile.targets import Targets
from engineroom.redis.address import Address

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from engineroom.kube.runtime.controller import Record
    from engineroom.ratelimit.reconcile.policy_stores import PolicyStore

#: Seconds until an acknowledgement is processed, together with those that follow within them.
ACKNOWLEDGEMENTS_SECONDS = 0.01
#: Keys of the periodic tasks; no namespace begins with a slash.
_SWEEP, _PUBLISHED = "/sweep", "/published"

Members = Sequence[tuple[PolicyMemory, "Record"]]


class RateLimitPolicyController(GroupReconciler[PolicyMemory]):
    """Reconciles RateLimitPolicies: one document per namespace, and the status of each policy."""

    kind = RATELIMITPOLICIES
    figures = ("enforcers",)
    figures_interval = 3.0

    def __init__(
        self,
        redis_url: str,
        open_store: Callable[
            [Address, Callable[[str], None], Callable[[], None]], PolicyStore
        ] = RedisPolicyStore,
    ) -> None:
        super().__init__()
        self._redis_url = redis_url
        self._open_store = open_store
        self._namespaces = Namespaces()
        self._addresses: RedisAddresses
        self._stores: PolicyStores
        self._programmer: NamespaceProgrammer
        self._targets: Targets
        self._metrics: PolicyMetrics

    async def open(self) -> None:
        """See Reconciler. Connections and informers open as policies need them."""
        context = self.context
        self._addresses = RedisAddresses(context.client, context.clock, self._redis_url)
        self._stores = PolicyStores(self._acknowledged, self._connected, self._open_store)
        self._targets = Targets(context, self._target_changed)
        self._metrics = PolicyMetrics(context.gauge, context.histogram)
        documents = DocumentProgrammer(context, lambda: context.queue.add(_PUBLISHED))
        self._programmer = NamespaceProgrammer(
            self._addresses, self._stores, documents, self._metrics
        )
        mark = CompletenessMark(context, self._stores, self._namespaces.unchecked)
        orphans = OrphanSweep(context, self._stores, self._namespaces, self._redis_url)
        self.every(_SWEEP, orphans.sweep)
        self.every(_PUBLISHED, mark.check)
        context.gauge(
            "engineroom_ratelimit_policies_unenforced",
            "Policies without enforcers, or not acknowledged by every live enforcer.",
            lambda: float(sum(not memory.enforced for memory in self.memories.values())),
        )

    async def close(self) -> None:
        """See Reconciler."""
        await self._targets.stop()
        await self._stores.close()

    # -- changes --------------------------------------------------------------------------------

    def changed(self, key: str, obj: Record | None) -> None:
        """See Controller."""
        super().changed(key, obj)
        namespace = self._namespaces.of(key.partition("/")[0])
        namespace.settled = None
        memory = self.memories.get(key)
        if obj is None:
            namespace.dirty = True
            self._metrics.deleted(key)
            return
        if memory is None or memory.generation != obj.generation:
            namespace.dirty = True
            self._metrics.changed(key, obj.generation, self.context.clock.monotonic())
        if memory is not None:
            memory.reported = None  # another client may have written its status

    def _acknowledged(self, namespace: str) -> None:
        if namespace in self._namespaces:
            self.context.queue.add_after(namespace, ACKNOWLEDGEMENTS_SECONDS)

    def _connected(self) -> None:
        for namespace in self._namespaces:
            self.context.queue.add(namespace)
        self.context.queue.add(_PUBLISHED)

    def _target_changed(self, namespace: str) -> None:
        if namespace in self._namespaces:
            self.context.queue.add(namespace)

    # -- one namespace --------------------------------------------------------------------------

    def remember(self, record: Record) -> PolicyMemory:
        """See Reconciler."""
        created = record.load()["metadata"].get("creationTimestamp")
        return PolicyMemory(record.namespace, record.name, record.uid, created=str(created or ""))

    async def parse(self, memory: PolicyMemory, obj: Mapping[str, Any]) -> Candidate:
        """See Reconciler. Targets and Redis of an invalid spec stay those of the last valid one."""
        policy = validation.parse(RateLimitPolicy, dict(obj))
        candidate = compile_policy(policy, memory.created)
        memory.targets, memory.redis = candidate.targets, redis_reference(policy.spec.redis)
        return candidate

    async def reconcile_group(self, namespace: str, members: Members) -> float | None:
        """See GroupReconciler."""
        state = self._namespaces.of(namespace)
        state.dirty = False
        started = self.context.clock.monotonic()
        references = {memory.name: memory.redis for memory, _ in members}
        assigned = await assign(
            self._addresses, self._stores, namespace, references, state.documents
        )
        self._note_missing_secrets(members, assigned.missing_secrets)
        policies = {
            memory.name: PolicyInput(memory.name, memory.created, memory.plan)
            for memory, _ in members
        }
        results = await self._programmer.program(
            namespace, state.documents, assigned, policies, references
        )
        state.checked = started
        wait: float | None
        if members:
            wait = await self._write_statuses(state, members, results)
            wait = earliest(wait, next_look(results.values()))
        elif state.documents:
            wait = UNREACHABLE_SECONDS
        else:
            self._namespaces.drop(namespace)
            wait = None
        used = self._namespaces.addresses()
        if self._redis_url:
            used.add(Address(self._redis_url))
        await self._stores.close_unused(used)
        return wait

    # -- status ---------------------------------------------------------------------------------

    async def _write_statuses(
        self, state: NamespaceState, members: Members, results: Mapping[str, ProgramResult]
    ) -> float | None:
        """Write the statuses that differ; return the seconds until the rest is due."""
        now = self.context.clock.monotonic()
        overdue = frozenset(memory.name for memory, _ in members if memory.overdue(now))
        inputs = (self._targets.changes, overdue, status_inputs(results.values()))
        if state.settled == inputs:
            return None
        state.settled = None
        count = enforcer_counter(results.values())
        due: list[tuple[PolicyMemory, PolicyFacts]] = []
        for memory, _ in members:
            facts = await self._facts(memory, results[memory.name], count)
            memory.enforced = is_enforced(facts)
            if facts != memory.reported:
                due.append((memory, facts))
        wait = await write_statuses(
            due, self._write_status, lambda: state.dirty, self.context.clock
        )
        if wait is None and not state.dirty:
            state.settled = inputs
        return wait

    async def _facts(
        self,
        memory: PolicyMemory,
        result: ProgramResult,
        count: Callable[[ProgramResult, str], Any],
    ) -> PolicyFacts:
        """Return the facts that determine the status of a policy."""
        now = self.context.clock.monotonic()
        if result.roster is not None:
            state = fallback_state(result, memory.name)
            if state.replaces(memory.fallbacks, now - memory.fallbacks_changed):
                memory.fallbacks, memory.fallbacks_changed = state, now
        compiled = result.compiled
        return PolicyFacts(
            memory.generation,
            None if compiled is None else compiled.results.get(memory.name),
            count(result, memory.name),
            memory.targets,
            await self._targets.missing(memory.namespace, memory.targets),
            "" if memory.invalid is None else invalid_text(memory.invalid),
            result.trouble,
            result.foreign,
            memory.fallbacks,
            memory.overdue(now),
        )

    def _note_missing_secrets(self, members: Members, missing: frozenset[str]) -> None:
        """Remember since when a Secret of each policy is missing."""
        now = self.context.clock.monotonic()
        for memory, _ in members:
            if memory.name not in missing:
                memory.secret_missing_since = None
            elif memory.secret_missing_since is None:
                memory.secret_missing_since = now

    async def _write_status(self, due: tuple[PolicyMemory, PolicyFacts]) -> float | None:
        """Write one status; return the seconds until it is due, None if it is up to date."""
        memory, facts = due
        record = self.context.store.get(memory.key)
        if record is None or record.uid != memory.uid:
            return None
        old: dict[str, Any] = record.load().get("status") or {}
        status = policy_status(old, facts, self.context.clock.now())
        wait = await self.publish(memory, old, status)
        if wait is None and self.memories.get(memory.key) is memory:  # not deleted meanwhile
            memory.reported = facts
            now = self.context.clock.monotonic()
            self._metrics.status_written(memory.key, old, status, now)
        return wait

    def status_changed(
        self, memory: PolicyMemory, old: Mapping[str, Any], status: dict[str, Any]
    ) -> None:
        """See Reconciler. Records a warning if the policy is not accepted, once for each reason."""
        rejection = new_rejection(old, status)
        if rejection is not None:
            reason, message = rejection
            self.context.recorder.record(self.reference(memory), "Warning", reason, message[:1024])
