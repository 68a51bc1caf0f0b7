"""One kind in a process: its controller, cache, queue and watch, independent of other kinds."""

from __future__ import annotations

import asyncio
import gc
import random
from contextlib import suppress
from enum import StrEnum
from typing import TYPE_CHECKING

from engineroom.core.errors import EngineroomError
from engineroom.core.logging import get_logger
from engineroom.kube.client.errors import Forbidden, NotFound
from engineroom.kube.runtime.controller import Context, RecordStore
from engineroom.kube.runtime.queue import WorkQueue, backoff
from engineroom.metrics import QueueMetrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from engineroom.kube.runtime.controller import Controller, Record
    from engineroom.kube.runtime.kopf_watch import KindWatch
    from engineroom.kube.runtime.process_parts import ProcessParts

log = get_logger(__name__)

#: Seconds between checks of whether the watch delivers what lists contain.
CHECK_INTERVAL = 10.0
#: Seconds between looks at whether the caches of children can be filled.
CHILDREN_INTERVAL = 0.5
#: After a watch ended, the kind is checked so often and so long (seconds): the API server may still
#: announce a kind whose CRD was just deleted, and Kopf does not notice when it comes back.
SERVED_INTERVAL, SERVED_WINDOW = 2.0, 60.0


class KindState(StrEnum):
    """The progress of a kind."""

    #: The API server has not said yet whether it serves the kind.
    UNKNOWN = "unknown"
    #: The CRD is missing, or the process may not list the kind or its children.
    UNAVAILABLE = "unavailable"
    #: The caches are being filled.
    FILLING = "filling"
    SYNCED = "synced"


class KindRuntime:
    """Runs one controller: waits for its CRD, fills the caches, watches, reconciles."""

    def __init__(
        self, process: ProcessParts, controller: Controller, on_state: Callable[[], None]
    ) -> None:
        settings, plural = process.settings, controller.kind.plural
        self._process = process
        self._settings = settings
        self._client = process.client
        self._clock = process.clock
        self._on_state = on_state
        self.controller = controller
        self.kind = controller.kind
        self.state = KindState.UNKNOWN
        self.queue = WorkQueue(
            plural,
            timeout=settings.reconcile_timeout,
            metrics=QueueMetrics(process.metrics, plural),
            gate=lambda _key: process.is_leader,
        )
        self.store = RecordStore(controller.kind, self._on_change, process.clock)
        self.context = Context(
            client=process.client,
            clock=process.clock,
            queue=self.queue,
            store=self.store,
            recorder=process.recorder,
            namespaces=settings.namespaces,
            system_namespace=process.system_namespace,
            is_leader=lambda: process.is_leader,
            epoch=lambda: process.elector.epoch if process.elector else 0,
            installation=lambda: process.elector.uid if process.elector else "",
            gauge=process.metrics.gauge,
            histogram=process.metrics.histogram,
            resync=settings.resync,
            pacer=process.pacer,
        )
        self._watch: KindWatch | None = None
        self._started = False
        self._ended = asyncio.Event()

    @property
    def available(self) -> bool:
        """Whether the API server serves the kind to this process."""
        return self.state in (KindState.FILLING, KindState.SYNCED)

    def ages(self) -> dict[str, float]:
        """Return the seconds since each cache was last updated or compared, by plural."""
        ages = {informer.ref.plural: informer.age() for informer in self.context.informers}
        return {self.kind.plural: self.store.age(), **ages}

    def _on_change(self, key: str, record: Record | None, before: Record | None) -> None:
        """Queue a changed object; a user's change goes before objects that are looked at again."""
        if record is None or before is None:
            urgent = self.state is KindState.SYNCED
        else:
            urgent = not record.same_intent(before)
        self.queue.add(key, urgent=urgent)
        self.controller.changed(key, record)

    def _enter(self, state: KindState) -> None:
        if state is not self.state:
            self.state = state
            self._on_state()

    # -- running ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run until cancelled. An absent kind keeps no other waiting."""
        began = self._clock.monotonic()
        await self._wait_until_served()
        await self.controller.start(self.context)
        self._started = True
        for informer in self.context.informers:
            self._process.measure_cache(informer.ref.plural, informer)
            await informer.start()
        await self._fill_children()
        await self._list(first=True)
        self._watch = self._process.watcher.watch(self.store, self._ended.set)
        self._enter(KindState.SYNCED)
        # The caches' content is permanent: without freezing it, each collection goes through all of
        # it, which takes a tenth of a second with ten thousand objects.
        gc.collect()
        gc.freeze()
        log.info(
            "caches are filled",
            kind=self.kind.kind,
            objects=len(self.store),
            children={i.ref.plural: len(i.store) for i in self.context.informers},
            seconds=round(self._clock.monotonic() - began, 3),
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(self._check(), name=f"checks of {self.kind.plural}")
            await self._process.leading.wait()
            await self.queue.run(self.controller.reconcile, workers=self._settings.concurrency)
            await asyncio.Event().wait()  # the queue ends with the process

    async def stop(self) -> None:
        """Stop the caches and the controller."""
        for informer in self.context.informers:
            await informer.stop()
        if self._started:
            with suppress(TimeoutError):
                async with asyncio.timeout(3):
                    await self.controller.stop()

    async def _fill_children(self) -> None:
        """Wait until the children's caches are filled; a missing right keeps no other waiting."""
        for informer in self.context.informers:
            while not informer.synced.is_set():
                with suppress(TimeoutError):
                    async with asyncio.timeout(CHILDREN_INTERVAL):
                        await informer.synced.wait()
                if informer.refused and self.state is KindState.FILLING:
                    log.warning(
                        "the kind waits for a right: its children cannot be listed",
                        kind=self.kind.kind,
                        children=informer.ref.plural,
                    )
                    self._enter(KindState.UNAVAILABLE)

    async def _wait_until_served(self) -> None:
        """Wait until the API server serves the kind: its CRD may come later, and come back."""
        failures = 0
        while True:
            try:
                if await self._is_served():
                    self._enter(KindState.FILLING)
                    return
                self._enter(KindState.UNAVAILABLE)
                problem = f"the CRD of {self.kind.kind} is not installed"
            except EngineroomError as error:
                problem = str(error)
            failures += 1
            if failures == 1 or failures % 20 == 0:
                log.warning("waiting for the API server", problem=problem)
            await asyncio.sleep(backoff(failures, 0.1, 5.0, random.random()))  # noqa: S311 # nosec B311

    async def _is_served(self) -> bool:
        """Ask the API server; raises EngineroomError if it does not answer."""
        kind = self.kind
        try:
            served = await self._client.request("GET", f"/apis/{kind.group}/{kind.version}")
        except NotFound:
            return False
        return any(r.get("name") == kind.plural for r in served.get("resources") or ())

    async def _list(self, *, first: bool) -> None:
        """Fill or compare the cache by a list, which is many times faster than Kopf's events.

        Kopf starts after the first one and lists too, so no object falls in between.
        """
        for namespace in self._settings.namespaces or (None,):
            failures = 0
            while True:
                try:
                    await self.store.compare(self._client, namespace, first=first)
                except EngineroomError as error:
                    failures += 1
                    log.warning(
                        "objects not listed",
                        kind=self.kind.kind,
                        error=str(error),
                        failures=failures,
                    )
                    if isinstance(error, (Forbidden, NotFound)):
                        self._enter(KindState.UNAVAILABLE)
                    await asyncio.sleep(backoff(failures, 0.1, 10.0, random.random()))  # noqa: S311 # nosec B311
                else:
                    break

    async def _check(self) -> None:
        """Compare the cache with lists now and then, and open a dead watch again."""
        due, doubted_until = self._next_comparison(), 0.0
        while True:
            now = self._clock.monotonic()
            interval = SERVED_INTERVAL if now < doubted_until else CHECK_INTERVAL
            with suppress(TimeoutError):
                async with asyncio.timeout(min(interval, max(0.1, due - now))):
                    await self._ended.wait()
            if self._ended.is_set():
                self._ended.clear()
                doubted_until = self._clock.monotonic() + SERVED_WINDOW
            if self._clock.monotonic() < doubted_until:
                await self._check_served()
            if self.store.watch_is_broken():
                log.warning(
                    "the watch misses changes that lists contain; opening it again",
                    kind=self.kind.kind,
                )
                self._restart_watch()
            if self._clock.monotonic() < due:
                continue
            due = self._next_comparison()
            for namespace in self._settings.namespaces or (None,):
                try:
                    await self.store.compare(self._client, namespace)
                except EngineroomError as error:
                    log.warning("comparison failed", kind=self.kind.kind, error=str(error))

    async def _check_served(self) -> None:
        """If the kind is no longer served, wait until it is, list it and watch it again."""
        with suppress(EngineroomError):
            if await self._is_served():
                return
            log.warning("the CRD is gone; waiting for it", kind=self.kind.kind)
            self._enter(KindState.UNAVAILABLE)
            await self._wait_until_served()
            await self._list(first=False)
            self._restart_watch()
            self._ended.clear()
            self._enter(KindState.SYNCED)
            log.info("the CRD is back", kind=self.kind.kind, objects=len(self.store))

    def _restart_watch(self) -> None:
        self.store.watch_restarted()
        if self._watch is not None:
            self._process.watcher.restart(self._watch)

    def _next_comparison(self) -> float:
        return self._clock.monotonic() + random.uniform(*self._settings.resync)  # noqa: S311 # nosec B311
