"""Jobs that are enqueued when a transaction has committed, and not when it has not.

The simple case: a process that is killed between the commit and the enqueueing loses the job. Where
that must not be, use ``engineroom.tasks.outbox``.

A task becomes a job when it is given: what is wrong with it, alone or beside the others, is said
while all can still be rolled back; what its arguments become afterwards changes nothing, and a
``delay`` counts from then. Only what Redis alone knows is found after the commit: a job whose
``job_id`` exists, or that waits for a cancelled one, is not enqueued, and logged as a warning.
"""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from engineroom.core import tracing
from engineroom.core.logging import get_logger
from engineroom.tasks.client import AsyncTasks, Tasks
from engineroom.tasks.enqueueing.enqueue import Reason, Together, write
from engineroom.tasks.enqueueing.task import Encoded, Task, encode, restamp
from engineroom.tasks.errors import InvalidTaskError, TasksUnavailableError
from engineroom.tasks.redis_steps import Steps, run, run_async
from engineroom.tasks.type_checks import check_kind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from datetime import datetime

log = get_logger(__name__)

_PENDING = "engineroom.tasks.pending"


class Pending:
    """What is to be enqueued after the commit; checked when it is given."""

    def __init__(self, tasks: Tasks | AsyncTasks) -> None:
        self._tasks = tasks
        self._together = Together()
        self._over = False

    def enqueue(self, task: Task) -> str:
        """Enqueue after the commit; the job's id.

        Raises InvalidTaskError now, while all can be rolled back, also for what does not go with
        the tasks before it: they are called ``tasks[0]``, ``tasks[1]`` and so on.
        """
        if self._over:
            raise InvalidTaskError("transaction", "is over", "enqueue while it is open")
        job = encode(task, self._tasks.rules, self._tasks.clock.now())
        self._together.add(job)
        return job.job_id

    def end(self) -> list[Encoded]:
        """Take nothing more; what there is."""
        self._over = True
        return self._together.jobs


@contextmanager
def transaction(connection: Any, tasks: Tasks) -> Iterator[Pending]:
    """A transaction of a psycopg connection; what it was given is enqueued when it has committed.

    The connection must not be in a transaction already: an inner one only makes a savepoint, which
    the outer one may still roll back. Raises InvalidTaskError; TasksUnavailableError after the
    commit.
    """
    check_kind("tasks", tasks, Tasks, "use Tasks with a plain connection")
    pending = _pending(connection, tasks)
    committed = False
    try:
        with connection.transaction():
            yield pending
            committed = True  # not reached by psycopg's Rollback, which ends the block in silence
    finally:
        jobs = pending.end()
    if committed and jobs:
        run(tasks.redis, _flush(jobs, tasks.clock.now()))


@asynccontextmanager
async def async_transaction(connection: Any, tasks: AsyncTasks) -> AsyncIterator[Pending]:
    """``transaction`` for psycopg's AsyncConnection; ``enqueue`` itself is not awaited."""
    check_kind("tasks", tasks, AsyncTasks, "use AsyncTasks with an AsyncConnection")
    pending = _pending(connection, tasks)
    committed = False
    try:
        async with connection.transaction():
            yield pending
            committed = True
    finally:
        jobs = pending.end()
    if committed and jobs:
        await run_async(tasks.redis, _flush(jobs, tasks.clock.now()))


def enqueue_after_commit(session: Any, tasks: Tasks | AsyncTasks, task: Task) -> str:
    """Enqueue when the SQLAlchemy session has committed, forget it when it has not; the job's id.

    ``session`` is a Session with Tasks, or an AsyncSession with AsyncTasks; then the awaited
    ``commit()`` enqueues, and this is called without ``await``. What was given inside a savepoint
    goes with it. Raises InvalidTaskError now, also for what does not go with the tasks before it;
    TasksUnavailableError comes out of ``session.commit()``, after the commit.
    """
    if hasattr(session, "registry"):
        session = session.registry()  # a scoped session stands for one of many
    known = getattr(session, "sync_session", session)
    kind = Tasks if known is session else AsyncTasks
    check_kind("tasks", tasks, kind, f"use {kind.__name__} with this session")
    job = encode(task, tasks.rules, tasks.clock.now())
    waiting = known.info.get(_PENDING)
    if waiting is None:
        from sqlalchemy import event

        waiting = known.info[_PENDING] = _Waiting()
        event.listen(known, "after_commit", _committed)
        event.listen(known, "after_transaction_end", _ended)
    within = known.get_nested_transaction() or known.get_transaction() or known.begin()
    waiting.add(within, tasks, job)
    return job.job_id


class _Waiting:
    """What a session is to enqueue, by the transaction or savepoint that has to commit."""

    def __init__(self) -> None:
        self.entries: list[tuple[Any, Tasks | AsyncTasks, Encoded]] = []
        self.together: dict[int, Together] = {}
        self.committed = False

    def add(self, within: Any, tasks: Tasks | AsyncTasks, job: Encoded) -> None:
        self.together.setdefault(id(tasks), Together()).add(job)
        self.entries.append((within, tasks, job))

    def keep(self, entries: list[tuple[Any, Tasks | AsyncTasks, Encoded]]) -> None:
        """Forget all others; what they were in the way of may be given now."""
        self.entries, self.together = [], {}
        for entry in entries:
            self.add(*entry)

    def release(self, savepoint: Any) -> None:
        """From now on its jobs belong to what is around it."""
        self.entries = [
            (savepoint.parent if within is savepoint else within, tasks, job)
            for within, tasks, job in self.entries
        ]


def _committed(session: Any) -> None:
    waiting = session.info[_PENDING]
    savepoint = session.get_nested_transaction()
    if savepoint is None:
        waiting.committed = True
    else:
        waiting.release(savepoint)


def _ended(session: Any, transaction: Any) -> None:
    """The connection is given back, so that an error leaves a session that can go on."""
    waiting = session.info[_PENDING]
    if transaction.parent is not None:
        if any(within is transaction for within, *_ in waiting.entries):
            waiting.keep([entry for entry in waiting.entries if entry[0] is not transaction])
        return
    entries, committed = waiting.entries, waiting.committed
    waiting.keep([])
    waiting.committed = False
    if not committed:
        return
    each: dict[int, tuple[Tasks | AsyncTasks, list[Encoded]]] = {}
    for _, tasks, job in entries:
        each.setdefault(id(tasks), (tasks, []))[1].append(job)
    failed: TasksUnavailableError | None = None
    for tasks, jobs in each.values():
        try:
            _run(tasks, _flush(jobs, tasks.clock.now()))
        except TasksUnavailableError as error:
            failed = failed or error  # the others' Redis may be there
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


def _flush(jobs: Sequence[Encoded], now: datetime) -> Steps[None]:
    """Enqueue what was committed with; nobody is there any more to whom a refusal could be told."""
    with tracing.span("enqueue after commit", kind="producer") as span:
        span.note(messaging__batch__message_count=len(jobs))
        for job in jobs:
            restamp(job, now)
        done = yield from write(jobs)
    for answer in done:
        if answer.reason not in (Reason.CREATED, Reason.UNIQUE):
            log.warning(
                "committed, but the job is not enqueued",
                job=answer.job_id,
                queue=answer.queue,
                reason=answer.reason.value,
            )
