"""The worker's current execution: RQ 2 has one attribute for it, RQ 3 a dictionary."""

from __future__ import annotations

from typing import Any

import rq

RQ_MAJOR = int(rq.__version__.split(".")[0])

#: Time without a heartbeat after which maintenance treats an execution as abandoned (seconds).
EXECUTION_TTL = 90


class Executions:
    """Access to the executions that RQ's code stores on the worker."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker

    def current(self) -> Any:
        """Return the current execution, or None."""
        if RQ_MAJOR >= 3:
            return next(iter(self._worker.executions.values()), None)
        return self._worker.execution

    def clear(self) -> None:
        """Remove all executions."""
        if RQ_MAJOR >= 3:
            self._worker.executions.clear()
            self._worker._executions = []
        else:
            self._worker.execution = None

    def snapshot(self) -> Any:
        """Return a copy of the executions for ``restore``."""
        return dict(self._worker.executions) if RQ_MAJOR >= 3 else self._worker.execution

    def restore(self, snapshot: Any) -> None:
        """Set the executions back to a snapshot."""
        if RQ_MAJOR >= 3:
            self._worker.executions = dict(snapshot)
        else:
            self._worker.execution = snapshot
