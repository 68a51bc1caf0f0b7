"""Idempotency-Key: repetitions of a request get the response of the first one, for a day.

See draft-ietf-httpapi-idempotency-key-header. Responses are stored per caller: no caller can read
another's response by guessing the key. Their number per caller is limited.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engineroom.core import key_prefixes
from engineroom.core.error_translation import wrapped
from engineroom.core.errors import (
    Category,
    ConflictError,
    EngineroomError,
    InvalidInputError,
    Problem,
)

if TYPE_CHECKING:
    from redis.asyncio import Redis

HEADER = "idempotency-key"
MAX_KEY = 128
#: Seconds for which a response is stored, and after which an unfinished request counts as lost.
STORED_SECONDS, RUNNING_SECONDS = 86_400, 120
#: Responses stored per caller; a further one replaces the oldest.
MAX_RESPONSES = 500
#: Seconds for which handlers keep marks of their own: longer than any response is stored.
MARK_SECONDS = STORED_SECONDS + RUNNING_SECONDS
#: Bytes; a larger response is not stored, and a repetition is executed again.
MAX_BODY = 64 * 1024


class IdempotencyReusedError(EngineroomError):
    """An Idempotency-Key was used for another request; use a new key."""

    code = "idempotency_key_reused"
    category = Category.VALIDATION
    http_status = 422


class IdempotencyBusyError(ConflictError):
    """The first request with this Idempotency-Key is still running; try again."""

    code = "idempotency_key_busy"


class IdempotencySecretError(ConflictError):
    """The first request succeeded; its response held a secret, which is not stored."""

    code = "idempotency_secret_shown"
    retryable = False


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """The response of the first request."""

    status: int
    headers: dict[str, str]
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Reservation:
    """The Redis key for the response of a running request."""

    record: str
    token: str = field(repr=False)


class Idempotency:
    """Stores responses in Redis; each step is one Lua script."""

    def __init__(self, redis: Redis, *, prefix: str = key_prefixes.IDEMPOTENCY) -> None:
        self._prefix = prefix
        self._begin = redis.register_script(_BEGIN)
        self._end = redis.register_script(_END)

    async def begin(self, owner: str, key: str, request: bytes) -> Reservation | StoredResponse:
        """Reserve the key for a new request, or return the response of the first one.

        Raises InvalidInputError, IdempotencyReusedError, IdempotencyBusyError,
        IdempotencySecretError, and DependencyError.
        """
        if not 0 < len(key) <= MAX_KEY or not key.isascii() or not key.isprintable():
            problem = Problem(
                HEADER, "is not a valid key", f"send 1 to {MAX_KEY} visible ASCII characters"
            )
            raise InvalidInputError([problem])
        owner_hash = hashlib.sha256(owner.encode()).hexdigest()
        index = f"{self._prefix}:{{{owner_hash}}}"
        record = f"{index}:{hashlib.sha256(key.encode()).hexdigest()}"
        token = secrets.token_hex(8)
        digest = hashlib.sha256(request).hexdigest()
        with wrapped("idempotency.begin"):
            stored = await self._begin(
                keys=[record, index],
                args=[digest, token, RUNNING_SECONDS, MAX_RESPONSES, STORED_SECONDS],
            )
        if not stored:
            return Reservation(record, token)
        first, state, status, headers, body = (_bytes(value) for value in stored)
        if first.decode() != digest:
            raise IdempotencyReusedError(
                f"{HEADER}: was used for another request; send a new key with a new request"
            )
        if state == b"running":
            raise IdempotencyBusyError(
                f"{HEADER}: the first request is still running; try again", retry_after=1.0
            )
        if state == b"secret":
            raise IdempotencySecretError(
                f"{HEADER}: the first request succeeded; its response held a secret; see the list"
            )
        return StoredResponse(int(status), json.loads(headers), body)

    async def store(
        self, reservation: Reservation, response: StoredResponse, *, secret: bool
    ) -> None:
        """Store the response; of a secret one store only that the request succeeded."""
        state = "secret" if secret else "done"
        body = b"" if secret else response.body
        if len(body) > MAX_BODY:
            await self.release(reservation)
            return
        headers = json.dumps({} if secret else response.headers)
        await self._finish(reservation, state, response.status, headers, body)

    async def release(self, reservation: Reservation) -> None:
        """Drop the reservation: the request may be executed again."""
        await self._finish(reservation, "", 0, "", b"")

    async def _finish(self, reservation: Reservation, *values: Any) -> None:
        with wrapped("idempotency.end"):
            await self._end(
                keys=[reservation.record], args=[reservation.token, STORED_SECONDS, *values]
            )


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value or "").encode()


#: KEYS: record, index. ARGV: digest, token, running seconds, maximum, stored seconds.
_BEGIN = """
local stored = redis.call('HMGET', KEYS[1], 'request', 'state', 'status', 'headers', 'body')
if stored[1] then return stored end
redis.call('HSET', KEYS[1], 'request', ARGV[1], 'state', 'running', 'token', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
redis.call('ZADD', KEYS[2], redis.call('TIME')[1], KEYS[1])
redis.call('EXPIRE', KEYS[2], ARGV[5])
while redis.call('ZCARD', KEYS[2]) > tonumber(ARGV[4]) do
  redis.call('DEL', redis.call('ZPOPMIN', KEYS[2])[1])
end
return false
"""

#: KEYS: record. ARGV: token, stored seconds, state or '', status, headers, body.
_END = """
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
if ARGV[3] == '' then return redis.call('DEL', KEYS[1]) end
redis.call('HSET', KEYS[1], 'state', ARGV[3], 'status', ARGV[4], 'headers', ARGV[5],
  'body', ARGV[6])
redis.call('HDEL', KEYS[1], 'token')
return redis.call('EXPIRE', KEYS[1], ARGV[2])
"""
