"""What was revoked, known to every replica within a second.

Revocations are a Redis stream, and each replica reads it with a blocking XREAD: a new entry is
pushed at once, and one that came while a connection was down is read after it, since the reader
says where it stopped. A replica that has heard nothing for ``max_stale`` seconds lets nobody in
rather than somebody who was thrown out.
"""

from __future__ import annotations

import asyncio
import contextlib
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from engineroom.auth.errors import AuthStoreError
from engineroom.redis.errors import asking, text, texts

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from engineroom.core.clock import Clock

#: Milliseconds that one XREAD blocks; bounds how long a silent connection is taken for a quiet one.
BLOCK_MS = 300
#: Seconds until an XREAD that should have returned counts as lost.
READ_TIMEOUT = 0.6
#: Seconds without a word from Redis after which nobody is let in.
MAX_STALE = 10.0
#: Entries in one reply.
BATCH = 1_000
#: Seconds by which an entry outlives what it revokes: more than the leeway and the clocks' skew.
MARGIN = 300


class Kind(StrEnum):
    """What is revoked: one token, a sign-in with all that came of it, or all of a person's."""

    TOKEN = "token"  # noqa: S105 - a kind and no secret
    FAMILY = "family"
    SUBJECT = "subject"


class Revocations:
    """The revocations in memory, kept current by ``run``."""

    def __init__(
        self,
        redis: Redis,
        clock: Clock,
        *,
        name: str = "engineroom:auth:revoked",
        longest_life: float = 3600.0,
        max_stale: float = MAX_STALE,
    ) -> None:
        """``longest_life`` is that of an access token, in seconds."""
        self._redis = redis
        self._clock = clock
        self._name = name
        self._life = longest_life
        self._max_stale = max_stale
        self._entries: dict[tuple[str, str], tuple[float, float]] = {}
        self._position = "0-0"
        self._heard: float | None = None
        self._swept = 0.0

    async def revoke(self, kind: Kind, value: str) -> None:
        """Refuse it from now on, everywhere. Raises AuthStoreError if that could not be written."""
        before = self._clock.now().timestamp()
        expires = before + self._life + MARGIN
        oldest = int((before - self._life - MARGIN) * 1000)
        with asking():
            await self._redis.xadd(
                self._name,
                {
                    "kind": kind.value,
                    "value": value,
                    "before": repr(before),
                    "until": repr(expires),
                },
                minid=max(oldest, 0),
                approximate=True,
            )
        self._remember(kind.value, value, before, expires)

    def revoked(self, *, token: str, family: str, subject: str, issued: float) -> str:
        """Which kind refuses a token, or "" when none does.

        A person's revocation refuses what was issued until then. Raises AuthStoreError when this
        replica has not heard from Redis for too long.
        """
        if self._heard is None or self._clock.monotonic() - self._heard > self._max_stale:
            raise AuthStoreError("revocations: not heard of for too long; Redis must answer first")
        if (Kind.TOKEN.value, token) in self._entries:
            return Kind.TOKEN.value
        if family and (Kind.FAMILY.value, family) in self._entries:
            return Kind.FAMILY.value
        entry = self._entries.get((Kind.SUBJECT.value, subject))
        return Kind.SUBJECT.value if entry is not None and issued <= entry[0] else ""

    async def run(self) -> None:
        """Follow the stream until cancelled; failures are tried again, staleness tells the rest."""
        task = asyncio.current_task()
        # A client may take a cancellation for a failed read and swallow it: ours counts it.
        while task is None or not task.cancelling():
            try:
                await self.read()
            except AuthStoreError:
                await asyncio.sleep(0.1)
        raise asyncio.CancelledError

    async def read(self, block_ms: int = BLOCK_MS) -> None:
        """What came since the last time, waiting up to ``block_ms``. Raises AuthStoreError."""
        more = True
        while more:
            with asking():
                async with asyncio.timeout(block_ms / 1000 + READ_TIMEOUT):
                    reply = await self._redis.xread(
                        {self._name: self._position}, count=BATCH, block=max(1, block_ms)
                    )
            rows = _rows(reply)
            for position, fields in rows:
                self._position = text(position)
                with contextlib.suppress(KeyError, ValueError):
                    row = texts(fields)
                    self._remember(
                        row["kind"], row["value"], float(row["before"]), float(row["until"])
                    )
            more = len(rows) == BATCH
        self._heard = self._clock.monotonic()
        if self._heard - self._swept > 60:
            self._swept = self._heard
            now = self._clock.now().timestamp()
            self._entries = {k: v for k, v in self._entries.items() if v[1] > now}

    def _remember(self, kind: str, value: str, before: float, until: float) -> None:
        known = self._entries.get((kind, value), (0.0, 0.0))
        self._entries[kind, value] = (max(known[0], before), max(known[1], until))


def _rows(reply: Any) -> list[tuple[Any, dict[Any, Any]]]:
    """The rows of the one stream, from a reply of RESP2 (a list) or RESP3 (a dictionary)."""
    if not reply:
        return []
    if isinstance(reply, dict):
        value = next(iter(reply.values()))
        rows = value[0] if value and isinstance(value[0], list) else value
    else:
        rows = reply[0][1]
    return [(row[0], row[1]) for row in rows]
