"""The audit log: who did what to which object with which outcome. Append-only and tamper-evident.

Each record carries an HMAC over itself and the previous record, under a secret that Redis never
receives. Write access to Redis permits the destruction of the log but no undetected change. The
head is sealed too. Redis alone cannot reveal the restoration of an older log; for that ``verify``
and ``compare`` take an anchor: a head that a process has seen, or the last line in the collector of
standard output.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import sys
from dataclasses import dataclass, field
from enum import StrEnum
from typing import IO, TYPE_CHECKING, Any

from engineroom.auth.audit.hash_chain import MAX_PROBLEMS, canonical, record_mac, seal
from engineroom.auth.errors import AuditRecordError, AuthStoreError
from engineroom.auth.store_errors import store_errors
from engineroom.core import key_prefixes
from engineroom.core.redaction import redact, redact_text
from engineroom.core.redis_replies import text, texts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from redis.asyncio import Redis

    from engineroom.core.clock import Clock

#: Most characters of one text in a record, and of a whole record.
MAX_TEXT = 1_024
MAX_RECORD = 16_384
#: Most retries of a write after conflicts with other writers.
MAX_TRIES = 200
BATCH = 500


class AuditOutcome(StrEnum):
    """The outcome of an action."""

    DONE = "done"
    DENIED = "denied"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """An action to record. ``target`` names the object, such as ``workerpool/shop/mail``."""

    who: str
    action: str
    target: str
    outcome: AuditOutcome
    how: str = ""
    reason: str = ""
    namespace: str = ""
    request: str = ""
    address: str = ""
    details: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AuditHead:
    """The end of the log at some time. Stored elsewhere, it is an anchor for a verification."""

    sequence: int
    mac: str


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """An entry as stored in the log; ``body`` is its JSON, ``at`` is in Unix seconds."""

    sequence: int
    at: float
    body: Mapping[str, Any]
    mac: str


@dataclass(frozen=True, slots=True)
class AuditVerification:
    """The result of a verification: number of records, end of the log, problems."""

    records: int
    head: AuditHead
    problems: tuple[str, ...]

    @property
    def intact(self) -> bool:
        """Whether there are no problems."""
        return not self.problems


@dataclass(slots=True)
class _Walk:
    """The position of a verification: number and MAC of the last record read, and their count."""

    last: int
    mac: str
    records: int = 0


class AuditLog:
    """Writes, reads and verifies the log. Any number of processes may write to one log."""

    def __init__(
        self,
        redis: Redis,
        clock: Clock,
        secret: bytes,
        *,
        name: str = key_prefixes.AUDIT,
        out: IO[str] | None = None,
    ) -> None:
        """Open the log; ``secret`` has at least 32 bytes, ``out`` defaults to standard output."""
        if len(secret) < 32:
            msg = "secret: must be at least 32 bytes; make one with openssl rand -base64 48"
            raise ValueError(msg)
        self._redis = redis
        self._clock = clock
        self._secret = secret
        self._stream = name
        self._head = f"{name}:head"
        self._out = out or sys.stdout
        self._turn = asyncio.Lock()
        #: The head after the last record that this process wrote.
        self.written = AuditHead(0, "")

    async def write(self, entry: AuditEntry) -> AuditRecord:
        """Append a record to Redis and to the output.

        Raises AuditRecordError for an invalid entry, and AuthStoreError when Redis fails; the entry
        is then on the output, marked as not chained.
        """
        body = _body(entry)
        # One write at a time in a process: then only processes compete, and one of them wins.
        async with self._turn:
            at = self._clock.now().timestamp()
            try:
                record = await self._append({"at": at, **body})
            except AuthStoreError:
                self._print({"at": at, **body, "chained": False})
                raise
            self.written = AuditHead(record.sequence, record.mac)
        self._print({**record.body, "mac": record.mac})
        return record

    async def read(self, after: int = 0, limit: int = 100) -> list[AuditRecord]:
        """Return up to ``limit`` (at most 500) records after number ``after``.

        Raises AuthStoreError.
        """
        with store_errors():
            rows = await self._redis.xrange(
                self._stream, min=f"{after + 1}-0", count=max(1, min(limit, BATCH))
            )
        return [
            AuditRecord(number, float(body.get("at", 0)), body, mac)
            for number, raw, mac in map(_row, rows or ())
            if (body := _object(raw)) is not None
        ]

    async def head(self) -> AuditHead:
        """Return the current end of the log; raise AuthStoreError."""
        sequence, mac, _ = await self._ends("seq", "mac", "seal")
        return AuditHead(int(sequence or 0), mac)

    async def compare(self, anchor: AuditHead) -> tuple[AuditHead, str]:
        """Return the head, and how the log contradicts ``anchor``, an earlier head; or "".

        It reads two records, however long the log is. Raises AuthStoreError.
        """
        sequence, mac, seal = await self._ends("seq", "mac", "seal")
        head = AuditHead(int(sequence or 0), mac)
        if head.sequence and not self._has_valid_seal("head", sequence, mac, seal):
            return head, "the head has no valid seal"
        if head.sequence < anchor.sequence:
            return head, f"the log ends at {head.sequence}, and had record {anchor.sequence}"
        if not anchor.sequence:
            return head, ""
        number = f"{anchor.sequence}-0"
        with store_errors():
            rows = await self._redis.xrange(self._stream, min=number, max=number)
        if rows:
            differs = not hmac.compare_digest(_row(rows[0])[2], anchor.mac)
            return head, f"record {anchor.sequence}: is another one now" if differs else ""
        # Read after the record, which may have been trimmed in between.
        problems: list[str] = []
        base = await self._base(problems)
        if base.sequence < anchor.sequence:
            problems.append(f"record {anchor.sequence}: removed")
        return head, "; ".join(problems)

    async def verify(self, anchor: AuditHead | None = None) -> AuditVerification:
        """Verify the whole log; report edited, removed, added and reordered records.

        With ``anchor``, an earlier head, it also detects the restoration of an older log. Raises
        AuthStoreError.
        """
        problems: list[str] = []
        start = await self._base(problems)
        walk = _Walk(start.sequence, start.mac)
        anchored = anchor is None or anchor.sequence <= walk.last
        while len(problems) < MAX_PROBLEMS:
            with store_errors():
                rows = await self._redis.xrange(
                    self._stream, min=f"({walk.last}-{_TOP}" if walk.last else "-", count=BATCH
                )
            for number, raw, mac in map(_row, rows or ()):
                if number != walk.last + 1:
                    # Records trimmed since the start are not missing.
                    base = await self._base(problems)
                    if base.sequence > walk.last:
                        walk.last, walk.mac = base.sequence, base.mac
                if number <= walk.last:
                    continue
                problems += self._record_problems(walk, number, raw, mac)
                if anchor is not None and anchor.sequence == number:
                    anchored = hmac.compare_digest(anchor.mac, mac)
                    if not anchored:
                        problems.append(f"record {number}: differs from the anchor")
                walk.records, walk.last, walk.mac = walk.records + 1, number, mac
            if len(rows or ()) < BATCH:
                break
        head = await self._check_head(walk, problems)
        if not anchored and anchor is not None and head.sequence < anchor.sequence:
            problems.append(f"the log ends at {head.sequence}, the anchor at {anchor.sequence}")
        return AuditVerification(walk.records, head, tuple(problems[:MAX_PROBLEMS]))

    def _record_problems(self, walk: _Walk, number: int, raw: str, mac: str) -> Iterator[str]:
        """Yield the problems of the record that follows ``walk``."""
        if number != walk.last + 1:
            several = number > walk.last + 2
            removed = f"s {walk.last + 1} to {number - 1}" if several else f" {walk.last + 1}"
            yield f"record{removed}: removed"
        elif not hmac.compare_digest(self._mac(number, walk.mac, raw), mac):
            yield f"record {number}: it or an earlier record was edited"
        body = _object(raw)
        if body is None or body.get("seq") != number:
            yield f"record {number}: was not written under this number"

    async def _check_head(self, walk: _Walk, problems: list[str]) -> AuditHead:
        """Compare the head with the end of the log; return the head."""
        sequence, mac, seal = await self._ends("seq", "mac", "seal")
        head = AuditHead(int(sequence or 0), mac)
        if head.sequence and not self._has_valid_seal("head", sequence, mac, seal):
            problems.append("the head has no valid seal")
        last = walk.last
        # A record appended since the last read is not a problem.
        if head.sequence < last or (head.sequence == last and mac != walk.mac):
            problems.append(f"the head is at {head.sequence}, the log ends at {last}")
        elif head.sequence > (last := max(last, (await self._base(problems)).sequence)):
            problems.extend(await self._unread(last, head.sequence))
        return head

    async def trim(self, keep: int, *, before: float | None = None) -> int:
        """Delete all but the last ``keep`` records, and records older than ``before``.

        ``before`` is in Unix seconds. Returns the number of deleted records; the last record always
        stays. The new beginning is sealed, which distinguishes trimmed from removed records. Of
        concurrent calls one succeeds. Raises AuthStoreError.
        """
        if keep < 1:
            return 0
        head = await self.head()
        base, _, _ = await self._ends("base_seq", "base_mac", "base_seal")
        number = head.sequence - keep
        if before is not None:
            number = max(number, await self._older(int(base or 0), before))
        number = min(number, head.sequence - 1)
        if number <= int(base or 0):
            return 0
        with store_errors():
            rows = await self._redis.xrange(self._stream, min=f"{number}-0", max=f"{number}-0")
            if not rows:
                return 0
            _, _, mac = _row(rows[0])
            deleted = await self._redis.eval(  # type: ignore[no-untyped-call,misc,unused-ignore]
                _TRIM,
                2,
                self._head,
                self._stream,
                *(base, str(number), mac, self._seal("base", str(number), mac)),
            )
        return int(deleted)

    async def _older(self, after: int, before: float) -> int:
        """Return the number of the last record after ``after`` that is older than ``before``."""
        while True:
            with store_errors():
                rows = await self._redis.xrange(
                    self._stream, min=f"({after}-{_TOP}" if after else "-", count=BATCH
                )
            for number, raw, _ in map(_row, rows or ()):
                at = (_object(raw) or {}).get("at")
                if not isinstance(at, int | float) or at >= before:
                    return after
                after = number
            if len(rows or ()) < BATCH:
                return after

    async def _base(self, problems: list[str]) -> AuditHead:
        """Return the record before the beginning of the log; add a problem for an invalid seal."""
        base, mac, seal = await self._ends("base_seq", "base_mac", "base_seal")
        if base and not self._has_valid_seal("base", base, mac, seal):
            problem = f"the beginning, after record {base}, has no valid seal"
            if problem not in problems:
                problems.append(problem)
        return AuditHead(int(base or 0), mac)

    async def _append(self, body: dict[str, Any]) -> AuditRecord:
        head = await self.head()
        for _ in range(MAX_TRIES):
            number = head.sequence + 1
            full = {"seq": number, **body}
            raw = canonical(full)
            mac = self._mac(number, head.mac, raw)
            seal = self._seal("head", str(number), mac)
            with store_errors():
                # Compares the head in the same step: of two writers one retries.
                reply = await self._redis.eval(  # type: ignore[no-untyped-call,misc,unused-ignore]
                    _APPEND,
                    2,
                    self._head,
                    self._stream,
                    *(str(head.sequence), head.mac, str(number), raw, mac, seal),
                )
            if not reply:
                return AuditRecord(number, float(body["at"]), full, mac)
            head = AuditHead(int(text(reply[0])), text(reply[1]))
        raise AuthStoreError(
            f"audit: lost against other writers {MAX_TRIES} times; write less at once"
        )

    async def _unread(self, last: int, to: int) -> list[str]:
        """Return a problem if records between ``last`` and the head are missing."""
        with store_errors():
            rows = await self._redis.xrange(self._stream, min=f"({last}-{_TOP}", max=f"{to}-0")
        present = {number for number, _, _ in map(_row, rows or ())}
        missing = [number for number in range(last + 1, to + 1) if number not in present]
        return [f"records {missing[0]} to {missing[-1]}: removed from the end"] if missing else []

    async def _ends(self, *names: str) -> tuple[str, str, str]:
        with store_errors():
            values = await self._redis.hmget(self._head, list(names))
        first, second, third = map(text, values)
        return (first if first.isascii() and first.isdigit() else ""), second, third

    def _mac(self, number: int, previous: str, raw: str) -> str:
        return record_mac(self._secret, number, previous, raw)

    def _seal(self, what: str, number: str, value: str) -> str:
        return seal(self._secret, what, number, value)

    def _has_valid_seal(self, what: str, number: str, value: str, seal: str) -> bool:
        return hmac.compare_digest(self._seal(what, number, value).encode(), seal.encode())

    def _print(self, record: Mapping[str, Any]) -> None:
        line = json.dumps({"audit": record}, sort_keys=True, separators=(",", ":"))
        self._out.write(line + "\n")
        self._out.flush()


_TOP = 2**64 - 1

_APPEND = """
local head = redis.call('HMGET', KEYS[1], 'seq', 'mac')
local seq, mac = head[1] or '0', head[2] or ''
if seq ~= ARGV[1] or mac ~= ARGV[2] then return {seq, mac} end
redis.call('XADD', KEYS[2], ARGV[3] .. '-0', 'body', ARGV[4], 'mac', ARGV[5])
redis.call('HSET', KEYS[1], 'seq', ARGV[3], 'mac', ARGV[5], 'seal', ARGV[6])
return false
"""

_TRIM = """
if (redis.call('HGET', KEYS[1], 'base_seq') or '') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'base_seq', ARGV[2], 'base_mac', ARGV[3], 'base_seal', ARGV[4])
return redis.call('XTRIM', KEYS[2], 'MINID', string.format('%d', ARGV[2] + 1) .. '-0')
"""


def _row(row: Any) -> tuple[int, str, str]:
    fields = texts(row[1])
    return int(text(row[0]).split("-")[0]), fields.get("body", ""), fields.get("mac", "")


def _object(raw: str) -> dict[str, Any] | None:
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _body(entry: AuditEntry) -> dict[str, Any]:
    """Return the entry as it is written: limited in size, with secrets redacted."""
    texts_of = {
        "who": entry.who,
        "action": entry.action,
        "target": entry.target,
        "how": entry.how,
        "reason": entry.reason,
        "namespace": entry.namespace,
        "request": entry.request,
        "address": entry.address,
    }
    for name in ("who", "action", "target"):
        if not texts_of[name]:
            raise AuditRecordError(f"audit: {name} is empty; name it")
    details = redact(dict(entry.details))
    body: dict[str, Any] = {name: _clean(value) for name, value in texts_of.items() if value}
    body["outcome"] = entry.outcome.value
    body["details"] = {
        _clean(str(key)): _clean(value) if isinstance(value, str) else value
        for key, value in (details.items() if isinstance(details, dict) else ())
    }
    if len(json.dumps(body)) > MAX_RECORD:
        raise AuditRecordError(f"audit: a record is longer than {MAX_RECORD}; give fewer details")
    return body


def _clean(value: str) -> str:
    """Redact secrets, then cut: half of a secret would not be recognised."""
    clean = redact_text(value)
    return clean if len(clean) <= MAX_TEXT else clean[: MAX_TEXT - 3] + "..."
