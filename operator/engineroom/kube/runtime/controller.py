"""The interface between a kind's controller and the process that runs it."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import orjson

from engineroom.core.clock import Clock, SystemClock
from engineroom.kube.runtime.informer import RESYNC, Informer
from engineroom.kube.runtime.status_pacing import StatusPacer
from engineroom.kube.runtime.store import ListComparison, ObjectStore, key_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engineroom.kube.client.client import Client
    from engineroom.kube.client.resources import Resource
    from engineroom.kube.runtime.events import Recorder
    from engineroom.kube.runtime.queue import WorkQueue

T = TypeVar("T")

#: The annotation with the last input of kubectl apply: as large as the object, and never read here.
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"

#: Seconds in which the watch must deliver a change that a list showed; after that it counts as
#: broken.
GRACE = 60.0


@dataclass(frozen=True, slots=True)
class Record:
    """A cached custom object: some fields for quick access, and the whole as compressed JSON.

    A parsed object takes ten times the memory of its JSON and thirty times that of the compressed
    JSON. A reconcile decompresses one object, in less than 0.1 ms.
    """

    namespace: str
    name: str
    uid: str
    generation: int
    resource_version: str
    deleting: bool
    packed: bytes = field(repr=False)

    @property
    def key(self) -> str:
        """``namespace/name``."""
        return key_of(self.namespace, self.name)

    def load(self) -> dict[str, Any]:
        """Return the object without managedFields, as a new dictionary."""
        loaded: dict[str, Any] = orjson.loads(zlib.decompress(self.packed))
        return loaded

    def same_intent(self, other: Record) -> bool:
        """Return whether the uid, the generation and the deletion are the same."""
        return (
            self.uid == other.uid
            and self.generation == other.generation
            and self.deleting == other.deleting
        )


def record_of(obj: dict[str, Any]) -> Record:
    """Return the cached form of a custom object."""
    metadata = obj["metadata"]
    stored = {key: value for key, value in metadata.items() if key != "managedFields"}
    annotations = stored.get("annotations")
    if annotations and LAST_APPLIED in annotations:
        stored["annotations"] = {k: v for k, v in annotations.items() if k != LAST_APPLIED}
    return Record(
        namespace=metadata.get("namespace") or "",
        name=metadata["name"],
        uid=metadata.get("uid") or "",
        generation=int(metadata.get("generation") or 0),
        resource_version=metadata.get("resourceVersion") or "",
        deleting=bool(metadata.get("deletionTimestamp")),
        packed=zlib.compress(orjson.dumps({**obj, "metadata": stored}), level=1),
    )


class RecordStore(ObjectStore[Record]):
    """The objects of one kind, from the events of Kopf's watch and compared with lists.

    ``on_change(key, record, before)`` is called for each object that is new, changed or deleted
    (``record`` is None).
    """

    def __init__(
        self,
        kind: Resource,
        on_change: Callable[[str, Record | None, Record | None], None] | None = None,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(record_of, on_change)
        self.kind = kind
        self.repaired = 0
        self._clock = clock or SystemClock()
        self._last_contact = self._clock.monotonic()
        #: Changes that a list showed and the watch did not yet deliver: the time of the list.
        self._undelivered: dict[str, float] = {}

    def take(self, change: str | None, obj: dict[str, Any]) -> None:
        """Store one event of the watch; ``change`` is None for an object of its first list."""
        self._last_contact = self._clock.monotonic()
        metadata = obj["metadata"]
        key = key_of(metadata.get("namespace"), metadata["name"])
        self._undelivered.pop(key, None)
        if change != "DELETED":
            self.put(obj)
            return
        cached = self.get(key)
        # Events of two successive objects with one name may arrive in either order.
        if cached is not None and cached.uid == metadata.get("uid"):
            self.remove(obj)

    def wrote(self, obj: dict[str, Any]) -> None:
        """Store the result of this process's own write, so that its event causes no reconcile.

        Ignored if the watch was faster, or if the result also contains a user's change, which the
        watch delivers.
        """
        record = record_of(obj)
        cached = self.get(record.key)
        if cached is None or not cached.same_intent(record):
            return
        if _number(record.resource_version) > _number(cached.resource_version):
            self._replace(record.key, record.resource_version, record)

    def age(self) -> float:
        """Return the seconds since the last event or comparison."""
        return self._clock.monotonic() - self._last_contact

    def watch_is_broken(self) -> bool:
        """Return whether the watch has not delivered a listed change within the grace period."""
        if not self._undelivered:
            return False
        return self._clock.monotonic() - min(self._undelivered.values()) > GRACE

    def watch_restarted(self) -> None:
        """Forget the undelivered changes: the list of the new watch contains them."""
        self._undelivered.clear()

    async def compare(
        self, client: Client, namespace: str | None = None, *, first: bool = False
    ) -> int:
        """List all objects and correct the store; returns how many objects were corrected.

        Needed because a watch that lists again does not report the objects deleted meanwhile.
        """
        comparison = self.begin_comparison(namespace)
        try:
            async for items, _ in client.pages(self.kind, namespace):
                for obj in items:
                    self._compare_object(comparison, obj, first=first)
        except BaseException:
            comparison.cancel()
            raise
        repaired = comparison.finish()
        self._last_contact = self._clock.monotonic()
        if not first:
            self.repaired += repaired
        return repaired

    def _compare_object(
        self, comparison: ListComparison[Record], obj: dict[str, Any], *, first: bool
    ) -> None:
        if comparison.add(obj) and not first:
            metadata = obj["metadata"]
            key = key_of(metadata.get("namespace"), metadata["name"])
            self._undelivered.setdefault(key, self._clock.monotonic())

    def discard(self, key: str) -> bool:
        """Remove the object under ``key``; returns whether it was in the store."""
        self._undelivered.pop(key, None)
        return super().discard(key)


def _number(version: str) -> int:
    """Return a resourceVersion as a number, 0 if it is none."""
    return int(version) if version.isdigit() else 0


@dataclass(slots=True)
class Context:
    """The services that a process provides to a controller."""

    client: Client
    clock: Clock
    queue: WorkQueue
    store: RecordStore
    recorder: Recorder
    namespaces: Sequence[str] = ()
    #: The namespace of Engineroom's own processes.
    system_namespace: str = ""
    #: Returns whether this process may write now.
    is_leader: Callable[[], bool] = field(default=lambda: True)
    #: Returns the fencing epoch for writes to Redis.
    epoch: Callable[[], int] = field(default=lambda: 0)
    #: Returns the id of this installation among those that share a Redis; "" without a lease.
    installation: Callable[[], str] = field(default=lambda: "")
    #: Registers a gauge that is read at each scrape: name, description, function, labels.
    gauge: Callable[..., None] = field(default=lambda *_: None)
    #: Creates a histogram of seconds from name and description; returns its observe function.
    histogram: Callable[[str, str], Callable[[float], None]] = field(
        default=lambda *_: lambda _: None
    )
    resync: tuple[float, float] = RESYNC
    #: Limits status writes that change only figures, shared by all kinds of the process.
    pacer: StatusPacer = field(default_factory=StatusPacer)
    informers: list[Informer[Any]] = field(default_factory=list)

    def informer(
        self,
        ref: Resource,
        label_selector: str,
        project: Callable[[dict[str, Any]], T],
        on_index: Callable[[str], None] | None = None,
        on_change: Callable[[str, T | None], None] | None = None,
    ) -> Informer[T]:
        """Return a cache of objects in the watched namespaces; the process runs it.

        ``on_index`` is called with the owner (``namespace/name``) whose child changed; by default
        the owner is queued.
        """
        informer = Informer(
            self.client,
            ref,
            label_selector,
            project,
            on_change,
            namespaces=self.namespaces,
            on_index=on_index or self.queue.add,
            resync=self.resync,
            clock=self.clock,
        )
        self.informers.append(informer)
        return informer


class Controller(Protocol):
    """A kind's controller. All methods are called on the event loop of the process."""

    @property
    def kind(self) -> Resource:
        """The kind that it reconciles."""
        ...

    async def start(self, context: Context) -> None:
        """Create informers and connections; called once, before other methods, leader or not."""
        ...

    def changed(self, key: str, obj: Record | None) -> None:
        """Handle an object that is new, changed or deleted (None); leader or not.

        ``key`` is ``namespace/name`` and already queued. Must not block.
        """
        ...

    async def reconcile(self, key: str) -> float | None:
        """Reconcile one object; returns the seconds until the next run, or None. Leader only.

        Also called for deleted objects, whose key is no longer in the store.
        """
        ...

    async def stop(self) -> None:
        """Close what ``start`` opened; called after the last reconcile."""
        ...
