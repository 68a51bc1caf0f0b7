"""A job that exists if and only if a transaction of PostgreSQL commits.

``add`` writes the job into a table, in the application's own transaction; ``Relay`` carries it to
Redis and deletes the row afterwards, in a transaction of its own. Killed between the two it finds
the row again, and in Redis the mark that the job was written: nothing is lost, nothing doubled, as
long as Redis keeps its data and the relay is back within RELAY_WINDOW.

Nothing here imports a driver: connections are psycopg's, or SQLAlchemy's with any driver of
PostgreSQL that writes parameters as ``%s``.
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

from engineroom.core.clock import Clock, SystemClock
from engineroom.core.logging import get_logger
from engineroom.queue.priority import MAX_PRIORITY
from engineroom.tasks.client import AsyncTasks, Tasks
from engineroom.tasks.enqueueing.dependents import EncodedFlow
from engineroom.tasks.enqueueing.enqueue import Enqueued, Reason, relay
from engineroom.tasks.enqueueing.flows import MAX_JOBS, encode_flow
from engineroom.tasks.enqueueing.task import (
    MAX_DEPENDENCIES,
    MAX_SECONDS,
    Encoded,
    Rules,
    Task,
    Unique,
    check_queue,
    encode,
    timestamp,
)
from engineroom.tasks.errors import InvalidTaskError, TasksUnavailableError
from engineroom.tasks.redis_steps import Batch, Steps, run
from engineroom.tasks.type_checks import check_kind

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping, Sequence

    from redis import Redis

    from engineroom.tasks.enqueueing.flows import Part

log = get_logger(__name__)

#: Rows that the relay carries in one transaction.
CHUNK = 100
#: The relay looks so often when there is nothing (seconds).
PACE = 1.0

#: To be run once, by the application's own migrations. The order of ``id`` is that of the inserts,
#: not of the commits; rows are carried in it, and jobs may overtake each other.
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
#: The latest time that a job may be put off to: the year 5138 (Unix seconds).
LATEST = 1e11
_ID = re.compile(r"[A-Za-z0-9_-]{1,200}")
#: Refusals that say nothing about what was refused.
_STATES = (OutOfMemoryError, ReadOnlyError, NoPermissionError)


def add(connection: Any, tasks: Tasks | AsyncTasks, task: Task) -> str:
    """Put the task into the outbox, in the connection's transaction; the job's id.

    ``connection`` is a psycopg connection or cursor, or a SQLAlchemy Connection or Session.
    ``tasks`` says which queues there are, how large a job may be and how it is serialised; Redis is
    not asked. Raises InvalidTaskError before anything is written.
    """
    job = _encoded(tasks, task)
    _execute(connection, _INSERT, (_dumps(job),))
    return job.job_id


async def add_async(connection: Any, tasks: Tasks | AsyncTasks, task: Task) -> str:
    """``add`` for psycopg's AsyncConnection and SQLAlchemy's AsyncConnection or AsyncSession."""
    job = _encoded(tasks, task)
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
    """Put a whole flow into the outbox, as one row; the flow's id. Otherwise as ``add``."""
    encoded = _encoded_flow(tasks, flow, flow_id, unique)
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
    """``add_flow`` for the connections of ``add_async``."""
    encoded = _encoded_flow(tasks, flow, flow_id, unique)
    await _execute_async(connection, _INSERT, (_dumps(encoded),))
    return encoded.flow_id


def _encoded(tasks: Tasks | AsyncTasks, task: Task) -> Encoded:
    check_kind("tasks", tasks, (Tasks, AsyncTasks), "give the application's Tasks, then the task")
    return encode(task, tasks.rules, tasks.clock.now())


def _encoded_flow(
    tasks: Tasks | AsyncTasks, flow: Part, flow_id: str | None, unique: Unique | None
) -> EncodedFlow:
    check_kind("tasks", tasks, (Tasks, AsyncTasks), "give the application's Tasks, then the flow")
    return encode_flow(flow, tasks.rules, tasks.clock.now(), flow_id, unique)


class Relay:
    """Carries jobs from the outbox to Redis; any number may run at once.

    ``connection`` is a psycopg connection that nobody else uses.
    """

    def __init__(self, connection: Any, redis: Redis, clock: Clock | None = None) -> None:
        self._connection = connection
        self._redis = redis
        self._clock = clock or SystemClock()

    def once(self) -> list[Enqueued]:
        """Carry up to CHUNK jobs; what became of each. Raises TasksUnavailableError.

        A row that cannot be read, or that Redis refuses while it takes others, is set aside with
        the reason. Errors of the driver are the driver's own: whoever hosts the relay connects
        anew.
        """
        with self._connection.transaction():
            rows = self._connection.execute(_SELECT, (CHUNK,)).fetchall()
            if not rows:
                return []
            now = timestamp(self._clock.now())
            jobs: dict[int, Encoded | EncodedFlow] = {}
            for row_id, job in rows:
                try:
                    jobs[row_id] = _loads(job, now)
                except (LookupError, TypeError, ValueError, RecursionError, InvalidTaskError) as e:
                    self._set_aside(row_id, e)
            if not jobs:
                return []
            answers = dict(zip(jobs, run(self._redis, relay(list(jobs.values()))), strict=True))
            refused = {row: each for row, each in answers.items() if isinstance(each, RedisError)}
            if refused:
                self._check_that_redis_takes_others(list(refused.values()))
            for row_id, error in refused.items():
                self._set_aside(row_id, error)
            done = {row: each for row, each in answers.items() if isinstance(each, Enqueued)}
            self._connection.execute(_DELETE, (list(done),))
        for each in done.values():
            if each.reason is Reason.PARENT_CANCELED:
                log.warning("job of the outbox is cancelled, as what it waits for", job=each.job_id)
        return list(done.values())

    def _check_that_redis_takes_others(self, refusals: Sequence[RedisError]) -> None:
        """Raises TasksUnavailableError where it is not the rows that are the matter.

        A server that is full, read-only or forbids it refuses every row, whose turn comes later.
        """
        for each in refusals:
            if isinstance(each, _STATES):
                raise TasksUnavailableError(f"Redis: {type(each).__name__}: {each}"[:300]) from each
        run(self._redis, _probe())

    def _set_aside(self, row_id: int, error: Exception) -> None:
        """A row that cannot be carried must not keep back those behind it.

        Somebody else wrote it, or a newer version of this, or a key of Redis that it needs holds
        something else; its content stays in the table.
        """
        problem = f"{type(error).__name__}: {error}"[:500]
        self._connection.execute(_SET_ASIDE, (problem, row_id))
        log.error("row of the outbox cannot be carried and is set aside",
                  row=row_id, problem=problem)  # fmt: skip

    def run(self, stop: threading.Event) -> None:
        """Until ``stop``; waits through outages of Redis, ends with the driver's errors."""
        while not stop.is_set():
            try:
                carried = self.once()
            except TasksUnavailableError as error:
                log.warning("outbox cannot be relayed", error=str(error))
                carried = []
            if len(carried) < CHUNK:
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


def _dumps(entry: Encoded | EncodedFlow) -> str:
    if isinstance(entry, Encoded):
        return json.dumps(_plain(entry))
    jobs = [_plain(job) for job in entry.jobs]
    unique = None if entry.unique is None else asdict(entry.unique)
    return json.dumps({"flow_id": entry.flow_id, "jobs": jobs, "unique": unique})


def _plain(job: Encoded) -> dict[str, Any]:
    fields = [
        {"b": b64encode(word).decode()} if isinstance(word, bytes) else word for word in job.fields
    ]
    return {**asdict(job), "fields": fields}


def _loads(said: str, now: str) -> Encoded | EncodedFlow:
    entry = json.loads(said)
    if "jobs" not in entry:
        return _job(entry, now)
    jobs = entry["jobs"]
    if not isinstance(jobs, list) or not 1 <= len(jobs) <= MAX_JOBS:
        raise ValueError(f"jobs: use 1 to {MAX_JOBS}")
    _check_ids("flow_id", [entry["flow_id"]])
    return EncodedFlow(entry["flow_id"], [_job(job, now) for job in jobs], _unique(entry))


def _job(job: dict[str, Any], now: str) -> Encoded:
    """The job of a row. What Redis would refuse of it once half is written is refused here."""
    fields = [b64decode(word["b"]) if isinstance(word, dict) else word for word in job["fields"]]
    if (
        not 2 <= len(fields) <= MAX_WORDS
        or len(fields) % 2
        or not all(type(word) in (str, bytes, int, float) for word in fields)
    ):
        raise ValueError("fields: must be names and values in turn, of text or numbers")
    for word in fields:
        if isinstance(word, str):
            word.encode()  # half of a surrogate, which JSON can say, is no text for Redis
    for name, types in _TYPES.items():
        if name in job and type(job[name]) not in types:
            raise ValueError(f"{name}: {type(job[name]).__name__} is of the wrong type")
    due, depends_on = job["due"], job.get("depends_on", [])
    check_queue(job["queue"], Rules())
    _check_ids("job_id", [job["job_id"]])
    _check_ids("depends_on", depends_on)
    if len(depends_on) > MAX_DEPENDENCIES:
        raise ValueError(f"depends_on: {len(depends_on)} jobs; use at most {MAX_DEPENDENCIES}")
    if job["ttl"] is not None and not 1 <= job["ttl"] <= MAX_SECONDS:
        raise ValueError(f"ttl: {job['ttl']} s is no time to live")
    # False for NaN, too.
    if due is not None and not 0 <= due <= LATEST:
        raise ValueError(f"due: {due} is no time")
    if not 0 <= job.get("priority", 0) <= MAX_PRIORITY:
        raise ValueError(f"priority: {job['priority']} is none of 0 to {MAX_PRIORITY}")
    if "enqueued_at" in fields[::2]:
        fields[2 * fields[::2].index("enqueued_at") + 1] = now
    return Encoded(**{**job, "fields": fields, "unique": _unique(job)})


def _check_ids(name: str, ids: Sequence[Any]) -> None:
    for each in ids:
        if not isinstance(each, str) or not _ID.fullmatch(each):
            raise ValueError(f"{name}: {each!r:.100} is no id of a job")


def _unique(entry: dict[str, Any]) -> Unique | None:
    if entry["unique"] is None:
        return None
    unique = Unique(**entry["unique"])
    if not isinstance(unique.key, str):
        raise TypeError(f"unique.key: {type(unique.key).__name__} is no text")
    unique.key.encode()
    return unique


def _probe() -> Steps[None]:
    yield Batch([["SET", "engineroom:relay", "1", "EX", 60]])
