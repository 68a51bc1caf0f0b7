"""Several PostgreSQL databases that commit together, by PREPARE TRANSACTION.

The first database is the coordinator: it holds the decision, a row in ``engineroom_decisions`` that
is written by the very transaction that it is about. The others prepare; the first commits; the
others commit what they prepared. Whoever dies in between leaves prepared transactions behind, and
``recover`` ends them as the row says: there is none, so it is no ("presumed abort", and the first
is the "last agent" of C. Mohan, B. Lindsay, R. Obermarck, "Transaction management in the R*
distributed database management system", ACM TODS 11 (4), 1986).

A prepared transaction holds its locks until it is ended, so ``recover`` has to run every minute
somewhere. The servers need ``max_prepared_transactions`` above 0.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from engineroom.core.error_translation import wrap
from engineroom.core.errors import ConflictError
from engineroom.core.logging import get_logger
from engineroom.core.transactions.maybe_async import run_plain, settle
from engineroom.core.transactions.participants import ConnectionParticipant

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping

log = get_logger(__name__)

#: To be run once in the first database, by the application's own migrations.
TABLE = """
CREATE TABLE IF NOT EXISTS engineroom_decisions (
  gid text PRIMARY KEY,
  committed boolean NOT NULL,
  databases text[] NOT NULL,
  at timestamptz NOT NULL DEFAULT now()
)
"""
#: How a database may be called; the name is part of the id that PostgreSQL keeps.
_NAME = re.compile(r"[A-Za-z0-9.-]{1,60}", re.ASCII)
#: Marks our transactions among those of others: prefix, hexadecimal number, name of the database.
_ID = re.compile(r"(engineroom-[0-9a-f]{32})_([A-Za-z0-9.-]{1,60})", re.ASCII)
#: A decision is kept at least so long (seconds), and as long as anybody has not heard of it.
RETENTION = 86400.0

_DECIDE = """
INSERT INTO engineroom_decisions (gid, committed, databases) VALUES (%s, %s, %s)
ON CONFLICT (gid) DO NOTHING
"""
_DECIDED = "SELECT committed FROM engineroom_decisions WHERE gid = %s"
_FORGET = """
DELETE FROM engineroom_decisions
WHERE at < now() - make_interval(secs => %s) AND databases <@ %s AND NOT gid = ANY(%s)
"""
#: undefined_object and lock_not_available.
_GONE, _LOCKED = "42704", "55P03"
#: A coordinator that hangs between its decision and its commit is waited for no longer.
_LOCK_TIMEOUT = "SELECT set_config('lock_timeout', '2s', false)"
_PREPARED = """
SELECT gid, extract(epoch FROM clock_timestamp() - prepared)::float8 FROM pg_prepared_xacts
WHERE database = current_database()
"""


@dataclass(frozen=True, slots=True)
class _Together:
    """The same savepoint in every database."""

    savepoints: list[Any]

    async def release(self) -> None:
        for savepoint in self.savepoints:
            await settle(savepoint.release())

    async def rollback(self) -> None:
        for savepoint in self.savepoints:
            await settle(savepoint.rollback())


class TwoPhaseParticipant:
    """Databases as one participant of a unit of work; enlist it first.

    ``first`` is a psycopg connection with nothing under way and not in autocommit, ``others`` more
    of them by names that are always the same: ``recover`` needs them again. Names are of letters,
    digits, "." and "-". All connections are plain or all are async.

    PREPARE TRANSACTION is sent as it is: psycopg's own ``tpc_`` methods do not come back from a
    prepare that the server refused.
    """

    def __init__(self, first: Any, others: Mapping[str, Any]) -> None:
        if not others:
            raise ValueError("others: is empty; one database needs a ConnectionParticipant")
        for name in others:
            if not _NAME.fullmatch(name):
                raise ValueError(f"others: {name[:80]!r} is no name; use letters, digits, . and -")
        self.gid = f"engineroom-{uuid4().hex}"
        self._first = first
        self._others = dict(others)
        self._async = inspect.iscoroutinefunction(first.commit)
        self._savers = [ConnectionParticipant(each) for each in (first, *self._others.values())]
        self._prepared: set[str] = set()

    def prepare(self) -> Any:
        """Have the others promise to commit; then write the decision, which waits for commit.

        Raises ConflictError when ``recover`` gave the transaction up meanwhile.
        """
        return self._either(self._prepare())

    def commit(self) -> Any:
        """Commit the first, and with it the decision; then the others.

        One of the others that does not answer then is logged and left to ``recover``: the decision
        stands.
        """
        return self._either(self._commit())

    def rollback(self) -> Any:
        """Roll all of them back, prepared or not."""
        return self._either(self._rollback())

    def savepoint(self) -> Any:
        """A savepoint in each."""
        return self._either(self._savepoint())

    def _either(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return coroutine if self._async else run_plain(coroutine)

    async def _prepare(self) -> None:
        for name, other in self._others.items():
            # Before anything is sent: an answer may get lost, and then it is prepared or not.
            self._prepared.add(name)
            try:
                await settle(other.execute(f"PREPARE TRANSACTION '{self.gid}_{name}'"))
            except Exception as error:
                if getattr(error, "sqlstate", None):
                    self._prepared.discard(name)  # refused, so the server has rolled it back
                raise
        words = (self.gid, True, list(self._others))
        written = await settle(self._first.execute(_DECIDE, words))
        if written.rowcount != 1:
            raise ConflictError(
                "the transaction took so long that recovery rolled it back; do it again, or give "
                "recover a larger older_than"
            )

    async def _commit(self) -> None:
        await settle(self._first.commit())
        for name, other in self._others.items():
            try:
                await _outside(other, f"COMMIT PREPARED '{self.gid}_{name}'")
            except Exception as error:
                if wrap(error) is None:
                    raise
                log.exception("a prepared transaction is left to recovery", database=name)

    async def _rollback(self) -> None:
        failures: list[Exception] = []
        for name, connection in {"": self._first, **self._others}.items():
            try:
                if name in self._prepared:
                    await _outside(connection, f"ROLLBACK PREPARED '{self.gid}_{name}'")
                else:
                    await settle(connection.rollback())
            except Exception as error:  # noqa: BLE001 - the others have to have their turn first
                if getattr(error, "sqlstate", None) != _GONE:  # recovery was faster
                    failures.append(error)
        if failures:
            raise failures[0]

    async def _savepoint(self) -> Any:
        together = _Together([await settle(each.savepoint()) for each in self._savers])
        return together if self._async else _Plain(together)


@dataclass(frozen=True, slots=True)
class _Plain:
    """``_Together`` for plain code."""

    together: _Together

    def release(self) -> None:
        run_plain(self.together.release())

    def rollback(self) -> None:
        run_plain(self.together.rollback())


@dataclass(frozen=True, slots=True)
class Ended:
    """A prepared transaction that recovery ended."""

    gid: str
    database: str
    committed: bool


def recover(first: Any, others: Mapping[str, Any], *, older_than: float = 60.0) -> Any:
    """End what was prepared more than ``older_than`` seconds ago, as its decision says.

    The connections are in autocommit; ``others`` are by the names of the participants, all of them
    as far as they can be had: a decision is forgotten when all who took part were asked. Returns a
    list of ``Ended``, of async connections an awaitable of it. May run in any number of processes.
    Whatever commits in less than ``older_than`` is left alone; what is slower is rolled back and
    told so. Raises the driver's errors.
    """
    work = _recover(first, others, older_than)
    return work if inspect.iscoroutinefunction(first.commit) else run_plain(work)


async def _recover(first: Any, others: Mapping[str, Any], older_than: float) -> list[Ended]:
    await settle(first.execute(_LOCK_TIMEOUT))
    ended: list[Ended] = []
    left: set[str] = set()
    for name, other in others.items():
        found = await settle(other.execute(_PREPARED))
        for text, age in await settle(found.fetchall()):
            ours = _ID.fullmatch(text)
            if ours is None or ours[2] != name:
                continue
            gid = ours[1]
            committed = await _verdict(first, gid) if age >= older_than else None
            if committed is None:
                left.add(gid)
            elif await _end(other, text, committed):
                ended.append(Ended(gid, name, committed))
    words = (RETENTION, list(others), sorted(left))
    await settle(first.execute(_FORGET, words))
    return ended


async def _verdict(first: Any, gid: str) -> bool | None:
    """Whether it committed; None while its coordinator is just about to tell.

    Writing "no" waits for whoever is writing "yes", and keeps him from it afterwards.
    """
    try:
        await settle(first.execute(_DECIDE, (gid, False, [])))
    except Exception as error:
        if getattr(error, "sqlstate", None) != _LOCKED:
            raise
        return None
    found = await settle(first.execute(_DECIDED, (gid,)))
    row = await settle(found.fetchone())
    return bool(row[0]) if row is not None else None


async def _end(connection: Any, transaction: str, committed: bool) -> bool:
    verb = "COMMIT" if committed else "ROLLBACK"
    try:
        await settle(connection.execute(f"{verb} PREPARED '{transaction}'"))
    except Exception as error:
        if getattr(error, "sqlstate", None) != _GONE:
            raise
        return False
    return True


async def _outside(connection: Any, statement: str) -> None:
    """Run what PostgreSQL takes outside of transactions only, on a connection that begins them."""
    await settle(connection.set_autocommit(True))
    await settle(connection.execute(statement))
    await settle(connection.set_autocommit(False))
