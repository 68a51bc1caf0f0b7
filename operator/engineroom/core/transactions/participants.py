"""Participants of a unit of work for Redis, RQ, psycopg and SQLAlchemy.

They rely on the methods of the clients and import no library. All take sync and async clients
alike, except the queue: RQ is sync only.
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
    """Buffers Redis commands in ``commands`` and sends them at commit in one MULTI/EXEC.

    Prepare pings Redis, so most outages show while everything can still be rolled back. Redis does
    not roll back: if a command fails inside EXEC (a wrong type), the other commands stand.
    """

    def __init__(self, client: _Redis) -> None:
        self._client = client
        self.commands: Any = client.pipeline(transaction=True)

    def prepare(self) -> Any:
        """Ping Redis if there is anything to send."""
        return self._client.ping() if self.commands.command_stack else None

    def commit(self) -> Any:
        """Send the buffered commands."""
        return self.commands.execute() if self.commands.command_stack else None

    def rollback(self) -> Any:
        """Discard the buffered commands."""
        return self.commands.reset()

    def savepoint(self) -> _Mark:
        """Return a savepoint of the commands buffered so far."""
        return _Mark(self.commands, len(self.commands.command_stack))


class QueueParticipant(RedisParticipant):
    """Enqueues jobs that reach the queue at commit, not before."""

    def __init__(self, queue: Any) -> None:
        super().__init__(queue.connection)
        self._queue = queue

    def enqueue(self, function: Any, *arguments: Any, **options: Any) -> Any:
        """Enqueue as ``rq.Queue.enqueue`` does; return the job, whose id is final.

        Raises ValueError for ``depends_on``, which has to read Redis at once.
        """
        if options.get("depends_on") is not None:
            raise ValueError("depends_on cannot wait for a commit; enqueue in after_commit")
        return self._queue.enqueue(function, *arguments, pipeline=self.commands, **options)


@dataclass(slots=True)
class _SqlSavepoint:
    """A savepoint by SQL statement, for drivers."""

    connection: Any
    name: str

    def release(self) -> Any:
        return self.connection.execute(f"RELEASE SAVEPOINT {self.name}")

    def rollback(self) -> Any:
        return self.connection.execute(f"ROLLBACK TO SAVEPOINT {self.name}")


@dataclass(slots=True)
class _NestedTransaction:
    """A savepoint in SQLAlchemy."""

    nested: Any

    def release(self) -> Any:
        return self.nested.commit()

    def rollback(self) -> Any:
        return self.nested.rollback()


class ConnectionParticipant:
    """A psycopg connection (not in autocommit) or a SQLAlchemy connection or session.

    Prepare flushes a session. The database checks deferred constraints at commit, so enlist this
    participant first.
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
        """Return a savepoint in the transaction."""
        begin_nested = getattr(self._connection, "begin_nested", None)
        if begin_nested is None:
            self._savepoints += 1
            name = f"engineroom_{self._savepoints}"
            result = self._connection.execute(f"SAVEPOINT {name}")
            savepoint: Any = _SqlSavepoint(self._connection, name)
        else:
            result = begin_nested()
            if not inspect.isawaitable(result):
                return _NestedTransaction(result)
            savepoint = None
        if not inspect.isawaitable(result):
            return savepoint
        return _await_savepoint(result, savepoint)


async def _await_savepoint(pending: Any, savepoint: Any) -> Any:
    nested = await pending
    return _NestedTransaction(nested) if savepoint is None else savepoint
