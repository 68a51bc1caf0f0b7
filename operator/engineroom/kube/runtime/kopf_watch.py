"""Kopf as the shell: it signs in, finds the kinds and watches them; nothing more.

One ``on.event`` handler a kind hands each object to its store. No annotations, finalizers,
peering, indices, timers or posted events of Kopf's: nothing of it is ever written to the cluster.

Kopf runs on a loop and thread of its own. When it ends, it cancels every task of its loop that is
younger than itself, and it does end: on a watch error other than 410, or when the CRD goes away.
Here that costs its watches, which are opened anew with back-off, and nothing of what the process is
doing.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import random
import threading
from typing import TYPE_CHECKING, Any

import kopf

from engineroom.core.logging import get_logger
from engineroom.kube.runtime.queue import backoff

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from engineroom.core.clock import Clock
    from engineroom.kube.client.config import ApiConfig
    from engineroom.kube.runtime.controller import RecordStore

log = get_logger(__name__)

#: How long Kopf may use a token before it asks for the file's content again.
SIGN_IN_AGAIN = datetime.timedelta(minutes=10)

#: Back-off of Kopf as a whole in seconds: first, and at most.
RESTART = (0.5, 30.0)


class Patience:
    """Kopf's back-off between attempts of one request: growing, capped, and never at its end."""

    def __iter__(self) -> Iterator[float]:
        attempt = 1
        while True:
            yield backoff(attempt, 0.5, 30.0, random.random())  # noqa: S311 # nosec B311
            attempt += 1


class NoDiffs(kopf.DiffBaseStorage):
    """No memory of what an object was: nothing here asks what changed.

    Kopf builds its "essence" of an object for every event, which is three deep copies of it and
    half of what the start with ten thousand objects costs.
    """

    def build(self, *, body: kopf.Body, extra_fields: Any = None) -> kopf.BodyEssence:
        """Nothing."""
        return kopf.BodyEssence()

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        """Nothing."""
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        """Nowhere."""


class NoProgress(kopf.ProgressStorage):
    """No progress of handlers, which is kept for handlers of changes only."""

    def fetch(self, *, key: Any, body: kopf.Body) -> None:
        """Nothing."""

    def store(self, *, key: Any, record: Any, body: kopf.Body, patch: kopf.Patch) -> None:
        """Nowhere."""

    def purge(self, *, key: Any, body: kopf.Body, patch: kopf.Patch) -> None:
        """Nothing."""

    def touch(self, *, body: kopf.Body, patch: kopf.Patch, value: str | None) -> None:
        """Nothing."""

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        """As it is."""
        return essence


def kopf_settings() -> kopf.OperatorSettings:
    """Kopf as a watcher of many objects: quick, small, and without a trace in the cluster."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.scanning.disabled = True  # a kind that goes away ends Kopf, and we start it again
    settings.queueing.idle_timeout = 0.1  # an object's task lives this long: memory
    settings.queueing.worker_limit = None  # what is slow waits in our own queue
    settings.queueing.exit_timeout = 0.5
    settings.watching.chunk_size = 500
    settings.watching.initial_streaming = False  # loses objects when it breaks in the middle
    settings.watching.inactivity_timeout = 100.0  # bookmarks come each minute
    settings.watching.server_timeout = 300  # an integer: it travels in the URL
    settings.watching.client_timeout = 360.0
    settings.watching.connect_timeout = 5.0
    settings.networking.request_timeout = 40.0
    settings.networking.connect_timeout = 5.0
    settings.networking.error_backoffs = Patience()
    settings.process.ultimate_exiting_timeout = None
    settings.persistence.diffbase_storage = NoDiffs()
    settings.persistence.progress_storage = NoProgress()
    return settings


def connection(config: ApiConfig) -> kopf.ConnectionInfo:
    """Our own configuration in Kopf's terms."""
    token = config.read_token()
    expiration = None
    if config.token_file is not None:
        expiration = datetime.datetime.now(datetime.UTC) + SIGN_IN_AGAIN
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


class Shell:
    """Runs Kopf for the stores of some kinds, in a thread, until stopped.

    ``namespaces`` empty means all of them. Events arrive on ``loop``, one ``take`` each.
    """

    def __init__(
        self,
        config: ApiConfig,
        stores: Sequence[RecordStore],
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        *,
        namespaces: Sequence[str] = (),
    ) -> None:
        self._config = config
        self._stores = stores
        self._loop = loop
        self._clock = clock
        self._namespaces = tuple(namespaces)
        self._thread: threading.Thread | None = None
        self._inner: asyncio.AbstractEventLoop | None = None
        self._flag: asyncio.Event | None = None
        self._stopping = False
        self._ticked = clock.monotonic()
        self.restarts = 0

    def start(self) -> None:
        """Begin; returns at once."""
        # Kopf tells of its thread and of each retry at levels meant for a terminal.
        logging.getLogger("kopf").setLevel(logging.ERROR)
        self._thread = threading.Thread(target=self._run, name="kopf", daemon=True)
        self._thread.start()

    def restart(self) -> None:
        """Open all watches anew."""
        inner, flag = self._inner, self._flag
        if inner is not None and flag is not None and not inner.is_closed():
            inner.call_soon_threadsafe(flag.set)

    @property
    def alive(self) -> bool:
        """Whether Kopf's thread runs."""
        return self._thread is not None and self._thread.is_alive()

    async def stop(self, within: float) -> bool:
        """End Kopf; returns whether it did so within that many seconds."""
        self._stopping = True
        self.restart()
        deadline = self._clock.monotonic() + within
        while self.alive:
            if self._clock.monotonic() > deadline:
                return False
            await asyncio.sleep(0.02)
        return True

    def silence(self) -> float:
        """Seconds since Kopf's loop last turned; large when it hangs or its thread has died."""
        return self._clock.monotonic() - self._ticked

    # -- in Kopf's thread ------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except Exception:
            log.exception("kopf's thread ended")  # and silence() grows, which the probe sees

    async def _main(self) -> None:
        self._inner = asyncio.get_running_loop()
        ticker = asyncio.create_task(self._tick())
        failures = 0
        while not self._ended():
            self._flag = asyncio.Event()
            began = self._clock.monotonic()
            try:
                await kopf.operator(
                    registry=self._registry(),
                    settings=kopf_settings(),
                    standalone=True,
                    clusterwide=not self._namespaces,
                    namespaces=self._namespaces,
                    stop_flag=self._flag,
                )
            except Exception as error:  # noqa: BLE001 - whatever it was, watching goes on
                log.warning("kopf ended, starting it again", error=str(error) or repr(error))
            if self._ended():
                break
            self.restarts += 1
            failures = 1 if self._clock.monotonic() - began > 60 else failures + 1
            await asyncio.sleep(backoff(failures, *RESTART, random.random()))  # noqa: S311 # nosec B311
        ticker.cancel()

    def _ended(self) -> bool:
        return self._stopping

    async def _tick(self) -> None:
        while True:
            self._ticked = self._clock.monotonic()
            await asyncio.sleep(1.0)

    def _registry(self) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()

        @kopf.on.login(registry=registry, errors=kopf.ErrorsMode.TEMPORARY, backoff=1)
        async def login(**_: Any) -> kopf.ConnectionInfo:
            return connection(self._config)

        for store in self._stores:
            self._watch(registry, store)
        return registry

    def _watch(self, registry: kopf.OperatorRegistry, store: RecordStore) -> None:
        kind, loop = store.kind, self._loop

        @kopf.on.event(kind.group, kind.version, kind.plural, registry=registry)
        async def changed(event: Any, **_: Any) -> None:
            loop.call_soon_threadsafe(store.take, event["type"], event["object"])
