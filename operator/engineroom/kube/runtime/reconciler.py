"""The reconcile loop that kinds plug into.

A kind subclasses one of two classes and supplies what differs from other kinds:

- :class:`ObjectReconciler` reconciles one object at a time: parse, observe, decide, apply, status.
- :class:`GroupReconciler` reconciles all objects of a namespace together, for kinds whose objects
  share something, such as a document.

Both keep a memory for each object, parse a spec once a generation, write status through one
:class:`StatusWriter`, run periodic tasks on the same queue, and treat errors by their type. Helpers
of a kind get values and return results; only its controller writes memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import structlog

from engineroom.core import reasons
from engineroom.core.conditions import MESSAGE_LENGTH, Trouble, invalid_conditions
from engineroom.core.errors import InvalidSpecError
from engineroom.kube.client.errors import Forbidden, Invalid, NotFound
from engineroom.kube.runtime.object_memory import NEVER, ObjectMemory
from engineroom.kube.runtime.ownership import NotOwnedError
from engineroom.kube.runtime.status_writer import FIGURES_INTERVAL, StatusWriter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

    from engineroom.kube.client.resources import ObjectRef, Resource
    from engineroom.kube.runtime.controller import Context, Record

log = structlog.get_logger(__name__)

#: Seconds until the next reconcile after an object, a child or the namespace disappeared.
LOOK_VANISHED = 0.2

Plan = TypeVar("Plan")
Observation = TypeVar("Observation")
Decision = TypeVar("Decision")
Outcome = TypeVar("Outcome")
Result = TypeVar("Result")

Status = dict[str, Any]


Memory = TypeVar("Memory", bound=ObjectMemory[Any])


class Reconciler(ABC, Generic[Memory]):
    """The common part of both forms: memory, status, periodic tasks, errors by type."""

    #: The kind that is reconciled.
    kind: ClassVar[Resource]
    #: Status fields that change all the time; see StatusWriter.
    figures: ClassVar[Collection[str]] = ()
    #: Seconds between two writes of an object's figures.
    figures_interval: ClassVar[float] = FIGURES_INTERVAL

    def __init__(self) -> None:
        self.memories: dict[str, Memory] = {}
        self.context: Context
        self._status_writer: StatusWriter
        self._periodic: dict[str, Callable[[], Awaitable[float | None]]] = {}

    # -- supplied by the kind --------------------------------------------------------------------

    @abstractmethod
    def remember(self, record: Record) -> Memory:
        """Return an empty memory for an object that is seen for the first time."""

    @abstractmethod
    async def parse(self, memory: Memory, obj: Mapping[str, Any]) -> Any:
        """Return the plan of the object's spec. Raises InvalidSpecError."""

    async def open(self) -> None:
        """Create informers and connections; the context is set. Called once, leader or not."""

    async def close(self) -> None:
        """Close what ``open`` opened."""

    def forget(self, memory: Memory) -> None:
        """Release what is held for an object that is deleted or replaced. Must not block."""

    def spec_changed(self, memory: Memory) -> None:
        """Release what was made for the old spec; ``memory.plan`` is still the old plan."""

    def status_changed(self, memory: Memory, old: Mapping[str, Any], status: Status) -> None:
        """React to a status that was written, for instance with an event."""

    # -- the Controller protocol -----------------------------------------------------------------

    async def start(self, context: Context) -> None:
        """See Controller."""
        self.context = context
        self._status_writer = StatusWriter(context, self.kind, self.figures, self.figures_interval)
        await self.open()

    async def stop(self) -> None:
        """See Controller."""
        await self.close()

    def changed(self, key: str, obj: Record | None) -> None:
        """See Controller. Forgets an object that is deleted or replaced by another of its name."""
        memory = self.memories.get(key)
        if memory is not None and (obj is None or obj.uid != memory.uid):
            self.forget(memory)
            del self.memories[key]
            self.context.queue.forget(key)

    async def reconcile(self, key: str) -> float | None:
        """See Controller. Runs a periodic task, or reconciles what the key names."""
        task = self._periodic.get(key)
        if task is not None:
            return await task()
        try:
            return await self.reconcile_key(key)
        except NotFound:
            log.debug("an object disappeared during the reconcile", kind=self.kind.kind, key=key)
            return LOOK_VANISHED
        except Forbidden as error:
            if error.namespace_terminating:
                return None
            raise

    @abstractmethod
    async def reconcile_key(self, key: str) -> float | None:
        """Reconcile what the key names; returns the seconds until the next run, or None."""

    # -- for subclasses --------------------------------------------------------------------------

    def every(
        self, name: str, task: Callable[[], Awaitable[float | None]], first: float = 0.0
    ) -> None:
        """Run ``task`` on the kind's queue in ``first`` seconds, then when its result says so.

        ``name`` is its key on the queue and can be woken there; no object's key may equal it.
        """
        self._periodic[name] = task
        self.context.queue.add_after(name, first)

    def reference(self, memory: Memory) -> ObjectRef:
        """Return the object as events refer to it."""
        return self.kind.ref(memory.namespace, memory.name, memory.uid)

    def recall(self, record: Record) -> Memory:
        """Return the memory of an object, new for a new object, without a plan for a new spec."""
        memory = self.memories.get(record.key)
        if memory is None or memory.uid != record.uid:
            if memory is not None:
                self.forget(memory)
            memory = self.memories[record.key] = self.remember(record)
        if memory.generation != record.generation:
            self.spec_changed(memory)
            memory.generation = record.generation
            memory.plan = memory.invalid = None
            memory.status_written = NEVER
        return memory

    async def parsed(self, memory: Memory, obj: Mapping[str, Any]) -> Any:
        """Return the plan, parsed once a generation; None for an invalid spec."""
        if memory.plan is None:
            try:
                memory.plan = await self.parse(memory, obj)
            except InvalidSpecError as error:
                memory.invalid = error
                return None
            memory.invalid = None
        return memory.plan

    async def publish(self, memory: Memory, old: Mapping[str, Any], status: Status) -> float | None:
        """Write the status if it differs; returns the seconds until held-back figures are due."""
        write = await self._status_writer.write(memory, old, status)
        if write.written:
            self.status_changed(memory, old, status)
        return write.wait


class ObjectReconciler(Reconciler[Memory], Generic[Memory, Plan, Observation, Decision, Outcome]):
    """Reconciles one object at a time: observe, decide, apply, publish the status."""

    # -- supplied by the kind --------------------------------------------------------------------

    @abstractmethod
    async def observe(self, memory: Memory, plan: Plan, obj: Mapping[str, Any]) -> Observation:
        """Read all that the decision needs. Trouble that status reports is part of the result."""

    @abstractmethod
    def decide(self, memory: Memory, plan: Plan, observation: Observation) -> Decision:
        """Return what is to be done, without reading or writing anything outside."""

    @abstractmethod
    async def apply(
        self,
        memory: Memory,
        plan: Plan,
        obj: Mapping[str, Any],
        observation: Observation,
        decision: Decision,
    ) -> Outcome:
        """Write the decision to the cluster and Redis; returns the results for the status."""

    @abstractmethod
    def status(
        self,
        memory: Memory,
        plan: Plan,
        old: Mapping[str, Any],
        observation: Observation,
        decision: Decision,
        outcome: Outcome,
    ) -> Status:
        """Return the whole status; equal to ``old`` when nothing changed."""

    @abstractmethod
    def next_look(
        self,
        memory: Memory,
        plan: Plan,
        observation: Observation,
        decision: Decision,
        outcome: Outcome,
    ) -> float | None:
        """Return the seconds until the next reconcile; None if only an event wakes the object."""

    async def removed(self, key: str, memory: Memory | None) -> float | None:
        """Clean up outside the cluster after an object that is deleted, or about to be."""

    def look_at_invalid(self, memory: Memory, obj: Mapping[str, Any]) -> float | None:
        """Return the seconds until an invalid spec is parsed again without a change of its own."""

    # -- the loop --------------------------------------------------------------------------------

    async def reconcile_key(self, key: str) -> float | None:
        """Reconcile one object; see Reconciler."""
        record = self.context.store.get(key)
        if record is None or record.deleting:
            return await self.removed(key, self.memories.get(key))
        memory, obj = self.recall(record), record.load()
        old: Status = obj.get("status") or {}
        plan: Plan | None = await self.parsed(memory, obj)
        if plan is None:
            await self.publish(memory, old, self.invalid_status(memory, old))
            return self.look_at_invalid(memory, obj)
        observation = await self.observe(memory, plan, obj)
        decision = self.decide(memory, plan, observation)
        outcome = await self.apply(memory, plan, obj, observation, decision)
        held_back = await self.publish(
            memory, old, self.status(memory, plan, old, observation, decision, outcome)
        )
        return earliest(held_back, self.next_look(memory, plan, observation, decision, outcome))

    def invalid_status(self, memory: Memory, old: Mapping[str, Any]) -> Status:
        """Return the status of an object whose spec passed admission and is invalid.

        Everything but the conditions keeps its last value.
        """
        assert memory.invalid is not None  # noqa: S101 # nosec B101 - parsed() set it
        conditions = invalid_conditions(
            old.get("conditions") or (),
            memory.invalid,
            memory.generation,
            self.context.clock.now(),
        )
        return {**old, "observedGeneration": memory.generation, "conditions": conditions}


class GroupReconciler(Reconciler[Memory]):
    """Reconciles all objects of a namespace together; the namespace is the key on the queue.

    The key of an object only queues its namespace's key, ahead of keys that no user waits for.
    """

    def __init__(self) -> None:
        super().__init__()
        self._names: dict[str, set[str]] = {}

    @abstractmethod
    async def reconcile_group(
        self, namespace: str, members: Sequence[tuple[Memory, Record]]
    ) -> float | None:
        """Reconcile the namespace; each member is parsed: it has a plan, or is ``invalid``.

        ``members`` is empty after the last object of the namespace is deleted. Returns the seconds
        until the next run, or None.
        """

    async def reconcile_key(self, key: str) -> float | None:
        """Reconcile a namespace; see Reconciler."""
        namespace, slash, _ = key.partition("/")
        if slash:
            self.context.queue.add(namespace, urgent=True)
            return None
        members = []
        for name in sorted(self.names(namespace)):
            record = self.context.store.get(f"{namespace}/{name}")
            if record is None or record.deleting:
                continue
            memory = self.recall(record)
            if memory.plan is None and memory.invalid is None:
                await self.parsed(memory, record.load())
            members.append((memory, record))
        return await self.reconcile_group(namespace, members)

    def changed(self, key: str, obj: Record | None) -> None:
        """See Controller. The namespace of a deleted object is reconciled ahead of others."""
        namespace, _, name = key.partition("/")
        super().changed(key, obj)
        if obj is None:
            names = self._names.get(namespace, set())
            names.discard(name)
            if not names:
                self._names.pop(namespace, None)
            self.context.queue.forget(key)
            self.context.queue.add(namespace, urgent=True)
        else:
            self._names.setdefault(namespace, set()).add(name)

    def names(self, namespace: str) -> Collection[str]:
        """Return the names of the namespace's objects."""
        return self._names.get(namespace, ())


async def unless_refused(work: Awaitable[Result], default: Result) -> tuple[Result, Trouble | None]:
    """Await writes; returns their result, and (reason, message) if one was refused.

    The API server refuses it, or a child's name belongs to another owner. A namespace that is being
    deleted is no refusal: its Forbidden goes on to the reconciler.
    """
    try:
        return await work, None
    except NotOwnedError as error:
        return default, (error.reason, str(error)[:MESSAGE_LENGTH])
    except (Invalid, Forbidden) as error:
        if isinstance(error, Forbidden) and error.namespace_terminating:
            raise
        quota = isinstance(error, Forbidden) and error.quota
        reason = reasons.QUOTA_EXCEEDED if quota else reasons.APPLY_REFUSED
        return default, (reason, str(error)[:MESSAGE_LENGTH])


def earliest(*waits: float | None) -> float | None:
    """Return the shortest of the waits that are given, in seconds."""
    return min((wait for wait in waits if wait is not None), default=None)
