"""``Tasks``: puts work on queues and manages queues, jobs and schedules, for a ``redis.Redis``."""

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
from engineroom.tasks.redis_steps import run
from engineroom.tasks.schedules import store
from engineroom.tasks.serializers import PickleSerializer, Serializer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from redis import Redis

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


class Tasks(TasksBase):
    """Puts work on queues and manages queues, jobs and schedules, through a ``redis.Redis``.

    ``queues`` are the only queues that jobs may be enqueued to; None allows all. ``max_bytes``
    bounds a job's function, arguments and meta together, serialised; ``max_flow_bytes`` bounds all
    jobs of a flow together, as stored. ``serializer`` has to be the workers' serializer. All
    methods raise TasksUnavailableError if Redis does not answer or refuses.
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
        """Enqueue one job in one round trip, whole or not at all.

        ``task`` is a Task, or a function followed by its arguments. Raises InvalidTaskError and its
        subclasses, JobExistsError, ParentCanceledError.
        """
        steps = enqueue.enqueue_one(to_task(task, args, kwargs), self.rules, self.clock.now())
        return run(self.redis, steps)

    def enqueue_many(self, tasks: Iterable[Task]) -> list[Enqueued]:
        """Enqueue jobs in order, in transactions of 250 jobs or about a mebibyte.

        Return one result per task; ``created`` is False for a ``job_id`` that exists. All tasks are
        checked before the first is written. If Redis fails halfway, the error's ``done`` is the
        number of tasks that certainly are enqueued, counted from the first. Raises InvalidTaskError
        and its subclasses.
        """
        return run(self.redis, enqueue.enqueue_many(tasks, self.rules, self.clock.now()))

    def enqueue_flow(
        self, flow: Part, *, flow_id: str | None = None, unique: Unique | None = None
    ) -> EnqueuedFlow:
        """Enqueue all jobs of a flow, or none.

        A job without a ``job_id`` gets the id ``<flow_id>-<number>``. ``unique`` applies to the
        whole flow. Raises InvalidTaskError and its subclasses, JobExistsError, ParentCanceledError.
        """
        steps = flows.enqueue_flow(flow, self.rules, self.clock.now(), flow_id, unique)
        return run(self.redis, steps)

    def cancel(
        self, job_id: str, *, stop: bool = False, queues: Collection[str] | None = None
    ) -> Canceled:
        """Cancel a job and all its dependents, in steps of 50; return their ids.

        With ``queues``, jobs on other queues count as missing. A running job goes on, unless
        ``stop`` is set: its worker then ends it. If the call is killed, none of the jobs starts
        anymore, and the same call cancels the rest. Raises core.errors.JobMissingError,
        JobEndedError.
        """
        steps = dependents.cancel(job_id, self.clock.now(), stop=stop, queues=queues)
        return run(self.redis, steps)

    def queue_names(self) -> list[str]:
        """Return the names of all queues of RQ, sorted."""
        return run(self.redis, queues.names())

    def counts(self, names: Sequence[str] | None = None) -> list[QueueCounts]:
        """Return the number of jobs by state, without side effects; of all queues by default."""
        chosen = self.queue_names() if names is None else names
        return run(self.redis, queues.count(chosen, self.clock.now()))

    def create_queue(self, name: str) -> bool:
        """Register the queue with RQ; return False if it existed."""
        return run(self.redis, queues.create(name, self.rules))

    def pause_queue(self, name: str, reason: str = "") -> bool:
        """Stop Engineroom's workers from taking the queue's jobs; a stock ``rq worker`` goes on.

        Return False if the queue was paused already.
        """
        return run(self.redis, queues.pause(name, reason))

    def resume_queue(self, name: str) -> bool:
        """Let workers take jobs again; return False if the queue was not paused."""
        return run(self.redis, queues.resume(name))

    def limit_queue(
        self, name: str, *, concurrency: int | None = None, rate: str | None = None
    ) -> None:
        """Set the queue's limit, which replaces the previous one; Engineroom's workers enforce it.

        ``concurrency`` is the number of jobs that run at once, and ``rate`` the number of jobs that
        start in a period, such as ``"10/s"``. Raises InvalidTaskError.
        """
        check_queue(name, self.rules)
        run(self.redis, limits.limit_queue(name, concurrency, rate))

    def unlimit_queue(self, name: str) -> bool:
        """Remove the queue's limit; return False if it had none."""
        return run(self.redis, limits.unlimit_queue(name))

    def empty_queue(self, name: str, *, confirm: str) -> int:
        """Delete the jobs that wait now, and cancel their dependents; return the number deleted.

        ``confirm`` has to repeat the queue's name. Raises NotConfirmedError.
        """
        return run(self.redis, queues.empty(name, confirm, self.clock.now()))

    def move_jobs(self, source: str, target: str, *, limit: int | None = None) -> int:
        """Move waiting jobs, oldest first, as if enqueued to ``target`` now; return the number."""
        return run(self.redis, queues.move(source, target, self.rules, limit, self.clock.now()))

    def workers(self, queue: str | None = None) -> list[Worker]:
        """Return the workers of the queue, or all workers, sorted by name, with their health."""
        return run(self.redis, workers.page(queue, self.clock.now()))

    def clear_ghosts(self) -> list[str]:
        """Remove dead workers from RQ's sets; return their names."""
        return run(self.redis, workers.clear_ghosts(self.clock.now()))

    def jobs(
        self,
        states: Sequence[State] = ALL_STATES,
        where: JobFilter = NO_FILTER,
        *,
        queues: Sequence[str] | None = None,
        cursor: str | None = None,
        limit: int = 100,
    ) -> JobPage:
        """Return a page of jobs, state by state, without side effects; of all queues by default.

        Pass the page's ``cursor`` with the same filter to get the next page; the last page has
        None. Raises InvalidTaskError.
        """
        chosen = self.queue_names() if queues is None else queues
        return run(self.redis, jobs.page(chosen, states, where, cursor, limit))

    def job(self, job_id: str) -> JobDetail:
        """Return everything that Redis holds about one job, with arguments cut and redacted.

        Raises JobMissingError, InvalidTaskError.
        """
        return run(self.redis, job_detail.detail(job_id, self.clock.now()))

    def count_jobs(
        self,
        state: State,
        where: JobFilter = NO_FILTER,
        *,
        queues: Sequence[str] | None = None,
        most: int = COUNT_SCANNED,
    ) -> Impact:
        """Count the jobs that match; a filter reads at most ``most`` jobs."""
        chosen = self.queue_names() if queues is None else queues
        return run(self.redis, jobs.count(chosen, state, where, most))

    def progress(self, job_id: str) -> Progress | None:
        """Return the progress that the job reported last, or None."""
        return run(self.redis, results.progress_of(job_id))

    def result(self, job_id: str) -> JobResult:
        """Return the job's status and result.

        The serializer decodes the value, so call this only for jobs that your application wrote.
        """
        return run(self.redis, results.result_of(job_id, self.rules.serializer))

    def failures(
        self,
        queue: str,
        where: JobFilter = NO_FILTER,
        *,
        cursor: str | None = None,
        limit: int = 100,
    ) -> FailurePage:
        """Return a page of the queue's failed jobs, newest first.

        Pass the page's ``cursor`` to get the next page; the last page has None. With a filter, a
        page before the last may be short.
        """
        steps = failures.page(queue, where, cursor, limit)
        return run(self.redis, steps)

    def attempts(self, job_id: str) -> list[Attempt]:
        """Return the job's known failures, oldest first."""
        return run(self.redis, failures.attempts(job_id))

    def requeue(self, job_id: str) -> str:
        """Requeue one failed job; return its queue. Raises NotFailedError, SupersededError."""
        return run(self.redis, requeueing.requeue_one(job_id, self.clock.now()))

    def start_requeueing(self, queue: str, where: JobFilter = NO_FILTER) -> Requeueing:
        """Store an operation that requeues matching jobs; ``carry_on_requeueing`` performs it."""
        return run(self.redis, requeueing.start(queue, where, self.clock.now()))

    def carry_on_requeueing(
        self, operation: str, on_step: Callable[[Requeueing], object] = ignore_step
    ) -> Requeueing:
        """Requeue jobs in bounded steps until the operation is done; call ``on_step`` for each.

        The call can be repeated after a kill, and concurrent calls share the work. Raises
        NothingMatchesError if no failed job matched.
        """
        return run(self.redis, requeueing.carry_on(operation, self.clock.now, on_step))

    def put_schedule(self, schedule: Schedule, *, expected: int | None = None) -> bool:
        """Create the schedule or replace the one of its name; return True if it is new.

        An equal schedule stays unchanged, and a paused one stays paused. ``expected`` is the
        version that the stored schedule must have; 0 means that none may exist. Raises
        InvalidTaskError, ScheduleOwnedError, ScheduleChangedError.
        """
        return run(self.redis, store.put(schedule, self.rules, self.clock.now(), expected))

    def remove_schedule(self, name: str, *, expected: int | None = None) -> None:
        """Delete a schedule, in the version ``expected`` if given; jobs that it enqueued stay.

        Raises ScheduleNotFoundError, ScheduleOwnedError, ScheduleChangedError.
        """
        run(self.redis, store.remove(name, expected))

    def pause_schedule(self, name: str) -> None:
        """Suspend a schedule until it is resumed; it does not catch up on missed ticks.

        Raises ScheduleNotFoundError, ScheduleOwnedError.
        """
        run(self.redis, store.pause(name))

    def resume_schedule(self, name: str) -> None:
        """Resume a paused schedule. Raises ScheduleNotFoundError, ScheduleOwnedError."""
        run(self.redis, store.resume(name, self.clock.now()))

    def run_schedule(self, name: str) -> str:
        """Enqueue a schedule's job now, beside its ticks; return the job's id.

        Raises ScheduleNotFoundError.
        """
        return run(self.redis, store.run_now(name, self.clock.now()))

    def schedule(self, name: str) -> ScheduleInfo:
        """Return one schedule. Raises ScheduleNotFoundError."""
        return run(self.redis, store.get(name))

    def schedules(self, *, after: str = "", limit: int = 100) -> list[ScheduleInfo]:
        """Return schedules sorted by their next tick, after the one named ``after``."""
        return run(self.redis, store.page(after, limit))
