"""The schedules of pools: the leader declares them in Redis, and every replica runs them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engineroom.kube.runtime.redis_addresses import RedisAddresses
from engineroom.workers.job_schedules.declarations import ScheduleDeclarer, record_missed
from engineroom.workers.job_schedules.schedule_runner import ScheduleRunner

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engineroom.kube.client.resources import ObjectRef
    from engineroom.kube.runtime.controller import Context, Record
    from engineroom.workers.job_plans import JobPlan
    from engineroom.workers.job_schedules.declarations import (
        DeclaredSchedules,
        ScheduleFacts,
        ScheduleStore,
    )
    from engineroom.workers.redis_measurement import PoolConnection


class PoolSchedules:
    """Declares and runs the schedules of all pools; the caller remembers what is declared."""

    def __init__(self, context: Context, store: ScheduleStore, redis_url: str) -> None:
        addresses = RedisAddresses(context.client, context.clock, redis_url)
        self._recorder = context.recorder
        self._declarer = ScheduleDeclarer(context, store)
        self._runner = ScheduleRunner(context, store, addresses)
        self._runner.register_gauges(context.gauge)

    def start(self) -> None:
        """Start the loops in the background."""
        self._runner.start()

    async def stop(self) -> None:
        """Stop the loops."""
        await self._runner.stop()

    def changed(self, key: str, record: Record | None) -> None:
        """Run the schedules of a pool that is new or changed; None for a deleted one."""
        self._runner.changed(key, record)

    async def declare(
        self,
        pool: ObjectRef,
        generation: int,
        jobs: Sequence[JobPlan],
        redis: PoolConnection | None,
        declared: DeclaredSchedules | None,
        old: Mapping[str, Any],
    ) -> tuple[DeclaredSchedules | None, Sequence[ScheduleFacts] | None]:
        """Declare the pool's schedules and record ticks that were missed since the status ``old``.

        ``redis`` is None while it does not answer. Returns what is declared now, and the schedules;
        None instead of them while they cannot be read.
        """
        if not jobs and declared is None and not self._declarer.owes(pool.key):
            return None, ()
        if not jobs:
            declared = self._declarer.leave(pool.key, declared)
            await self._declarer.clear(pool.key)
            return declared, ()
        if redis is None or redis.connection is None or redis.address is None:
            return declared, None
        declared, facts = await self._declarer.settle(
            pool, generation, jobs, redis.connection.redis, redis.address, declared
        )
        record_missed(self._recorder, pool, old, facts)
        return declared, facts

    def leave(self, key: str, declared: DeclaredSchedules | None) -> DeclaredSchedules | None:
        """Remove the declared schedules with the next ``clear``; returns what is still declared."""
        return self._declarer.leave(key, declared)

    async def clear(self, key: str) -> float | None:
        """Remove what the pool left behind; returns the seconds until the next try, or None."""
        return await self._declarer.clear(key)
