"""The interface between a kind's controller and the process that runs it."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import orjson

from engineroom.core.clock import Clock, SystemClock
from engineroom.kube.runtime.informer import RESYNC, Informer
from engineroom.kube.runtime.status_pacing import StatusPacer
from engineroom.kube.runtime.store import Audit, ObjectStore, key_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engineroom.kube.client.client import Client
    from engineroom.kube.client.resources import Resource
    from engineroom.kube.runtime.events import Recorder
    from engineroom.kube.runtime.queue import WorkQueue

T = TypeVar("T")

#: What kubectl apply keeps of its last input: as large as the object, and nothing to us.
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"

#: Seconds that a watch has to tell by itself what a comparison found; then it is taken for dead.
GRACE = 60.0


@dataclass(frozen=True, slots=True)
class Record:
    """An object of ours as cached: what is often asked as fields, the rest as packed JSON.

    A parsed object is ten times as large as its JSON and thirty times as large as that packed; a
    reconcile unpacks the one it looks at, in less than 0.1 ms.
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
        """The object, without managedFields; a new dictionary each time."""
        loaded: dict[str, Any] = orjson.loads(zlib.decompress(self.packed))
        return loaded

    def same_intent(self, other: Record) -> bool:
        """Return whether spec, deletion and identity, which users decide, are the same."""
        return (
            self.uid == other.uid
            and self.generation == other.generation
            and self.deleting == other.deleting
        )


def record_of(obj: dict[str, Any]) -> Record:
    """Project an object of ours for the cache."""
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
    """The objects of one kind, fed by a watch that is not ours, and compared with lists.

    ``on_change(key, record, before)`` is told what is new, different or gone (record None).
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
        self._heard = self._clock.monotonic()
        self._unheard: dict[str, float] = {}

    def take(self, change: str | None, obj: dict[str, Any]) -> None:
        """One event of the watch; ``change`` is None for what its list brought."""
        self._heard = self._clock.monotonic()
        metadata = obj["metadata"]
        key = key_of(metadata.get("namespace"), metadata["name"])
        self._unheard.pop(key, None)
        if change != "DELETED":
            self.put(obj)
            return
        held = self.get(key)
        # Events of two objects of one name in a row may come in either order.
        if held is not None and held.uid == metadata.get("uid"):
            self.remove(obj)

    def wrote(self, obj: dict[str, Any]) -> None:
        """Store the result of one of our own writes, so its echo causes no look.

        Ignored if the watch was faster, or if the result also contains a user's change: the watch
        delivers that.
        """
        record = record_of(obj)
        held = self.get(record.key)
        if held is None or not held.same_intent(record):
            return
        if _number(record.resource_version) > _number(held.resource_version):
            self._replace(record.key, record.resource_version, record)

    def age(self) -> float:
        """Seconds since the last event or comparison."""
        return self._clock.monotonic() - self._heard

    def deaf(self) -> bool:
        """Return whether the watch missed, beyond the grace period, a change seen in a list."""
        if not self._unheard:
            return False
        return self._clock.monotonic() - min(self._unheard.values()) > GRACE

    def forgive(self) -> None:
        """The watch is opened anew: what it missed, its list tells."""
        self._unheard.clear()

    async def compare(
        self, client: Client, namespace: str | None = None, *, first: bool = False
    ) -> int:
        """List everything, tell what differs, make the missing deletions; returns how many.

        A watch that lost its place and listed again does not tell of what went meanwhile.
        """
        audit = self.audit(namespace)
        try:
            async for items, _ in client.pages(self.kind, namespace):
                for obj in items:
                    self._see(audit, obj, first=first)
        except BaseException:
            audit.cancel()
            raise
        differed = audit.finish()
        self._heard = self._clock.monotonic()
        if not first:
            self.repaired += differed
        return differed

    def _see(self, audit: Audit[Record], obj: dict[str, Any], *, first: bool) -> None:
        if audit.see(obj) and not first:
            metadata = obj["metadata"]
            key = key_of(metadata.get("namespace"), metadata["name"])
            self._unheard.setdefault(key, self._clock.monotonic())

    def discard(self, key: str) -> bool:
        """Forget the object under ``key``; returns whether it was known."""
        self._unheard.pop(key, None)
        return super().discard(key)


def _number(version: str) -> int:
    """A resourceVersion as the number that it is."""
    return int(version) if version.isdigit() else 0


@dataclass(slots=True)
class Context:
    """The services of the process for a controller."""

    client: Client
    clock: Clock
    queue: WorkQueue
    store: RecordStore
    recorder: Recorder
    namespaces: Sequence[str] = ()
    #: Whether this process may write now.
    is_leader: Callable[[], bool] = field(default=lambda: True)
    #: The fencing epoch for what goes to Redis.
    epoch: Callable[[], int] = field(default=lambda: 0)
    #: Who we are among all operators that may share a Redis; "" without a lease.
    installation: Callable[[], str] = field(default=lambda: "")
    #: Registers a figure to be read when metrics are scraped: name, description, value, and labels.
    gauge: Callable[..., None] = field(default=lambda *_: None)
    #: Makes a histogram of seconds from its name and description; returns what observes.
    histogram: Callable[[str, str], Callable[[float], None]] = field(
        default=lambda *_: lambda _: None
    )
    resync: tuple[float, float] = RESYNC
    #: Limits the writes of mere figures, together with all other kinds of the process.
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
        """A cache of children in the watched namespaces; the process runs it and reports its age.

        ``on_index`` is told the owner (``namespace/name``) whose child changed; by default the
        owner is looked at.
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
        """The kind it looks after."""
        ...

    async def start(self, context: Context) -> None:
        """Make informers and connections; called once, before anything else, leader or not."""
        ...

    def changed(self, key: str, obj: Record | None) -> None:
        """The object ``namespace/name`` is new, different or gone (None); leader or not.

        The key is on the queue already. Must not block.
        """
        ...

    async def reconcile(self, key: str) -> float | None:
        """Look at one object; returns seconds until to look again, or None. Leader only.

        Called for deleted objects too: the store then has no such key.
        """
        ...

    async def stop(self) -> None:
        """Close what ``start`` opened; called after the last reconcile."""
        ...
