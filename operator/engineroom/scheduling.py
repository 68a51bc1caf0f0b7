"""Joins what pools declare to the schedules of ``engineroom.tasks``; rooms know nothing of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from engineroom.core.clock import Clock, SystemClock
from engineroom.tasks.enqueueing.task import EnqueueRules, Retry, Task
from engineroom.tasks.redis_steps import run_async
from engineroom.tasks.schedules import store
from engineroom.tasks.schedules.model import Schedule
from engineroom.tasks.schedules.scheduler import AsyncScheduler
from engineroom.tasks.serializers import JSONSerializer, PickleSerializer
from engineroom.tasks.triggers import Cron, Every, Missed, Once
from engineroom.workers.job_schedules.declarations import ScheduleFacts, ScheduleLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis.asyncio import Redis

    from engineroom.tasks.triggers import Trigger
    from engineroom.workers.job_plans import JobPlan

_MISSED = {"Skip": Missed.SKIP, "RunOnce": Missed.RUN_ONCE, "RunAll": Missed.RUN_ALL}


def stored_name(owner: str, name: str) -> str:
    """The name in Redis of what the pool ``owner`` (``namespace/pool``) calls ``name``.

    No Kubernetes name has an underscore, so no two pools ever mean the same one.
    """
    return f"{owner.replace('/', '_')}_{name}"


def schedule_of(owner: str, plan: JobPlan) -> Schedule:
    """The declared schedule as ``engineroom.tasks`` has it. Raises InvalidTaskError."""
    trigger: Trigger
    if plan.cron:
        trigger = Cron(plan.cron, plan.time_zone, plan.jitter)
    elif plan.at is not None:
        trigger = Once(plan.at)
    else:
        trigger = Every(plan.every, plan.jitter)
    args, kwargs = json.loads(plan.arguments)
    task = Task(
        plan.function,
        args,
        kwargs,
        queue=plan.queue,
        timeout=plan.timeout,
        result_ttl=plan.result_ttl,
        retry=Retry(*plan.retry) if plan.retry else None,
    )
    name = stored_name(owner, plan.name)
    return Schedule(name, trigger, task, _MISSED[plan.missed], paused=plan.suspend)


class TaskSchedules:
    """``ScheduleStore`` over ``engineroom.tasks.schedules.store``."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()

    async def declare(
        self, redis: Redis, owner: str, installation: str, jobs: Sequence[JobPlan]
    ) -> dict[str, str]:
        """See ScheduleStore."""
        as_json = any(job.json for job in jobs)
        rules = EnqueueRules(serializer=JSONSerializer if as_json else PickleSerializer)
        names = {stored_name(owner, job.name): job.name for job in jobs}
        declared = [schedule_of(owner, job) for job in jobs]
        steps = store.declare(owner, installation, declared, rules, self._clock.now())
        refused = await run_async(redis, steps)
        return {names[name]: holder for name, holder in refused.items()}

    async def read(self, redis: Redis, owner: str) -> list[ScheduleFacts]:
        """See ScheduleStore."""
        prefix = len(stored_name(owner, ""))
        return [
            ScheduleFacts(
                schedule.name[prefix:], schedule.next, schedule.last, schedule.last_job,
                schedule.dropped, schedule.version,
            )
            for schedule in await run_async(redis, store.owned(owner))
        ]  # fmt: skip

    async def owners(self, redis: Redis) -> dict[str, str]:
        """See ScheduleStore."""
        return await run_async(redis, store.owners())

    def ticking(self, redis: Redis, behind: Callable[[], float]) -> ScheduleLoop:
        """See ScheduleStore."""
        return AsyncScheduler(redis, self._clock, behind=behind)
