"""Workers as they describe themselves in Redis: ours and stock RQ's, and those that are no more."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from engineroom.queue import stale_workers
from engineroom.tasks.errors import InvalidTaskError
from engineroom.tasks.inspection import queues
from engineroom.tasks.redis_steps import Batch, Invoke, Script, Steps, text

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Without a heartbeat for so long a worker is silent (seconds): ours report every 4 s, and stock
#: RQ's, when idle, every 405 s.
SILENT, SILENT_STOCK = 15.0, 480.0
#: A worker ends its work horse a minute after the job's time-out; later than that it is stuck.
OVERDUE = 120.0
MAX_WORKERS = 10_000

_CLEAR = Script(stale_workers.CLEAR)


class Health(StrEnum):
    """How a worker is, by what it says of itself."""

    WELL = "well"
    SILENT = "silent"  # no heartbeat for too long: dead, cut off, or stuck
    OVERDUE = "overdue"  # its job should have been ended by its time-out long ago
    GHOST = "ghost"  # on RQ's list and nothing else


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker. ``memory`` is bytes, ``cpu`` cores lately; both only of Engineroom's own."""

    name: str
    health: Health
    state: str = ""
    queues: tuple[str, ...] = ()
    #: Id of the job that it runs; of stock workers the first, should there be several.
    job: str = ""
    job_started: datetime | None = None
    heartbeat: datetime | None = None
    birth: datetime | None = None
    host: str = ""
    pid: int | None = None
    memory: int | None = None
    cpu: float | None = None
    #: ``namespace/name`` and pod, of Engineroom's own.
    pool: str = ""
    pod: str = ""
    rq_version: str = ""
    finished: int = 0
    failed: int = 0


def listed(queue: str | None, now: datetime) -> Steps[list[Worker]]:
    """Workers by name, of one queue or of all; MAX_WORKERS at most."""
    known = yield from _known(queue)
    workers: list[Worker] = []
    for start in range(0, len(known), stale_workers.STEP):
        chunk = known[start : start + stale_workers.STEP]
        commands: list[Sequence[str]] = []
        for key in chunk:
            commands += ["HMGET", key, *_FIELDS], ["SRANDMEMBER", f"{key}:executions"]
        rows = yield Batch(commands)
        workers += [
            _worker(key, row, execution, now)
            for key, row, execution in zip(chunk, rows[::2], rows[1::2], strict=True)
        ]
    return workers


def clear_ghosts(now: datetime) -> Steps[list[str]]:
    """Take workers that are no more off RQ's lists; their names. What they held is not touched."""
    known = yield from _known(None)
    names = yield from queues.names()
    cleared: list[str] = []
    for start in range(0, len(known), stale_workers.STEP):
        words = stale_workers.arguments(names, known[start : start + stale_workers.STEP], now)
        cleared += map(text, (yield Invoke(_CLEAR, [stale_workers.WORKERS], words)))
    return cleared


def health_of(
    *,
    now: datetime,
    heartbeat: datetime | None,
    ours: bool,
    job_started: datetime | None,
    job_timeout: float | None,
) -> Health:
    """Pure; ``job_timeout`` in seconds, None or below 0 for none."""
    if heartbeat is None:
        return Health.GHOST
    if (now - heartbeat).total_seconds() >= (SILENT if ours else SILENT_STOCK):
        return Health.SILENT
    if job_started is not None and job_timeout is not None and job_timeout > 0:
        running = (now - job_started).total_seconds()
        return Health.OVERDUE if running > job_timeout + OVERDUE else Health.WELL
    return Health.WELL


def _known(queue: str | None) -> Steps[list[str]]:
    found: set[str] = set()
    cursor = "0"
    key = stale_workers.WORKERS if queue is None else f"{stale_workers.WORKERS}:{queue}"
    while True:
        [(place, members)] = yield Batch([["SSCAN", key, cursor, "COUNT", 500]])
        found |= set(map(text, members))
        if len(found) > MAX_WORKERS:
            raise InvalidTaskError("workers", f"more than {MAX_WORKERS}", "ask for one queue")
        cursor = text(place)
        if cursor in ("", "0"):
            return sorted(found)


_FIELDS = (
    "state", "queues", "er_job", "current_job", "er_job_started", "er_job_timeout",
    "last_heartbeat", "birth", "hostname", "pid", "er_memory", "er_cpu", "er_pool", "er_pod",
    "version", "successful_job_count", "failed_job_count",
)  # fmt: skip


def _worker(
    key: str, row: Sequence[bytes | None], execution: bytes | None, now: datetime
) -> Worker:
    said = dict(zip(_FIELDS, map(text, row), strict=True))
    heartbeat = _moment(said["last_heartbeat"])
    started = said["er_job_started"]
    job_started = datetime.fromtimestamp(float(started), now.tzinfo) if started else None
    ours = bool(said["er_pool"])
    running = text(execution).rpartition(":")[0]
    timeout = said["er_job_timeout"]
    return Worker(
        name=key.removeprefix("rq:worker:"),
        health=health_of(
            now=now,
            heartbeat=heartbeat,
            ours=ours,
            job_started=job_started,
            job_timeout=float(timeout) if timeout else None,
        ),
        state=said["state"],
        queues=tuple(filter(None, said["queues"].split(","))),
        job=said["er_job"] if ours else said["current_job"] or running,
        job_started=job_started,
        heartbeat=heartbeat,
        birth=_moment(said["birth"]),
        host=said["hostname"],
        pid=int(said["pid"]) if said["pid"].isdigit() else None,
        memory=int(said["er_memory"]) if said["er_memory"] else None,
        cpu=float(said["er_cpu"]) if said["er_cpu"] else None,
        pool=said["er_pool"],
        pod=said["er_pod"],
        rq_version=said["version"],
        finished=int(said["successful_job_count"] or 0),
        failed=int(said["failed_job_count"] or 0),
    )


def _moment(stamp: str) -> datetime | None:
    return datetime.fromisoformat(stamp) if stamp else None
