"""The operator's commands to workers: keys, each with a message that wakes the worker.

The key is the command. The message only makes the worker read it sooner, so a lost message costs
time but not safety. Each function takes one round trip for any number of workers.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from engineroom.queue import keys

if TYPE_CHECKING:
    from collections.abc import Iterable

    from redis.asyncio import Redis
    from redis.asyncio.client import Pipeline

#: Time to live of a drain request: without an operator to renew it, workers resume (seconds).
DRAIN_TTL_SECONDS = 60

_WAKE = json.dumps({"command": "engineroom-wake"})


async def request_drain(
    redis: Redis, drains: Iterable[tuple[str, str]], *, ttl: float = DRAIN_TTL_SECONDS
) -> None:
    """Tell workers to finish their job and take no other, for ``ttl`` seconds.

    ``drains`` are pairs of worker and drain id. A further call renews the request; a retired worker
    stays retired.
    """
    async with redis.pipeline(transaction=False) as pipeline:
        for worker, drain_id in drains:
            pipeline.eval(
                _DRAIN, 1, keys.drain(worker), f"drain:{drain_id}", str(round(ttl * 1000))
            )
            _wake(pipeline, worker)
        await pipeline.execute()


async def cancel_drain(redis: Redis, workers: Iterable[str]) -> None:
    """Let drained workers take jobs again; retired workers stay retired."""
    async with redis.pipeline(transaction=False) as pipeline:
        for worker in workers:
            pipeline.eval(_CANCEL, 1, keys.drain(worker))
            _wake(pipeline, worker)
        await pipeline.execute()


async def retire(redis: Redis, retirements: Iterable[tuple[str, str]]) -> None:
    """Tell workers to never take a job again; ``retirements`` are pairs of worker and id."""
    async with redis.pipeline(transaction=False) as pipeline:
        for worker, retire_id in retirements:
            pipeline.set(keys.drain(worker), f"retire:{retire_id}")
            _wake(pipeline, worker)
        await pipeline.execute()


async def suspend(redis: Redis, pool: str, workers: Iterable[str] = ()) -> None:
    """Stop the pool's workers from taking jobs until ``resume``; wake ``workers``."""
    async with redis.pipeline(transaction=False) as pipeline:
        pipeline.set(keys.pool_suspended(pool), "1")
        for worker in workers:
            _wake(pipeline, worker)
        await pipeline.execute()


async def resume(redis: Redis, pool: str, workers: Iterable[str] = ()) -> None:
    """Let the pool's workers take jobs again; wake ``workers``."""
    async with redis.pipeline(transaction=False) as pipeline:
        pipeline.delete(keys.pool_suspended(pool))
        for worker in workers:
            _wake(pipeline, worker)
        await pipeline.execute()


#: KEYS: drain key. ARGV: request, milliseconds. A drain does not replace a retirement.
_DRAIN = """
local request = redis.call('GET', KEYS[1])
if request and string.sub(request, 1, 7) == 'retire:' then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

_CANCEL = """
local request = redis.call('GET', KEYS[1])
if request and string.sub(request, 1, 7) == 'retire:' then return 0 end
return redis.call('DEL', KEYS[1])
"""


def _wake(pipeline: Pipeline, worker: str) -> None:
    pipeline.publish(keys.worker_channel(worker), _WAKE)
