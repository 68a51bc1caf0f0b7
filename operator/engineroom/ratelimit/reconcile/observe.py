"""What Redis says of a namespace's policies: which document stands there, who follows it, and how
much was decided without Redis.

Reads only. A look that fails raises MeasurementError: that nobody could be asked never means that
nobody is there.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.exceptions import NoScriptError, RedisError

from engineroom.core.errors import MeasurementError
from engineroom.ratelimit.distribution import redis_schema
from engineroom.ratelimit.distribution.document import Head, read_head
from engineroom.ratelimit.distribution.redis_schema import (
    IDENTITY,
    LIVE_FOR,
    LOST_FOR,
    PUBLISHED,
    Word,
    keys_of,
)
from engineroom.ratelimit.limits.cluster import failure_of
from engineroom.ratelimit.limits.errors import UnreadableDocumentError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from redis.asyncio import Redis

_FAILURES = (RedisError, OSError, TimeoutError)
_TIMEOUT = 3.0


@dataclass(frozen=True, slots=True)
class Enforcer:
    """One enforcer that has not signed off; ``word`` is None when what it says cannot be read."""

    identity: str
    #: Seconds since it was heard of.
    silent: float
    word: Word | None

    @property
    def live(self) -> bool:
        """Whether it is heard of; one that is not may be dead, or cut off from Redis only."""
        return self.silent < LIVE_FOR


class Without(NamedTuple):
    """Decisions on a policy that were made without Redis because it did not decide in time."""

    #: Since Redis was last empty, or a day passed without any.
    times: int
    #: Seconds since one was last told of.
    ago: float


@dataclass(frozen=True, slots=True)
class Roll:
    """Who follows a namespace's policies, by Redis's own time."""

    #: The document's head; "" when there is no document.
    head: str
    enforcers: tuple[Enforcer, ...]
    #: By policy.
    without: Mapping[str, Without] = field(default_factory=dict)


async def roll(redis: Redis, namespace: str) -> Roll:
    """Who is alive or lost and what they acknowledge; raises MeasurementError."""
    execute: Callable[..., Awaitable[Any]] = redis.execute_command
    arguments = roll_arguments(namespace)
    try:
        async with asyncio.timeout(_TIMEOUT):
            try:
                rows = await execute("EVALSHA", redis_schema.ROLL_SHA, *arguments)
            except NoScriptError:
                rows = await execute("EVAL", redis_schema.ROLL, *arguments)
    except _FAILURES as error:
        raise MeasurementError(f"Redis did not say who enforces: {failure_of(error)}") from error
    return parse_roll(rows)


def roll_arguments(namespace: str) -> tuple[Any, ...]:
    """Of the script ROLL, its number of keys first."""
    keys = keys_of(namespace)
    return 4, keys.head, keys.alive, keys.entries, keys.without, int(LOST_FOR * 1_000_000)


def parse_roll(answer: Any) -> Roll:
    """What the script ROLL answered."""
    head, now_text, told, rows = answer
    now = int(now_text)
    texts = [_text(row) for row in rows]
    counts = dict(zip(map(_text, told[::2]), map(int, told[1::2]), strict=True))
    return Roll(
        _text(head),
        tuple(
            Enforcer(texts[at], _ago(now, int(texts[at + 1])), Word.parse(texts[at + 2]))
            for at in range(0, len(texts), 3)
        ),
        {
            name: Without(times, _ago(now, counts.get(f"{name}/at", 0)))
            for name, times in counts.items()
            if not name.endswith("/at")
        },
    )


def _ago(now: int, then: int) -> float:
    return max(0.0, (now - then) / 1_000_000)


async def identity(redis: Redis) -> str:
    """What only this Redis says, whatever its address; raises MeasurementError."""
    try:
        async with asyncio.timeout(_TIMEOUT):
            await redis.set(IDENTITY, secrets.token_hex(16), nx=True)
            return _text(await redis.get(IDENTITY) or "")
    except _FAILURES as error:
        raise MeasurementError(f"Redis did not say who it is: {type(error).__name__}") from error


async def silence(redis: Redis, installation: str) -> float | None:
    """Seconds since an installation looked after its documents; None when it is not known of.

    Raises MeasurementError.
    """
    execute: Callable[..., Awaitable[Any]] = redis.execute_command
    try:
        async with asyncio.timeout(_TIMEOUT):
            found = _text(await execute("EVAL", redis_schema.SILENCE, 1, PUBLISHED, installation))
    except _FAILURES as error:
        raise MeasurementError(f"Redis did not say who looks: {type(error).__name__}") from error
    return float(found) if found else None


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
