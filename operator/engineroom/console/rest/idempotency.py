"""Idempotency-Key: the answer of the first request for every repetition of it, for a day.

(draft-ietf-httpapi-idempotency-key-header.) Kept per caller, so that nobody reads another's answer
by guessing his key; so many a caller and no more.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engineroom.console.rest.errors import (
    IdempotencyBusyError,
    IdempotencyReusedError,
    IdempotencySecretError,
)
from engineroom.core.error_translation import wrapped
from engineroom.core.errors import InvalidInputError, Problem

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from engineroom.console.rest.routing import Call

HEADER = "idempotency-key"
MAX_KEY = 128
#: Seconds that an answer is kept, and that a request may be under way before it counts as lost.
KEPT, UNDER_WAY = 86_400, 120
#: Answers kept for one caller; the oldest goes.
MOST = 500
#: For so long a handler's own marks hold: longer than any answer is kept.
MARKED = KEPT + UNDER_WAY
#: Larger answers are not kept: the request is then done again.
MAX_ANSWER = 64 * 1024


@dataclass(frozen=True, slots=True)
class Kept:
    """The answer of the first request."""

    status: int
    headers: dict[str, str]
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Place:
    """Where the answer of the request that is under way will be kept."""

    record: str
    token: str = field(repr=False)


def name_of(call: Call) -> str | None:
    """A name for what the request makes, the same for its repetitions; None without a key.

    By it a handler knows what it did itself where the answer was lost: the record of a request
    under way does not outlive its process for long.
    """
    key = call.request.headers.get(HEADER)
    if key is None:
        return None
    body = None if call.body is None else call.body.model_dump_json()
    said = [call.principal.subject, call.path.get("namespace"), call.request.url.path, key, body]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]


class Idempotency:
    """In Redis; each step is one script."""

    def __init__(self, redis: Redis, *, prefix: str = "engineroom:console:once") -> None:
        self._prefix = prefix
        self._begin = redis.register_script(_BEGIN)
        self._end = redis.register_script(_END)

    async def begin(self, owner: str, key: str, request: bytes) -> Place | Kept:
        """A place for the answer of a new request, or the answer of the first.

        Raises InvalidInputError, IdempotencyReusedError, IdempotencyBusyError,
        IdempotencySecretError, and DependencyError.
        """
        if not 0 < len(key) <= MAX_KEY or not key.isascii() or not key.isprintable():
            problem = Problem(HEADER, "is no key", f"send 1 to {MAX_KEY} visible ASCII characters")
            raise InvalidInputError([problem])
        whose = hashlib.sha256(owner.encode()).hexdigest()
        index = f"{self._prefix}:{{{whose}}}"
        record = f"{index}:{hashlib.sha256(key.encode()).hexdigest()}"
        token = secrets.token_hex(8)
        digest = hashlib.sha256(request).hexdigest()
        with wrapped("idempotency.begin"):
            found = await self._begin(
                keys=[record, index], args=[digest, token, UNDER_WAY, MOST, KEPT]
            )
        if not found:
            return Place(record, token)
        known, state, status, headers, body = (_bytes(each) for each in found)
        if known.decode() != digest:
            raise IdempotencyReusedError(
                f"{HEADER}: was used for another request; send a new key with a new request"
            )
        if state == b"running":
            raise IdempotencyBusyError(
                f"{HEADER}: the first request is still under way; ask again", retry_after=1.0
            )
        if state == b"secret":
            raise IdempotencySecretError(
                f"{HEADER}: was done, and what it made was shown then; look at the list"
            )
        return Kept(int(status), json.loads(headers), body)

    async def keep(self, place: Place, answer: Kept, *, secret: bool) -> None:
        """Keep the answer; of one with a secret only that there was one."""
        state = "secret" if secret else "done"
        body = b"" if secret else answer.body
        if len(body) > MAX_ANSWER:
            await self.release(place)
            return
        headers = json.dumps({} if secret else answer.headers)
        await self._finish(place, state, answer.status, headers, body)

    async def release(self, place: Place) -> None:
        """Forget the request: it may be done again."""
        await self._finish(place, "", 0, "", b"")

    async def _finish(self, place: Place, *values: Any) -> None:
        with wrapped("idempotency.end"):
            await self._end(keys=[place.record], args=[place.token, KEPT, *values])


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value or "").encode()


#: KEYS: record, index. ARGV: digest, token, seconds under way, most, seconds kept.
_BEGIN = """
local known = redis.call('HMGET', KEYS[1], 'request', 'state', 'status', 'headers', 'body')
if known[1] then return known end
redis.call('HSET', KEYS[1], 'request', ARGV[1], 'state', 'running', 'token', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
redis.call('ZADD', KEYS[2], redis.call('TIME')[1], KEYS[1])
redis.call('EXPIRE', KEYS[2], ARGV[5])
while redis.call('ZCARD', KEYS[2]) > tonumber(ARGV[4]) do
  redis.call('DEL', redis.call('ZPOPMIN', KEYS[2])[1])
end
return false
"""

#: KEYS: record. ARGV: token, seconds kept, state or '', status, headers, body.
_END = """
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
if ARGV[3] == '' then return redis.call('DEL', KEYS[1]) end
redis.call('HSET', KEYS[1], 'state', ARGV[3], 'status', ARGV[4], 'headers', ARGV[5],
  'body', ARGV[6])
redis.call('HDEL', KEYS[1], 'token')
return redis.call('EXPIRE', KEYS[1], ARGV[2])
"""
