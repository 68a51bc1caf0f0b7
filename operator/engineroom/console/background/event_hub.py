"""Distribution of changes to objects: one watch a kind feeds all event streams of the process.

The id of an event names, for each kind of the stream, the last change that the stream delivered.
All replicas watch the same objects, so a client can resume a stream at any replica. A replica that
does not remember one of these changes asks the client to read the lists again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from engineroom.core.errors import LimitError
from engineroom.kube.runtime.informer import Informer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from engineroom.kube.client.client import Client
    from engineroom.kube.client.resources import Resource

#: Undelivered events that a stream may have, and delivered ones that each kind remembers.
BEHIND, REMEMBERED = 256, 2_000
#: Open streams of one caller, and of the process.
MOST_EACH, MOST = 10, 1_000


class StreamsError(LimitError):
    """Too many event streams are open; close one."""

    code = "too_many_streams"


class ObjectView(Protocol):
    """The representation of an object in the API."""

    @property
    def namespace(self) -> str:
        """The object's namespace."""

    @property
    def name(self) -> str:
        """The object's name."""

    @property
    def resource_version(self) -> str:
        """The object's resourceVersion."""

    def model_dump_json(self, *, by_alias: bool = False) -> str:
        """The view as JSON, without line breaks."""


@dataclass(frozen=True, slots=True)
class WatchedKind:
    """A kind whose changes are events."""

    #: Name of the event that carries a new or changed object.
    event: str
    #: Name of the event that says that an object was deleted.
    deleted_event: str
    resource: Resource
    view: Callable[[Mapping[str, Any]], ObjectView]
    #: Permission that a stream needs for the events of this kind.
    permission: str


@dataclass(frozen=True, slots=True)
class ObjectChange:
    """A change of one object. ``version`` identifies it among the changes of its kind."""

    version: str
    kind: str
    name: str
    namespace: str
    data: str


class EventStream:
    """Events of one namespace that one client has not received yet."""

    def __init__(self, namespace: str, kinds: Iterable[str]) -> None:
        self.namespace = namespace
        #: Kinds that the client may read now.
        self.kinds = frozenset(kinds)
        self.lost = False
        self.positions: dict[str, str] = {}
        self._waiting: asyncio.Queue[ObjectChange] = asyncio.Queue(BEHIND)

    def offer(self, event: ObjectChange) -> None:
        """Queue an event of the stream's namespace and kinds; set ``lost`` if the queue is full."""
        if event.namespace != self.namespace or event.kind not in self.kinds or self.lost:
            return
        try:
            self._waiting.put_nowait(event)
        except asyncio.QueueFull:
            self.lost = True

    async def next(self, seconds: float) -> bytes | None:
        """Return the next event as the stream carries it, or None after ``seconds``."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    event = await self._waiting.get()
                    if event.kind in self.kinds:
                        return self._text(event)
        return None

    def _text(self, event: ObjectChange) -> bytes:
        self.positions[event.kind] = event.version
        identity = ",".join(f"{kind}={at}" for kind, at in sorted(self.positions.items()))
        return f"id: {identity}\nevent: {event.name}\ndata: {event.data}\n\n".encode()


class KindFeed:
    """The objects of one kind, and its latest changes."""

    def __init__(
        self,
        client: Client,
        watched: WatchedKind,
        namespaces: Sequence[str],
        publish: Callable[[ObjectChange], None],
    ) -> None:
        self.watched = watched
        self.informer: Informer[ObjectView] = Informer(
            client, watched.resource, None, watched.view, self._on_change, namespaces=namespaces
        )
        self._publish = publish
        self._versions: dict[str, str] = {}
        self._past: deque[ObjectChange] = deque()
        #: The position before the oldest remembered change.
        self._start = ""

    @property
    def position(self) -> str:
        """The version of the latest change; without one, a digest of all objects."""
        return self._past[-1].version if self._past else self._start_position()

    def since(self, position: str) -> Sequence[ObjectChange] | None:
        """Return the changes after ``position``, or None if it is not remembered."""
        past = list(self._past)
        if position and position == self._start_position():
            return past
        for index in range(len(past) - 1, -1, -1):
            if past[index].version == position:
                return past[index + 1 :]
        return None

    def _start_position(self) -> str:
        if not self._start and self.informer.synced.is_set():
            # Replicas that listed the same objects agree on where their changes begin.
            objects = json.dumps(sorted(self._versions.items())).encode()
            self._start = f"list-{hashlib.sha256(objects).hexdigest()[:16]}"
        return self._start

    def _on_change(self, key: str, view: ObjectView | None) -> None:
        namespace, _, name = key.rpartition("/")
        self._start_position()
        watched = self.watched
        if view is None:
            version = f"{self._versions.pop(key, '0')}-gone"
            data = json.dumps({"namespace": namespace, "name": name})
            event = ObjectChange(version, watched.event, watched.deleted_event, namespace, data)
        else:
            version = self._versions[key] = view.resource_version
            data = view.model_dump_json(by_alias=True)
            event = ObjectChange(version, watched.event, watched.event, namespace, data)
        if self.informer.synced.is_set():
            if len(self._past) == REMEMBERED:
                self._start = self._past.popleft().version
            self._past.append(event)
        self._publish(event)


class EventHub:
    """The watched kinds of a process and its open streams."""

    def __init__(
        self, client: Client, watched: Iterable[WatchedKind], namespaces: Sequence[str] = ()
    ) -> None:
        """Watch the kinds in ``namespaces``, in all if it is empty; one must be ``pool``."""
        self._streams: set[EventStream] = set()
        self._open: Counter[str] = Counter()
        self._feeds = {
            kind.event: KindFeed(client, kind, namespaces, self._publish) for kind in watched
        }
        #: The cache of WorkerPools.
        self.pools: Informer[Any] = self._feeds["pool"].informer

    async def start(self) -> None:
        """Start all watches."""
        for feed in self._feeds.values():
            await feed.informer.start()

    async def stop(self) -> None:
        """End all watches."""
        for feed in self._feeds.values():
            await feed.informer.stop()

    @property
    def watched(self) -> tuple[WatchedKind, ...]:
        """The watched kinds."""
        return tuple(feed.watched for feed in self._feeds.values())

    @property
    def streams(self) -> int:
        """The number of open streams."""
        return self._open.total()

    def queues(self, namespace: str) -> set[str]:
        """Return the queues of the installation's Redis that the namespace owns and its pools read.

        The operator records in a pool's status what the namespace owns. A queue of a pool that
        it has not seen yet, or that may not use this Redis, belongs to no namespace here.
        """
        return {
            queue
            for pool in self.pools.values()
            if pool.namespace == namespace and not pool.own_redis
            for queue in pool.owned_queues
            if queue in pool.queues
        }

    def _publish(self, event: ObjectChange) -> None:
        for stream in tuple(self._streams):
            stream.offer(event)

    @contextlib.contextmanager
    def opened(self, owner: str, namespace: str, kinds: Collection[str], last: str) -> Any:
        """Open a stream for a block; yield it and whether the client may have missed changes.

        ``last`` is the id of the last event that the client received, or "". Raises StreamsError
        when too many streams are open.
        """
        if self._open[owner] >= MOST_EACH or self._open.total() >= MOST:
            raise StreamsError("events: too many streams are open; close one", retry_after=5.0)
        stream = EventStream(namespace, kinds)
        missed = not self._resume(stream, last)
        self._open[owner] += 1
        self._streams.add(stream)
        try:
            yield stream, missed
        finally:
            self._streams.discard(stream)
            self._open[owner] -= 1
            if not self._open[owner]:
                del self._open[owner]

    def _resume(self, stream: EventStream, last: str) -> bool:
        """Queue the changes after the event ``last``; return False if some are not remembered."""
        stream.positions = {kind: self._feeds[kind].position for kind in stream.kinds}
        positions = dict(part.partition("=")[::2] for part in last.split(","))
        changes = [self._feeds[kind].since(positions.get(kind, "")) for kind in stream.kinds]
        if any(events is None for events in changes):
            return False
        stream.positions = {kind: positions[kind] for kind in stream.kinds}
        for events in changes:
            for event in events or ():
                stream.offer(event)
        return not stream.lost
