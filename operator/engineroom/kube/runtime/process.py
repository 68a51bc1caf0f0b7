"""One process that runs the controllers of kinds: caches, queues, the lease, probes and metrics.

Nothing here concerns a particular kind. A standby does everything but reconcile, so that it can
take over at once. A leader that loses the lease exits, because it cannot call back its writes.
"""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any

from engineroom import __version__
from engineroom.core.clock import Clock, SystemClock
from engineroom.core.errors import EngineroomError
from engineroom.core.logging import get_logger
from engineroom.kube.runtime.health import HttpServer, probe
from engineroom.kube.runtime.kind_runtime import KindRuntime, KindState
from engineroom.kube.runtime.process_health import ProcessHealth
from engineroom.kube.runtime.process_parts import ProcessParts
from engineroom.metrics import CONTENT_TYPE

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping, Sequence

    from engineroom.kube.client.config import ApiConfig
    from engineroom.kube.runtime.controller import Controller
    from engineroom.kube.runtime.lease import Elector
    from engineroom.kube.runtime.queue import WorkQueue
    from engineroom.settings import Settings

log = get_logger(__name__)

#: Exit codes: ended as asked; the lease was lost or something that must run ended; bad settings.
EXIT_OK, EXIT_LOST, EXIT_CONFIG = 0, 1, 2


class ControllerProcess(ProcessParts):
    """A process with one KindRuntime for each controller; ``run`` returns its exit code."""

    def __init__(
        self,
        settings: Settings,
        config: ApiConfig,
        controllers: Sequence[Controller],
        *,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(settings, config, clock or SystemClock())
        self.kinds = [
            KindRuntime(self, controller, self._kind_changed) for controller in controllers
        ]
        self.health = ProcessHealth(self, self.kinds)
        self.probes = HttpServer(
            settings.probe_port,
            {"/healthz": probe(self.health.liveness), "/readyz": probe(self.health.readiness)},
            settings.host,
        )
        self.exposition = HttpServer(
            settings.metrics_port, {"/metrics": self._expose}, settings.host
        )
        #: Whether a thread still runs, for which the interpreter must not wait.
        self.abandon = False
        self._election: asyncio.Task[None] | None = None
        self._failure = ""
        self._tasks: set[asyncio.Task[None]] = set()
        self._register_gauges()

    # -- running ---------------------------------------------------------------------------------

    async def run(self) -> int:
        """Run until SIGTERM, SIGINT, ``stop``, or until the lease is lost."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            with suppress(NotImplementedError, ValueError, RuntimeError):
                loop.add_signal_handler(number, self.stop)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.client)
            await stack.enter_async_context(self.probes)
            await stack.enter_async_context(self.exposition)
            log.info(
                "operator starting",
                version=__version__,
                identity=self.settings.who,
                namespaces=list(self.settings.namespaces) or "all",
            )
            self._start_task(self.lag.run(), "loop lag")
            self._start_task(self.recorder.run(), "events")
            for kind in self.kinds:
                self._start_task(kind.run(), kind.kind.plural)
            self._start_task(self._run_for_leader(), "candidacy")
            await self.stopping.wait()
            await self._end()
        if self._failure:
            log.error("operator ends", reason=self._failure)
            return EXIT_LOST
        log.info("operator ends", reason="asked to")
        return EXIT_OK

    def stop(self) -> None:
        """Begin the graceful end."""
        self.stopping.set()

    def _kind_changed(self) -> None:
        """Become synced when every kind is filled or unavailable, and at least one is filled."""
        states = {kind.state for kind in self.kinds}
        if KindState.SYNCED in states and states <= {KindState.SYNCED, KindState.UNAVAILABLE}:
            self.synced.set()

    async def _run_for_leader(self) -> None:
        """Run for leader once the caches are filled, and no sooner."""
        if self.elector is None:
            self.leading.set()
            return
        await self.synced.wait()
        self._election = self._start_task(self._lead(self.elector), "election")

    async def _lead(self, elector: Elector) -> None:
        await elector.run(self.leading.set, lambda: self._fail("the lease was lost"))

    async def _end(self) -> None:
        """Finish running reconciles, release the lease, close; at once after a lost lease."""
        grace = 0.0 if self._failure else self.settings.shutdown_grace
        log.info("ending", running=sum(kind.queue.running for kind in self.kinds), grace=grace)
        await asyncio.gather(*(kind.queue.shutdown(grace) for kind in self.kinds))
        if self.elector is not None:
            self.elector.stop()
            if self._election is not None:
                await asyncio.wait([self._election], timeout=3)
        with suppress(TimeoutError, EngineroomError):
            async with asyncio.timeout(2):
                if not self._failure:
                    await self.recorder.flush()
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)
        await asyncio.gather(*(kind.stop() for kind in self.kinds))
        if not await self.watcher.stop(within=3.0):
            log.warning("kopf did not end in time")
            self.abandon = True

    def _start_task(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run in the background; an error in it ends the process."""
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)
        return task

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or task.exception() is None:
            return
        log.error("a task ended", task=task.get_name(), exc_info=task.exception())
        self._fail(f"{task.get_name()} ended")

    def _fail(self, reason: str) -> None:
        self._failure = self._failure or reason
        self.stopping.set()

    # -- metrics ---------------------------------------------------------------------------------

    async def _expose(self, _parameters: Mapping[str, str]) -> tuple[int, str, bytes]:
        return 200, CONTENT_TYPE, self.metrics.exposition()

    def _register_gauges(self) -> None:
        gauge = self.metrics.gauge
        for kind in self.kinds:
            self._measure_queue(kind.queue)
            self.measure_cache(kind.kind.plural, kind.store)
        gauge("engineroom_leader", "1 while this process leads.", lambda: float(self.is_leader))
        gauge(
            "engineroom_leader_epoch",
            "Transitions of the lease when it was taken.",
            lambda: float(self.elector.epoch if self.elector else 0),
        )
        gauge("engineroom_event_loop_lag_seconds", "Worst delay lately.", self.lag.seconds)
        gauge(
            "engineroom_kopf_restarts",
            "Times that a watch of Kopf's ended and was started again.",
            lambda: float(self.watcher.restarts),
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
            "Timers, retries included.",
            lambda: queue.state.delayed,
            labels,
        )
