"""Drain requests in Redis: sent where they are new or about to expire, and taken back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engineroom.kube.runtime.object_memory import NEVER
from engineroom.queue import commands

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis.asyncio import Redis

    from engineroom.workers.drain.plan import DrainPlan

#: A drain request lives this long in Redis, and is renewed after half of it (seconds).
DRAIN_TTL = 60.0


async def send_drain_requests(
    redis: Redis,
    plan: DrainPlan,
    registered: set[str],
    requested: Mapping[str, float],
    now: float,
) -> dict[str, float]:
    """Put the next step of each worker into Redis; returns when each was last asked to drain.

    ``requested`` holds those times as of the last look, ``now`` is in monotonic seconds.
    ``registered`` are the names of all workers of the pool.
    """
    draining = {name for name, _ in plan.drain}
    leaving = draining | {name for name, _ in plan.retire}
    due = [pair for pair in plan.drain if now - requested.get(pair[0], NEVER) > DRAIN_TTL / 2]
    called_back = {*plan.cancel, *(requested.keys() & registered - leaving)}
    if due:
        await commands.request_drain(redis, due, ttl=DRAIN_TTL)
    if called_back:
        await commands.cancel_drain(redis, sorted(called_back))
    if plan.retire:
        await commands.retire(redis, plan.retire)
    sent = {**requested, **{name: now for name, _ in due}}
    return {name: at for name, at in sent.items() if name in leaving}
