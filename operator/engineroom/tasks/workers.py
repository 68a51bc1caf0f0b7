"""Workers as they described themselves in Redis: ours and RQ's own. Reads only."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from engineroom.tasks.steps import Batch, Steps, text

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Workers that are read in one round trip.
CHUNK = 200

_PREFIX = "rq:worker:"


@dataclass(frozen=True, slots=True)
class WorkerState:
    """One worker; times are UTC, memory is bytes, None where it does not say."""

    name: str
    #: RQ's word (idle, busy, suspended, started); ``expired`` where only the name is left.
    state: str
    queues: tuple[str, ...]
    #: What it works on; empty for nothing.
    job_id: str
    host: str
    pid: int | None
    #: ``namespace/name`` of its pool, and its pod; empty for a stock ``rq worker``.
    pool: str
    pod: str
    memory: int | None
    born_at: datetime | None
    heartbeat_at: datetime | None
    job_started_at: datetime | None
    #: ``drained`` or ``retired`` where the operator asked for it.
    drain: str
    finished: int
    failed: int
    #: RQ's version.
    version: str


def listed() -> Steps[list[WorkerState]]:
    """All workers that RQ knows, sorted by name."""
    names: set[str] = set()
    cursor: Any = 0
    while True:
        [(cursor, members)] = yield Batch([["SSCAN", "rq:workers", cursor, "COUNT", 500]])
        names |= {text(member).removeprefix(_PREFIX) for member in members}
        if not int(cursor):
            break
    ordered = sorted(names)
    found: list[WorkerState] = []
    for start in range(0, len(ordered), CHUNK):
        chunk = ordered[start : start + CHUNK]
        read = yield Batch([["HMGET", _PREFIX + name, *_FIELDS] for name in chunk])
        found += [_worker(name, row) for name, row in zip(chunk, read, strict=True)]
    return found


_FIELDS = (
    "state", "queues", "current_job", "hostname", "pid", "birth", "last_heartbeat", "version",
    "successful_job_count", "failed_job_count", "er_pool", "er_pod", "er_memory", "er_job",
    "er_job_started", "er_drain",
)  # fmt: skip


def _worker(name: str, row: Sequence[Any]) -> WorkerState:
    said = dict(zip(_FIELDS, map(text, row), strict=True))
    gone = not any(said.values())
    started = said["er_job_started"]
    return WorkerState(
        name=name,
        state="expired" if gone else said["state"],
        queues=tuple(each for each in said["queues"].split(",") if each),
        job_id=said["er_job"] or said["current_job"],
        host=said["hostname"],
        pid=int(said["pid"]) if said["pid"].isdigit() else None,
        pool=said["er_pool"],
        pod=said["er_pod"],
        memory=int(said["er_memory"]) if said["er_memory"].isdigit() else None,
        born_at=_time(said["birth"]),
        heartbeat_at=_time(said["last_heartbeat"]),
        job_started_at=datetime.fromtimestamp(float(started), UTC) if started else None,
        drain=said["er_drain"],
        finished=int(said["successful_job_count"] or 0),
        failed=int(said["failed_job_count"] or 0),
        version=said["version"],
    )


def _time(said: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(said)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
