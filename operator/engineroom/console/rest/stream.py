"""Live events: what changes in a namespace's pools, as server-sent events.

One watch a process feeds all streams. A stream holds a bounded number of events: whoever reads too
slowly is told to read the list again. The id of an event is the same on every replica, so a client
that comes back elsewhere goes on where it was, if that is not too long ago.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.responses import StreamingResponse

from engineroom.auth.permissions import Permission
from engineroom.console.resources.pools import view
from engineroom.console.rest.errors import StreamsError
from engineroom.console.rest.routing import BASE, Call, Route
from engineroom.core.errors import EngineroomError
from engineroom.kube.client.resources import WORKERPOOLS
from engineroom.kube.runtime.informer import Informer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from engineroom.console.resources.pools import Pool
    from engineroom.kube.client.client import Client

#: Events that a stream may be behind by, and that are remembered for who comes back.
BEHIND, REMEMBERED = 256, 2_000
#: Streams of one caller, and of the process.
MOST_EACH, MOST = 10, 1_000
#: Seconds between two signs of life, each with a look whether the caller still may.
HEARTBEAT = 5.0


@dataclass(frozen=True, slots=True)
class Event:
    """A change: `pool` or `gone`."""

    id: str
    kind: str
    namespace: str
    data: str

    def text(self) -> bytes:
        """As the stream carries it; JSON has no line breaks of its own."""
        return f"id: {self.id}\nevent: {self.kind}\ndata: {self.data}\n\n".encode()


class Stream:
    """What one client has not read yet."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.lost = False
        self._waiting: asyncio.Queue[Event] = asyncio.Queue(BEHIND)

    def offer(self, event: Event) -> None:
        """An event, if it is of the namespace; one too many and the stream counts as lost."""
        if event.namespace != self.namespace or self.lost:
            return
        try:
            self._waiting.put_nowait(event)
        except asyncio.QueueFull:
            self.lost = True

    async def next(self, seconds: float) -> Event | None:
        """The next event, or None when none came within ``seconds``."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return await self._waiting.get()
        return None


class Hub:
    """The pools of the watched namespaces, and who wants to hear of them."""

    def __init__(self, client: Client, namespaces: Sequence[str] = ()) -> None:
        self.pools: Informer[Pool] = Informer(
            client, WORKERPOOLS, None, view, self._changed, namespaces=namespaces
        )
        self._past: deque[Event] = deque(maxlen=REMEMBERED)
        self._versions: dict[str, str] = {}
        self._streams: set[Stream] = set()
        self._open: Counter[str] = Counter()

    @property
    def streams(self) -> int:
        """How many are open."""
        return self._open.total()

    def queues(self, namespace: str) -> set[str]:
        """Queues that pools of the namespace read, in the Redis of the installation."""
        return {
            queue
            for pool in self.pools.values()
            if pool.namespace == namespace and not pool.own_redis
            for queue in pool.queues
        }

    def _changed(self, key: str, pool: Pool | None) -> None:
        namespace, _, name = key.rpartition("/")
        if pool is None:
            identity = f"{self._versions.pop(key, '0')}-gone"
            data = json.dumps({"namespace": namespace, "name": name})
            event = Event(identity, "gone", namespace, data)
        else:
            self._versions[key] = pool.resource_version
            event = Event(
                pool.resource_version, "pool", namespace, pool.model_dump_json(by_alias=True)
            )
        if self.pools.synced.is_set():
            self._past.append(event)
        for stream in tuple(self._streams):
            stream.offer(event)

    @contextlib.contextmanager
    def opened(self, owner: str, namespace: str, last: str) -> Any:
        """A stream for the length of a block: (stream, whether something may be missing).

        Raises StreamsError when too many are open.
        """
        if self._open[owner] >= MOST_EACH or self._open.total() >= MOST:
            raise StreamsError("events: too many streams are open; close one", retry_after=5.0)
        stream = Stream(namespace)
        missed = self._resume(stream, last) if last else True
        self._open[owner] += 1
        self._streams.add(stream)
        try:
            yield stream, missed
        finally:
            self._streams.discard(stream)
            self._open[owner] -= 1
            if not self._open[owner]:
                del self._open[owner]

    def _resume(self, stream: Stream, last: str) -> bool:
        """Give what came after the event ``last``; True where that is not known any more."""
        past = list(self._past)
        place = next((i for i in range(len(past) - 1, -1, -1) if past[i].id == last), None)
        if place is None:
            return True
        for event in past[place + 1 :]:
            stream.offer(event)
        return stream.lost


async def events(call: Call) -> StreamingResponse:
    """A stream of events of the namespace, for as long as the caller may read them."""
    hub = call.services.hub
    last = call.request.headers.get("last-event-id", "")[:64]
    exits = contextlib.ExitStack()
    # Before the answer begins: too many streams are an error and no stream.
    stream, missed = exits.enter_context(hub.opened(call.principal.subject, call.namespace, last))
    return _Events(
        exits, _lines(stream, missed=missed, still=lambda: _still(call), every=HEARTBEAT)
    )


class _Events(StreamingResponse):
    """Gives the stream back however the answer ends."""

    def __init__(self, exits: contextlib.ExitStack, lines: AsyncIterator[bytes]) -> None:
        # Proxies must hand on each event at once.
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(lines, media_type="text/event-stream", headers=headers)
        self._exits = exits

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        with self._exits:
            await super().__call__(scope, receive, send)


async def _lines(
    stream: Stream, *, missed: bool, still: Callable[[], Any], every: float
) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    # `reset` says: read the list; what follows is news after it.
    yield b"retry: 1000\nevent: reset\ndata: {}\n\n" if missed else b"retry: 1000\n\n"
    due = loop.time() + every
    while not stream.lost:
        event = await stream.next(max(0.0, due - loop.time()))
        if loop.time() >= due:
            # Also while events come thick and fast.
            if not await still():
                yield b"event: end\ndata: {}\n\n"
                return
            yield b": alive\n\n"
            due = loop.time() + every
        if event is not None:
            yield event.text()
    yield b"event: lost\ndata: {}\n\n"


async def _still(call: Call) -> bool:
    """Whether the caller is still who he was and still may."""
    try:
        principal, _ = await call.services.authenticate_again(call.request.scope)
        if principal is None or principal.subject != call.principal.subject:
            return False
        await call.services.authorizer.require(
            principal, Permission.NAMESPACE_EVENTS_READ, call.namespace
        )
    except EngineroomError:
        return False
    return True


ROUTES = (
    Route(
        method="GET", path=f"{BASE}/namespaces/{{namespace}}/events",
        needs=Permission.NAMESPACE_EVENTS_READ, handler=events,
        summary="What changes, as server-sent events", tag="events", media="text/event-stream",
    ),
)  # fmt: skip
