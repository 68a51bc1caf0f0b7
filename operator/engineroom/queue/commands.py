"""What the operator asks of workers: keys that hold while they stand, each with a nudge.

The key is the command, the nudge only makes the worker look at it sooner, so a message that is lost
costs time and never safety. Each function is one round trip for any number of workers.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from engineroom.queue import keys

if TYPE_CHECKING:
    from collections.abc import Iterable

    from redis.asyncio import Redis
    from redis.asyncio.client import Pipeline

#: A drain holds so long unless it is asked for again: with the operator gone workers go on working.
DRAIN_TTL_SECONDS = 60

_WAKE = json.dumps({"command": "engineroom-wake"})


async def request_drain(
    redis: Redis, drains: Iterable[tuple[str, str]], *, ttl: float = DRAIN_TTL_SECONDS
) -> None:
    """Ask workers to finish their job and take no other, for ``ttl`` seconds from now.

    ``drains`` are (worker, drain id). Asked again it holds on; a worker that was retired stays so.
    """
    async with redis.pipeline(transaction=False) as pipeline:
        for worker, drain_id in drains:
            pipeline.eval(
                _DRAIN, 1, keys.drain(worker), f"drain:{drain_id}", str(round(ttl * 1000))
            )
            _nudge(pipeline, worker)
        await pipeline.execute()


async def cancel_drain(redis: Redis, workers: Iterable[str]) -> None:
    """Let drained workers work again; retired ones stay retired."""
    async with redis.pipeline(transaction=False) as pipeline:
        for worker in workers:
            pipeline.eval(_CANCEL, 1, keys.drain(worker))
            _nudge(pipeline, worker)
        await pipeline.execute()


async def retire(redis: Redis, retirements: Iterable[tuple[str, str]]) -> None:
    """Have workers take no job ever again; there is no way back. Pairs are (worker, id)."""
    async with redis.pipeline(transaction=False) as pipeline:
        for worker, retire_id in retirements:
            pipeline.set(keys.drain(worker), f"retire:{retire_id}")
            _nudge(pipeline, worker)
        await pipeline.execute()


async def suspend(redis: Redis, pool: str, workers: Iterable[str] = ()) -> None:
    """Have the pool's workers take no job until ``resume``; ``workers`` are nudged."""
    async with redis.pipeline(transaction=False) as pipeline:
        pipeline.set(keys.pool_suspended(pool), "1")
        for worker in workers:
            _nudge(pipeline, worker)
        await pipeline.execute()


async def resume(redis: Redis, pool: str, workers: Iterable[str] = ()) -> None:
    """Let the pool's workers take jobs again; ``workers`` are nudged."""
    async with redis.pipeline(transaction=False) as pipeline:
        pipeline.delete(keys.pool_suspended(pool))
        for worker in workers:
            _nudge(pipeline, worker)
        await pipeline.execute()


#: KEYS: drain key. ARGV: request, milliseconds. A retirement is not weakened to a drain.
_DRAIN = """
local asked = redis.call('GET', KEYS[1])
if asked and string.sub(asked, 1, 7) == 'retire:' then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

_CANCEL = """
local asked = redis.call('GET', KEYS[1])
if asked and string.sub(asked, 1, 7) == 'retire:' then return 0 end
return redis.call('DEL', KEYS[1])
"""


def _nudge(pipeline: Pipeline, worker: str) -> None:
    pipeline.publish(keys.worker_channel(worker), _WAKE)
