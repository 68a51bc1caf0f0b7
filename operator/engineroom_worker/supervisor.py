"""Supervision of several workers in one pod: start, signals, exit and restart."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from engineroom_worker.observability.metrics import SharedMetrics

log = logging.getLogger("engineroom.supervisor")

#: Run time of a worker after which its restart delay starts over (seconds).
STEADY_SECONDS = 60.0
#: The longest restart delay (seconds).
MAX_DELAY = 30.0


class Supervisor:
    """Keeps one process per slot, which runs ``run_worker(slot)`` and exits with its result."""

    def __init__(
        self, slots: int, metrics: SharedMetrics, run_worker: Callable[[int], int]
    ) -> None:
        self._metrics = metrics
        self._run_worker = run_worker
        self._slots = slots
        self._pids: dict[int, int] = {}
        self._started: dict[int, float] = {}
        self._delays: dict[int, float] = {}
        self._due: dict[int, float] = dict.fromkeys(range(slots), 0.0)
        self._stopping = False
        self._read, self._write = os.pipe()
        for descriptor in (self._read, self._write):
            os.set_blocking(descriptor, False)

    def run(self) -> int:
        """Run until SIGTERM or SIGINT and the end of all workers; return the exit code."""
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        while True:
            self._reap()
            if self._stopping:
                if not self._pids:
                    return 0
                self._due.clear()
            self._start_due()
            waits = [due - time.monotonic() for due in self._due.values()]
            select.select([self._read], [], [], max(0.0, min(waits, default=60.0)))
            with contextlib.suppress(BlockingIOError):
                os.read(self._read, 65536)

    def _stop(self, signum: int, frame: Any) -> None:
        self._stopping = True
        for pid in list(self._pids.values()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def _start_due(self) -> None:
        for slot, due in list(self._due.items()):
            if due > time.monotonic() or self._stopping:
                continue
            del self._due[slot]
            # Block signals during the fork, so that each process handles them after it.
            blocked = {signal.SIGTERM, signal.SIGINT}
            signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
            pid = os.fork()
            if pid == 0:
                self._become_worker(slot, blocked)
            self._pids[slot] = pid
            self._started[slot] = time.monotonic()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)

    def _become_worker(self, slot: int, blocked: Any) -> None:
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, _exit)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)
            code = self._run_worker(slot)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            log.exception("worker in slot %d failed", slot)
        finally:
            os._exit(code)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            slot = next((slot for slot, child in self._pids.items() if child == pid), None)
            if slot is not None:
                self._schedule_restart(slot, status)

    def _schedule_restart(self, slot: int, status: int) -> None:
        del self._pids[slot]
        self._metrics.set(slot, "alive", 0)
        if self._stopping:
            return
        run_time = time.monotonic() - self._started[slot]
        code: int | None = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        steady = code == 0 or run_time > STEADY_SECONDS
        delay = 0.0 if steady else min(MAX_DELAY, max(1.0, 2 * self._delays.get(slot, 0.0)))
        self._delays[slot] = delay
        self._due[slot] = time.monotonic() + delay
        self._metrics.add(slot, "restarts")
        log.warning(
            "worker in slot %d ended (%s), started anew in %.0f s",
            slot,
            f"exit code {code}" if code is not None else f"signal {os.WTERMSIG(status)}",
            delay,
        )


def _exit(signum: int, frame: Any) -> None:
    """Exit at once: before the worker has its own handlers, it holds no job."""
    raise SystemExit(0)
