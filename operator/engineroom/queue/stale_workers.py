"""Removal of stale workers, which are registered with RQ and no longer exist.

RQ unregisters a worker when it exits, or when another worker of the queue runs maintenance, which
does not happen with zero workers. A write to a worker's hash after its expiry also creates a hash
that never expires.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from redis.asyncio import Redis

#: Time without a heartbeat after which a hash without expiry is stale (seconds).
SILENT_RECORD = 600
#: Workers that one step checks; a step blocks Redis for less than 2 ms.
STEP = 200

WORKERS = "rq:workers"

#: KEYS: set of all workers. ARGV: oldest valid heartbeat, number of queues, the queues, then the
#: workers' keys. A hash with a job stays for recovery, which returns the job. Returns the names of
#: the removed workers.
CLEAR = """
local cleared, first = {}, 3 + tonumber(ARGV[2])
for at = first, #ARGV do
  local key = ARGV[at]
  local ttl = redis.call('TTL', key)
  local stale = ttl == -2
  if ttl == -1 then
    local hash = redis.call('HMGET', key, 'last_heartbeat', 'er_job', 'er_taken', 'queues')
    stale = (not hash[1] or hash[1] < ARGV[1]) and (hash[2] or '') == '' and (hash[3] or '') == ''
    if stale then
      for queue in string.gmatch(hash[4] or '', '[^,]+') do
        redis.call('SREM', 'rq:workers:' .. queue, key)
      end
      redis.call('DEL', key)
    end
  end
  if stale then
    redis.call('SREM', KEYS[1], key)
    for queue = 3, first - 1 do redis.call('SREM', 'rq:workers:' .. ARGV[queue], key) end
    cleared[#cleared + 1] = string.sub(key, 11)
  end
end
return cleared
"""


def arguments(queues: Sequence[str], workers: Sequence[Any], at: datetime) -> list[Any]:
    """Return the script's arguments for at most STEP ``workers``."""
    oldest = (at - timedelta(seconds=SILENT_RECORD)).astimezone(UTC)
    return [oldest.strftime("%Y-%m-%dT%H:%M:%S.%fZ"), len(queues), *queues, *workers]


async def clear(redis: Redis, queues: Sequence[str], at: datetime) -> list[str]:
    """Remove stale workers of the queues; return their names, sorted."""
    pipeline = redis.pipeline(transaction=False)
    for queue in queues:
        pipeline.smembers(f"rq:workers:{queue}")
    workers = sorted(set().union(*(await pipeline.execute())))
    cleared: list[str] = []
    for start in range(0, len(workers), STEP):
        words = arguments(queues, workers[start : start + STEP], at)
        pending = cast("Awaitable[list[bytes]]", redis.eval(CLEAR, 1, WORKERS, *words))
        cleared += [name.decode() for name in await pending]
    return sorted(cleared)
