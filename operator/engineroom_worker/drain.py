"""What the operator asks of a worker, as plain data: suspended, draining, retired or nothing.

The requests are levels, not messages: keys that are read at the top of every loop.  A nudge over
RQ's pubsub channel only makes the worker look sooner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

#: Command on RQ's own pubsub channel that makes a worker look at its keys now.
WAKE_COMMAND = "engineroom-wake"

DRAINING = "draining"
DRAINED = "drained"
RETIRED = "retired"


def suspended_key(pool: str) -> str:
    """Key whose presence keeps the pool's workers from taking jobs."""
    return "engineroom:suspended:{" + pool + "}"


def paused_key(queue: str) -> str:
    """Key whose presence keeps workers of every pool from taking jobs of the queue."""
    return f"engineroom:paused:{queue}"


def workers_key(pool: str) -> str:
    """Set of the names of the pool's workers."""
    return "engineroom:workers:{" + pool + "}"


def drain_key(worker: str) -> str:
    """Key holding ``drain:<id>`` or ``retire:<id>`` while that is wanted of the worker."""
    return f"engineroom:drain:{worker}"


def stats_key(queue: str) -> str:
    """Hash of what the queue's workers have done: finished, failed, busy_ms, wait_ms."""
    return f"engineroom:stats:{queue}"


def settle_key(queue: str) -> str:
    """List of jobs that the operator failed for a dead worker and whose callbacks, dependents and
    rate-limit slots a living worker sees to.
    """
    return f"engineroom:settle:{queue}"


def settling_key(job: str) -> str:
    """Held by the worker that sees to such a job."""
    return f"engineroom:settling:{job}"


def strays_key(queue: str) -> str:
    """Hash of when each entry of the queue's intermediate list was first seen lying there."""
    return f"engineroom:intermediate:{queue}"


@dataclass(frozen=True)
class Controls:
    """What is asked of the worker at one moment."""

    rq_suspended: bool = False
    pool_suspended: bool = False
    drain: str = ""
    drain_id: str = ""

    @property
    def suspended(self) -> bool:
        """Whether RQ or the pool is suspended."""
        return self.rq_suspended or self.pool_suspended

    @property
    def leaving(self) -> bool:
        """Whether the worker is to take no further job until told otherwise."""
        return bool(self.drain)

    @property
    def retired(self) -> bool:
        """Whether the worker is never to take a job again."""
        return self.drain == RETIRED

    @classmethod
    def read(cls, rq_suspended: Any, pool_suspended: Any, request: Any) -> Controls:
        """Make sense of the three values; an unknown request counts as a drain."""
        text: str = _text(request) or ""
        verb, _, request_id = text.partition(":")
        drain = "" if not text else RETIRED if verb == "retire" else DRAINED
        return cls(
            rq_suspended=rq_suspended is not None,
            pool_suspended=pool_suspended is not None,
            drain=drain,
            drain_id=request_id,
        )


def _text(value: Any) -> str | None:
    return value.decode() if isinstance(value, bytes) else value
