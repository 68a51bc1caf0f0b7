"""Enqueueing jobs after the commit of a database transaction, and never after a rollback.

A process that is killed between the commit and the enqueueing loses the job. Use
``engineroom.tasks.outbox`` where that must not happen.

``enqueue`` encodes and checks the task at once, alone and beside the others, while the transaction
can still be rolled back. Later changes of its arguments have no effect, and a ``delay`` counts from
this call. Conflicts that only Redis knows show after the commit: a job whose ``job_id`` exists, or
that depends on a cancelled job, is not enqueued, and a warning is logged.
"""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from engineroom.core import tracing
from engineroom.core.logging import get_logger
from engineroom.tasks.async_client import AsyncTasks
from engineroom.tasks.client import Tasks
from engineroom.tasks.enqueueing.encode import EncodedJob, encode, set_enqueued_at
from engineroom.tasks.enqueueing.enqueue import JobBatch, Reason, write
from engineroom.tasks.errors import InvalidTaskError, TasksUnavailableError
from engineroom.tasks.redis_steps import Steps, run, run_async
from engineroom.tasks.type_checks import check_type

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from datetime import datetime

    from engineroom.tasks.enqueueing.task import Task

log = get_logger(__name__)

_PENDING = "engineroom.tasks.pending"


class Pending:
    """Checked jobs that wait for the commit."""

    def __init__(self, tasks: Tasks | AsyncTasks) -> None:
        self._tasks = tasks
        self._batch = JobBatch()
        self._closed = False

    def enqueue(self, task: Task) -> str:
        """Enqueue the task after the commit; return the job's id.

        Raises InvalidTaskError at once, while the transaction can still be rolled back, also for a
        conflict with the tasks before it; messages call them ``tasks[0]``, ``tasks[1]`` and so on.
        """
        if self._closed:
            raise InvalidTaskError("transaction", "is over", "enqueue while it is open")
        job = encode(task, self._tasks.rules, self._tasks.clock.now())
        self._batch.add(job)
        return job.job_id

    def close(self) -> list[EncodedJob]:
        """Refuse further tasks and return the jobs."""
        self._closed = True
        return self._batch.jobs


@contextmanager
def transaction(connection: Any, tasks: Tasks) -> Iterator[Pending]:
    """Open a transaction of a psycopg connection, and enqueue the pending jobs after its commit.

    The connection must not be in a transaction: an inner transaction is only a savepoint, which the
    outer one may still roll back. Raises InvalidTaskError, and TasksUnavailableError after the
    commit.
    """
    check_type("tasks", tasks, Tasks, "use Tasks with a plain connection")
    pending = _pending(connection, tasks)
    committed = False
    try:
        with connection.transaction():
            yield pending
            committed = True  # not reached by psycopg's Rollback, which ends the block in silence
    finally:
        jobs = pending.close()
    if committed and jobs:
        run(tasks.redis, _flush(jobs, tasks.clock.now()))


@asynccontextmanager
async def async_transaction(connection: Any, tasks: AsyncTasks) -> AsyncIterator[Pending]:
    """Open a transaction as ``transaction`` does, for psycopg's AsyncConnection.

    Call ``enqueue`` without ``await``.
    """
    check_type("tasks", tasks, AsyncTasks, "use AsyncTasks with an AsyncConnection")
    pending = _pending(connection, tasks)
    committed = False
    try:
        async with connection.transaction():
            yield pending
            committed = True
    finally:
        jobs = pending.close()
    if committed and jobs:
        await run_async(tasks.redis, _flush(jobs, tasks.clock.now()))


def enqueue_after_commit(session: Any, tasks: Tasks | AsyncTasks, task: Task) -> str:
    """Enqueue the task after the commit of the SQLAlchemy session; return the job's id.

    ``session`` is a Session with Tasks, or an AsyncSession with AsyncTasks; call this function
    without ``await`` in both cases. A rollback, also of the savepoint in which this was called,
    discards the job. Raises InvalidTaskError at once, also for a conflict with the tasks before it.
    ``session.commit()`` raises TasksUnavailableError after the commit.
    """
    if hasattr(session, "registry"):
        session = session.registry()  # a scoped session stands for one of many
    sync_session = getattr(session, "sync_session", session)
    client = Tasks if sync_session is session else AsyncTasks
    check_type("tasks", tasks, client, f"use {client.__name__} with this session")
    job = encode(task, tasks.rules, tasks.clock.now())
    waiting = sync_session.info.get(_PENDING)
    if waiting is None:
        from sqlalchemy import event

        waiting = sync_session.info[_PENDING] = _SessionJobs()
        event.listen(sync_session, "after_commit", _after_commit)
        event.listen(sync_session, "after_transaction_end", _after_transaction_end)
    within = (
        sync_session.get_nested_transaction()
        or sync_session.get_transaction()
        or sync_session.begin()
    )
    waiting.add(within, tasks, job)
    return job.job_id


class _SessionJobs:
    """A session's pending jobs, each with the transaction or savepoint that has to commit."""

    def __init__(self) -> None:
        self.entries: list[tuple[Any, Tasks | AsyncTasks, EncodedJob]] = []
        self.batches: dict[int, JobBatch] = {}
        self.committed = False

    def add(self, within: Any, tasks: Tasks | AsyncTasks, job: EncodedJob) -> None:
        self.batches.setdefault(id(tasks), JobBatch()).add(job)
        self.entries.append((within, tasks, job))

    def replace(self, entries: list[tuple[Any, Tasks | AsyncTasks, EncodedJob]]) -> None:
        """Replace all entries, and check them as one batch."""
        self.entries, self.batches = [], {}
        for entry in entries:
            self.add(*entry)

    def release(self, savepoint: Any) -> None:
        """Assign the savepoint's jobs to the enclosing transaction."""
        self.entries = [
            (savepoint.parent if within is savepoint else within, tasks, job)
            for within, tasks, job in self.entries
        ]


def _after_commit(session: Any) -> None:
    waiting = session.info[_PENDING]
    savepoint = session.get_nested_transaction()
    if savepoint is None:
        waiting.committed = True
    else:
        waiting.release(savepoint)


def _after_transaction_end(session: Any, transaction: Any) -> None:
    """Enqueue the jobs after the session released its connection.

    The session stays usable after an error.
    """
    waiting = session.info[_PENDING]
    if transaction.parent is not None:
        if any(within is transaction for within, *_ in waiting.entries):
            waiting.replace([entry for entry in waiting.entries if entry[0] is not transaction])
        return
    entries, committed = waiting.entries, waiting.committed
    waiting.replace([])
    waiting.committed = False
    if not committed:
        return
    by_client: dict[int, tuple[Tasks | AsyncTasks, list[EncodedJob]]] = {}
    for _, tasks, job in entries:
        by_client.setdefault(id(tasks), (tasks, []))[1].append(job)
    failed: TasksUnavailableError | None = None
    for tasks, jobs in by_client.values():
        try:
            _run(tasks, _flush(jobs, tasks.clock.now()))
        except TasksUnavailableError as error:
            failed = failed or error  # another client's Redis may be available
    if failed is not None:
        raise failed


def _run(tasks: Tasks | AsyncTasks, steps: Steps[None]) -> None:
    if isinstance(tasks, Tasks):
        run(tasks.redis, steps)
        return
    from sqlalchemy.util import await_only

    await_only(run_async(tasks.redis, steps))


def _pending(connection: Any, tasks: Tasks | AsyncTasks) -> Pending:
    if connection.info.transaction_status != 0:  # libpq's PQTRANS_IDLE
        raise InvalidTaskError(
            "connection", "is in a transaction already", "open the outermost one with this"
        )
    return Pending(tasks)


def _flush(jobs: Sequence[EncodedJob], now: datetime) -> Steps[None]:
    """Enqueue the jobs of a committed transaction; log refusals, as the caller cannot roll back."""
    with tracing.span("enqueue after commit", kind="producer") as span:
        span.note(messaging__batch__message_count=len(jobs))
        for job in jobs:
            set_enqueued_at(job, now)
        results = yield from write(jobs)
    for result in results:
        if result.reason not in (Reason.CREATED, Reason.UNIQUE):
            log.warning(
                "committed, but the job is not enqueued",
                job=result.job_id,
                queue=result.queue,
                reason=result.reason.value,
            )
