"""Deletion of a queue's oldest failed jobs beyond a maximum."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from engineroom.queue import keys

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from redis.asyncio import Redis

#: Jobs that one step deletes; a step blocks Redis for less than 2 ms.
STEP = 100


async def trim(redis: Redis, queue: str, keep: int) -> int:
    """Delete the oldest failed jobs beyond ``keep``, at most STEP; return their number.

    The oldest jobs are those that expire first. Jobs without an expiry (``failure_ttl=-1``) do not
    count and stay, and so does a job that was requeued meanwhile.
    """
    pending = cast(
        "Awaitable[int]",
        redis.eval(
            _TRIM, 1, keys.failed(queue), str(keep), str(STEP), keys.job(""), keys.crashes("")
        ),
    )
    return int(await pending)


_TRIM = """
local keep, step, job, crashes = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[4]
local beyond = math.min(redis.call('ZCOUNT', KEYS[1], 0, '+inf') - keep, step)
if beyond <= 0 then return 0 end
local oldest = redis.call('ZRANGEBYSCORE', KEYS[1], 0, '+inf', 'LIMIT', 0, beyond)
for _, id in ipairs(oldest) do
  redis.call('ZREM', KEYS[1], id)
  if redis.call('HGET', job .. id, 'status') == 'failed' then
    redis.call('DEL', job .. id, job .. id .. ':dependents', job .. ':' .. id .. ':dependencies',
               'rq:results:' .. id, 'rq:executions:' .. id, crashes .. id)
  end
end
return #oldest
"""
