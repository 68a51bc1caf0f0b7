"""``Tasks`` and ``AsyncTasks``: the same operations for the two kinds of Redis client."""

from __future__ import annotations

from collections.abc import Collection
from types import NoneType
from typing import TYPE_CHECKING, Any

from engineroom.core.clock import Clock, SystemClock
from engineroom.tasks import limits, results, schedules
from engineroom.tasks.enqueueing import dependents, enqueue, flows
from engineroom.tasks.enqueueing.task import (
    DEFAULT_MAX_BYTES,
    DEFAULT_MAX_FLOW_BYTES,
    Function,
    PickleSerializer,
    Rules,
    Serializer,
    Task,
    Unique,
    check_queue,
)
from engineroom.tasks.errors import InvalidTaskError
from engineroom.tasks.inspection import failures, queues, workers
from engineroom.tasks.inspection import jobs as inspect
from engineroom.tasks.inspection.failures import Requeueing, Where
from engineroom.tasks.redis_steps import run, run_async
from engineroom.tasks.type_checks import check_kind, whole, wrong_kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis

    from engineroom.tasks.enqueueing.dependents import Canceled
    from engineroom.tasks.enqueueing.enqueue import Enqueued
    from engineroom.tasks.enqueueing.flows import EnqueuedFlow, Part
    from engineroom.tasks.inspection.failures import Attempt, Page
    from engineroom.tasks.inspection.jobs import Impact, JobDetail, JobPage, State
    from engineroom.tasks.inspection.queues import QueueCounts
    from engineroom.tasks.inspection.workers import Worker
    from engineroom.tasks.results import JobResult, Progress
    from engineroom.tasks.schedules import Known, Schedule


EVERY = Where()


def _silent(_: Requeueing) -> None:
    """Nobody wants to hear."""


class _Shared:
    """What both halves are told; nothing here talks to Redis."""

    def __init__(
        self,
        redis: Any,
        *,
        queues: Collection[str] | None,
        max_bytes: int,
        serializer: Serializer,
        clock: Clock | None,
        max_flow_bytes: int,
    ) -> None:
        # Text is a collection, too: of characters.
        if isinstance(queues, (str, bytes)):
            raise wrong_kind("queues", queues, "use a set of names")
        check_kind("queues", queues, (Collection, NoneType), "use a set of names")
        for name in queues or ():
            check_kind("queues", name, str, "use a set of names")
        for name, most in (("max_bytes", max_bytes), ("max_flow_bytes", max_flow_bytes)):
            if whole(name, most) < 1:
                raise InvalidTaskError(name, f"{most} bytes", "use 1 or more")
        if redis.connection_pool.connection_kwargs.get("decode_responses"):
            raise InvalidTaskError(
                "redis",
                "decodes responses",
                "jobs are bytes: leave decode_responses out, as for RQ",
            )
        self.redis = redis
        self.clock = clock or SystemClock()
        self.rules = Rules(
            None if queues is None else frozenset(queues), max_bytes, serializer, max_flow_bytes
        )


def _task(task: Task | Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Task:
    if not isinstance(task, Task):
        return Task(task, args, kwargs)
    if args or kwargs:
        raise InvalidTaskError("args", "stand beside a Task", "put them into the Task")
    return task


class Tasks(_Shared):
    """Puts work on queues and manages them, through a ``redis.Redis``.

    ``queues``: the only names that may be enqueued to; None allows any. ``max_bytes``: the largest
    a job's function, arguments and meta may be, serialised; ``max_flow_bytes``: the jobs of a flow
    together, as they are stored. ``serializer``: the workers' own.
    Every method raises TasksUnavailableError when Redis does not answer or refuses.
    """

    redis: Redis

    def __init__(
        self,
        redis: Redis,
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

    def enqueue(self, task: Task | Function, /, *args: Any, **kwargs: Any) -> Enqueued:
        """Enqueue one job, in one round trip and whole or not at all.

        ``task`` is a Task, or a function followed by its arguments. Raises InvalidTaskError and
        its kinds, JobExistsError.
        """
        steps = enqueue.enqueue_one(_task(task, args, kwargs), self.rules, self.clock.now())
        return run(self.redis, steps)

    def enqueue_many(self, tasks: Iterable[Task]) -> list[Enqueued]:
        """Enqueue jobs in order, in transactions of 250 or about a mebibyte; one answer for each.

        All are checked before the first is written. When Redis fails in between, the error's
        ``done`` says how many of the first are known to be in. Of a ``job_id`` that exists the
        answer says ``created=False``. Raises InvalidTaskError and its kinds.
        """
        return run(self.redis, enqueue.enqueue_many(tasks, self.rules, self.clock.now()))

    def enqueue_flow(
        self, flow: Part, *, flow_id: str | None = None, unique: Unique | None = None
    ) -> EnqueuedFlow:
        """Enqueue all jobs of a flow in one step, or none.

        Those without a ``job_id`` are named ``<flow_id>-<number>``. ``unique`` is for the flow as
        a whole. Raises InvalidTaskError and its kinds, JobExistsError, ParentCanceledError.
        """
        steps = flows.enqueue_flow(flow, self.rules, self.clock.now(), flow_id, unique)
        return run(self.redis, steps)

    def cancel(
        self, job_id: str, *, stop: bool = False, queues: Collection[str] | None = None
    ) -> Canceled:
        """Cancel a job and all that hangs on it, in steps of 50; which jobs these are.

        With ``queues`` jobs of others are left alone: the job itself is then not there.
        A job that runs is not ended, unless with ``stop`` its worker is asked to. After a kill
        nothing of it runs; the same call does the rest. Raises core.errors.JobMissingError,
        JobEndedError.
        """
        steps = dependents.cancel(job_id, self.clock.now(), stop=stop, queues=queues)
        return run(self.redis, steps)

    def queue_names(self) -> list[str]:
        """All queues that RQ knows, sorted."""
        return run(self.redis, queues.names())

    def counts(self, names: Sequence[str] | None = None) -> list[QueueCounts]:
        """How many jobs are where, without side effects; of all queues unless named."""
        chosen = self.queue_names() if names is None else names
        return run(self.redis, queues.count(chosen, self.clock.now()))

    def create_queue(self, name: str) -> bool:
        """Make the queue known to RQ; False if it was."""
        return run(self.redis, queues.create(name, self.rules))

    def pause_queue(self, name: str, reason: str = "") -> bool:
        """Have our workers take no job from the queue; stock ``rq worker`` does not heed it."""
        return run(self.redis, queues.pause(name, reason))

    def resume_queue(self, name: str) -> bool:
        """Let workers take jobs again; False if it was not paused."""
        return run(self.redis, queues.resume(name))

    def limit_queue(
        self, name: str, *, concurrency: int | None = None, rate: str | None = None
    ) -> None:
        """Have our workers run at most so many of the queue's jobs at once, and begin so many.

        ``rate`` is like ``"10/s"``. Instead of any limit that the queue has. Raises
        InvalidTaskError.
        """
        check_queue(name, self.rules)
        run(self.redis, limits.limit_queue(name, concurrency, rate))

    def unlimit_queue(self, name: str) -> bool:
        """Take the queue's limit away; False if it had none."""
        return run(self.redis, limits.unlimit_queue(name))

    def empty_queue(self, name: str, *, confirm: str) -> int:
        """Delete the jobs that wait now; ``confirm`` is the name again.

        What hangs on them is cancelled. Raises NotConfirmedError.
        """
        return run(self.redis, queues.empty(name, confirm, self.clock.now()))

    def move_jobs(self, source: str, target: str, *, limit: int | None = None) -> int:
        """Move waiting jobs, oldest first, as if they came to the other queue now; how many."""
        return run(self.redis, queues.move(source, target, self.rules, limit, self.clock.now()))

    def workers(self, queue: str | None = None) -> list[Worker]:
        """Workers that listen to the queue, or all that RQ knows, by name, and how they are."""
        return run(self.redis, workers.listed(queue, self.clock.now()))

    def clear_ghosts(self) -> list[str]:
        """Take workers that are no more off RQ's lists; returns their names."""
        return run(self.redis, workers.clear_ghosts(self.clock.now()))

    def jobs(
        self,
        states: Sequence[State] = inspect.ALL,
        where: Where = EVERY,
        *,
        queues: Sequence[str] | None = None,
        cursor: str | None = None,
        limit: int = 100,
    ) -> JobPage:
        """Jobs state by state, a page at a time; of all queues unless named.

        Give the page's ``cursor``, and the same filter, to get the next one; None says that there
        is none. Reads keys and changes nothing. Raises InvalidTaskError.
        """
        chosen = self.queue_names() if queues is None else queues
        return run(self.redis, inspect.page(chosen, states, where, cursor, limit))

    def job(self, job_id: str) -> JobDetail:
        """All that is known of one job, arguments cut to size and redacted.

        Raises JobMissingError, InvalidTaskError.
        """
        return run(self.redis, inspect.detail(job_id, self.clock.now()))

    def count_jobs(
        self,
        state: State,
        where: Where = EVERY,
        *,
        queues: Sequence[str] | None = None,
        most: int = inspect.COUNT_SCANNED,
    ) -> Impact:
        """How many jobs a filter matches; with one, no more than ``most`` are looked at."""
        chosen = self.queue_names() if queues is None else queues
        return run(self.redis, inspect.count(chosen, state, where, most))

    def progress(self, job_id: str) -> Progress | None:
        """What the job reported last."""
        return run(self.redis, results.progress_of(job_id))

    def result(self, job_id: str) -> JobResult:
        """Status and result; the value is read with the serializer, so only from your own jobs."""
        return run(self.redis, results.result_of(job_id, self.rules.serializer))

    def failures(
        self,
        queue: str,
        where: Where = EVERY,
        *,
        cursor: str | None = None,
        limit: int = 100,
    ) -> Page:
        """Failed jobs of a queue, newest first, a page at a time.

        Give the page's ``cursor`` to get the next one; None says that there is none. With a filter
        a page may be short before the last.
        """
        steps = failures.page(queue, where, cursor, limit)
        return run(self.redis, steps)

    def attempts(self, job_id: str) -> list[Attempt]:
        """Why the job failed each time, oldest first, as far as it is known."""
        return run(self.redis, failures.attempts(job_id))

    def requeue(self, job_id: str) -> str:
        """Put one failed job back; returns its queue. Raises NotFailedError."""
        return run(self.redis, failures.requeue_one(job_id, self.clock.now()))

    def start_requeueing(self, queue: str, where: Where = EVERY) -> Requeueing:
        """Note down which failed jobs are to be put back; ``carry_on_requeueing`` does it."""
        return run(self.redis, failures.start(queue, where, self.clock.now()))

    def carry_on_requeueing(
        self, operation: str, told: Callable[[Requeueing], object] = _silent
    ) -> Requeueing:
        """Put jobs back in steps of 50 until done; ``told`` hears of each step.

        May be called again after a kill, and by several at once. Raises NothingMatchesError when
        no failed job matched.
        """
        return run(self.redis, failures.carry_on(operation, self.clock.now, told))

    def put_schedule(self, schedule: Schedule, *, expected: int | None = None) -> bool:
        """Store a schedule, new or instead of the one of that name; True if it is new.

        The same again changes nothing, and one that is paused stays so. ``expected`` is the version
        that it has to have, 0: that there is none. Raises InvalidTaskError, ScheduleOwnedError,
        ScheduleChangedError.
        """
        return run(self.redis, schedules.put(schedule, self.rules, self.clock.now(), expected))

    def remove_schedule(self, name: str, *, expected: int | None = None) -> None:
        """Forget a schedule, in the version ``expected`` if given.

        Raises ScheduleNotFoundError, ScheduleOwnedError, ScheduleChangedError.
        """
        run(self.redis, schedules.remove(name, expected))

    def pause_schedule(self, name: str) -> None:
        """Have a schedule not tick until it is resumed; what it misses is not made up for.

        Raises ScheduleNotFoundError, ScheduleOwnedError.
        """
        run(self.redis, schedules.pause(name))

    def resume_schedule(self, name: str) -> None:
        """Let a schedule tick again. Raises ScheduleNotFoundError, ScheduleOwnedError."""
        run(self.redis, schedules.resume(name, self.clock.now()))

    def run_schedule(self, name: str) -> str:
        """Enqueue a schedule's job now, beside its ticks; returns the job's id.

        Raises ScheduleNotFoundError.
        """
        return run(self.redis, schedules.run_now(name, self.clock.now()))

    def schedule(self, name: str) -> Known:
        """One schedule. Raises ScheduleNotFoundError."""
        return run(self.redis, schedules.get(name))

    def schedules(self, *, after: str = "", limit: int = 100) -> list[Known]:
        """Schedules by their next tick, those beyond the one named ``after``."""
        return run(self.redis, schedules.listed(after, limit))


class AsyncTasks(_Shared):
    """``Tasks`` for a ``redis.asyncio.Redis``; the methods do the same and are awaited."""

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
        steps = enqueue.enqueue_one(_task(task, args, kwargs), self.rules, self.clock.now())
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
        return await run_async(self.redis, workers.listed(queue, self.clock.now()))

    async def clear_ghosts(self) -> list[str]:
        """See Tasks.clear_ghosts."""
        return await run_async(self.redis, workers.clear_ghosts(self.clock.now()))

    async def jobs(
        self,
        states: Sequence[State] = inspect.ALL,
        where: Where = EVERY,
        *,
        queues: Sequence[str] | None = None,
        cursor: str | None = None,
        limit: int = 100,
    ) -> JobPage:
        """See Tasks.jobs."""
        chosen = await self.queue_names() if queues is None else queues
        return await run_async(self.redis, inspect.page(chosen, states, where, cursor, limit))

    async def job(self, job_id: str) -> JobDetail:
        """See Tasks.job."""
        return await run_async(self.redis, inspect.detail(job_id, self.clock.now()))

    async def count_jobs(
        self,
        state: State,
        where: Where = EVERY,
        *,
        queues: Sequence[str] | None = None,
        most: int = inspect.COUNT_SCANNED,
    ) -> Impact:
        """See Tasks.count_jobs."""
        chosen = await self.queue_names() if queues is None else queues
        return await run_async(self.redis, inspect.count(chosen, state, where, most))

    async def progress(self, job_id: str) -> Progress | None:
        """See Tasks.progress."""
        return await run_async(self.redis, results.progress_of(job_id))

    async def result(self, job_id: str) -> JobResult:
        """See Tasks.result."""
        return await run_async(self.redis, results.result_of(job_id, self.rules.serializer))

    async def failures(
        self,
        queue: str,
        where: Where = EVERY,
        *,
        cursor: str | None = None,
        limit: int = 100,
    ) -> Page:
        """See Tasks.failures."""
        steps = failures.page(queue, where, cursor, limit)
        return await run_async(self.redis, steps)

    async def attempts(self, job_id: str) -> list[Attempt]:
        """See Tasks.attempts."""
        return await run_async(self.redis, failures.attempts(job_id))

    async def requeue(self, job_id: str) -> str:
        """See Tasks.requeue."""
        return await run_async(self.redis, failures.requeue_one(job_id, self.clock.now()))

    async def start_requeueing(self, queue: str, where: Where = EVERY) -> Requeueing:
        """See Tasks.start_requeueing."""
        return await run_async(self.redis, failures.start(queue, where, self.clock.now()))

    async def carry_on_requeueing(
        self, operation: str, told: Callable[[Requeueing], object] = _silent
    ) -> Requeueing:
        """See Tasks.carry_on_requeueing."""
        return await run_async(self.redis, failures.carry_on(operation, self.clock.now, told))

    async def put_schedule(self, schedule: Schedule, *, expected: int | None = None) -> bool:
        """See Tasks.put_schedule."""
        steps = schedules.put(schedule, self.rules, self.clock.now(), expected)
        return await run_async(self.redis, steps)

    async def remove_schedule(self, name: str, *, expected: int | None = None) -> None:
        """See Tasks.remove_schedule."""
        await run_async(self.redis, schedules.remove(name, expected))

    async def pause_schedule(self, name: str) -> None:
        """See Tasks.pause_schedule."""
        await run_async(self.redis, schedules.pause(name))

    async def resume_schedule(self, name: str) -> None:
        """See Tasks.resume_schedule."""
        await run_async(self.redis, schedules.resume(name, self.clock.now()))

    async def run_schedule(self, name: str) -> str:
        """See Tasks.run_schedule."""
        return await run_async(self.redis, schedules.run_now(name, self.clock.now()))

    async def schedule(self, name: str) -> Known:
        """See Tasks.schedule."""
        return await run_async(self.redis, schedules.get(name))

    async def schedules(self, *, after: str = "", limit: int = 100) -> list[Known]:
        """See Tasks.schedules."""
        return await run_async(self.redis, schedules.listed(after, limit))
