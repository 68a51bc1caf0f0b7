"""The journal of sagas: its entries, the records made of them, and the protocol of a log.

``sagalog`` (Redis), ``pgsagalog`` (PostgreSQL) and ``filelog`` (files) implement ``SagaLog``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from engineroom.core.errors import InvalidInputError, Problem, TooLargeError
from engineroom.core.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Most bytes of a saga's input and of a step's answer, as JSON.
MAX_BYTES = 64 * 1024
#: Most characters of a saga's id.
MAX_ID = 200
#: Seconds for which a log keeps sagas that ended.
RETENTION = 30 * 24 * 3600
#: Most records of one page.
MAX_PAGE = 200


class EntryKind(StrEnum):
    """The event that a journal entry records."""

    BEGIN = "begin"
    DOING = "doing"
    DONE = "done"
    FAILED = "failed"
    UNDOING = "undoing"
    UNDONE = "undone"
    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    STUCK = "stuck"
    RESUMED = "resumed"


#: Kinds of the last entry of a saga that no coordinator works on.
ENDS = frozenset({EntryKind.COMMITTED, EntryKind.ROLLED_BACK, EntryKind.STUCK})


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One entry of a saga's journal. ``at`` is in Unix seconds; ``step`` is a name or empty."""

    kind: EntryKind
    step: str = ""
    #: The answer of an action (JSON), or one line about a failure.
    detail: Any = None
    at: float = 0.0
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class SagaRecord:
    """A saga as its log holds it. Times are Unix seconds."""

    id: str
    name: str
    by: str
    input: Any
    epoch: int
    started: float
    entries: tuple[JournalEntry, ...]

    @property
    def ended(self) -> float | None:
        """The time at which the saga ended or got stuck; None while it runs."""
        return self.entries[-1].at if self.entries and self.entries[-1].kind in ENDS else None

    @property
    def status(self) -> str:
        """The status: running, committed, rolled_back or stuck."""
        return self.entries[-1].kind.value if self.ended is not None else "running"

    @property
    def duration(self) -> float | None:
        """Seconds from start to end; None while the saga runs."""
        return None if self.ended is None else self.ended - self.started


@dataclass(frozen=True, slots=True)
class SagaPage:
    """One page of records, newest first; ``cursor`` leads to the next, None after the last."""

    records: tuple[SagaRecord, ...]
    cursor: str | None


class SagaLog(Protocol):
    """A durable store of sagas. Every method raises DependencyError when the store fails."""

    async def begin(self, id_: str, name: str, input_: Any, by: str, lease: float) -> int | None:
        """Write BEGIN and take the lease; return the epoch, or None when the id is taken."""
        ...

    async def append(
        self, id_: str, epoch: int, entries: Sequence[JournalEntry], lease: float
    ) -> bool:
        """Write all entries or none and renew the lease; return False under an old epoch."""
        ...

    async def renew(self, id_: str, epoch: int, lease: float) -> bool:
        """Renew the lease; return False under an old epoch."""
        ...

    async def claim(self, names: Sequence[str], lease: float, most: int) -> list[tuple[str, int]]:
        """Take over sagas of ``names`` with an expired lease; return ids and new epochs."""
        ...

    async def resume(self, id_: str, lease: float) -> int | None:
        """Reopen a stuck saga; return its new epoch, or None if it is not stuck."""
        ...

    async def read(self, id_: str) -> SagaRecord | None:
        """Return the record of one saga, or None."""
        ...

    async def page(self, *, cursor: str | None = None, count: int = 50) -> SagaPage:
        """Return up to ``count`` records, newest first, at most ``MAX_PAGE``."""
        ...


def check_id(id_: str) -> None:
    """Raise InvalidInputError unless ``id_`` has 1 to ``MAX_ID`` characters."""
    if not 0 < len(id_) <= MAX_ID:
        problem = Problem("id", f"has {len(id_)} characters", f"write 1 to {MAX_ID}")
        raise InvalidInputError([problem])


def entry_detail(entry: JournalEntry) -> str:
    """Return an entry's detail as JSON: answers unchanged, all else with secrets redacted."""
    return as_json(entry.detail if entry.kind is EntryKind.DONE else redact(entry.detail))


def as_json(value: Any) -> str:
    """Return compact JSON; raise TooLargeError above ``MAX_BYTES``."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    if len(text) > MAX_BYTES:
        raise TooLargeError(f"the value has {len(text)} bytes; keep it under {MAX_BYTES}")
    return text
