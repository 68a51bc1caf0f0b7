"""Jobs that are enqueued when a transaction has committed, and not when it has not.

The simple case: a process that is killed between the commit and the enqueueing loses the job. Where
that must not be, use ``engineroom.tasks.outbox``.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from engineroom.tasks.errors import InvalidTaskError
from engineroom.tasks.task import Task, encode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engineroom.tasks.client import Tasks

_PENDING = "engineroom.tasks.pending"


class Pending:
    """What is to be enqueued after the commit; checked when it is given."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self.waiting: list[Task] = []

    def enqueue(self, task: Task) -> None:
        """Enqueue after the commit. Raises InvalidTaskError now, while all can be rolled back."""
        encode(task, self._tasks.rules, self._tasks.clock.now())
        self.waiting.append(task)


@contextmanager
def transaction(connection: Any, tasks: Tasks) -> Iterator[Pending]:
    """A transaction of a psycopg connection; what it was given is enqueued when it has committed.

    The connection must not be in a transaction already: an inner one only makes a savepoint, which
    the outer one may still roll back. Raises InvalidTaskError, TasksUnavailableError after the
    commit.
    """
    if connection.info.transaction_status != 0:  # libpq's PQTRANS_IDLE
        raise InvalidTaskError(
            "connection", "is in a transaction already", "open the outermost one with this"
        )
    pending = Pending(tasks)
    with connection.transaction():
        yield pending
    if pending.waiting:
        tasks.enqueue_many(pending.waiting)


def enqueue_after_commit(session: Any, tasks: Tasks, task: Task) -> None:
    """Enqueue when the SQLAlchemy Session has committed; forget it when it rolls back.

    What was given inside a savepoint goes with it. Raises InvalidTaskError now;
    TasksUnavailableError comes out of ``session.commit()``, after the commit.
    """
    from sqlalchemy import event

    encode(task, tasks.rules, tasks.clock.now())
    if _PENDING not in session.info:
        session.info[_PENDING] = []
        event.listen(session, "after_commit", _committed)
        event.listen(session, "after_soft_rollback", _rolled_back)
    within = session.get_nested_transaction() or session.get_transaction() or session.begin()
    session.info[_PENDING].append((within, tasks, task))


def _committed(session: Any) -> None:
    if session.in_nested_transaction():
        return  # a savepoint was released: the transaction goes on
    pending, session.info[_PENDING] = session.info[_PENDING], []
    together: dict[int, tuple[Tasks, list[Task]]] = {}
    for _, tasks, task in pending:
        together.setdefault(id(tasks), (tasks, []))[1].append(task)
    for tasks, waiting in together.values():
        tasks.enqueue_many(waiting)


def _rolled_back(session: Any, previous: Any) -> None:
    session.info[_PENDING] = [
        entry for entry in session.info[_PENDING] if previous not in _around(entry[0])
    ]


def _around(transaction: Any) -> list[Any]:
    chain = []
    while transaction is not None:
        chain.append(transaction)
        transaction = transaction.parent
    return chain
