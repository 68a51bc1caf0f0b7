"""Owners of queues: on one Redis, a queue belongs to one namespace.

The owner is recorded in Redis, beside an id that this Redis keeps whatever its address is. Another
namespace becomes the owner when the queue holds no job and the owner had no pool on it for an hour.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engineroom.core import key_prefixes
from engineroom.core.redis_replies import text
from engineroom.queue import keys
from engineroom.queue.shared_calls import SharedCalls
from engineroom.redis.scripts import Script, run_async

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis.asyncio import Redis

#: Seconds without a pool of the owner's namespace after which an empty queue gets a new owner.
OWNER_LAPSE = 3600
#: Claims in one script call, which blocks Redis for less than 2 ms.
CLAIMS_CHUNK = 100


@dataclass(frozen=True, slots=True)
class QueueClaim:
    """A namespace's claim to a queue, with what a pool's status recorded of an earlier one."""

    namespace: str
    queue: str
    #: Unix seconds since when the namespace owns the queue; 0 for a new claim.
    since: int = 0
    #: The Redis on which it does.
    redis_id: str = ""


@dataclass(frozen=True, slots=True)
class QueueOwner:
    """The owner of a queue, as recorded in Redis; ``since`` is Unix seconds."""

    queue: str
    namespace: str
    since: int
    redis_id: str


#: Lists and sorted sets that hold a job whatever its score is.
_HOLDING: tuple[Callable[[str], str], ...] = (
    keys.queue, keys.intermediate, keys.started, keys.scheduled, keys.settle, keys.limited,
    keys.emptying, keys.deferred, keys.canceled,
)  # fmt: skip
#: Registries whose jobs expire at their score.
_EXPIRING: tuple[Callable[[str], str], ...] = (
    keys.failed,
    keys.finished,
)

_CLAIM = Script(
    """
local identity_key, owners_key = KEYS[1], KEYS[2]
local new_id, lapse, holding, expiring = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]),
  tonumber(ARGV[4])
local now = tonumber(redis.call('TIME')[1])
local identity = redis.call('HMGET', identity_key, 'id', 'created')
if not identity[1] then
  redis.call('HSET', identity_key, 'id', new_id, 'created', now)
  identity = {new_id, tostring(now)}
end
local id, created = identity[1], tonumber(identity[2])

local function is_empty(first)
  for at = first, first + holding - 1 do
    if redis.call('EXISTS', KEYS[at]) == 1 then return false end
  end
  for at = first + holding, first + holding + expiring - 1 do
    if redis.call('ZCOUNT', KEYS[at], now, '+inf') > 0 then return false end
  end
  return true
end

local answer = {id}
for index = 0, (#ARGV - 4) / 4 - 1 do
  local namespace, queue, claimed, claimed_id = unpack(ARGV, 5 + index * 4, 8 + index * 4)
  claimed = tonumber(claimed)
  -- A claim that is older than the id was made before this Redis lost its records.
  local lost = claimed > 0 and created > claimed
  if claimed_id ~= id and not lost then claimed = 0 end
  local owner, since, seen = string.match(
    redis.call('HGET', owners_key, queue) or '', '^(%S+) (%d+) (%d+)$')
  since, seen = tonumber(since), tonumber(seen)
  if owner and owner ~= namespace then
    local earlier = claimed > 0 and since > claimed
    local left = now - seen >= lapse and is_empty(3 + index * (holding + expiring))
    if earlier or left then owner = nil end
  end
  if not owner then
    owner, since = namespace, claimed > 0 and claimed or now
  end
  if owner == namespace then
    redis.call('HSET', owners_key, queue, owner .. ' ' .. since .. ' ' .. now)
  end
  answer[#answer + 1] = owner
  answer[#answer + 1] = since
end
return answer
"""
)


class QueueOwners:
    """The records of one Redis; claims that come together share one call."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        #: The id of this Redis; "" before the first answer.
        self.redis_id = ""
        self._calls = SharedCalls(self._call, CLAIMS_CHUNK)

    async def claim(self, claims: Sequence[QueueClaim]) -> list[QueueOwner]:
        """Return the owner of each queue, which is the claim's namespace if the queue was free.

        Raises MeasurementError if Redis does not answer in time or answers with an error.
        """
        return list(await asyncio.gather(*map(self._calls.submit, claims)))

    async def _call(self, claims: Sequence[QueueClaim]) -> list[QueueOwner]:
        functions = (*_HOLDING, *_EXPIRING)
        names = [key_of(claim.queue) for claim in claims for key_of in functions]
        arguments: list[Any] = [secrets.token_hex(16), OWNER_LAPSE, len(_HOLDING), len(_EXPIRING)]
        for claim in claims:
            arguments += [claim.namespace, claim.queue, claim.since, claim.redis_id]
        identity = (key_prefixes.REDIS_IDENTITY, key_prefixes.QUEUE_OWNERS)
        redis_id, *answer = await run_async(self._redis, _CLAIM, [*identity, *names], arguments)
        self.redis_id = text(redis_id)
        pairs = zip(answer[::2], answer[1::2], strict=True)
        return [
            QueueOwner(claim.queue, text(namespace), int(since), self.redis_id)
            for claim, (namespace, since) in zip(claims, pairs, strict=True)
        ]
