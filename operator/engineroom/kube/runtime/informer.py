"""A cache of the objects of one kind, kept current by list and watch.

For each namespace one task lists the objects in pages and then watches them. After a watch ends or
breaks, the task resumes from the last resourceVersion; after a 410 it lists again; failures are
retried with back-off, without end. A second task lists again every five to ten minutes and compares
(see ``store``). The cache holds only a projection of each object.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from engineroom.api import LABEL_POOL
from engineroom.core.clock import Clock, SystemClock
from engineroom.core.errors import EngineroomError
from engineroom.core.logging import get_logger
from engineroom.kube.client.errors import Forbidden, Gone, NotFound
from engineroom.kube.runtime.queue import backoff
from engineroom.kube.runtime.store import ObjectStore, key_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engineroom.kube.client.client import Client
    from engineroom.kube.client.resources import Resource

log = get_logger(__name__)

T = TypeVar("T")

#: Seconds between two comparisons: a random time in this range.
RESYNC = (300.0, 600.0)

#: Back-off of lists and watches in seconds: the first and the longest.
RETRY = (0.1, 30.0)

#: After a watch of at least this many seconds the back-off starts from the beginning.
HEALTHY = 5.0


class Informer(Generic[T]):
    """Objects of ``ref``, optionally of one label selector and of some namespaces only.

    ``project`` returns the part of an object that the cache holds. ``on_change(key, value)`` is
    called on the event loop for each object that is new, changed or deleted (None), and must not
    block. ``on_index(value)`` is called with the ``namespace/pool`` whose objects changed.
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
        #: Whether the API server refused the last list or watch: a right is missing.
        self.refused = False
        self._client = client
        self._selector = label_selector
        self._namespaces: tuple[str | None, ...] = tuple(namespaces) or (None,)
        self._resync = resync
        self._retry = retry
        self._page = page
        self._clock = clock or SystemClock()
        self._unsynced = set(self._namespaces)
        self._last_contact: dict[str | None, float] = {}
        self._created_at = self._clock.monotonic()
        self._task: asyncio.Task[None] | None = None

    # -- reading ---------------------------------------------------------------------------------

    def get(self, namespace: str | None, name: str) -> T | None:
        """Return the cached object, or None."""
        return self.store.get(key_of(namespace, name))

    def values(self) -> list[T]:
        """Return all cached objects."""
        return self.store.values()

    def __len__(self) -> int:
        return len(self.store)

    def by_index(self, value: str) -> list[T]:
        """Return the objects of a pool (``namespace/name``), in no order."""
        return self.store.by_index(value)

    def age(self) -> float:
        """Return the seconds since the last event, bookmark or list of the stalest namespace."""
        now = self._clock.monotonic()
        return max(
            now - self._last_contact.get(namespace, self._created_at)
            for namespace in self._namespaces
        )

    def _changed(self, key: str, value: T | None, _before: T | None) -> None:
        if self._on_change is not None:
            self._on_change(key, value)

    # -- running ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the background task; ``synced`` is set once all namespaces are listed."""
        if self._task is None:
            self._task = asyncio.create_task(self.run(), name=f"informer {self.ref.plural}")

    async def stop(self) -> None:
        """Stop the background task; the cache stays as it is."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def run(self) -> None:
        """Keep the cache current until cancelled."""
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
                self.refused = False
                async for kind, obj in self._client.watch(
                    self.ref, namespace, version, self._selector
                ):
                    self._last_contact[namespace] = self._clock.monotonic()
                    if kind == "DELETED":
                        self.store.remove(obj)
                    elif kind != "BOOKMARK":
                        self.store.put(obj)
                    version = obj["metadata"]["resourceVersion"]
                    failures = 0
                if version != before:
                    continue
                failures += 1  # the watch ended without an event: do not loop at full speed
            except Gone:
                log.info("watch is too old, listing again", kind=self.ref.kind, namespace=namespace)
                version = None
                failures += 1
            except NotFound as error:
                # The CRD or the namespace does not exist, so it has no objects.
                version = None
                failures += 1
                if failures == 1:
                    log.warning("kind is not served", kind=self.ref.kind, error=str(error))
            except EngineroomError as error:
                failures += 1
                self.refused = isinstance(error, Forbidden)
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
        """Compare the cache with a fresh list now; returns how many objects were corrected."""
        before = self.repaired
        for namespace in self._namespaces:
            await self._relist(namespace)
        return self.repaired - before

    async def _relist(self, namespace: str | None) -> str:
        comparison = self.store.begin_comparison(namespace)
        version = ""
        try:
            async for items, version in self._client.pages(  # noqa: B007
                self.ref, namespace, self._selector, self._page
            ):
                for obj in items:
                    comparison.add(obj)
                # Parsing a page of 500 objects blocks the loop; let other tasks run in between.
                await asyncio.sleep(0)
        except BaseException:
            comparison.cancel()
            raise
        repaired = comparison.finish()
        if self.synced.is_set():
            self.repaired += repaired
        self._last_contact[namespace] = self._clock.monotonic()
        return version
