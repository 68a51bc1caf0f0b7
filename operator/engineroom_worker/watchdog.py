"""Exits a worker whose loop hangs, so that a new one replaces it.

A worker that hangs, for example in a lock or in a read that never returns, sends no heartbeat and
takes no job, while its pod looks healthy. Its work horse dies with it, and the operator recovers
the job.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engineroom_worker.observability.metrics import SharedMetrics

#: ``sysexits.h``: an internal error; the supervisor or the kubelet starts the process again.
EX_SOFTWARE = 70
#: Interval of the checks (seconds).
PACE = 10.0

log = logging.getLogger("rq.worker")


def watch(metrics: SharedMetrics, slot: int, pace: float = PACE) -> None:
    """Check this process' worker from a thread, which work horses do not inherit."""

    def check() -> None:
        while True:
            time.sleep(pace)
            if metrics.stuck(slot, time.monotonic()):
                log.critical("the worker in slot %d is stuck, started anew", slot)
                # Skip the worker's clean-up, which could hang too.
                os._exit(EX_SOFTWARE)

    threading.Thread(target=check, name="watchdog", daemon=True).start()
