"""What Redis says of a namespace's policies: which document stands there, and who follows it.

Reads only. A look that fails raises MeasurementError: that nobody could be asked never means that
nobody is there.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoScriptError, RedisError

from engineroom.core.errors import MeasurementError
from engineroom.ratelimit import channel
from engineroom.ratelimit.channel import LIVE_FOR, Word, keys_of
from engineroom.ratelimit.cluster import failure_of
from engineroom.ratelimit.document import Head, read_head
from engineroom.ratelimit.errors import UnreadableDocumentError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from redis.asyncio import Redis

_FAILURES = (RedisError, OSError, TimeoutError)
_TIMEOUT = 3.0


@dataclass(frozen=True, slots=True)
class Enforcer:
    """One live enforcer; ``word`` is None when what it says cannot be read."""

    identity: str
    #: Seconds since it was heard of.
    silent: float
    word: Word | None


@dataclass(frozen=True, slots=True)
class Roll:
    """Who follows a namespace's policies, by Redis's own time."""

    #: The document's head; "" when there is no document.
    head: str
    enforcers: tuple[Enforcer, ...]


async def roll(redis: Redis, namespace: str) -> Roll:
    """Who is alive and what they acknowledge; raises MeasurementError."""
    keys = keys_of(namespace)
    execute: Callable[..., Awaitable[Any]] = redis.execute_command
    arguments = (3, keys.head, keys.alive, keys.entries, int(LIVE_FOR * 1_000_000))
    try:
        async with asyncio.timeout(_TIMEOUT):
            try:
                rows = await execute("EVALSHA", channel.ROLL_SHA, *arguments)
            except NoScriptError:
                rows = await execute("EVAL", channel.ROLL, *arguments)
    except _FAILURES as error:
        raise MeasurementError(f"Redis did not say who enforces: {failure_of(error)}") from error
    return parse_roll(rows)


def parse_roll(rows: list[Any]) -> Roll:
    """What the script ROLL answered."""
    texts = [_text(row) for row in rows]
    now = int(texts[1])
    return Roll(
        texts[0],
        tuple(
            Enforcer(
                texts[at],
                max(0.0, (now - int(texts[at + 1])) / 1_000_000),
                Word.parse(texts[at + 2]),
            )
            for at in range(2, len(texts), 3)
        ),
    )


async def standing(redis: Redis, namespace: str) -> tuple[str, Head | None]:
    """The head that stands in Redis, and what the document says; raises MeasurementError.

    None for a document that is not there or that this version cannot read: it is written anew.
    """
    keys = keys_of(namespace)
    try:
        async with asyncio.timeout(_TIMEOUT):
            head, text = await redis.mget(keys.head, keys.document)
    except _FAILURES as error:
        raise MeasurementError(
            f"Redis did not give the compiled policies: {failure_of(error)}"
        ) from error
    if text is None:
        return _text(head or ""), None
    try:
        return _text(head or ""), read_head(text)
    except UnreadableDocumentError:
        return _text(head or ""), None


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
