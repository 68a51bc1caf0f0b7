"""Workers as registered in Redis, Engineroom's and stock RQ's, and their health."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from engineroom.core.redis_replies import text
from engineroom.queue import stale_workers
from engineroom.tasks.errors import InvalidTaskError
from engineroom.tasks.inspection import queues
from engineroom.tasks.redis_steps import BatchStep, LuaScript, ScriptStep, Steps

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Time without a heartbeat after which a worker is silent (seconds). Engineroom's workers send one
#: every 4 s, and idle stock workers every 405 s.
SILENT, SILENT_STOCK = 15.0, 480.0
#: Time after the job's timeout at which its worker is stuck (seconds). A worker kills its work
#: horse a minute after the timeout.
OVERDUE = 120.0
MAX_WORKERS = 10_000

_CLEAR = LuaScript(stale_workers.CLEAR)


class Health(StrEnum):
    """The health of a worker, by its record in Redis."""

    WELL = "well"
    SILENT = "silent"  # no heartbeat for too long: dead, cut off, or stuck
    OVERDUE = "overdue"  # its job has run long beyond its timeout
    GHOST = "ghost"  # registered, but without a record


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker. Only Engineroom's workers report ``memory`` (bytes) and ``cpu`` (cores)."""

    name: str
    health: Health
    state: str = ""
    queues: tuple[str, ...] = ()
    #: Id of the job that it runs; of a stock worker with several jobs, any of them.
    job: str = ""
    job_started: datetime | None = None
    heartbeat: datetime | None = None
    birth: datetime | None = None
    host: str = ""
    pid: int | None = None
    memory: int | None = None
    cpu: float | None = None
    #: ``namespace/name`` of the pool, and the pod, of Engineroom's workers.
    pool: str = ""
    pod: str = ""
    rq_version: str = ""
    finished: int = 0
    failed: int = 0


def page(queue: str | None, now: datetime) -> Steps[list[Worker]]:
    """Return the workers of one queue or of all, sorted by name; at most MAX_WORKERS."""
    registered = yield from _registered_keys(queue)
    workers: list[Worker] = []
    for start in range(0, len(registered), stale_workers.STEP):
        chunk = registered[start : start + stale_workers.STEP]
        commands: list[Sequence[str]] = []
        for key in chunk:
            commands += ["HMGET", key, *_FIELDS], ["SRANDMEMBER", f"{key}:executions"]
        rows = yield BatchStep(commands)
        workers += [
            _worker(key, row, execution, now)
            for key, row, execution in zip(chunk, rows[::2], rows[1::2], strict=True)
        ]
    return workers


def clear_ghosts(now: datetime) -> Steps[list[str]]:
    """Unregister the workers without a record; return their names. Their jobs are not touched."""
    registered = yield from _registered_keys(None)
    names = yield from queues.names()
    cleared: list[str] = []
    for start in range(0, len(registered), stale_workers.STEP):
        chunk = registered[start : start + stale_workers.STEP]
        words = stale_workers.arguments(names, chunk, now)
        cleared += map(text, (yield ScriptStep(_CLEAR, [stale_workers.WORKERS], words)))
    return cleared


def health_of(
    *,
    now: datetime,
    heartbeat: datetime | None,
    ours: bool,
    job_started: datetime | None,
    job_timeout: float | None,
) -> Health:
    """Return the health of a worker; ``job_timeout`` is seconds, None or negative for none."""
    if heartbeat is None:
        return Health.GHOST
    if (now - heartbeat).total_seconds() >= (SILENT if ours else SILENT_STOCK):
        return Health.SILENT
    if job_started is not None and job_timeout is not None and job_timeout > 0:
        running = (now - job_started).total_seconds()
        return Health.OVERDUE if running > job_timeout + OVERDUE else Health.WELL
    return Health.WELL


def _registered_keys(queue: str | None) -> Steps[list[str]]:
    """Return the sorted keys of registered workers, of one queue or of all."""
    registered: set[str] = set()
    cursor = "0"
    key = stale_workers.WORKERS if queue is None else f"{stale_workers.WORKERS}:{queue}"
    while True:
        [(next_cursor, members)] = yield BatchStep([["SSCAN", key, cursor, "COUNT", 500]])
        registered |= set(map(text, members))
        if len(registered) > MAX_WORKERS:
            raise InvalidTaskError("workers", f"more than {MAX_WORKERS}", "ask for one queue")
        cursor = text(next_cursor)
        if cursor == "0":
            return sorted(registered)


_FIELDS = (
    "state", "queues", "er_job", "current_job", "er_job_started", "er_job_timeout",
    "last_heartbeat", "birth", "hostname", "pid", "er_memory", "er_cpu", "er_pool", "er_pod",
    "version", "successful_job_count", "failed_job_count",
)  # fmt: skip


def _worker(
    key: str, row: Sequence[bytes | None], execution: bytes | None, now: datetime
) -> Worker:
    fields = dict(zip(_FIELDS, map(text, row), strict=True))
    heartbeat = _moment(fields["last_heartbeat"])
    started = fields["er_job_started"]
    job_started = datetime.fromtimestamp(float(started), now.tzinfo) if started else None
    ours = bool(fields["er_pool"])
    running = text(execution).rpartition(":")[0]
    timeout = fields["er_job_timeout"]
    return Worker(
        name=key.removeprefix("rq:worker:"),
        health=health_of(
            now=now,
            heartbeat=heartbeat,
            ours=ours,
            job_started=job_started,
            job_timeout=float(timeout) if timeout else None,
        ),
        state=fields["state"],
        queues=tuple(filter(None, fields["queues"].split(","))),
        job=fields["er_job"] if ours else fields["current_job"] or running,
        job_started=job_started,
        heartbeat=heartbeat,
        birth=_moment(fields["birth"]),
        host=fields["hostname"],
        pid=int(fields["pid"]) if fields["pid"].isdigit() else None,
        memory=int(fields["er_memory"]) if fields["er_memory"] else None,
        cpu=float(fields["er_cpu"]) if fields["er_cpu"] else None,
        pool=fields["er_pool"],
        pod=fields["er_pod"],
        rq_version=fields["version"],
        finished=int(fields["successful_job_count"] or 0),
        failed=int(fields["failed_job_count"] or 0),
    )


def _moment(stamp: str) -> datetime | None:
    return datetime.fromisoformat(stamp) if stamp else None
