"""Transactional outbox: a job exists if and only if a PostgreSQL transaction commits.

``add`` inserts the job into a table in the application's own transaction. ``Relay`` writes the job
to Redis and then deletes the row, in a transaction of its own. A relay that is killed between the
two steps finds the row again, and a mark in Redis that the job was written. No job is lost or
doubled, as long as Redis keeps its data and the relay restarts within RELAY_WINDOW.

This module imports no driver: connections are psycopg's, or SQLAlchemy's with any PostgreSQL driver
whose parameters are ``%s``.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from dataclasses import asdict
from types import NoneType
from typing import TYPE_CHECKING, Any

from redis.exceptions import (
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
)

from engineroom.core import key_prefixes
from engineroom.core.clock import Clock, SystemClock
from engineroom.core.logging import get_logger
from engineroom.queue.priority import MAX_PRIORITY
from engineroom.tasks.async_client import AsyncTasks
from engineroom.tasks.client import Tasks
from engineroom.tasks.enqueueing.dependents import EncodedFlow
from engineroom.tasks.enqueueing.encode import EncodedJob, encode, timestamp
from engineroom.tasks.enqueueing.enqueue import Enqueued, Reason, relay
from engineroom.tasks.enqueueing.flows import MAX_JOBS, encode_flow
from engineroom.tasks.enqueueing.task import (
    MAX_DEPENDENCIES,
    MAX_SECONDS,
    EnqueueRules,
    Task,
    Unique,
    check_queue,
)
from engineroom.tasks.errors import InvalidTaskError, TasksUnavailableError
from engineroom.tasks.redis_steps import BatchStep, Steps, run
from engineroom.tasks.type_checks import check_type

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping, Sequence

    from redis import Redis

    from engineroom.tasks.enqueueing.flows import Part

log = get_logger(__name__)

#: Rows that the relay moves in one transaction.
CHUNK = 100
#: Pause between two polls of an empty table (seconds).
PACE = 1.0

#: The application's own migrations create the table. The relay moves rows in the order of ``id``,
#: which is the order of the inserts, not of the commits; jobs may overtake each other.
TABLE = """
CREATE TABLE IF NOT EXISTS engineroom_outbox (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  job text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  problem text
)
"""

_INSERT = "INSERT INTO engineroom_outbox (job) VALUES (%s)"
_SELECT = (
    "SELECT id, job FROM engineroom_outbox WHERE problem IS NULL "
    "ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED"
)
_DELETE = "DELETE FROM engineroom_outbox WHERE id = ANY(%s)"
_SET_ASIDE = "UPDATE engineroom_outbox SET problem = %s WHERE id = %s"

_TYPES: Mapping[str, tuple[type, ...]] = {
    "job_id": (str,), "queue": (str,), "ttl": (int, NoneType), "due": (int, float, NoneType),
    "at_front": (bool,), "named": (bool,), "priority": (int,), "depends_on": (list,),
    "allow_failure": (bool,),
}  # fmt: skip
#: Names and values of a job's hash.
MAX_WORDS = 1000
#: The latest time for which a job may be scheduled: the year 5138 (Unix seconds).
LATEST = 1e11
_ID = re.compile(r"[A-Za-z0-9_-]{1,200}")
#: Refusals that concern the server's state and not the refused row.
_STATES = (OutOfMemoryError, ReadOnlyError, NoPermissionError)


def add(connection: Any, tasks: Tasks | AsyncTasks, task: Task) -> str:
    """Insert the task into the outbox in the connection's transaction; return the job's id.

    ``connection`` is a psycopg connection or cursor, or a SQLAlchemy Connection or Session.
    ``tasks`` provides the allowed queues, size limits and serializer; its Redis is not used. Raises
    InvalidTaskError before anything is written.
    """
    job = _encode(tasks, task)
    _execute(connection, _INSERT, (_dumps(job),))
    return job.job_id


async def add_async(connection: Any, tasks: Tasks | AsyncTasks, task: Task) -> str:
    """Insert as ``add`` does, for psycopg's AsyncConnection, SQLAlchemy's or an AsyncSession."""
    job = _encode(tasks, task)
    await _execute_async(connection, _INSERT, (_dumps(job),))
    return job.job_id


def add_flow(
    connection: Any,
    tasks: Tasks | AsyncTasks,
    flow: Part,
    *,
    flow_id: str | None = None,
    unique: Unique | None = None,
) -> str:
    """Insert a flow as one row, as ``add`` does for a task; return the flow's id."""
    encoded = _encode_flow(tasks, flow, flow_id, unique)
    _execute(connection, _INSERT, (_dumps(encoded),))
    return encoded.flow_id


async def add_flow_async(
    connection: Any,
    tasks: Tasks | AsyncTasks,
    flow: Part,
    *,
    flow_id: str | None = None,
    unique: Unique | None = None,
) -> str:
    """Insert a flow as ``add_flow`` does, for the connections of ``add_async``."""
    encoded = _encode_flow(tasks, flow, flow_id, unique)
    await _execute_async(connection, _INSERT, (_dumps(encoded),))
    return encoded.flow_id


def _encode(tasks: Tasks | AsyncTasks, task: Task) -> EncodedJob:
    check_type("tasks", tasks, (Tasks, AsyncTasks), "give the application's Tasks, then the task")
    return encode(task, tasks.rules, tasks.clock.now())


def _encode_flow(
    tasks: Tasks | AsyncTasks, flow: Part, flow_id: str | None, unique: Unique | None
) -> EncodedFlow:
    check_type("tasks", tasks, (Tasks, AsyncTasks), "give the application's Tasks, then the flow")
    return encode_flow(flow, tasks.rules, tasks.clock.now(), flow_id, unique)


class Relay:
    """Moves jobs from the outbox to Redis; any number of relays may run at once.

    ``connection`` is a psycopg connection that only this relay uses.
    """

    def __init__(self, connection: Any, redis: Redis, clock: Clock | None = None) -> None:
        self._connection = connection
        self._redis = redis
        self._clock = clock or SystemClock()

    def once(self) -> list[Enqueued]:
        """Move up to CHUNK jobs and return the result of each. Raises TasksUnavailableError.

        A row that cannot be read, or that Redis refuses while it accepts others, is set aside with
        the reason. Errors of the driver pass through; the caller then opens a new connection.
        """
        with self._connection.transaction():
            rows = self._connection.execute(_SELECT, (CHUNK,)).fetchall()
            if not rows:
                return []
            now = timestamp(self._clock.now())
            jobs: dict[int, EncodedJob | EncodedFlow] = {}
            for row_id, stored in rows:
                try:
                    jobs[row_id] = _loads(stored, now)
                except (LookupError, TypeError, ValueError, RecursionError, InvalidTaskError) as e:
                    self._set_aside(row_id, e)
            if not jobs:
                return []
            results = dict(zip(jobs, run(self._redis, relay(list(jobs.values()))), strict=True))
            refused = {
                row: error for row, error in results.items() if isinstance(error, RedisError)
            }
            if refused:
                self._check_that_redis_takes_others(list(refused.values()))
            for row_id, error in refused.items():
                self._set_aside(row_id, error)
            moved = {row: job for row, job in results.items() if isinstance(job, Enqueued)}
            self._connection.execute(_DELETE, (list(moved),))
        for job in moved.values():
            if job.reason is Reason.PARENT_CANCELED:
                log.warning("job of the outbox is cancelled, as what it waits for", job=job.job_id)
        return list(moved.values())

    def _check_that_redis_takes_others(self, refusals: Sequence[RedisError]) -> None:
        """Raise TasksUnavailableError if Redis refuses all writes and not just these rows.

        A server that is full, read-only or forbids writing refuses every row for the time being.
        """
        for error in refusals:
            if isinstance(error, _STATES):
                message = f"Redis: {type(error).__name__}: {error}"[:300]
                raise TasksUnavailableError(message) from error
        run(self._redis, _probe())

    def _set_aside(self, row_id: int, error: Exception) -> None:
        """Mark the row with its problem, so that it does not block the rows behind it.

        Another program or a newer version wrote it, or a Redis key that it needs has another type.
        Its content stays in the table.
        """
        problem = f"{type(error).__name__}: {error}"[:500]
        self._connection.execute(_SET_ASIDE, (problem, row_id))
        log.error("row of the outbox cannot be carried and is set aside",
                  row=row_id, problem=problem)  # fmt: skip

    def run(self, stop: threading.Event) -> None:
        """Move jobs until ``stop`` is set; wait through outages of Redis. Raises driver errors."""
        while not stop.is_set():
            try:
                moved = self.once()
            except TasksUnavailableError as error:
                log.warning("outbox cannot be relayed", error=str(error))
                moved = []
            if len(moved) < CHUNK:
                stop.wait(PACE)


def _execute(connection: Any, statement: str, words: tuple[Any, ...]) -> None:
    if hasattr(connection, "get_bind") and hasattr(connection, "connection"):
        connection = connection.connection()  # a Session's connection, in its transaction
    if hasattr(connection, "exec_driver_sql"):
        connection.exec_driver_sql(statement, words)
    else:
        connection.execute(statement, words)


async def _execute_async(connection: Any, statement: str, words: tuple[Any, ...]) -> None:
    if hasattr(connection, "run_sync"):
        await connection.run_sync(_execute, statement, words)
    else:
        await connection.execute(statement, words)


def _dumps(entry: EncodedJob | EncodedFlow) -> str:
    if isinstance(entry, EncodedJob):
        return json.dumps(_job_document(entry))
    jobs = [_job_document(job) for job in entry.jobs]
    unique = None if entry.unique is None else asdict(entry.unique)
    return json.dumps({"flow_id": entry.flow_id, "jobs": jobs, "unique": unique})


def _job_document(job: EncodedJob) -> dict[str, Any]:
    fields = [
        {"b": b64encode(word).decode()} if isinstance(word, bytes) else word for word in job.fields
    ]
    return {**asdict(job), "fields": fields}


def _loads(stored: str, now: str) -> EncodedJob | EncodedFlow:
    entry = json.loads(stored)
    if "jobs" not in entry:
        return _read_job(entry, now)
    jobs = entry["jobs"]
    if not isinstance(jobs, list) or not 1 <= len(jobs) <= MAX_JOBS:
        raise ValueError(f"jobs: use 1 to {MAX_JOBS}")
    _check_ids("flow_id", [entry["flow_id"]])
    return EncodedFlow(entry["flow_id"], [_read_job(job, now) for job in jobs], _unique(entry))


def _read_job(job: dict[str, Any], now: str) -> EncodedJob:
    """Return the job of a row; raise ValueError for values that Redis would refuse halfway."""
    fields = [b64decode(word["b"]) if isinstance(word, dict) else word for word in job["fields"]]
    if (
        not 2 <= len(fields) <= MAX_WORDS
        or len(fields) % 2
        or not all(type(word) in (str, bytes, int, float) for word in fields)
    ):
        raise ValueError("fields: must be names and values in turn, of text or numbers")
    for word in fields:
        if isinstance(word, str):
            word.encode()  # raises ValueError for a lone surrogate, which JSON can express
    for name, types in _TYPES.items():
        if name in job and type(job[name]) not in types:
            raise ValueError(f"{name}: {type(job[name]).__name__} is of the wrong type")
    due, depends_on = job["due"], job.get("depends_on", [])
    check_queue(job["queue"], EnqueueRules())
    _check_ids("job_id", [job["job_id"]])
    _check_ids("depends_on", depends_on)
    if len(depends_on) > MAX_DEPENDENCIES:
        raise ValueError(f"depends_on: {len(depends_on)} jobs; use at most {MAX_DEPENDENCIES}")
    if job["ttl"] is not None and not 1 <= job["ttl"] <= MAX_SECONDS:
        raise ValueError(f"ttl: {job['ttl']} s is no time to live")
    # The comparison is False for NaN, too.
    if due is not None and not 0 <= due <= LATEST:
        raise ValueError(f"due: {due} is no time")
    if not 0 <= job.get("priority", 0) <= MAX_PRIORITY:
        raise ValueError(f"priority: {job['priority']} is none of 0 to {MAX_PRIORITY}")
    if "enqueued_at" in fields[::2]:
        fields[2 * fields[::2].index("enqueued_at") + 1] = now
    return EncodedJob(**{**job, "fields": fields, "unique": _unique(job)})


def _check_ids(name: str, ids: Sequence[Any]) -> None:
    for job_id in ids:
        if not isinstance(job_id, str) or not _ID.fullmatch(job_id):
            raise ValueError(f"{name}: {job_id!r:.100} is no id of a job")


def _unique(entry: dict[str, Any]) -> Unique | None:
    if entry["unique"] is None:
        return None
    unique = Unique(**entry["unique"])
    if not isinstance(unique.key, str):
        raise TypeError(f"unique.key: {type(unique.key).__name__} is no text")
    unique.key.encode()
    return unique


def _probe() -> Steps[None]:
    yield BatchStep([["SET", key_prefixes.RELAY, "1", "EX", 60]])
