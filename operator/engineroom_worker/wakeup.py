"""A pipe that ends the worker's waits early, when a signal or a nudge arrives."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engineroom_worker.observability.metrics import SlotMetrics


class WakeupPipe:
    """The worker's waits select on ``fileno``; signals and other threads write to the pipe."""

    def __init__(self, metrics: SlotMetrics) -> None:
        self._metrics = metrics
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._nudged = threading.Event()

    @property
    def fileno(self) -> int:
        """The file descriptor that becomes readable."""
        return self._read

    def catch_signals(self) -> None:
        """Have Python write the number of each handled signal to the pipe."""
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)

    def wait(self, seconds: float) -> bool:
        """Wait for at most ``seconds``; return whether a signal or a nudge ended the wait."""
        self._metrics.set("looped", time.monotonic())
        readable, _, _ = select.select([self._read], [], [], max(0.0, seconds))
        if readable:
            with contextlib.suppress(BlockingIOError):
                os.read(self._read, 65536)
        return bool(readable)

    def nudge(self) -> None:
        """End the current wait; other threads may call this."""
        self._nudged.set()
        with contextlib.suppress(BlockingIOError):
            os.write(self._write, b"\0")

    @property
    def nudged(self) -> bool:
        """True if a nudge arrived since ``clear_nudge``."""
        return self._nudged.is_set()

    def clear_nudge(self) -> None:
        """Forget the nudges so far."""
        self._nudged.clear()

    def close(self) -> None:
        """Detach a forked process from the pipe, which is its parent's."""
        signal.set_wakeup_fd(-1)
        os.close(self._read)
        os.close(self._write)
