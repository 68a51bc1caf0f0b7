"""Workers that are on RQ's lists and are no more: ghosts.

RQ takes a worker off its lists when the worker says farewell, and otherwise when another worker of
the queue does its maintenance, which at zero workers nobody does. And what writes to the hash of a
worker after it expired makes a new one that never does.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from redis.asyncio import Redis

#: A hash that does not expire by itself, without a heartbeat for so long, is a ghost's (seconds).
SILENT_RECORD = 600
#: Workers looked at in one step; Redis serves nobody else meanwhile, for less than 2 ms.
STEP = 200

WORKERS = "rq:workers"

#: KEYS: all workers. ARGV: heartbeats before this are too old, number of queues, the queues, then
#: the workers' keys. A hash that names a job is left to recovery, which gives the job back. Returns
#: the names of those that were taken off the lists.
CLEAR = """
local cleared, first = {}, 3 + tonumber(ARGV[2])
for at = first, #ARGV do
  local key = ARGV[at]
  local ttl = redis.call('TTL', key)
  local gone = ttl == -2
  if ttl == -1 then
    local hash = redis.call('HMGET', key, 'last_heartbeat', 'er_job', 'er_taken', 'queues')
    gone = (not hash[1] or hash[1] < ARGV[1]) and (hash[2] or '') == '' and (hash[3] or '') == ''
    if gone then
      for queue in string.gmatch(hash[4] or '', '[^,]+') do
        redis.call('SREM', 'rq:workers:' .. queue, key)
      end
      redis.call('DEL', key)
    end
  end
  if gone then
    redis.call('SREM', KEYS[1], key)
    for queue = 3, first - 1 do redis.call('SREM', 'rq:workers:' .. ARGV[queue], key) end
    cleared[#cleared + 1] = string.sub(key, 11)
  end
end
return cleared
"""


def arguments(queues: Sequence[str], workers: Sequence[Any], at: datetime) -> list[Any]:
    """What the script is given, for STEP ``workers`` at most."""
    oldest = (at - timedelta(seconds=SILENT_RECORD)).astimezone(UTC)
    return [oldest.strftime("%Y-%m-%dT%H:%M:%S.%fZ"), len(queues), *queues, *workers]


async def clear(redis: Redis, queues: Sequence[str], at: datetime) -> list[str]:
    """Take ghosts off the lists of the queues' workers; their names, sorted."""
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
