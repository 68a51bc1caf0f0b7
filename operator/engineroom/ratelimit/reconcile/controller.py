"""RateLimitPolicy: program the policies of a namespace, read their enforcers, write status.

All policies of a namespace are reconciled together, because they share a document and may conflict.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog

from engineroom.api import validation
from engineroom.api.v1alpha1.ratelimitpolicy import RateLimitPolicy
from engineroom.core.errors import EngineroomError
from engineroom.kube.client.resources import RATELIMITPOLICIES
from engineroom.kube.runtime.object_memory import NEVER, ObjectMemory
from engineroom.kube.runtime.reconciler import GroupReconciler, earliest
from engineroom.kube.runtime.redis_addresses import (
    RedisAddresses,
    RedisReference,
    redis_reference,
)
from engineroom.ratelimit.distribution.compile import Candidate, compile_policy
from engineroom.ratelimit.reconcile.assignment import assign
from engineroom.ratelimit.reconcile.completeness import CompletenessMark
from engineroom.ratelimit.reconcile.documents import (
    DocumentProgrammer,
    NamespaceDocument,
    PolicyInput,
    ProgramResult,
)
from engineroom.ratelimit.reconcile.facts import (
    UNREACHABLE_SECONDS,
    FallbackState,
    PolicyFacts,
    enforcer_counter,
    fallback_state,
    live_and_current,
    next_look,
    status_inputs,
)
from engineroom.ratelimit.reconcile.metrics import PolicyMetrics
from engineroom.ratelimit.reconcile.policy_stores import PolicyStores, RedisPolicyStore
from engineroom.ratelimit.reconcile.status import invalid_text, is_enforced, policy_status
from engineroom.ratelimit.reconcile.targets import Targets
from engineroom.redis.address import Address

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from engineroom.kube.runtime.controller import Record
    from engineroom.ratelimit.distribution.document import Target
    from engineroom.ratelimit.reconcile.policy_stores import PolicyStore

log = structlog.get_logger(__name__)

#: Seconds until an acknowledgement is processed, together with those that follow within them.
ACKNOWLEDGEMENTS_SECONDS = 0.01
#: Seconds of status writes before other changes are considered, and writes at the same time.
STATUS_SECONDS, STATUSES_AT_ONCE = 5.0, 16
#: Seconds until a missing Secret stalls a policy.
DEADLINE_SECONDS = 600.0
#: Seconds between searches for documents of namespaces without policies.
SWEEP_SECONDS = 300.0
#: Keys of the periodic tasks; no namespace begins with a slash.
_SWEEP, _PUBLISHED = "/sweep", "/published"

Members = Sequence[tuple["PolicyMemory", "Record"]]


@dataclass(slots=True)
class PolicyMemory(ObjectMemory[Candidate]):
    """One policy between two looks."""

    created: str = ""
    #: Targets and Redis of the last valid spec.
    targets: tuple[Target, ...] = ()
    redis: RedisReference | None = None
    #: The facts of the last status; None if the status has to be compared.
    reported: PolicyFacts | None = None
    enforced: bool = False
    #: The fallbacks in status, and the time of their last change (monotonic seconds).
    fallbacks: FallbackState = field(default_factory=FallbackState)
    fallbacks_changed: float = NEVER
    #: Time since when a Secret is missing (monotonic seconds).
    secret_missing_since: float | None = None


@dataclass(slots=True)
class _Namespace:
    """One namespace between two looks."""

    documents: dict[Address, NamespaceDocument] = field(default_factory=dict)
    #: Whether a policy changed since the last look began.
    dirty: bool = True
    #: The inputs of all statuses that are written; None if one has to be compared.
    settled: object = None
    #: Start of the last complete look (monotonic seconds).
    checked: float = NEVER


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
        self._namespaces: dict[str, _Namespace] = {}
        self._addresses: RedisAddresses
        self._stores: PolicyStores
        self._programmer: DocumentProgrammer
        self._targets: Targets
        self._metrics: PolicyMetrics

    async def open(self) -> None:
        """See Reconciler. Connections and informers open as policies need them."""
        context = self.context
        self._addresses = RedisAddresses(context.client, context.clock, self._redis_url)
        self._stores = PolicyStores(self._acknowledged, self._connected, self._open_store)
        self._programmer = DocumentProgrammer(context, lambda: context.queue.add(_PUBLISHED))
        self._targets = Targets(context, self._look)
        self._metrics = PolicyMetrics(context.gauge, context.histogram)
        mark = CompletenessMark(context, self._stores, self._unchecked)
        self.every(_SWEEP, self._sweep)
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
        namespace = self._namespaces.setdefault(key.partition("/")[0], _Namespace())
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

    def _look(self, namespace: str) -> None:
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
        state = self._namespaces.setdefault(namespace, _Namespace())
        state.dirty = False
        started = self.context.clock.monotonic()
        policies = {memory.name: memory.redis for memory, _ in members}
        assigned = await assign(self._addresses, self._stores, namespace, policies, state.documents)
        results = {
            name: ProgramResult(None, None, None, trouble)
            for name, trouble in assigned.troubles.items()
        }
        self._note_missing_secrets(members, assigned.missing_secrets)
        for address in assigned.duplicates:
            state.documents.pop(address, None)
        by_name = {memory.name: memory for memory, _ in members}
        for address in {**dict.fromkeys(state.documents), **assigned.policies}:
            names = assigned.policies.get(address, [])
            memories = [by_name[name] for name in names]
            result = await self._program(namespace, state, address, memories)
            results.update(dict.fromkeys(names, result))
            if not names and result.trouble is None:
                state.documents.pop(address, None)
        state.checked = started
        wait: float | None
        if members:
            wait = await self._write_statuses(state, members, results)
            wait = earliest(wait, next_look(results.values()))
        elif state.documents:
            wait = UNREACHABLE_SECONDS
        else:
            self._namespaces.pop(namespace, None)
            wait = None
        used = {address for other in self._namespaces.values() for address in other.documents}
        if self._redis_url:
            used.add(Address(self._redis_url))
        await self._stores.close_unused(used)
        return wait

    async def _program(
        self, namespace: str, state: _Namespace, address: Address, policies: list[PolicyMemory]
    ) -> ProgramResult:
        document = state.documents.setdefault(address, NamespaceDocument())
        result = await self._programmer.program(
            namespace,
            document,
            lambda: self._stores.of(address),
            [PolicyInput(memory.name, memory.created, memory.plan) for memory in policies],
        )
        if result.trouble is not None:
            for memory in policies:
                self._addresses.doubt(namespace, memory.redis)
        elif result.roster is not None:
            self._metrics.enforcers(namespace, address, *live_and_current(result))
        return result

    # -- status ---------------------------------------------------------------------------------

    async def _write_statuses(
        self, state: _Namespace, members: Members, results: Mapping[str, ProgramResult]
    ) -> float | None:
        """Write the statuses that differ; return the seconds until the rest is due."""
        overdue = frozenset(memory.name for memory, _ in members if self._overdue(memory))
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
        waits: list[float | None] = []
        end = self.context.clock.monotonic() + STATUS_SECONDS
        while due and not state.dirty and self.context.clock.monotonic() < end:
            chunk, due = due[:STATUSES_AT_ONCE], due[STATUSES_AT_ONCE:]
            written = await asyncio.gather(
                *(self._write_status(memory, facts) for memory, facts in chunk),
                return_exceptions=True,
            )
            for outcome in written:
                if isinstance(outcome, BaseException):
                    raise outcome
                waits.append(outcome)
        wait = earliest(*waits, 0.1 if due else None)
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
        if result.roster is not None:
            now = self.context.clock.monotonic()
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
            self._overdue(memory),
        )

    def _note_missing_secrets(self, members: Members, missing: frozenset[str]) -> None:
        """Remember since when a Secret of each policy is missing."""
        now = self.context.clock.monotonic()
        for memory, _ in members:
            if memory.name not in missing:
                memory.secret_missing_since = None
            elif memory.secret_missing_since is None:
                memory.secret_missing_since = now

    def _overdue(self, memory: PolicyMemory) -> bool:
        """Return whether a Secret is missing for longer than the deadline."""
        since = memory.secret_missing_since
        return since is not None and self.context.clock.monotonic() - since >= DEADLINE_SECONDS

    async def _write_status(self, memory: PolicyMemory, facts: PolicyFacts) -> float | None:
        """Write one status; return the seconds until it is due, None if it is up to date."""
        record = self.context.store.get(memory.key)
        if record is None or record.uid != memory.uid:
            return None
        old: dict[str, Any] = record.load().get("status") or {}
        status = policy_status(old, facts, self.context.clock.now())
        wait = await self.publish(memory, old, status)
        if wait is None:
            memory.reported = facts
            now = self.context.clock.monotonic()
            self._metrics.status_written(memory.key, old, status, now)
        return wait

    def status_changed(
        self, memory: PolicyMemory, old: Mapping[str, Any], status: dict[str, Any]
    ) -> None:
        """See Reconciler. Records a warning if the policy is not accepted, once for each reason."""
        before, after = (_condition(version, "Accepted") for version in (old, status))
        if after.get("status") == "False" and after.get("reason") != before.get("reason"):
            self.context.recorder.record(
                self.reference(memory),
                "Warning",
                str(after["reason"]),
                str(after["message"])[:1024],
            )

    # -- periodic tasks -------------------------------------------------------------------------

    def _unchecked(self, address: Address, since: float) -> list[str]:
        """Return the namespaces without a successful check at an address since ``since``."""
        return [
            name
            for name, state in self._namespaces.items()
            if state.checked <= since
            or (address in state.documents and state.documents[address].checked <= since)
        ]

    async def _sweep(self) -> float:
        """Find documents of namespaces without policies, such as deleted while no operator ran."""
        if self._redis_url:
            try:
                address = Address(self._redis_url)
                for namespace in await self._stores.of(address).namespaces():
                    watched = self.context.namespaces
                    if namespace not in self._namespaces and (not watched or namespace in watched):
                        documents = {address: NamespaceDocument()}
                        self._namespaces[namespace] = _Namespace(documents)
                        self.context.queue.add(namespace)
            except EngineroomError as error:
                log.debug("orphaned documents not listed", error=str(error))
                return UNREACHABLE_SECONDS
        return SWEEP_SECONDS


def _condition(status: Mapping[str, Any], kind: str) -> dict[str, Any]:
    for condition in status.get("conditions") or ():
        if condition.get("type") == kind:
            return dict(condition)
    return {}
