"""Who did what to which object with which outcome: append-only, and evident when tampered with.

Every record carries an HMAC over itself and the one before, under a secret that Redis never sees:
who can write Redis can destroy the log but cannot change it unseen. The head is sealed too. What
Redis alone cannot show is a log set back as a whole to how it once was; for that ``verify`` takes
an anchor from outside, such as the last line that the standard output's collector has.
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
from engineroom.core.redaction import redact, redact_text
from engineroom.redis.errors import asking, text, texts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis.asyncio import Redis

    from engineroom.core.clock import Clock

#: Characters of one text in a record, and of a record as a whole.
MAX_TEXT = 1_024
MAX_RECORD = 16_384
#: Times that a writer starts over because another one was faster.
MAX_TRIES = 200
BATCH = 500


class Outcome(StrEnum):
    """How it ended."""

    DONE = "done"
    DENIED = "denied"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Entry:
    """What happened. ``target`` names the object, such as ``workerpool/shop/mail``."""

    who: str
    action: str
    target: str
    outcome: Outcome
    how: str = ""
    reason: str = ""
    namespace: str = ""
    request: str = ""
    address: str = ""
    details: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Head:
    """The end of the log at some time: keep one elsewhere, and it anchors a verification."""

    sequence: int
    mac: str


@dataclass(frozen=True, slots=True)
class Record:
    """An entry as it stands in the log; ``body`` is its JSON, ``at`` Unix seconds."""

    sequence: int
    at: float
    body: Mapping[str, Any]
    mac: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What a verification found: how many records it read, where the log ends, what is wrong."""

    records: int
    head: Head
    problems: tuple[str, ...]

    @property
    def intact(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


class AuditLog:
    """Writes, reads and verifies. Any number of processes may write to one log."""

    def __init__(
        self,
        redis: Redis,
        clock: Clock,
        secret: bytes,
        *,
        name: str = "engineroom:auth:audit",
        out: IO[str] | None = None,
    ) -> None:
        """``secret`` has at least 32 bytes; ``out`` is standard output unless told otherwise."""
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

    async def write(self, entry: Entry) -> Record:
        """Append a record; when this returns it is in Redis and on the output.

        Raises AuditRecordError for what is no entry; AuthStoreError when Redis did not take it,
        and then it is on the output all the same, marked as not chained.
        """
        body = _body(entry)
        # In turns within a process: only processes race, and each race has a winner.
        async with self._turn:
            at = self._clock.now().timestamp()
            try:
                record = await self._append({"at": at, **body})
            except AuthStoreError:
                self._print({"at": at, **body, "chained": False})
                raise
        self._print({**record.body, "mac": record.mac})
        return record

    async def read(self, after: int = 0, limit: int = 100) -> list[Record]:
        """Up to ``limit`` (at most 500) records that follow number ``after``. AuthStoreError."""
        with asking():
            rows = await self._redis.xrange(
                self._stream, min=f"{after + 1}-0", count=max(1, min(limit, BATCH))
            )
        return [
            Record(number, float(body.get("at", 0)), body, mac)
            for number, raw, mac in map(_row, rows or ())
            if (body := _object(raw)) is not None
        ]

    async def head(self) -> Head:
        """Where the log ends now. Raises AuthStoreError."""
        sequence, mac, _ = await self._ends("seq", "mac", "seal")
        return Head(int(sequence or 0), mac)

    async def verify(self, anchor: Head | None = None) -> Verification:
        """Read the whole log and name what was edited, removed, added or reordered.

        With ``anchor``, a head noted earlier, a log that was set back is found as well.
        Raises AuthStoreError.
        """
        problems: list[str] = []
        start = await self._base(problems)
        last, previous, records = start.sequence, start.mac, 0
        anchored = anchor is None or anchor.sequence <= last
        while len(problems) < MAX_PROBLEMS:
            with asking():
                rows = await self._redis.xrange(
                    self._stream, min=f"({last}-{_TOP}" if last else "-", count=BATCH
                )
            for number, raw, mac in map(_row, rows or ()):
                if number != last + 1:
                    # A beginning that was trimmed meanwhile is no gap.
                    base = await self._base(problems)
                    if base.sequence > last:
                        last, previous = base.sequence, base.mac
                if number <= last:
                    continue
                records += 1
                if number != last + 1:
                    gone = (
                        f"record {last + 1}"
                        if number == last + 2
                        else (f"records {last + 1} to {number - 1}")
                    )
                    problems.append(f"{gone}: removed")
                elif not hmac.compare_digest(self._mac(number, previous, raw), mac):
                    problems.append(f"record {number}: edited, or what is before it was")
                body = _object(raw)
                if body is None or body.get("seq") != number:
                    problems.append(f"record {number}: is not the one written under this number")
                if anchor is not None and anchor.sequence == number:
                    anchored = hmac.compare_digest(anchor.mac, mac)
                    if not anchored:
                        problems.append(f"record {number}: is not the one of the anchor")
                last, previous = number, mac
            if len(rows or ()) < BATCH:
                break
        sequence, mac, seal = await self._ends("seq", "mac", "seal")
        head = Head(int(sequence or 0), mac)
        if head.sequence and not self._sealed("head", sequence, mac, seal):
            problems.append("the head is not the one that was sealed")
        # A record may have been appended since the last one was read; that is no problem.
        if head.sequence < last or (head.sequence == last and mac != previous):
            problems.append(f"the head says {head.sequence}, the log goes to {last}")
        elif head.sequence > (last := max(last, (await self._base(problems)).sequence)):
            problems.extend(await self._unread(last, head.sequence))
        if not anchored and anchor is not None and head.sequence < anchor.sequence:
            problems.append(f"the log ends at {head.sequence}, the anchor at {anchor.sequence}")
        return Verification(records, head, tuple(problems[:MAX_PROBLEMS]))

    async def trim(self, keep: int, *, before: float | None = None) -> int:
        """Forget all but the last ``keep`` records, and what was written before ``before``.

        That is Unix seconds. How many went; the last record always stays. The new beginning is
        sealed, so that what was trimmed and what was removed stay apart. Of several that trim at
        once one does. Raises AuthStoreError.
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
        with asking():
            rows = await self._redis.xrange(self._stream, min=f"{number}-0", max=f"{number}-0")
            if not rows:
                return 0
            _, _, mac = _row(rows[0])
            gone = await self._redis.eval(  # type: ignore[no-untyped-call,misc,unused-ignore]
                _TRIM,
                2,
                self._head,
                self._stream,
                *(base, str(number), mac, self._seal("base", str(number), mac)),
            )
        return int(gone)

    async def _older(self, after: int, before: float) -> int:
        """The last record after number ``after`` that was written before ``before``."""
        while True:
            with asking():
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

    async def _base(self, problems: list[str]) -> Head:
        """What the log begins after; says where that is not what was sealed."""
        base, mac, seal = await self._ends("base_seq", "base_mac", "base_seal")
        if base and not self._sealed("base", base, mac, seal):
            told = f"the beginning, after record {base}, is not the one that was sealed"
            if told not in problems:
                problems.append(told)
        return Head(int(base or 0), mac)

    async def _append(self, body: dict[str, Any]) -> Record:
        head = await self.head()
        for _ in range(MAX_TRIES):
            number = head.sequence + 1
            full = {"seq": number, **body}
            raw = canonical(full)
            mac = self._mac(number, head.mac, raw)
            seal = self._seal("head", str(number), mac)
            with asking():
                # In the same step as the look at the head: of two writers one starts over.
                reply = await self._redis.eval(  # type: ignore[no-untyped-call,misc,unused-ignore]
                    _APPEND,
                    2,
                    self._head,
                    self._stream,
                    *(str(head.sequence), head.mac, str(number), raw, mac, seal),
                )
            if not reply:
                return Record(number, float(body["at"]), full, mac)
            head = Head(int(text(reply[0])), text(reply[1]))
        raise AuthStoreError(f"audit: {MAX_TRIES} others were faster; fewer must write at once")

    async def _unread(self, last: int, to: int) -> list[str]:
        """What the head promises after ``last`` and the log does not hold."""
        with asking():
            rows = await self._redis.xrange(self._stream, min=f"({last}-{_TOP}", max=f"{to}-0")
        present = {number for number, _, _ in map(_row, rows or ())}
        missing = [number for number in range(last + 1, to + 1) if number not in present]
        return [f"records {missing[0]} to {missing[-1]}: removed from the end"] if missing else []

    async def _ends(self, *names: str) -> tuple[str, str, str]:
        with asking():
            values = await self._redis.hmget(self._head, list(names))
        first, second, third = map(text, values)
        return (first if first.isascii() and first.isdigit() else ""), second, third

    def _mac(self, number: int, previous: str, raw: str) -> str:
        return record_mac(self._secret, number, previous, raw)

    def _seal(self, what: str, number: str, value: str) -> str:
        return seal(self._secret, what, number, value)

    def _sealed(self, what: str, number: str, value: str, seal: str) -> bool:
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


def _body(entry: Entry) -> dict[str, Any]:
    """The entry as it is written: bounded, and without what must not be in it."""
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
    """Without secrets, then cut: a secret cut in two would not be known for one."""
    clean = redact_text(value)
    return clean if len(clean) <= MAX_TEXT else clean[: MAX_TEXT - 3] + "..."
