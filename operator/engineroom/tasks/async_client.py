"""``AsyncTasks``: the operations of ``Tasks`` for a ``redis.asyncio.Redis``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engineroom.tasks import limits, results
from engineroom.tasks.client_base import NO_FILTER, TasksBase, ignore_step, to_task
from engineroom.tasks.enqueueing import dependents, enqueue, flows
from engineroom.tasks.enqueueing.task import (
    DEFAULT_MAX_BYTES,
    DEFAULT_MAX_FLOW_BYTES,
    Function,
    Task,
    Unique,
    check_queue,
)
from engineroom.tasks.inspection import failures, job_detail, jobs, queues, requeueing, workers
from engineroom.tasks.inspection.jobs import ALL_STATES, COUNT_SCANNED
from engineroom.tasks.redis_steps import run_async
from engineroom.tasks.schedules import store
from engineroom.tasks.serializers import PickleSerializer, Serializer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from redis.asyncio import Redis as AsyncRedis

    from engineroom.core.clock import Clock
    from engineroom.tasks.enqueueing.dependents import Canceled
    from engineroom.tasks.enqueueing.enqueue import Enqueued
    from engineroom.tasks.enqueueing.flows import EnqueuedFlow, Part
    from engineroom.tasks.inspection.failures import Attempt, FailurePage
    from engineroom.tasks.inspection.job_detail import JobDetail
    from engineroom.tasks.inspection.job_filter import JobFilter
    from engineroom.tasks.inspection.jobs import Impact, JobPage, State
    from engineroom.tasks.inspection.queues import QueueCounts
    from engineroom.tasks.inspection.requeueing import Requeueing
    from engineroom.tasks.inspection.workers import Worker
    from engineroom.tasks.results import JobResult, Progress
    from engineroom.tasks.schedules.model import Schedule, ScheduleInfo


class AsyncTasks(TasksBase):
    """``Tasks`` for a ``redis.asyncio.Redis``: the same methods as coroutines."""

    redis: AsyncRedis

    def __init__(
        self,
        redis: AsyncRedis,
        *,
        queues: Collection[str] | None = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
        serializer: Serializer = PickleSerializer,
        clock: Clock | None = None,
        max_flow_bytes: int = DEFAULT_MAX_FLOW_BYTES,
    ) -> None:
        super().__init__(
            redis, queues=queues, max_bytes=max_bytes, serializer=serializer, clock=clock,
            max_flow_bytes=max_flow_bytes,
        )  # fmt: skip

    async def enqueue(self, task: Task | Function, /, *args: Any, **kwargs: Any) -> Enqueued:
        """See Tasks.enqueue."""
        steps = enqueue.enqueue_one(to_task(task, args, kwargs), self.rules, self.clock.now())
        return await run_async(self.redis, steps)

    async def enqueue_many(self, tasks: Iterable[Task]) -> list[Enqueued]:
        """See Tasks.enqueue_many."""
        steps = enqueue.enqueue_many(tasks, self.rules, self.clock.now())
        return await run_async(self.redis, steps)

    async def enqueue_flow(
        self, flow: Part, *, flow_id: str | None = None, unique: Unique | None = None
    ) -> EnqueuedFlow:
        """See Tasks.enqueue_flow."""
        steps = flows.enqueue_flow(flow, self.rules, self.clock.now(), flow_id, unique)
        return await run_async(self.redis, steps)

    async def cancel(
        self, job_id: str, *, stop: bool = False, queues: Collection[str] | None = None
    ) -> Canceled:
        """See Tasks.cancel."""
        steps = dependents.cancel(job_id, self.clock.now(), stop=stop, queues=queues)
        return await run_async(self.redis, steps)

    async def queue_names(self) -> list[str]:
        """See Tasks.queue_names."""
        return await run_async(self.redis, queues.names())

    async def counts(self, names: Sequence[str] | None = None) -> list[QueueCounts]:
        """See Tasks.counts."""
        chosen = await self.queue_names() if names is None else names
        return await run_async(self.redis, queues.count(chosen, self.clock.now()))

    async def create_queue(self, name: str) -> bool:
        """See Tasks.create_queue."""
        return await run_async(self.redis, queues.create(name, self.rules))

    async def pause_queue(self, name: str, reason: str = "") -> bool:
        """See Tasks.pause_queue."""
        return await run_async(self.redis, queues.pause(name, reason))

    async def resume_queue(self, name: str) -> bool:
        """See Tasks.resume_queue."""
        return await run_async(self.redis, queues.resume(name))

    async def limit_queue(
        self, name: str, *, concurrency: int | None = None, rate: str | None = None
    ) -> None:
        """See Tasks.limit_queue."""
        check_queue(name, self.rules)
        await run_async(self.redis, limits.limit_queue(name, concurrency, rate))

    async def unlimit_queue(self, name: str) -> bool:
        """See Tasks.unlimit_queue."""
        return await run_async(self.redis, limits.unlimit_queue(name))

    async def empty_queue(self, name: str, *, confirm: str) -> int:
        """See Tasks.empty_queue."""
        return await run_async(self.redis, queues.empty(name, confirm, self.clock.now()))

    async def move_jobs(self, source: str, target: str, *, limit: int | None = None) -> int:
        """See Tasks.move_jobs."""
        return await run_async(
            self.redis, queues.move(source, target, self.rules, limit, self.clock.now())
        )

    async def workers(self, queue: str | None = None) -> list[Worker]:
        """See Tasks.workers."""
        return await run_async(self.redis, workers.page(queue, self.clock.now()))

    async def clear_ghosts(self) -> list[str]:
        """See Tasks.clear_ghosts."""
        return await run_async(self.redis, workers.clear_ghosts(self.clock.now()))

    async def jobs(
        self,
        states: Sequence[State] = ALL_STATES,
        where: JobFilter = NO_FILTER,
        *,
        queues: Sequence[str] | None = None,
        cursor: str | None = None,
        limit: int = 100,
    ) -> JobPage:
        """See Tasks.jobs."""
        chosen = await self.queue_names() if queues is None else queues
        return await run_async(self.redis, jobs.page(chosen, states, where, cursor, limit))

    async def job(self, job_id: str) -> JobDetail:
        """See Tasks.job."""
        return await run_async(self.redis, job_detail.detail(job_id, self.clock.now()))

    async def count_jobs(
        self,
        state: State,
        where: JobFilter = NO_FILTER,
        *,
        queues: Sequence[str] | None = None,
        most: int = COUNT_SCANNED,
    ) -> Impact:
        """See Tasks.count_jobs."""
        chosen = await self.queue_names() if queues is None else queues
        return await run_async(self.redis, jobs.count(chosen, state, where, most))

    async def progress(self, job_id: str) -> Progress | None:
        """See Tasks.progress."""
        return await run_async(self.redis, results.progress_of(job_id))

    async def result(self, job_id: str) -> JobResult:
        """See Tasks.result."""
        return await run_async(self.redis, results.result_of(job_id, self.rules.serializer))

    async def failures(
        self,
        queue: str,
        where: JobFilter = NO_FILTER,
        *,
        cursor: str | None = None,
        limit: int = 100,
    ) -> FailurePage:
        """See Tasks.failures."""
        steps = failures.page(queue, where, cursor, limit)
        return await run_async(self.redis, steps)

    async def attempts(self, job_id: str) -> list[Attempt]:
        """See Tasks.attempts."""
        return await run_async(self.redis, failures.attempts(job_id))

    async def requeue(self, job_id: str) -> str:
        """See Tasks.requeue."""
        return await run_async(self.redis, requeueing.requeue_one(job_id, self.clock.now()))

    async def start_requeueing(self, queue: str, where: JobFilter = NO_FILTER) -> Requeueing:
        """See Tasks.start_requeueing."""
        return await run_async(self.redis, requeueing.start(queue, where, self.clock.now()))

    async def carry_on_requeueing(
        self, operation: str, on_step: Callable[[Requeueing], object] = ignore_step
    ) -> Requeueing:
        """See Tasks.carry_on_requeueing."""
        return await run_async(self.redis, requeueing.carry_on(operation, self.clock.now, on_step))

    async def put_schedule(self, schedule: Schedule, *, expected: int | None = None) -> bool:
        """See Tasks.put_schedule."""
        steps = store.put(schedule, self.rules, self.clock.now(), expected)
        return await run_async(self.redis, steps)

    async def remove_schedule(self, name: str, *, expected: int | None = None) -> None:
        """See Tasks.remove_schedule."""
        await run_async(self.redis, store.remove(name, expected))

    async def pause_schedule(self, name: str) -> None:
        """See Tasks.pause_schedule."""
        await run_async(self.redis, store.pause(name))

    async def resume_schedule(self, name: str) -> None:
        """See Tasks.resume_schedule."""
        await run_async(self.redis, store.resume(name, self.clock.now()))

    async def run_schedule(self, name: str) -> str:
        """See Tasks.run_schedule."""
        return await run_async(self.redis, store.run_now(name, self.clock.now()))

    async def schedule(self, name: str) -> ScheduleInfo:
        """See Tasks.schedule."""
        return await run_async(self.redis, store.get(name))

    async def schedules(self, *, after: str = "", limit: int = 100) -> list[ScheduleInfo]:
        """See Tasks.schedules."""
        return await run_async(self.redis, store.page(after, limit))
