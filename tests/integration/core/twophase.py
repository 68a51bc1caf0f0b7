"""A transfer between two databases, in a process that dies at a chosen statement."""

from __future__ import annotations

import os
import signal
from typing import Any

import psycopg

from engineroom.core.transactions.twophase import TwoPhaseParticipant
from engineroom.core.transactions.unit import UnitOfWork

_number, _side, _done = -1, "", 0


def _told(name: str) -> Any:
    """The connection's method, with a kill before or after it when its turn has come."""
    method = getattr(psycopg.Connection, name)

    def around(connection: Any, *arguments: Any) -> Any:
        global _done
        number, _done = _done, _done + 1
        if (number, _side) == (_number, "before"):
            os.kill(os.getpid(), signal.SIGKILL)
        answer = method(connection, *arguments)
        if (number, _side) == (_number, "after"):
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    return around


class Telling(psycopg.Connection[Any]):
    """A connection that counts what it is asked to do."""

    execute = _told("execute")
    commit = _told("commit")


def transfer(first_at: str, other_at: str, number: int, side: str) -> None:
    """Move 1 from the first to the other, and die before or after statement ``number``.

    Who lives exits with the number of statements that there were.
    """
    global _number, _side
    _number, _side = number, side
    first, other = Telling.connect(first_at), Telling.connect(other_at)
    with UnitOfWork() as unit:
        unit.enlist(TwoPhaseParticipant(first, {"other": other}))
        first.execute("UPDATE account SET amount = amount - 1")
        other.execute("UPDATE account SET amount = amount + 1")
    os._exit(_done)
