"""Revocations, which reach every replica within a second.

Revocations are a Redis stream that each replica follows by a blocking XREAD. New entries arrive at
once; after a lost connection the reader continues at its position. A replica without an answer for
``max_stale`` seconds refuses all tokens, because it may have missed a revocation.
"""

from __future__ import annotations

import asyncio
import contextlib
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from engineroom.auth.errors import AuthStoreError
from engineroom.auth.store_errors import store_errors
from engineroom.core import key_prefixes
from engineroom.core.redis_replies import text, texts

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from engineroom.core.clock import Clock

#: Milliseconds that an XREAD blocks, which limits the time to detect a dead connection.
BLOCK_MS = 300
#: Seconds after that until an XREAD counts as lost.
READ_TIMEOUT = 0.6
#: Seconds without an answer from Redis after which all tokens are refused.
MAX_STALE = 10.0
#: Most entries in one reply.
BATCH = 1_000
#: Seconds by which an entry outlives the tokens: more than leeway and clock skew.
MARGIN = 300


class RevocationKind(StrEnum):
    """The scope of a revocation: one token, a sign-in with its refreshes, or a whole subject."""

    TOKEN = "token"  # noqa: S105 - a kind and no secret
    FAMILY = "family"
    SUBJECT = "subject"


class Revocations:
    """The revocations in memory, updated by ``run``."""

    def __init__(
        self,
        redis: Redis,
        clock: Clock,
        *,
        name: str = key_prefixes.REVOCATIONS,
        longest_life: float = 3600.0,
        max_stale: float = MAX_STALE,
    ) -> None:
        """``longest_life`` is the longest lifetime of an access token in seconds."""
        self._redis = redis
        self._clock = clock
        self._name = name
        self._life = longest_life
        self._max_stale = max_stale
        self._entries: dict[tuple[str, str], tuple[float, float]] = {}
        self._position = "0-0"
        self._last_answer: float | None = None
        self._swept = 0.0

    async def revoke(self, kind: RevocationKind, value: str) -> None:
        """Revoke on all replicas; raise AuthStoreError if the entry cannot be written."""
        before = self._clock.now().timestamp()
        expires = before + self._life + MARGIN
        oldest = int((before - self._life - MARGIN) * 1000)
        with store_errors():
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
        """Return the kind of revocation that applies to a token, or "".

        The revocation of a subject applies to tokens issued before it. Raises AuthStoreError if
        Redis has not answered for too long.
        """
        if (
            self._last_answer is None
            or self._clock.monotonic() - self._last_answer > self._max_stale
        ):
            raise AuthStoreError("revocations: are too old, because Redis does not answer")
        if (RevocationKind.TOKEN.value, token) in self._entries:
            return RevocationKind.TOKEN.value
        if family and (RevocationKind.FAMILY.value, family) in self._entries:
            return RevocationKind.FAMILY.value
        entry = self._entries.get((RevocationKind.SUBJECT.value, subject))
        return RevocationKind.SUBJECT.value if entry is not None and issued <= entry[0] else ""

    async def run(self) -> None:
        """Follow the stream until cancelled; retry after failures."""
        task = asyncio.current_task()
        # The client may swallow a cancellation as a failed read; ``cancelling`` still counts it.
        while task is None or not task.cancelling():
            try:
                await self.read()
            except AuthStoreError:
                await asyncio.sleep(0.1)
        raise asyncio.CancelledError

    async def read(self, block_ms: int = BLOCK_MS) -> None:
        """Read new entries, waiting up to ``block_ms`` for one; raise AuthStoreError."""
        more = True
        while more:
            with store_errors():
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
        self._last_answer = self._clock.monotonic()
        if self._last_answer - self._swept > 60:
            self._swept = self._last_answer
            now = self._clock.now().timestamp()
            self._entries = {k: v for k, v in self._entries.items() if v[1] > now}

    def _remember(self, kind: str, value: str, before: float, until: float) -> None:
        earlier = self._entries.get((kind, value), (0.0, 0.0))
        self._entries[kind, value] = (max(earlier[0], before), max(earlier[1], until))


def _rows(reply: Any) -> list[tuple[Any, dict[Any, Any]]]:
    """Return the rows of the stream from a RESP2 (list) or RESP3 (dictionary) reply."""
    if not reply:
        return []
    if isinstance(reply, dict):
        value = next(iter(reply.values()))
        rows = value[0] if value and isinstance(value[0], list) else value
    else:
        rows = reply[0][1]
    return [(row[0], row[1]) for row in rows]
