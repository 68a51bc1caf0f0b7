"""Ends a worker whose loop does not turn any more, so that a fresh one takes its place.

A worker that hangs (in a lock, in a read of a file that never comes, in somebody's exception
handler) sends no heartbeat and takes no job, while its pod looks well to everybody. Its work horse,
if it has one, dies with it; the operator gives the job back as that of any dead worker.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engineroom_worker.metrics import Board

#: ``sysexits.h``: an internal error, tried again by whoever started the process.
EX_SOFTWARE = 70
#: The loop is looked at so often (seconds).
PACE = 10.0

log = logging.getLogger("rq.worker")


def watch(board: Board, slot: int, pace: float = PACE) -> None:
    """Watch over this process' worker from a thread; work horses do not inherit it."""

    def look() -> None:
        while True:
            time.sleep(pace)
            if board.stuck(slot, time.monotonic()):
                log.critical("the worker in slot %d is stuck, started anew", slot)
                # Nothing of the worker can be trusted to run any more, its clean-up least of all.
                os._exit(EX_SOFTWARE)

    threading.Thread(target=look, name="watchdog", daemon=True).start()
