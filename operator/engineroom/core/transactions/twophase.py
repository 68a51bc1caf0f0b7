"""Two-phase commit over several PostgreSQL databases, by PREPARE TRANSACTION.

The first database is the coordinator. It holds the decision, a row in ``engineroom_decisions`` that
the transaction itself writes. All other databases prepare, the first commits, then the others
commit their prepared transactions. A process that dies in between leaves prepared transactions
behind, and ``recover`` ends them as the row says. A missing row means rollback ("presumed abort";
the first database is the "last agent" of C. Mohan, B. Lindsay, R. Obermarck, "Transaction
management in the R* distributed database management system", ACM TODS 11 (4), 1986).

A prepared transaction holds its locks until it ends, so run ``recover`` every minute. The servers
need ``max_prepared_transactions`` above 0.
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

#: Idempotent DDL for the first database, for the application's own migrations.
TABLE = """
CREATE TABLE IF NOT EXISTS engineroom_decisions (
  gid text PRIMARY KEY,
  committed boolean NOT NULL,
  databases text[] NOT NULL,
  at timestamptz NOT NULL DEFAULT now()
)
"""
#: The allowed names of databases; the name is part of the transaction id in PostgreSQL.
_NAME = re.compile(r"[A-Za-z0-9.-]{1,60}", re.ASCII)
#: Ids of our transactions: prefix, hexadecimal number, name of the database.
_ID = re.compile(r"(engineroom-[0-9a-f]{32})_([A-Za-z0-9.-]{1,60})", re.ASCII)
#: Least seconds for which a decision is kept; longer while a database still needs it.
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
#: Limits the wait for a coordinator that hangs between its decision and its commit.
_LOCK_TIMEOUT = "SELECT set_config('lock_timeout', '2s', false)"
_PREPARED = """
SELECT gid, extract(epoch FROM clock_timestamp() - prepared)::float8 FROM pg_prepared_xacts
WHERE database = current_database()
"""


@dataclass(frozen=True, slots=True)
class _Together:
    """A savepoint in every database."""

    savepoints: list[Any]

    async def release(self) -> None:
        for savepoint in self.savepoints:
            await settle(savepoint.release())

    async def rollback(self) -> None:
        for savepoint in self.savepoints:
            await settle(savepoint.rollback())


class TwoPhaseParticipant:
    """Several databases as one participant of a unit of work; enlist it first.

    ``first`` is an idle psycopg connection, not in autocommit. ``databases`` maps stable names to
    more such connections; ``recover`` needs the same names. A name has letters, digits, "." and
    "-". The connections are all sync or all async.

    It sends PREPARE TRANSACTION itself: psycopg's ``tpc_`` methods do not recover from a prepare
    that the server refused.
    """

    def __init__(self, first: Any, databases: Mapping[str, Any]) -> None:
        if not databases:
            raise ValueError("databases: is empty; one database needs a ConnectionParticipant")
        for name in databases:
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"databases: {name[:80]!r} is no name; use letters, digits, . and -"
                )
        self.gid = f"engineroom-{uuid4().hex}"
        self._first = first
        self._databases = dict(databases)
        self._async = inspect.iscoroutinefunction(first.commit)
        self._savers = [ConnectionParticipant(c) for c in (first, *self._databases.values())]
        self._prepared: set[str] = set()

    def prepare(self) -> Any:
        """Prepare the other databases, then write the decision, uncommitted.

        Raises ConflictError when ``recover`` rolled the transaction back meanwhile.
        """
        return self._either(self._prepare())

    def commit(self) -> Any:
        """Commit the first database, which holds the decision, then the other databases.

        If one of the other databases does not answer, the failure is logged and left to
        ``recover``: the decision stands.
        """
        return self._either(self._commit())

    def rollback(self) -> Any:
        """Roll all databases back, prepared or not."""
        return self._either(self._rollback())

    def savepoint(self) -> Any:
        """Return a savepoint in every database."""
        return self._either(self._savepoint())

    def _either(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return coroutine if self._async else run_plain(coroutine)

    async def _prepare(self) -> None:
        for name, other in self._databases.items():
            # Noted before sending: if the answer is lost, the transaction may be prepared or not.
            self._prepared.add(name)
            try:
                await settle(other.execute(f"PREPARE TRANSACTION '{self.gid}_{name}'"))
            except Exception as error:
                if getattr(error, "sqlstate", None):
                    self._prepared.discard(name)  # refused, so the server has rolled it back
                raise
        parameters = (self.gid, True, list(self._databases))
        written = await settle(self._first.execute(_DECIDE, parameters))
        if written.rowcount != 1:
            raise ConflictError(
                "the transaction took so long that recovery rolled it back; repeat it, or pass "
                "recover a larger older_than"
            )

    async def _commit(self) -> None:
        await settle(self._first.commit())
        for name, other in self._databases.items():
            try:
                await _outside(other, f"COMMIT PREPARED '{self.gid}_{name}'")
            except Exception as error:
                if wrap(error) is None:
                    raise
                log.exception("a prepared transaction is left to recovery", database=name)

    async def _rollback(self) -> None:
        failures: list[Exception] = []
        for name, connection in {"": self._first, **self._databases}.items():
            try:
                if name in self._prepared:
                    await _outside(connection, f"ROLLBACK PREPARED '{self.gid}_{name}'")
                else:
                    await settle(connection.rollback())
            except Exception as error:  # noqa: BLE001 - first roll back the other databases
                if getattr(error, "sqlstate", None) != _GONE:  # recovery was faster
                    failures.append(error)
        if failures:
            raise failures[0]

    async def _savepoint(self) -> Any:
        together = _Together([await settle(saver.savepoint()) for saver in self._savers])
        return together if self._async else _Plain(together)


@dataclass(frozen=True, slots=True)
class _Plain:
    """``_Together`` for sync code."""

    together: _Together

    def release(self) -> None:
        run_plain(self.together.release())

    def rollback(self) -> None:
        run_plain(self.together.rollback())


@dataclass(frozen=True, slots=True)
class RecoveredTransaction:
    """A prepared transaction that recovery ended."""

    gid: str
    database: str
    committed: bool


def recover(first: Any, databases: Mapping[str, Any], *, older_than: float = 60.0) -> Any:
    """End the transactions prepared more than ``older_than`` seconds ago, as their decisions say.

    The connections are in autocommit. ``databases`` has the participants' names; pass as many
    databases as are reachable: a decision is deleted once all its databases were checked. Returns a
    list of ``RecoveredTransaction``, for async connections an awaitable of it. Safe to run in any
    number of processes. A transaction older than ``older_than`` without a decision is rolled back,
    and its ``prepare`` raises ConflictError. Raises the driver's errors.
    """
    work = _recover(first, databases, older_than)
    return work if inspect.iscoroutinefunction(first.commit) else run_plain(work)


async def _recover(
    first: Any, databases: Mapping[str, Any], older_than: float
) -> list[RecoveredTransaction]:
    await settle(first.execute(_LOCK_TIMEOUT))
    ended: list[RecoveredTransaction] = []
    left: set[str] = set()
    for name, other in databases.items():
        cursor = await settle(other.execute(_PREPARED))
        for text, age in await settle(cursor.fetchall()):
            ours = _ID.fullmatch(text)
            if ours is None or ours[2] != name:
                continue
            gid = ours[1]
            committed = await _verdict(first, gid) if age >= older_than else None
            if committed is None:
                left.add(gid)
            elif await _end(other, text, committed):
                ended.append(RecoveredTransaction(gid, name, committed))
    await settle(first.execute(_FORGET, (RETENTION, list(databases), sorted(left))))
    return ended


async def _verdict(first: Any, gid: str) -> bool | None:
    """Return whether the transaction committed; None while its coordinator is deciding.

    Inserting "no" waits for a concurrent insert of "yes", and prevents a later one.
    """
    try:
        await settle(first.execute(_DECIDE, (gid, False, [])))
    except Exception as error:
        if getattr(error, "sqlstate", None) != _LOCKED:
            raise
        return None
    cursor = await settle(first.execute(_DECIDED, (gid,)))
    row = await settle(cursor.fetchone())
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
    """Run a statement outside of a transaction, on a connection that is not in autocommit."""
    await settle(connection.set_autocommit(True))
    await settle(connection.execute(statement))
    await settle(connection.set_autocommit(False))
