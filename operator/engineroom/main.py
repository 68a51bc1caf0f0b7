"""The operator process: Kopf's watches, the caches, the queue, the lease, probes and metrics.

Nothing is decided here. A standby does all but reconcile, so that it can take over at once. A
leader that loses the lease exits, because what it has under way cannot be called back.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import signal
import sys
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any

from aiohttp import web
from pydantic import ValidationError

from engineroom import __version__
from engineroom.core import tracing
from engineroom.core.clock import Clock, SystemClock
from engineroom.core.errors import EngineroomError
from engineroom.core.logging import REPEAT_SECONDS, configure, get_logger
from engineroom.kube.client import config as kube_config
from engineroom.kube.client.client import Client
from engineroom.kube.client.config import SERVICE_ACCOUNT
from engineroom.kube.client.errors import ConfigError, NotFound
from engineroom.kube.runtime.controller import Context, RecordStore
from engineroom.kube.runtime.events import EventRecorder
from engineroom.kube.runtime.health import HttpServer, LoopLag, Report, probe
from engineroom.kube.runtime.kopf_watch import Shell
from engineroom.kube.runtime.lease import Elector
from engineroom.kube.runtime.queue import WorkQueue, backoff
from engineroom.kube.runtime.status_pacing import StatusPacer
from engineroom.metrics import CONTENT_TYPE, Metrics, QueueMetrics
from engineroom.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from engineroom.kube.client.config import ApiConfig
    from engineroom.kube.runtime.controller import Controller, Record
    from engineroom.kube.runtime.informer import Informer

log = get_logger(__name__)

#: How long a thread may keep the interpreter while another wants it (seconds).
SWITCH_INTERVAL = 0.0005

#: Exit codes: ended as asked; the lease was lost or something that must run ended; bad settings.
EXIT_OK, EXIT_LOST, EXIT_CONFIG = 0, 1, 2

#: A watch that was not heard of for so long is dead: comparisons come more often than that.
WATCH_DEAD = 1800.0
#: The event loop is taken for stuck when it is so late (seconds), Kopf's when so silent.
LOOP_STUCK = 30.0
KOPF_STUCK = 120.0


class Room:
    """A kind in the process: its controller, cache, queue and watch."""

    def __init__(self, process: Process, controller: Controller) -> None:
        settings, plural = process.settings, controller.kind.plural
        self.controller = controller
        self.queue = WorkQueue(
            plural,
            timeout=settings.reconcile_timeout,
            metrics=QueueMetrics(process.metrics, plural),
            gate=lambda _key: process.is_leader,
        )
        self.store = RecordStore(controller.kind, self._changed, process.clock)
        self.context = Context(
            client=process.client,
            clock=process.clock,
            queue=self.queue,
            store=self.store,
            recorder=process.recorder,
            namespaces=settings.namespaces,
            is_leader=lambda: process.is_leader,
            epoch=lambda: process.elector.epoch if process.elector else 0,
            installation=lambda: process.elector.uid if process.elector else "",
            gauge=process.metrics.gauge,
            histogram=process.metrics.histogram,
            resync=settings.resync,
            pacer=process.pacer,
        )
        self.shell: Shell | None = None
        self.begun = False
        self.synced = asyncio.Event()

    def _changed(self, key: str, record: Record | None, before: Record | None) -> None:
        """News of an object: what a user wished for goes before what is only looked at again."""
        if record is None or before is None:
            urgent = self.synced.is_set()
        else:
            urgent = not record.same_wish(before)
        self.queue.add(key, urgent=urgent)
        self.controller.changed(key, record)


class Process:
    """One operator process; ``run`` returns its exit code."""

    def __init__(
        self,
        settings: Settings,
        config: ApiConfig,
        *,
        clock: Clock | None = None,
        build: Callable[[Settings], Controller] | None = None,
    ) -> None:
        self.settings = settings
        self.config = config
        self.clock = clock or SystemClock()
        self.metrics = Metrics()
        self.client = Client(
            config,
            timeout=settings.api_timeout,
            user_agent=f"engineroom/{__version__}",
            clock=self.clock,
            observer=self.metrics.request,
        )
        self.recorder = EventRecorder(self.client, self.clock, instance=settings.who)
        self.lag = LoopLag(self.clock)
        self.pacer = StatusPacer()
        self.elector: Elector | None = None
        if settings.leader_election:
            self.elector = Elector(
                self.client,
                settings.lease_namespace or config.namespace,
                settings.lease_name,
                settings.who,
                self.clock,
            )
        builders = [build] if build is not None else [pools, policies]
        self.rooms = [Room(self, make(settings)) for make in builders]
        self.started = self.clock.monotonic()
        self.synced = asyncio.Event()
        self.stopping = asyncio.Event()
        self._leading = asyncio.Event()
        self._election: asyncio.Task[None] | None = None
        self._failed: str = ""
        #: A thread of ours is still there: the interpreter must not wait for it.
        self.abandon = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._measure()

    # -- what happens outside ----------------------------------------------------------------------

    @property
    def is_leader(self) -> bool:
        """Whether this process may write now."""
        if self.elector is None:
            return True
        return self.elector.is_leader

    # -- running ---------------------------------------------------------------------------------

    async def run(self) -> int:
        """Run until SIGTERM, SIGINT, ``stop``, or until the lease is lost."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            with suppress(NotImplementedError, ValueError, RuntimeError):
                loop.add_signal_handler(number, self.stop)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.client)
            for server in self._servers():
                await stack.enter_async_context(server)
            log.info(
                "operator starting",
                version=__version__,
                identity=self.settings.who,
                namespaces=list(self.settings.namespaces) or "all",
            )
            self._background(self.lag.run(), "loop lag")
            self._background(self.recorder.run(), "events")
            self._background(self._work(), "work")
            await self.stopping.wait()
            await self._end()
        if self._failed:
            log.error("operator ends", reason=self._failed)
            return EXIT_LOST
        log.info("operator ends", reason="asked to")
        return EXIT_OK

    def stop(self) -> None:
        """Begin the graceful end."""
        self.stopping.set()

    async def _work(self) -> None:
        if self.elector is not None:
            self._background(self._candidacy(self.elector), "candidacy")
        else:
            self._leading.set()
        for room in self.rooms:
            self._background(self._run_room(room), room.store.kind.plural)
        for room in self.rooms[:1]:
            await room.synced.wait()
        self.synced.set()

    async def _candidacy(self, elector: Elector) -> None:
        """Run for leader as soon as the first kind's cache is filled, and no sooner."""
        await self.synced.wait()
        self._election = self._background(self._lead(elector), "election")

    async def _run_room(self, room: Room) -> None:
        """One kind, independent of the others: a CRD that is not there keeps no other waiting."""
        began = self.clock.monotonic()
        await self._served(room)
        await room.controller.start(room.context)
        room.begun = True
        for informer in room.context.informers:
            self._measure_cache(informer.ref.plural, informer)
            await informer.start()
        for informer in room.context.informers:
            await informer.synced.wait()
        await self._listed(room)
        room.shell = Shell(
            self.config,
            [room.store],
            asyncio.get_running_loop(),
            self.clock,
            namespaces=self.settings.namespaces,
        )
        room.shell.start()
        room.synced.set()
        # What fills the caches stays: the collector need not go through it again and again, which
        # takes a tenth of a second with ten thousand objects.
        gc.collect()
        gc.freeze()
        log.info(
            "caches are filled",
            kind=room.store.kind.kind,
            objects=len(room.store),
            children={i.ref.plural: len(i.store) for i in room.context.informers},
            seconds=round(self.clock.monotonic() - began, 3),
        )
        self._background(self._compare(room), f"comparison of {room.store.kind.plural}")
        await self._leading.wait()
        await room.queue.run(room.controller.reconcile, workers=self.settings.concurrency)
        await asyncio.Event().wait()  # the queue ends with the process; see _end

    async def _served(self, room: Room) -> None:
        """Wait until the API server knows the kind: charts may bring CRDs after us."""
        kind = room.store.kind
        failures = 0
        while True:
            try:
                found = await self.client.request("GET", f"/apis/{kind.group}/{kind.version}")
                if any(r.get("name") == kind.plural for r in found.get("resources") or ()):
                    return
                problem = f"{kind.kind} is not served"
            except NotFound:
                problem = f"the CRD of {kind.kind} is not installed"
            except EngineroomError as error:
                problem = str(error)
            failures += 1
            if failures == 1 or failures % 20 == 0:
                log.warning("waiting for the API server", problem=problem)
            await asyncio.sleep(backoff(failures, 0.1, 5.0, random.random()))  # noqa: S311 # nosec B311

    async def _listed(self, room: Room) -> None:
        """Fill the cache by a list of our own, many times quicker than Kopf tells of each object.

        Kopf starts after it and lists too, so nothing falls in between.
        """
        for namespace in self.settings.namespaces or (None,):
            failures = 0
            while True:
                try:
                    await room.store.compare(self.client, namespace, first=True)
                except EngineroomError as error:
                    failures += 1
                    log.warning("objects not listed", error=str(error), failures=failures)
                    await asyncio.sleep(backoff(failures, 0.1, 10.0, random.random()))  # noqa: S311 # nosec B311
                else:
                    break

    async def _compare(self, room: Room) -> None:
        """Now and then list beside Kopf's watch, and open the watch anew when it is deaf."""
        due = self.clock.monotonic() + random.uniform(*self.settings.resync)  # noqa: S311 # nosec B311
        while True:
            await asyncio.sleep(min(10.0, max(0.1, due - self.clock.monotonic())))
            if room.store.deaf() and room.shell is not None:
                log.warning("the watch does not tell what a list does; opening it anew")
                room.store.forgive()
                room.shell.restart()
            if self.clock.monotonic() < due:
                continue
            due = self.clock.monotonic() + random.uniform(*self.settings.resync)  # noqa: S311 # nosec B311
            for namespace in self.settings.namespaces or (None,):
                try:
                    await room.store.compare(self.client, namespace)
                except EngineroomError as error:
                    log.warning("comparison failed", kind=room.store.kind.kind, error=str(error))

    async def _lead(self, elector: Elector) -> None:
        def lost() -> None:
            self._fail("the lease was lost")

        await elector.run(self._leading.set, lost)

    async def _end(self) -> None:
        """Finish what runs, give up the lease, close. After a lost lease: as quickly as can be."""
        grace = 0.0 if self._failed else self.settings.shutdown_grace
        log.info("ending", running=sum(room.queue.running for room in self.rooms), grace=grace)
        await asyncio.gather(*(room.queue.shutdown(grace) for room in self.rooms))
        if self.elector is not None:
            self.elector.stop()
            if self._election is not None:
                await asyncio.wait([self._election], timeout=3)
        with suppress(TimeoutError, EngineroomError):
            async with asyncio.timeout(2):
                if not self._failed:
                    await self.recorder.flush()
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)
        await asyncio.gather(*(self._end_room(room) for room in self.rooms))

    async def _end_room(self, room: Room) -> None:
        for informer in room.context.informers:
            await informer.stop()
        if room.begun:
            with suppress(TimeoutError):
                async with asyncio.timeout(3):
                    await room.controller.stop()
        if room.shell is not None and not await room.shell.stop(within=3.0):
            log.warning("kopf did not end in time")
            self.abandon = True

    def _background(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run beside; if it ends with an error, so does the process."""
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or task.exception() is None:
            return
        log.error("a task ended", task=task.get_name(), exc_info=task.exception())
        self._fail(f"{task.get_name()} ended")

    def _fail(self, reason: str) -> None:
        self._failed = self._failed or reason
        self.stopping.set()

    # -- telling ---------------------------------------------------------------------------------

    def _servers(self) -> list[HttpServer]:
        async def metrics(_request: web.Request) -> web.Response:
            return web.Response(
                body=self.metrics.exposition(), headers={"Content-Type": CONTENT_TYPE}
            )

        settings = self.settings
        self.probes = HttpServer(
            settings.probe_port,
            {"/healthz": probe(self.health), "/readyz": probe(self.readiness)},
            settings.host,
        )
        self.exposition = HttpServer(settings.metrics_port, {"/metrics": metrics}, settings.host)
        return [self.probes, self.exposition]

    def health(self) -> Report:
        """Whether a restart would help: something hangs. An absent API server is no reason."""
        report = self._facts()
        facts, problems = report.facts, report.problems
        stuck = 2 * self.settings.reconcile_timeout + self.settings.api_timeout
        if facts["queue"]["oldestRun"] > stuck:
            problems.append("a reconcile hangs past its time-out")
        if facts["loopLag"] > LOOP_STUCK:
            problems.append("the event loop is stuck")
        if any(room.shell and room.shell.silence() > KOPF_STUCK for room in self.rooms):
            problems.append("kopf's loop is stuck or has ended")
        if self.synced.is_set():
            problems += [
                f"nothing was heard of {kind} for {age} s"
                for kind, age in facts["watches"].items()
                if age > max(WATCH_DEAD, 2 * self.settings.resync[1])
            ]
        return report

    def readiness(self) -> Report:
        """Whether it could lead: caches filled and not ending. A standby is ready."""
        report = self._facts()
        if not self.synced.is_set():
            report.problems.append("caches are not filled yet")
        if self.stopping.is_set():
            report.problems.append("ending")
        return report

    def _facts(self) -> Report:
        elector = self.elector
        return Report(
            facts={
                "version": __version__,
                "identity": self.settings.who,
                "leader": self.is_leader,
                "holder": elector.holder if elector else self.settings.who,
                "epoch": elector.epoch if elector else 0,
                "watches": {
                    kind: round(age, 1)
                    for room in self.rooms
                    # A kind that is not served (yet) is nothing that a restart would help.
                    if room.synced.is_set() or room is self.rooms[0]
                    for kind, age in _ages(room).items()
                },
                "queue": {
                    "depth": sum(room.queue.depth for room in self.rooms),
                    "running": sum(room.queue.running for room in self.rooms),
                    "oldestRun": round(max(room.queue.oldest_run() for room in self.rooms), 3),
                },
                "loopLag": round(self.lag.seconds(), 4),
            }
        )

    def _measure(self) -> None:
        gauge = self.metrics.gauge
        for room in self.rooms:
            self._measure_queue(room.queue)
            self._measure_cache(room.store.kind.plural, room.store)
        gauge("engineroom_leader", "1 while this process leads.", lambda: float(self.is_leader))
        gauge(
            "engineroom_leader_epoch",
            "Transitions of the lease when it was taken.",
            lambda: float(self.elector.epoch if self.elector else 0),
        )
        gauge("engineroom_event_loop_lag_seconds", "Worst delay lately.", self.lag.seconds)
        gauge(
            "engineroom_kopf_restarts",
            "Times that Kopf ended and was started again.",
            lambda: float(sum(room.shell.restarts for room in self.rooms if room.shell)),
        )
        gauge("engineroom_events_written", "Events written.", lambda: float(self.recorder.written))
        gauge(
            "engineroom_events_dropped",
            "Events not written: too many, or refused.",
            lambda: float(self.recorder.dropped),
        )

    def _measure_queue(self, queue: WorkQueue) -> None:
        gauge, labels = self.metrics.gauge, {"queue": queue.name}
        gauge("engineroom_queue_depth", "Keys due.", lambda: queue.depth, labels)
        gauge("engineroom_queue_running", "Reconciles now.", lambda: queue.running, labels)
        gauge(
            "engineroom_queue_delayed",
            "Looks to come.",
            lambda: queue.schedule.delayed,
            labels,
        )

    def _measure_cache(self, kind: str, cache: RecordStore | Informer[Any]) -> None:
        gauge, labels = self.metrics.gauge, {"kind": kind}
        gauge("engineroom_watch_age_seconds", "Since it was last heard of.", cache.age, labels)
        gauge("engineroom_cache_objects", "Objects cached.", lambda: float(len(cache)), labels)
        gauge(
            "engineroom_cache_repairs",
            "Objects that a comparison had to put right.",
            lambda: float(cache.repaired),
            labels,
        )


def pools(settings: Settings) -> Controller:
    """The controller of WorkerPools."""
    from engineroom.scheduling import TaskSchedules
    from engineroom.workers.controller import WorkerPoolController
    from engineroom.workers.objects import Runtime

    return WorkerPoolController(
        Runtime(settings.runtime_image, settings.runtime_image_pull_policy),
        settings.read_redis_url() or "",
        TaskSchedules(),
        use_interval=settings.use_interval,
        use_patience=settings.use_patience,
    )


def policies(settings: Settings) -> Controller:
    """The controller of RateLimitPolicies."""
    from engineroom.ratelimit.reconcile.controller import RateLimitPolicyController

    return RateLimitPolicyController(settings.read_redis_url() or "")


def _ages(room: Room) -> dict[str, float]:
    ages = {informer.ref.plural: informer.age() for informer in room.context.informers}
    return {room.store.kind.plural: room.store.age(), **ages}


def load_config(settings: Settings) -> ApiConfig:
    """The API server's address and credentials; raises ConfigError."""
    if settings.kubeconfig is not None or settings.context is not None:
        return kube_config.from_kubeconfig(settings.kubeconfig, settings.context)
    if (SERVICE_ACCOUNT / "token").exists() and not os.environ.get("KUBECONFIG"):
        return kube_config.in_cluster()
    return kube_config.load()


async def _run(settings: Settings) -> int:
    process = Process(settings, load_config(settings))
    code = await process.run()
    if process.abandon:
        tracing.stop()
        logging.shutdown()
        os._exit(code)
    return code


def main() -> int:
    """``python -m engineroom.main``: settings from the environment, then run."""
    try:
        settings = Settings()
    except ValidationError as error:
        configure()
        for problem in error.errors(include_input=False, include_url=False):
            name = "_".join(str(part) for part in problem["loc"]).upper()
            log.error("a setting is wrong", setting=name, problem=problem["msg"])  # noqa: TRY400
        return EXIT_CONFIG
    configure(settings.log_level, settings.log_format, repeat=(settings.log_repeat, REPEAT_SECONDS))
    logging.captureWarnings(capture=True)
    # Kopf's thread must not keep a push of Redis waiting for Python's 5 ms.
    sys.setswitchinterval(SWITCH_INTERVAL)
    tracing.start("engineroom-operator", __version__)
    try:
        return asyncio.run(_run(settings))
    except (ConfigError, OSError) as error:
        log.error("the operator cannot start", error=str(error))  # noqa: TRY400
        return EXIT_CONFIG
    finally:
        tracing.stop()


if __name__ == "__main__":
    sys.exit(main())
