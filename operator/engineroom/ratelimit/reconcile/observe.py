"""Observation of a namespace's policies in Redis: the document, its enforcers and their fallbacks.

Reads only. A failed read raises MeasurementError: it never counts as an empty result.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.exceptions import RedisError

from engineroom.core.errors import MeasurementError
from engineroom.core.redis_replies import text
from engineroom.ratelimit.distribution import redis_schema
from engineroom.ratelimit.distribution.document import DocumentHead, parse_head
from engineroom.ratelimit.distribution.redis_schema import (
    IDENTITY,
    LIVE_SECONDS,
    LOST_SECONDS,
    PUBLISHED,
    Acknowledgement,
    keys_of,
)
from engineroom.ratelimit.limits.cluster import failure_of
from engineroom.ratelimit.limits.errors import UnreadableDocumentError
from engineroom.redis.scripts import run_async

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis.asyncio import Redis

_FAILURES = (RedisError, OSError, TimeoutError)
_TIMEOUT = 3.0


@dataclass(frozen=True, slots=True)
class Enforcer:
    """An enforcer that has not signed off; ``acknowledgement`` is None if it is unreadable."""

    identity: str
    #: Seconds since its last heartbeat.
    silent: float
    acknowledgement: Acknowledgement | None

    @property
    def live(self) -> bool:
        """True if its heartbeats arrive; otherwise it is dead, or only cut off from Redis."""
        return self.silent < LIVE_SECONDS


class FallbackCount(NamedTuple):
    """Decisions on a policy without Redis, because it did not decide in time."""

    #: Their number since Redis was last empty, or since a day without any.
    total: int
    #: Seconds since the last report.
    age: float


@dataclass(frozen=True, slots=True)
class EnforcerRoster:
    """The enforcers that follow a namespace's policies, by Redis's own time."""

    #: The document's head; "" without a document.
    head: str
    enforcers: tuple[Enforcer, ...]
    #: Decisions without Redis, by policy.
    fallbacks: Mapping[str, FallbackCount] = field(default_factory=dict)


async def read_roster(redis: Redis, namespace: str) -> EnforcerRoster:
    """Return the live and lost enforcers with their acknowledgements; raise MeasurementError."""
    try:
        async with asyncio.timeout(_TIMEOUT):
            reply = await run_async(redis, redis_schema.ROSTER, *roster_arguments(namespace))
    except _FAILURES as error:
        raise MeasurementError(f"the enforcers cannot be listed: {failure_of(error)}") from error
    return parse_roster(reply)


def roster_arguments(namespace: str) -> tuple[tuple[str, ...], tuple[int]]:
    """Return KEYS and ARGV for ROSTER."""
    keys = keys_of(namespace)
    return (keys.head, keys.alive, keys.entries, keys.fallbacks), (int(LOST_SECONDS * 1_000_000),)


def parse_roster(reply: Any) -> EnforcerRoster:
    """Return the roster in ROSTER's reply."""
    head, now_text, fallbacks, rows = reply
    now = int(now_text)
    texts = [text(row) for row in rows]
    counts = dict(zip(map(text, fallbacks[::2]), map(int, fallbacks[1::2]), strict=True))
    return EnforcerRoster(
        text(head),
        tuple(
            Enforcer(name, _age(now, int(time)), Acknowledgement.parse(acknowledgement))
            for name, time, acknowledgement in zip(
                texts[::3], texts[1::3], texts[2::3], strict=True
            )
        ),
        {
            name: FallbackCount(total, _age(now, counts.get(f"{name}/at", 0)))
            for name, total in counts.items()
            if not name.endswith("/at")
        },
    )


def _age(now: int, then: int) -> float:
    return max(0.0, (now - then) / 1_000_000)


async def read_identity(redis: Redis) -> str:
    """Return the random string that identifies a Redis; raise MeasurementError."""
    try:
        async with asyncio.timeout(_TIMEOUT):
            await redis.set(IDENTITY, secrets.token_hex(16), nx=True)
            return text(await redis.get(IDENTITY))
    except _FAILURES as error:
        raise MeasurementError(f"Redis cannot be identified: {type(error).__name__}") from error


async def seconds_since_check(redis: Redis, installation: str) -> float | None:
    """Return the seconds since an installation checked its documents; None if it never did.

    Raises MeasurementError.
    """
    try:
        async with asyncio.timeout(_TIMEOUT):
            seconds = text(
                await run_async(
                    redis, redis_schema.SECONDS_SINCE_CHECK, (PUBLISHED,), (installation,)
                )
            )
    except _FAILURES as error:
        raise MeasurementError(
            f"the owner of the policies cannot be checked: {type(error).__name__}"
        ) from error
    return float(seconds) if seconds else None


async def read_current(redis: Redis, namespace: str) -> tuple[str, DocumentHead | None]:
    """Return the head in Redis as text, and the parsed head of the document.

    The latter is None for a document that is missing or unreadable, which is then replaced. Raises
    MeasurementError.
    """
    keys = keys_of(namespace)
    try:
        async with asyncio.timeout(_TIMEOUT):
            head, document = await redis.mget(keys.head, keys.document)
    except _FAILURES as error:
        raise MeasurementError(
            f"the compiled policies cannot be read: {failure_of(error)}"
        ) from error
    if document is None:
        return text(head), None
    try:
        return text(head), parse_head(document)
    except UnreadableDocumentError:
        return text(head), None
