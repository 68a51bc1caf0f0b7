"""An API server in memory for controller tests: the in-memory twin of ``kube.client.Client``.

It keeps what controllers rely on: resourceVersion, uid and generation, merge patches, server-side
apply with one field manager, the status and scale subresources, conflicts, missing objects, and the
deletion of an owner's children.
"""

from __future__ import annotations

import copy
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engineroom.core.clock import FakeClock
from engineroom.core.conditions import timestamp
from engineroom.kube.client.errors import AlreadyExists, ApiError, Conflict, NotFound
from engineroom.kube.runtime.controller import Context, RecordStore
from engineroom.kube.runtime.events import MemoryRecorder
from engineroom.kube.runtime.queue import WorkQueue

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from engineroom.kube.client.resources import Resource
    from engineroom.kube.runtime.controller import Controller, Record

Key = tuple[str, str, str]


@dataclass(frozen=True)
class Write:
    """A request that changed an object: verb, plural (with the subresource), and name."""

    verb: str
    plural: str
    name: str


class MemoryApi:
    """Objects by kind, namespace and name, with the verbs of ``Client``."""

    def __init__(self, clock: FakeClock) -> None:
        self.objects: dict[Key, dict[str, Any]] = {}
        self.writes: list[Write] = []
        #: Called before each request with verb, plural and name; raises what the request answers.
        self.fault: Callable[[str, str, str], None] = lambda _verb, _plural, _name: None
        self._clock = clock
        self._version = 100
        self._listeners: list[Callable[[str, str, dict[str, Any]], None]] = []

    # -- for tests -------------------------------------------------------------------------------

    def listen(self, listener: Callable[[str, str, dict[str, Any]], None]) -> None:
        """Call ``listener(plural, change, object)`` after each change, as a watch would."""
        self._listeners.append(listener)

    def find(self, resource: Resource, namespace: str, name: str) -> dict[str, Any] | None:
        """Return a copy of the object, or None."""
        stored = self.objects.get((resource.plural, namespace, name))
        return copy.deepcopy(stored) if stored is not None else None

    def put(self, resource: Resource, obj: Mapping[str, Any]) -> dict[str, Any]:
        """Create the object or replace its spec, as its author does; returns it as stored."""
        return self._store(resource.plural, obj, author=True)

    def edit(self, resource: Resource, namespace: str, name: str, **fields: Any) -> None:
        """Merge ``fields`` into the object, as the kubelet or another controller does."""
        stored = self._stored(resource.plural, namespace, name)
        self._changed(resource.plural, _merged(stored, fields))

    def remove(self, resource: Resource, namespace: str, name: str) -> None:
        """Delete the object, and what it owns."""
        removed = self.objects.pop((resource.plural, namespace, name))
        self._tell(resource.plural, "DELETED", removed)
        uid = removed["metadata"]["uid"]
        for key, child in list(self.objects.items()):
            owners = child["metadata"].get("ownerReferences") or ()
            if any(owner.get("uid") == uid for owner in owners) and key in self.objects:
                del self.objects[key]
                self._tell(key[0], "DELETED", child)

    # -- the verbs of Client ---------------------------------------------------------------------

    async def get(
        self, ref: Resource, namespace: str | None, name: str, **_: Any
    ) -> dict[str, Any]:
        self.fault("get", ref.plural, name)
        return copy.deepcopy(self._stored(ref.plural, namespace or "", name))

    async def list(
        self, ref: Resource, namespace: str | None = None, *_: Any, **__: Any
    ) -> tuple[list[dict[str, Any]], str]:
        self.fault("list", ref.plural, "")
        return self._items(ref, namespace), str(self._version)

    async def pages(
        self, ref: Resource, namespace: str | None = None, *_: Any, **__: Any
    ) -> AsyncIterator[tuple[list[dict[str, Any]], str]]:
        self.fault("list", ref.plural, "")
        yield self._items(ref, namespace), str(self._version)

    async def create(self, ref: Resource, obj: Mapping[str, Any], **_: Any) -> dict[str, Any]:
        metadata = obj["metadata"]
        self._before("create", ref.plural, metadata["name"])
        if (ref.plural, metadata.get("namespace", ""), metadata["name"]) in self.objects:
            raise AlreadyExists(f"{ref.plural} {metadata['name']} already exists", status=409)
        return self._store(ref.plural, obj)

    async def apply(
        self, ref: Resource, obj: Mapping[str, Any], *, subresource: str | None = None, **_: Any
    ) -> dict[str, Any]:
        plural = ref.plural + (f"/{subresource}" if subresource else "")
        metadata = obj["metadata"]
        self._before("apply", plural, metadata["name"])
        if subresource == "status":
            stored = self._stored(ref.plural, metadata.get("namespace", ""), metadata["name"])
            self._check(stored, metadata)
            return self._changed(ref.plural, {**stored, "status": copy.deepcopy(obj["status"])})
        return self._store(ref.plural, obj)

    async def apply_status(self, ref: Resource, obj: Mapping[str, Any], **_: Any) -> dict[str, Any]:
        return await self.apply(ref, obj, subresource="status")

    async def merge_patch(
        self,
        ref: Resource,
        namespace: str | None,
        name: str,
        patch: Mapping[str, Any],
        *,
        subresource: str | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        self._before("patch", ref.plural + (f"/{subresource}" if subresource else ""), name)
        stored = self._stored(ref.plural, namespace or "", name)
        self._check(stored, patch.get("metadata") or {})
        merged = _merged(stored, patch)
        merged["metadata"]["resourceVersion"] = stored["metadata"]["resourceVersion"]
        return self._changed(ref.plural, merged)

    async def delete(self, ref: Resource, namespace: str | None, name: str, **_: Any) -> None:
        self._before("delete", ref.plural, name)
        self._stored(ref.plural, namespace or "", name)
        self.remove(ref, namespace or "", name)

    async def request(self, method: str, path: str, **_: Any) -> dict[str, Any]:
        self.fault(method.lower(), path, "")
        raise NotFound(f"{path} is not served", status=404)

    # -- inside ----------------------------------------------------------------------------------

    def _items(self, ref: Resource, namespace: str | None) -> list[dict[str, Any]]:
        return [
            copy.deepcopy(obj)
            for (plural, place, _), obj in self.objects.items()
            if plural == ref.plural and namespace in (None, place)
        ]

    def _before(self, verb: str, plural: str, name: str) -> None:
        self.fault(verb, plural, name)
        self.writes.append(Write(verb, plural, name))

    def _stored(self, plural: str, namespace: str, name: str) -> dict[str, Any]:
        stored = self.objects.get((plural, namespace, name))
        if stored is None:
            raise NotFound(f'{plural} "{name}" not found', status=404, reason="NotFound")
        return stored

    def _check(self, stored: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
        for precondition in ("uid", "resourceVersion"):
            wanted = metadata.get(precondition)
            if wanted and wanted != stored["metadata"][precondition]:
                raise Conflict(f"{precondition} differs", status=409, reason="Conflict")

    def _store(
        self, plural: str, obj: Mapping[str, Any], *, author: bool = False
    ) -> dict[str, Any]:
        metadata = obj["metadata"]
        key = (plural, metadata.get("namespace", ""), metadata["name"])
        before = self.objects.get(key)
        stored = copy.deepcopy(dict(obj))
        if before is None:
            stored["metadata"] = {
                **stored["metadata"],
                "uid": f"uid-{self._version}",
                "generation": 1,
                "creationTimestamp": timestamp(self._clock.now()),
            }
            return self._changed(plural, stored)
        self._check(before, metadata)
        if author:
            merged = {**before, **stored, "metadata": {**before["metadata"], **metadata}}
        else:
            merged = _merged(before, stored)
        return self._changed(plural, merged)

    def _changed(self, plural: str, obj: dict[str, Any]) -> dict[str, Any]:
        metadata = obj["metadata"]
        key = (plural, metadata.get("namespace", ""), metadata["name"])
        before = self.objects.get(key)
        if before is not None and before == obj:
            return copy.deepcopy(before)
        self._version += 1
        generation = metadata["generation"] if before is None else before["metadata"]["generation"]
        if before is not None and before.get("spec") != obj.get("spec"):
            generation += 1
        obj = copy.deepcopy(obj)
        obj["metadata"] |= {"resourceVersion": str(self._version), "generation": generation}
        self.objects[key] = obj
        self._tell(plural, "ADDED" if before is None else "MODIFIED", obj)
        return copy.deepcopy(obj)

    def _tell(self, plural: str, change: str, obj: dict[str, Any]) -> None:
        for listener in self._listeners:
            listener(plural, change, copy.deepcopy(obj))


@dataclass
class Scenario:
    """A controller over a MemoryApi: state in, event, state out.

    Changes reach the caches as a watch brings them, after the write that made them has returned;
    ``settle`` delivers them and runs the reconciles that are due, without waiting for timers.
    """

    controller: Controller
    clock: FakeClock = field(default_factory=FakeClock)

    def __post_init__(self) -> None:
        self.api = MemoryApi(self.clock)
        self.recorder = MemoryRecorder()
        self.unheard: deque[tuple[str, str, dict[str, Any]]] = deque()
        self.store = RecordStore(self.controller.kind, self._changed, self.clock)
        self.queue = WorkQueue("test", clock=self.clock.monotonic)
        self.context = Context(
            client=self.api,  # type: ignore[arg-type]
            clock=self.clock,
            queue=self.queue,
            store=self.store,
            recorder=self.recorder,
        )
        self.api.listen(lambda *change: self.unheard.append(change))

    async def __aenter__(self) -> Scenario:
        await self.controller.start(self.context)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.controller.stop()

    def _heard(self, plural: str, change: str, obj: dict[str, Any]) -> None:
        if plural == self.controller.kind.plural:
            self.store.take(change, obj)
        for informer in self.context.informers:
            if informer.ref.plural == plural:
                informer.store.remove(obj) if change == "DELETED" else informer.store.put(obj)

    def _changed(self, key: str, record: Record | None, _before: Record | None) -> None:
        self.queue.add(key)
        self.controller.changed(key, record)

    async def settle(self, rounds: int = 100) -> int:
        """Run what is due now; returns the number of reconciles. Raises what a reconcile raises."""
        state, ran = self.queue.state, 0
        while ran < rounds:
            self.deliver()
            state.promote(self.clock.monotonic())
            taken = state.take(self.clock.monotonic())
            if taken is None:
                return ran
            ran += 1
            key, _ = taken
            requeue_after: float | None = None
            try:
                requeue_after = await self.controller.reconcile(key)
            finally:
                state.done(key, self.clock.monotonic(), requeue_after)
        raise AssertionError(f"not settled after {rounds} reconciles")

    def deliver(self) -> None:
        """Bring the changes since the last call to the caches."""
        while self.unheard:
            self._heard(*self.unheard.popleft())

    async def advance(self, seconds: float, step: float = 0.1) -> None:
        """Let time pass, running what becomes due meanwhile."""
        passed = 0.0
        while passed < seconds:
            self.clock.advance(step)
            passed += step
            await self.settle()

    def status(self, namespace: str, name: str) -> dict[str, Any]:
        """Return the status of an object of the controller's kind."""
        found = self.api.find(self.controller.kind, namespace, name)
        assert found is not None
        return dict(found.get("status") or {})

    def condition(self, namespace: str, name: str, kind: str) -> tuple[str, str, str]:
        """Return (status, reason, message) of a condition; three empty strings without it."""
        for condition in self.status(namespace, name).get("conditions") or ():
            if condition["type"] == kind:
                return condition["status"], condition["reason"], condition["message"]
        return "", "", ""


def refuse(error: ApiError, verb: str, plural: str = "") -> Callable[[str, str, str], None]:
    """Return a fault that answers ``error`` to a verb, on one kind or all."""

    def fault(asked: str, kind: str, _name: str) -> None:
        if asked == verb and plural in ("", kind):
            raise error

    return fault


def _merged(base: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """Apply a JSON merge patch (RFC 7386)."""
    merged = copy.deepcopy(dict(base))
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict):
            inner = merged.get(key)
            merged[key] = _merged(inner if isinstance(inner, dict) else {}, value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged
