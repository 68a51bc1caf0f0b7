"""A saga log in PostgreSQL. Each write is one statement.

Lease and epoch are columns of the saga's row; the writing statement compares them. Times come from
the database's clock.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from engineroom.core.error_translation import wrapped
from engineroom.core.transactions.journal import (
    ENDS,
    MAX_PAGE,
    RETENTION,
    EntryKind,
    JournalEntry,
    SagaPage,
    SagaRecord,
    as_json,
    check_id,
    entry_detail,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    Connect = Callable[[], AbstractAsyncContextManager[Any]]

#: Idempotent DDL for the application's own migrations.
TABLES = """
CREATE TABLE IF NOT EXISTS engineroom_sagas (
  number bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
  id text PRIMARY KEY,
  name text NOT NULL,
  input text NOT NULL,
  by text NOT NULL,
  epoch int NOT NULL,
  started timestamptz NOT NULL DEFAULT clock_timestamp(),
  lease timestamptz,
  ended text,
  touched timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX IF NOT EXISTS engineroom_sagas_lease ON engineroom_sagas (lease)
  WHERE lease IS NOT NULL;
CREATE INDEX IF NOT EXISTS engineroom_sagas_touched ON engineroom_sagas (touched)
  WHERE lease IS NULL;
CREATE TABLE IF NOT EXISTS engineroom_saga_lines (
  saga text NOT NULL REFERENCES engineroom_sagas ON DELETE CASCADE,
  number bigint GENERATED ALWAYS AS IDENTITY,
  kind text NOT NULL,
  step text NOT NULL,
  detail text NOT NULL,
  epoch int NOT NULL,
  at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (saga, number)
);
"""

_BEGIN = """
WITH made AS (
  INSERT INTO engineroom_sagas (id, name, input, by, epoch, lease)
  VALUES (%s, %s, %s, %s, 1, clock_timestamp() + make_interval(secs => %s))
  ON CONFLICT (id) DO NOTHING RETURNING id
)
INSERT INTO engineroom_saga_lines (saga, kind, step, detail, epoch)
SELECT id, 'begin', '', 'null', 1 FROM made
RETURNING epoch
"""

_APPEND = """
WITH held AS (
  UPDATE engineroom_sagas SET
    lease = CASE WHEN %(ended)s::text IS NULL
                 THEN clock_timestamp() + make_interval(secs => %(lease)s) END,
    ended = %(ended)s, touched = clock_timestamp()
  WHERE id = %(id)s AND epoch = %(epoch)s AND lease IS NOT NULL
  RETURNING id, epoch
)
INSERT INTO engineroom_saga_lines (saga, kind, step, detail, epoch)
SELECT held.id, said.kind, said.step, said.detail, held.epoch
FROM held, unnest(%(kinds)s::text[], %(steps)s::text[], %(details)s::text[])
  WITH ORDINALITY AS said (kind, step, detail, place)
ORDER BY said.place
"""

#: Deletes a few ended sagas; runs whenever another saga ends.
_FORGET = """
DELETE FROM engineroom_sagas WHERE id IN (
  SELECT id FROM engineroom_sagas
  WHERE lease IS NULL AND ended <> 'stuck' AND touched < now() - make_interval(secs => %s)
  ORDER BY touched LIMIT 10 FOR UPDATE SKIP LOCKED
)
"""

_RENEW = """
UPDATE engineroom_sagas SET lease = clock_timestamp() + make_interval(secs => %s)
WHERE id = %s AND epoch = %s AND lease IS NOT NULL
"""

_CLAIM = """
UPDATE engineroom_sagas SET
  epoch = epoch + 1, lease = clock_timestamp() + make_interval(secs => %(lease)s)
WHERE id IN (
  SELECT id FROM engineroom_sagas
  WHERE lease <= clock_timestamp() AND name = ANY(%(names)s)
  ORDER BY lease LIMIT %(most)s FOR UPDATE SKIP LOCKED
)
RETURNING id, epoch
"""

_RESUME = """
WITH opened AS (
  UPDATE engineroom_sagas SET
    epoch = epoch + 1, lease = clock_timestamp() + make_interval(secs => %s), ended = NULL
  WHERE id = %s AND ended = 'stuck'
  RETURNING id, epoch
)
INSERT INTO engineroom_saga_lines (saga, kind, step, detail, epoch)
SELECT id, 'resumed', '', 'null', epoch FROM opened
RETURNING epoch
"""

_COLUMNS = """
SELECT s.number, s.id, s.name, s.by, s.input, s.epoch, extract(epoch FROM s.started)::float8,
  (SELECT coalesce(json_agg(json_build_array(l.kind, l.step, l.detail,
            extract(epoch FROM l.at), l.epoch) ORDER BY l.number), '[]')::text
   FROM engineroom_saga_lines l WHERE l.saga = s.id)
FROM engineroom_sagas s
"""
_READ = _COLUMNS + "WHERE s.id = %s"
_PAGE = _COLUMNS + "WHERE s.number < %s ORDER BY s.number DESC LIMIT %s"


class PostgresSagaLog:
    """A ``SagaLog`` in the tables of ``TABLES``.

    ``connect`` returns a context manager that yields a psycopg ``AsyncConnection`` and commits,
    such as the ``connection`` method of a ``psycopg_pool.AsyncConnectionPool``. ``retention`` is
    the time in seconds for which ended sagas are kept.
    """

    def __init__(self, connect: Connect, *, retention: float = RETENTION) -> None:
        self._connect = connect
        self._retention = retention

    async def begin(self, id_: str, name: str, input_: Any, by: str, lease: float) -> int | None:
        """See ``SagaLog``. Raises InvalidInputError for a bad id and TooLargeError."""
        check_id(id_)
        parameters = (id_, name, as_json(input_), by[:200], lease)
        with wrapped("saga.begin"):
            rows = await self._rows(_BEGIN, parameters)
        return int(rows[0][0]) if rows else None

    async def append(
        self, id_: str, epoch: int, entries: Sequence[JournalEntry], lease: float
    ) -> bool:
        """See ``SagaLog``."""
        end = entries[-1].kind if entries[-1].kind in ENDS else None
        parameters = {
            "id": id_,
            "epoch": epoch,
            "lease": lease,
            "ended": None if end is None else end.value,
            "kinds": [line.kind.value for line in entries],
            "steps": [line.step for line in entries],
            "details": [entry_detail(line) for line in entries],
        }
        with wrapped("saga.append"):
            async with self._connect() as connection:
                written = (await connection.execute(_APPEND, parameters)).rowcount
                if written and end is not None:
                    await connection.execute(_FORGET, (self._retention,))
        return bool(written)

    async def renew(self, id_: str, epoch: int, lease: float) -> bool:
        """See ``SagaLog``."""
        with wrapped("saga.renew"):
            async with self._connect() as connection:
                return bool((await connection.execute(_RENEW, (lease, id_, epoch))).rowcount)

    async def claim(self, names: Sequence[str], lease: float, most: int) -> list[tuple[str, int]]:
        """See ``SagaLog``."""
        parameters = {"lease": lease, "names": list(names), "most": most}
        with wrapped("saga.claim"):
            return [(id_, epoch) for id_, epoch in await self._rows(_CLAIM, parameters)]

    async def resume(self, id_: str, lease: float) -> int | None:
        """See ``SagaLog``."""
        with wrapped("saga.resume"):
            rows = await self._rows(_RESUME, (lease, id_))
        return int(rows[0][0]) if rows else None

    async def read(self, id_: str) -> SagaRecord | None:
        """See ``SagaLog``."""
        with wrapped("saga.read"):
            rows = await self._rows(_READ, (id_,))
        return _record(rows[0]) if rows else None

    async def page(self, *, cursor: str | None = None, count: int = 50) -> SagaPage:
        """See ``SagaLog``; at most ``MAX_PAGE`` at once."""
        most = max(1, min(count, MAX_PAGE))
        before = int(cursor) if cursor is not None and cursor.isdecimal() else 2**63 - 1
        with wrapped("saga.page"):
            rows = await self._rows(_PAGE, (before, most + 1))
        records = tuple(_record(row) for row in rows[:most])
        return SagaPage(records, str(rows[most - 1][0]) if len(rows) > most else None)

    async def _rows(self, statement: str, parameters: Any) -> list[Any]:
        async with self._connect() as connection:
            cursor = await connection.execute(statement, parameters)
            rows: list[Any] = await cursor.fetchall()
        return rows


def _record(row: Any) -> SagaRecord:
    _, id_, name, by, input_, epoch, started, entries = row
    return SagaRecord(
        id=id_,
        name=name,
        by=by,
        input=json.loads(input_),
        epoch=epoch,
        started=started,
        entries=tuple(
            JournalEntry(EntryKind(kind), step, json.loads(detail), at, written)
            for kind, step, detail, at, written in json.loads(entries)
        ),
    )
