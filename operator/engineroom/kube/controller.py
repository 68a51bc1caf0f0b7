"""What a kind's controller is to the process that runs it, and what it gets from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import orjson

from engineroom.kube.informer import Informer
from engineroom.kube.store import ObjectStore

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engineroom.core.clock import Clock
    from engineroom.kube.client import Client
    from engineroom.kube.events import Recorder
    from engineroom.kube.queue import WorkQueue
    from engineroom.kube.resources import Resource

T = TypeVar("T")

#: What kubectl apply keeps of its last input: as large as the object, and nothing to us.
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


@dataclass(frozen=True, slots=True)
class Record:
    """An object of ours as cached: what is often asked as fields, the rest as compact JSON.

    Ten thousand parsed objects are ten times as large as their JSON; a reconcile parses the one it
    looks at.
    """

    namespace: str
    name: str
    uid: str
    generation: int
    resource_version: str
    deleting: bool
    raw: bytes = field(repr=False)

    @property
    def key(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name

    def load(self) -> dict[str, Any]:
        """The object, without managedFields; a new dictionary each time."""
        loaded: dict[str, Any] = orjson.loads(self.raw)
        return loaded

    def same_wish(self, other: Record) -> bool:
        """Whether nothing a user can wish for differs: spec, deletion, and the very object."""
        return (
            self.uid == other.uid
            and self.generation == other.generation
            and self.deleting == other.deleting
        )


def record_of(obj: dict[str, Any]) -> Record:
    """Project an object of ours for the cache."""
    metadata = obj["metadata"]
    kept = {key: value for key, value in metadata.items() if key != "managedFields"}
    annotations = kept.get("annotations")
    if annotations and LAST_APPLIED in annotations:
        kept["annotations"] = {k: v for k, v in annotations.items() if k != LAST_APPLIED}
    return Record(
        namespace=metadata.get("namespace") or "",
        name=metadata["name"],
        uid=metadata.get("uid") or "",
        generation=int(metadata.get("generation") or 0),
        resource_version=metadata.get("resourceVersion") or "",
        deleting=bool(metadata.get("deletionTimestamp")),
        raw=orjson.dumps({**obj, "metadata": kept}),
    )


class PoolStore(ObjectStore[Record]):
    """The objects of one kind as ``Record``s, by ``namespace/name``."""

    def __init__(self, on_change: Callable[[str, Record | None], None] | None = None) -> None:
        super().__init__(record_of, on_change)

    def wrote(self, obj: dict[str, Any]) -> None:
        """Take in what one of our own writes returned, so that its echo wakes nobody."""
        before = self._on_change
        self._on_change = None
        try:
            self.put(obj)
        finally:
            self._on_change = before


@dataclass(slots=True)
class Context:
    """What the process gives a controller at its start."""

    client: Client
    clock: Clock
    queue: WorkQueue
    store: PoolStore
    recorder: Recorder
    namespaces: Sequence[str] = ()
    #: Whether this process may write for the key now.
    is_leader: Callable[[], bool] = field(default=lambda: True)
    #: The fencing epoch for what goes to Redis.
    epoch: Callable[[], int] = field(default=lambda: 0)
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

        ``on_index`` defaults to looking at the owner whose child changed.
        """
        informer = Informer(
            self.client,
            ref,
            label_selector,
            project,
            on_change,
            namespaces=self.namespaces,
            on_index=on_index or self.queue.add,
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

    async def reconcile(self, key: str) -> float | None:
        """Look at one object; returns seconds until to look again, or None. Leader only.

        Called for deleted objects too: the store then has no such key.
        """
        ...

    def changed(self, key: str, obj: Record | None) -> None:
        """The object is new, different or gone (None); its key is on the queue already."""
        ...

    async def stop(self) -> None:
        """Close what ``start`` opened; called after the last reconcile."""
        ...
