"""Logs of units of work: who ran what, with which outcome, in which time.

A unit of work writes its record when it begins, before its first commit, and when it ends. After a
crash the last write remains: ``running`` means that nothing was committed, ``committing`` that some
participants may have committed.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from engineroom.core import key_prefixes
from engineroom.core.error_translation import wrapped
from engineroom.core.redaction import redact_text
from engineroom.core.redis_replies import text
from engineroom.core.transactions.journal import MAX_PAGE, RETENTION
from engineroom.core.transactions.maybe_async import run_plain, settle

if TYPE_CHECKING:
    from collections.abc import Coroutine

#: Most characters of a name and of a caller's name.
MAX_NAME = 200
#: Most characters of an error's text.
MAX_ERROR = 300


class UnitStatus(StrEnum):
    """The state of a unit of work in its log."""

    RUNNING = "running"
    COMMITTING = "committing"
    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    IN_DOUBT = "in_doubt"


@dataclass(frozen=True, slots=True)
class UnitRecord:
    """A unit of work as its log holds it.

    ``started`` is in Unix seconds and ``duration`` in seconds, None until the unit ends.
    ``participants`` are the class names of the participants in commit order, empty before the first
    commit. ``error`` is one line about the error that ended the unit, or empty.
    """

    id: str
    name: str
    by: str
    status: UnitStatus
    started: float
    duration: float | None = None
    participants: tuple[str, ...] = ()
    error: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name[:MAX_NAME])
        object.__setattr__(self, "by", self.by[:MAX_NAME])
        object.__setattr__(self, "error", redact_text(self.error)[:MAX_ERROR])


@dataclass(frozen=True, slots=True)
class UnitPage:
    """One page of records, newest first; ``cursor`` leads to the next, None after the last."""

    records: tuple[UnitRecord, ...]
    cursor: str | None


class UnitLog(Protocol):
    """A store of records. In an ``AsyncUnitOfWork`` each method may return an awaitable."""

    def write(self, record: UnitRecord) -> Any:
        """Store a record, replacing an older one with its id; raise DependencyError on failure."""
        ...

    def page(self, *, cursor: str | None = None, count: int = 50) -> Any:
        """Return a ``UnitPage`` of up to ``count`` records, newest first."""
        ...


class NullUnitLog:
    """A log that stores nothing."""

    def write(self, record: UnitRecord) -> None:
        """Ignore the record."""

    def page(self, *, cursor: str | None = None, count: int = 50) -> UnitPage:
        """Return an empty page."""
        return UnitPage((), None)


class MemoryUnitLog:
    """A log in memory, for tests and single processes; ``most`` records are kept."""

    def __init__(self, most: int = 1_000) -> None:
        self._most = most
        self._records: dict[str, UnitRecord] = {}

    def write(self, record: UnitRecord) -> None:
        """Store a record, replacing an older one with its id."""
        self._records[record.id] = record
        while len(self._records) > self._most:
            del self._records[next(iter(self._records))]

    def page(self, *, cursor: str | None = None, count: int = 50) -> UnitPage:
        """Return a page; see ``UnitLog``."""
        by_position = {_position(record): record for record in self._records.values()}
        positions = sorted((p for p in by_position if cursor is None or p < cursor), reverse=True)
        most = _page_size(count)
        following = positions[most - 1] if len(positions) > most else None
        return UnitPage(tuple(by_position[p] for p in positions[:most]), following)


class RedisUnitLog:
    """A log in Redis under ``prefix``, which maps to one cluster slot.

    ``client`` is a sync or an async client; with an async one every method returns an awaitable.
    ``retention`` is the time in seconds for which a record is kept after its last write.
    """

    def __init__(
        self, client: Any, *, prefix: str = key_prefixes.UNITS, retention: int = RETENTION
    ) -> None:
        self._client = client
        self._prefix = prefix
        self._retention = retention
        self._index = f"{prefix}:index"
        self._async = inspect.iscoroutinefunction(client.execute_command)

    def write(self, record: UnitRecord) -> Any:
        """Store a record; see ``UnitLog``."""
        return self._run(self._write(record))

    def page(self, *, cursor: str | None = None, count: int = 50) -> Any:
        """Return a page of at most ``MAX_PAGE`` records; see ``UnitLog``."""
        return self._run(self._page(cursor, _page_size(count)))

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return coroutine if self._async else run_plain(coroutine)

    async def _write(self, record: UnitRecord) -> None:
        oldest = _position(replace(record, id="", started=record.started - self._retention))
        with wrapped("unit.write"):
            pipeline = self._client.pipeline(transaction=True)
            pipeline.set(self._key(record.id), json.dumps(asdict(record)), ex=self._retention)
            pipeline.zadd(self._index, {_position(record): 0})
            pipeline.zremrangebylex(self._index, "-", f"({oldest}")
            await settle(pipeline.execute())

    async def _page(self, cursor: str | None, most: int) -> UnitPage:
        start = "+" if cursor is None else f"({cursor}"
        with wrapped("unit.page"):
            reply = await settle(self._client.zrevrangebylex(self._index, start, "-", 0, most + 1))
            positions = [text(position) for position in reply]
            keys = [self._key(position.partition(":")[2]) for position in positions[:most]]
            texts = await settle(self._client.mget(keys)) if keys else []
        following = positions[most - 1] if len(positions) > most else None
        return UnitPage(tuple(_record(json.loads(text)) for text in texts if text), following)

    def _key(self, id_: str) -> str:
        return f"{self._prefix}:unit:{id_}"


def _record(fields: dict[str, Any]) -> UnitRecord:
    return UnitRecord(
        **{
            **fields,
            "status": UnitStatus(fields["status"]),
            "participants": tuple(fields["participants"]),
        }
    )


def _page_size(count: int) -> int:
    return max(1, min(count, MAX_PAGE))


def _position(record: UnitRecord) -> str:
    """Return the record's place in the index; as texts, positions sort by time."""
    return f"{max(0, int(record.started * 1_000_000)):016d}:{record.id}"
