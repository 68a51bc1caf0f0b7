"""Participants for what applications use: Redis, RQ, psycopg and SQLAlchemy.

They go by the methods of what they are given, so nothing is imported for them. Each is for plain or
async clients alike, but for the queue: RQ is plain.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Protocol


class _Pipeline(Protocol):
    command_stack: list[Any]

    def execute(self) -> Any: ...

    def reset(self) -> Any: ...


class _Redis(Protocol):
    def pipeline(self, transaction: bool = True) -> Any: ...

    def ping(self) -> Any: ...


@dataclass(slots=True)
class _Mark:
    """A savepoint of buffered commands."""

    pipeline: _Pipeline
    length: int

    def release(self) -> None:
        pass

    def rollback(self) -> None:
        del self.pipeline.command_stack[self.length :]


class RedisParticipant:
    """Commands given to ``commands`` are sent at commit, all in one MULTI/EXEC.

    Prepare looks whether Redis answers, so that most outages are found while all can still be
    rolled back. Redis does not roll back a command that fails inside EXEC (a wrong type): the
    others of it stand.
    """

    def __init__(self, client: _Redis) -> None:
        self._client = client
        self.commands: Any = client.pipeline(transaction=True)

    def prepare(self) -> Any:
        """Look whether Redis answers, if there is anything to send."""
        return self._client.ping() if self.commands.command_stack else None

    def commit(self) -> Any:
        """Send what was gathered."""
        return self.commands.execute() if self.commands.command_stack else None

    def rollback(self) -> Any:
        """Forget what was gathered."""
        return self.commands.reset()

    def savepoint(self) -> _Mark:
        """Everything gathered so far."""
        return _Mark(self.commands, len(self.commands.command_stack))


class QueueParticipant(RedisParticipant):
    """Jobs enqueued through it reach the queue at commit, and not before."""

    def __init__(self, queue: Any) -> None:
        super().__init__(queue.connection)
        self._queue = queue

    def enqueue(self, function: Any, *arguments: Any, **options: Any) -> Any:
        """As ``rq.Queue.enqueue``; returns the job, whose id is final.

        ``depends_on`` needs to read Redis at once, so it is refused with ValueError.
        """
        if options.get("depends_on") is not None:
            raise ValueError("depends_on cannot wait for a commit; enqueue in after_commit")
        return self._queue.enqueue(function, *arguments, pipeline=self.commands, **options)


@dataclass(slots=True)
class _SqlSavepoint:
    """A savepoint by statement, for drivers."""

    connection: Any
    name: str

    def release(self) -> Any:
        return self.connection.execute(f"RELEASE SAVEPOINT {self.name}")

    def rollback(self) -> Any:
        return self.connection.execute(f"ROLLBACK TO SAVEPOINT {self.name}")


@dataclass(slots=True)
class _NestedTransaction:
    """A savepoint of SQLAlchemy."""

    nested: Any

    def release(self) -> Any:
        return self.nested.commit()

    def rollback(self) -> Any:
        return self.nested.rollback()


class ConnectionParticipant:
    """A psycopg connection (not in autocommit) or a SQLAlchemy connection or session.

    Prepare sends what a session has not flushed yet. Constraints that are deferred are checked by
    the database at commit, so enlist it first.
    """

    def __init__(self, connection: Any) -> None:
        if getattr(connection, "autocommit", False) is True:
            raise ValueError("the connection commits by itself; set autocommit to False")
        self._connection = connection
        self._savepoints = 0

    def prepare(self) -> Any:
        """Flush a session."""
        flush = getattr(self._connection, "flush", None)
        return None if flush is None else flush()

    def commit(self) -> Any:
        """Commit the connection's transaction."""
        return self._connection.commit()

    def rollback(self) -> Any:
        """Roll the connection's transaction back."""
        return self._connection.rollback()

    def savepoint(self) -> Any:
        """A savepoint in it."""
        begin_nested = getattr(self._connection, "begin_nested", None)
        if begin_nested is None:
            self._savepoints += 1
            name = f"engineroom_{self._savepoints}"
            made = self._connection.execute(f"SAVEPOINT {name}")
            savepoint: Any = _SqlSavepoint(self._connection, name)
        else:
            made = begin_nested()
            if not inspect.isawaitable(made):
                return _NestedTransaction(made)
            savepoint = None
        if not inspect.isawaitable(made):
            return savepoint
        return _when_made(made, savepoint)


async def _when_made(made: Any, savepoint: Any) -> Any:
    answer = await made
    return _NestedTransaction(answer) if savepoint is None else savepoint
