"""Watches of kinds by Kopf: it signs in, finds each kind and watches it, and nothing more.

One ``on.event`` handler a kind hands each object to its store. Kopf's annotations, finalizers,
peering, indices, timers and events are not used: it writes nothing to the cluster.

Kopf runs on a loop and a thread of its own, with one operator coroutine for each kind. A coroutine
ends on a watch error other than 410, or when its CRD is deleted or forbidden. That costs the watch
of that kind, which is opened again with back-off, and nothing else: ``run_tasks`` cancels all tasks
of the loop that it is not told to ignore, so every task is attributed to the kind that created it.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import random
import threading
import weakref
from collections.abc import Collection
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, cast

import kopf

from engineroom.core.logging import get_logger
from engineroom.kube.runtime.queue import backoff

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence

    from engineroom.core.clock import Clock
    from engineroom.kube.client.config import ApiConfig
    from engineroom.kube.runtime.controller import RecordStore

log = get_logger(__name__)

#: How long Kopf uses a token before it reads the file again.
TOKEN_LIFETIME = datetime.timedelta(minutes=10)

#: Back-off between restarts of a kind's operator coroutine in seconds: first, and at most.
RESTART = (0.5, 30.0)


class EndlessBackoff:
    """Kopf's back-off between attempts of one request: growing, capped, endless."""

    def __iter__(self) -> Iterator[float]:
        attempt = 1
        while True:
            yield backoff(attempt, 0.5, 30.0, random.random())  # noqa: S311 # nosec B311
            attempt += 1


class NoDiffs(kopf.DiffBaseStorage):
    """Stores no previous states, because no handler asks what changed.

    Kopf builds its "essence" of an object for every event: three deep copies, and half of the cost
    of a start with ten thousand objects.
    """

    def build(self, *, body: kopf.Body, extra_fields: Any = None) -> kopf.BodyEssence:
        """Return an empty value."""
        return kopf.BodyEssence()

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        """Return an empty value."""
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        """Do nothing."""


class NoProgress(kopf.ProgressStorage):
    """No progress of handlers, which is kept for handlers of changes only."""

    def fetch(self, *, key: Any, body: kopf.Body) -> None:
        """Return an empty value."""

    def store(self, *, key: Any, record: Any, body: kopf.Body, patch: kopf.Patch) -> None:
        """Do nothing."""

    def purge(self, *, key: Any, body: kopf.Body, patch: kopf.Patch) -> None:
        """Return an empty value."""

    def touch(self, *, body: kopf.Body, patch: kopf.Patch, value: str | None) -> None:
        """Return an empty value."""

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        """As it is."""
        return essence


def kopf_settings() -> kopf.OperatorSettings:
    """Return settings for watching many objects quickly, in little memory, without writes."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.scanning.disabled = True  # a deleted kind ends its coroutine; see KopfWatcher
    settings.queueing.idle_timeout = 0.1  # an object's task lives this long: memory
    settings.queueing.worker_limit = None  # our own queue limits concurrency
    settings.queueing.exit_timeout = 0.5
    settings.watching.chunk_size = 500
    settings.watching.initial_streaming = False  # loses objects when it breaks in the middle
    settings.watching.inactivity_timeout = 100.0  # bookmarks come each minute
    settings.watching.server_timeout = 300  # an integer: it travels in the URL
    settings.watching.client_timeout = 360.0
    settings.watching.connect_timeout = 5.0
    settings.networking.request_timeout = 40.0
    settings.networking.connect_timeout = 5.0
    settings.networking.error_backoffs = EndlessBackoff()
    settings.process.ultimate_exiting_timeout = None
    settings.persistence.diffbase_storage = NoDiffs()
    settings.persistence.progress_storage = NoProgress()
    return settings


def connection(config: ApiConfig) -> kopf.ConnectionInfo:
    """Return our API configuration as Kopf's."""
    token = config.read_token()
    expiration = None
    if config.token_file is not None:
        expiration = datetime.datetime.now(datetime.UTC) + TOKEN_LIFETIME
    return kopf.ConnectionInfo(
        server=config.server,
        ca_data=config.read_ca(),
        insecure=config.insecure,
        scheme="Bearer" if token else None,
        token=token,
        username=config.username,
        password=config.password,
        certificate_data=config.certificate,
        private_key_data=config.private_key,
        default_namespace=config.namespace,
        proxy_url=config.proxy,
        expiration=expiration,
    )


_Task = asyncio.Task[Any]


class KindWatch:
    """The watch of one kind; made by ``KopfWatcher.watch``. Events arrive at ``store.take``."""

    def __init__(self, store: RecordStore, on_end: Callable[[], None]) -> None:
        self.store = store
        self.restarts = 0
        #: Called on the process's loop after each end of the operator coroutine.
        self.on_end = on_end
        self.stop_flag: asyncio.Event | None = None
        #: Tasks that this kind's operator created; used in Kopf's thread.
        self.tasks: weakref.WeakSet[_Task] = weakref.WeakSet()


_WATCH: ContextVar[KindWatch | None] = ContextVar("watch", default=None)


class _TasksOfOthers(Collection[_Task]):
    """All tasks but those of one kind: what its operator must leave alone when it ends."""

    def __init__(self, watch: KindWatch) -> None:
        self._watch = watch

    def __contains__(self, task: object) -> bool:
        return task not in self._watch.tasks

    def __iter__(self) -> Iterator[_Task]:
        return (task for task in asyncio.all_tasks() if task in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _attribute_task(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any
) -> _Task:
    """Create a task (a task factory) and attribute it to the kind whose operator creates it."""
    task: _Task = asyncio.Task(coroutine, loop=loop, **options)
    watch = _WATCH.get()
    if watch is not None:
        watch.tasks.add(task)
    return task


class KopfWatcher:
    """Runs Kopf in a thread, with one operator coroutine for each watched kind, until stopped.

    ``namespaces`` empty means all of them. Events are delivered on ``loop``.
    """

    def __init__(
        self,
        config: ApiConfig,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        *,
        namespaces: Sequence[str] = (),
    ) -> None:
        self._config = config
        self._loop = loop
        self._clock = clock
        self._namespaces = tuple(namespaces)
        self._watches: list[KindWatch] = []
        self._thread: threading.Thread | None = None
        self._kopf_loop: asyncio.AbstractEventLoop | None = None
        self._stopped: asyncio.Event | None = None
        self._stopping = False
        self._ticked = clock.monotonic()

    def watch(self, store: RecordStore, on_end: Callable[[], None]) -> KindWatch:
        """Watch the store's kind; the first call starts the thread. Returns at once.

        ``on_end`` is called whenever the watch ends, which it does again and again without its CRD.
        """
        watch = KindWatch(store, on_end)
        self._watches.append(watch)
        if self._thread is None:
            # Kopf logs about its thread and each retry at levels meant for a terminal.
            logging.getLogger("kopf").setLevel(logging.ERROR)
            self._thread = threading.Thread(target=self._run, name="kopf", daemon=True)
            self._thread.start()
        elif self._kopf_loop is not None:
            self._kopf_loop.call_soon_threadsafe(self._serve_new)
        return watch

    def restart(self, watch: KindWatch) -> None:
        """Open the watch of a kind again."""
        self._on_kopf_loop(lambda: watch.stop_flag.set() if watch.stop_flag else None)

    @property
    def restarts(self) -> int:
        """How often watches were opened again."""
        return sum(watch.restarts for watch in self._watches)

    @property
    def alive(self) -> bool:
        """Whether Kopf's thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def silence(self) -> float:
        """Return the seconds since Kopf's loop last turned; 0 before the first watch.

        The value grows when the loop hangs or its thread has died.
        """
        return 0.0 if self._thread is None else self._clock.monotonic() - self._ticked

    async def stop(self, within: float) -> bool:
        """Stop Kopf; returns whether its thread ended within that many seconds."""
        self._stopping = True
        self._on_kopf_loop(self._stop_all)
        deadline = self._clock.monotonic() + within
        while self.alive:
            if self._clock.monotonic() > deadline:
                return False
            await asyncio.sleep(0.02)
        return True

    def _on_kopf_loop(self, call: Callable[[], object]) -> None:
        loop = self._kopf_loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(call)

    # -- in Kopf's thread ------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except Exception:
            log.exception("kopf's thread ended")  # and silence() grows, which the probe reports

    async def _main(self) -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(cast("Any", _attribute_task))
        self._stopped = asyncio.Event()
        self._serving: dict[KindWatch, _Task] = {}
        self._kopf_loop = loop
        self._ticked = self._clock.monotonic()
        ticker = asyncio.create_task(self._tick())
        self._serve_new()
        if self._stopping:
            self._stop_all()
        await self._stopped.wait()
        if self._serving:
            await asyncio.wait(self._serving.values())
        ticker.cancel()

    def _serve_new(self) -> None:
        for watch in self._watches:
            if watch not in self._serving and not self._stopping:
                name = f"watch of {watch.store.kind.plural}"
                self._serving[watch] = asyncio.create_task(self._serve(watch), name=name)

    def _stop_all(self) -> None:
        if self._stopped is not None:
            self._stopped.set()
        for watch in self._watches:
            if watch.stop_flag is not None:
                watch.stop_flag.set()

    async def _tick(self) -> None:
        while True:
            self._ticked = self._clock.monotonic()
            await asyncio.sleep(1.0)

    async def _serve(self, watch: KindWatch) -> None:
        """Run the kind's operator coroutine again and again."""
        _WATCH.set(watch)
        failures = 0
        while not self._ending():
            began = self._clock.monotonic()
            try:
                await self._operate(watch)
            except Exception as error:  # noqa: BLE001 - whatever it was, watching continues
                kind = watch.store.kind.kind
                log.warning("a watch ended", kind=kind, error=str(error) or repr(error))
            if self._ending():
                return
            watch.restarts += 1
            self._loop.call_soon_threadsafe(watch.on_end)
            failures = 1 if self._clock.monotonic() - began > 60 else failures + 1
            wait = backoff(failures, *RESTART, random.random())  # noqa: S311 # nosec B311
            await self._pause(wait)

    def _ending(self) -> bool:
        return self._stopping

    async def _pause(self, seconds: float) -> None:
        """Sleep, but not beyond ``stop``."""
        assert self._stopped is not None  # noqa: S101 # nosec B101 - set by _main
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopped.wait()

    async def _operate(self, watch: KindWatch) -> None:
        watch.stop_flag = asyncio.Event()
        tasks = await kopf.spawn_tasks(
            registry=self._registry(watch.store),
            settings=kopf_settings(),
            standalone=True,
            clusterwide=not self._namespaces,
            namespaces=self._namespaces,
            stop_flag=watch.stop_flag,
        )
        await kopf.run_tasks(tasks, ignored=_TasksOfOthers(watch))

    def _registry(self, store: RecordStore) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()
        kind, loop = store.kind, self._loop

        @kopf.on.login(registry=registry, errors=kopf.ErrorsMode.TEMPORARY, backoff=1)
        async def login(**_: Any) -> kopf.ConnectionInfo:
            return connection(self._config)

        @kopf.on.event(kind.group, kind.version, kind.plural, registry=registry)
        async def changed(event: Any, **_: Any) -> None:
            loop.call_soon_threadsafe(store.take, event["type"], event["object"])

        return registry
