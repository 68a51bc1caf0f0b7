"""The operator's requests to a worker: suspend, drain or retire.

Requests are levels and not messages: the worker reads their keys in each turn of its loop. A nudge
over RQ's pubsub channel only makes it poll sooner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engineroom_worker import key_prefixes

#: Command on the worker's pubsub channel that makes it read its keys at once.
WAKE_COMMAND = "engineroom-wake"

DRAINING = "draining"
DRAINED = "drained"
RETIRED = "retired"


def suspended_key(pool: str) -> str:
    """Return the key that exists while the pool's workers must take no jobs."""
    return f"{key_prefixes.POOL_SUSPENDED}{{{pool}}}"


def paused_key(queue: str) -> str:
    """Return the key that exists while the queue is paused for all pools."""
    return f"{key_prefixes.PAUSED}{queue}"


def workers_key(pool: str) -> str:
    """Return the key of the set of the pool's worker names."""
    return f"{key_prefixes.POOL_WORKERS}{{{pool}}}"


def drain_key(worker: str) -> str:
    """Return the key that holds ``drain:<id>`` or ``retire:<id>`` while requested."""
    return f"{key_prefixes.DRAIN}{worker}"


def stats_key(queue: str) -> str:
    """Return the key of the queue's totals: finished, failed, busy_ms, wait_ms."""
    return f"{key_prefixes.STATS}{queue}"


def settle_key(queue: str) -> str:
    """Return the key of the list of jobs that the operator failed for dead workers.

    A living worker runs their callbacks and dependents, and releases their rate-limit slots.
    """
    return f"{key_prefixes.SETTLE}{queue}"


def settling_key(job: str) -> str:
    """Return the key that names the worker which currently settles such a job."""
    return f"{key_prefixes.SETTLING}{job}"


def strays_key(queue: str) -> str:
    """Return the key of the hash of times at which intermediate entries were first seen."""
    return f"{key_prefixes.STRAYS}{queue}"


@dataclass(frozen=True)
class ControlRequests:
    """The requests to the worker at one moment."""

    rq_suspended: bool = False
    pool_suspended: bool = False
    drain: str = ""
    drain_id: str = ""

    @property
    def suspended(self) -> bool:
        """True if RQ or the pool is suspended."""
        return self.rq_suspended or self.pool_suspended

    @property
    def leaving(self) -> bool:
        """True if the worker must take no further job."""
        return bool(self.drain)

    @property
    def retired(self) -> bool:
        """True if the worker must never take a job again."""
        return self.drain == RETIRED

    @classmethod
    def read(cls, rq_suspended: Any, pool_suspended: Any, request: Any) -> ControlRequests:
        """Return the controls of three Redis values; an unknown request counts as a drain."""
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
