"""A transfer between two databases, as a process that is killed at a chosen statement.

``python -m tests.integration.core.twophase FIRST OTHER NUMBER SIDE`` prints how many statements
there were, if it lives.
"""

from __future__ import annotations

import os
import signal
import sys
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


def main() -> None:
    global _number, _side
    first_at, other_at, number, _side = sys.argv[1:]
    _number = int(number)
    first, other = Telling.connect(first_at), Telling.connect(other_at)
    with UnitOfWork() as unit:
        unit.enlist(TwoPhaseParticipant(first, {"other": other}))
        first.execute("UPDATE account SET amount = amount - 1")
        other.execute("UPDATE account SET amount = amount + 1")
    print(_done)


if __name__ == "__main__":
    main()
