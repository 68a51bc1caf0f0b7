"""A cache of one kind, kept by list and watch, whatever the API server and the network do.

Each namespace has a task that lists in chunks, then watches from there: an ended or broken watch
goes on from the last resourceVersion, a 410 lists again, a failure waits longer each time but never
gives up. A second task lists again every five to ten minutes and compares (see ``store``). Only the
projection of an object is kept.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from engineroom.api import LABEL_POOL
from engineroom.core.clock import Clock, SystemClock
from engineroom.core.errors import EngineroomError
from engineroom.core.logging import get_logger
from engineroom.kube.client.errors import Gone, NotFound
from engineroom.kube.runtime.queue import backoff
from engineroom.kube.runtime.store import ObjectStore, key_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engineroom.kube.client.client import Client
    from engineroom.kube.client.resources import Resource

log = get_logger(__name__)

T = TypeVar("T")

#: Seconds between comparisons, drawn anew each time.
RESYNC = (300.0, 600.0)

#: Back-off of lists and watches in seconds: first, and at most.
RETRY = (0.1, 30.0)

#: A watch that lasted so many seconds was a good one: its end starts the back-off from the bottom.
HEALTHY = 5.0


class Informer(Generic[T]):
    """Objects of ``ref``, optionally of one label selector and of some namespaces only.

    ``project`` turns an object into what is kept of it; ``on_change(key, value)`` is called on the
    event loop for each object that is new, different or gone (None) and must not block;
    ``on_index(value)`` is told the ``namespace/pool`` whose objects changed.
    """

    def __init__(
        self,
        client: Client,
        ref: Resource,
        label_selector: str | None,
        project: Callable[[dict[str, Any]], T],
        on_change: Callable[[str, T | None], None] | None = None,
        *,
        namespaces: Sequence[str] = (),
        index_label: str = LABEL_POOL,
        on_index: Callable[[str], None] | None = None,
        resync: tuple[float, float] = RESYNC,
        retry: tuple[float, float] = RETRY,
        page: int = 500,
        clock: Clock | None = None,
    ) -> None:
        self.ref = ref
        self._on_change = on_change
        self.store: ObjectStore[T] = ObjectStore(
            project, self._changed, index_label=index_label, on_index=on_index
        )
        self.synced = asyncio.Event()
        self.repaired = 0
        self._client = client
        self._selector = label_selector
        self._namespaces: tuple[str | None, ...] = tuple(namespaces) or (None,)
        self._resync = resync
        self._retry = retry
        self._page = page
        self._clock = clock or SystemClock()
        self._unsynced = set(self._namespaces)
        self._heard: dict[str | None, float] = {}
        self._born = self._clock.monotonic()
        self._task: asyncio.Task[None] | None = None

    # -- reading ---------------------------------------------------------------------------------

    def get(self, namespace: str | None, name: str) -> T | None:
        """The object as last seen, or None."""
        return self.store.get(key_of(namespace, name))

    def values(self) -> list[T]:
        """All objects."""
        return self.store.values()

    def __len__(self) -> int:
        return len(self.store)

    def by_index(self, value: str) -> list[T]:
        """The objects of a pool (``namespace/name``), in no order."""
        return self.store.by_index(value)

    def age(self) -> float:
        """Seconds since the stalest namespace was last heard of (event, bookmark or list)."""
        now = self._clock.monotonic()
        return max(now - self._heard.get(namespace, self._born) for namespace in self._namespaces)

    def _changed(self, key: str, value: T | None, _before: T | None) -> None:
        if self._on_change is not None:
            self._on_change(key, value)

    # -- running ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin in the background; ``synced`` is set when all namespaces are listed."""
        if self._task is None:
            self._task = asyncio.create_task(self.run(), name=f"informer {self.ref.plural}")

    async def stop(self) -> None:
        """End the background task; the cache stays as it is."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def run(self) -> None:
        """Keep the cache until cancelled."""
        async with asyncio.TaskGroup() as group:
            for namespace in self._namespaces:
                group.create_task(self._follow(namespace))
                group.create_task(self._compare(namespace))

    async def _follow(self, namespace: str | None) -> None:
        version: str | None = None
        failures = 0
        while True:
            opened = self._clock.monotonic()
            try:
                if version is None:
                    version = await self._relist(namespace)
                    self._unsynced.discard(namespace)
                    if not self._unsynced:
                        self.synced.set()
                before = version
                async for kind, obj in self._client.watch(
                    self.ref, namespace, version, self._selector
                ):
                    self._heard[namespace] = self._clock.monotonic()
                    if kind == "DELETED":
                        self.store.remove(obj)
                    elif kind != "BOOKMARK":
                        self.store.put(obj)
                    version = obj["metadata"]["resourceVersion"]
                    failures = 0
                if version != before:
                    continue
                failures += 1  # ended without a word: do not spin
            except Gone:
                log.info("watch is too old, listing again", kind=self.ref.kind, namespace=namespace)
                version = None
                failures += 1
            except NotFound as error:
                # The CRD or the namespace is not there (any more): so its objects are not.
                version = None
                failures += 1
                if failures == 1:
                    log.warning("kind is not served", kind=self.ref.kind, error=str(error))
            except EngineroomError as error:
                failures += 1
                log.warning(
                    "watch failed",
                    kind=self.ref.kind,
                    namespace=namespace,
                    failures=failures,
                    error=str(error),
                )
            if self._clock.monotonic() - opened > HEALTHY:
                failures = min(failures, 1)
            await asyncio.sleep(backoff(failures, *self._retry, random.random()))  # noqa: S311 # nosec B311

    async def _compare(self, namespace: str | None) -> None:
        await self.synced.wait()
        while True:
            await asyncio.sleep(random.uniform(*self._resync))  # noqa: S311 # nosec B311
            try:
                await self._relist(namespace)
            except EngineroomError as error:
                log.warning("comparison failed", kind=self.ref.kind, error=str(error))

    async def compare(self) -> int:
        """Compare now; returns how many objects the watch had wrong."""
        before = self.repaired
        for namespace in self._namespaces:
            await self._relist(namespace)
        return self.repaired - before

    async def _relist(self, namespace: str | None) -> str:
        audit = self.store.audit(namespace)
        version = ""
        try:
            async for items, version in self._client.pages(  # noqa: B007
                self.ref, namespace, self._selector, self._page
            ):
                for obj in items:
                    audit.see(obj)
                # A page of five hundred is parsed in one go; let the others run in between.
                await asyncio.sleep(0)
        except BaseException:
            audit.cancel()
            raise
        differed = audit.finish()
        if self.synced.is_set():
            self.repaired += differed
        self._heard[namespace] = self._clock.monotonic()
        return version
