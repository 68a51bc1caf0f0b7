"""RQ's side work inside the worker: promotion of scheduled jobs, and maintenance.

The worker that holds RQ's own scheduler lock promotes scheduled jobs from its loop; RQ would fork a
process per worker for that. RQ's maintenance runs unchanged, except for the two parts that decide
a job's outcome in several steps. Here each decision is one transaction, which only one worker can
apply.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import time
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError
from rq import worker_registration
from rq.exceptions import AbandonedJobError, NoSuchJobError
from rq.job import Job, JobStatus
from rq.queue import Queue
from rq.registry import StartedJobRegistry, clean_registries
from rq.scheduler import RQScheduler

from engineroom_worker import drain, executions
from engineroom_worker.dequeue import limits
from engineroom_worker.dequeue.priority import MAX_SEARCH, MOVE_BY_PRIORITY
from engineroom_worker.executions import RQ_MAJOR
from engineroom_worker.transactions import (
    GuardedConnection,
    NotHeldError,
    RedisRetry,
    TransactionGuard,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: Interval at which the holder of RQ's scheduler lock promotes scheduled jobs (seconds).
PROMOTE_SECONDS = 1.0
#: Interval at which the holder refreshes the lock, and others try to acquire it (seconds).
LOCK_SECONDS = 15.0
#: Age at which a holder that could not refresh the lock gives it up; RQ's scripts let the lock
#: expire after 61 s (seconds).
LOCK_TRUST_SECONDS = 50.0
#: Time after which a job that was taken and not started is put back (seconds).
STRAY_SECONDS = 60.0
#: Time limit for settling a dead worker's job, including its failure callback (seconds).
SETTLING_SECONDS = 300

#: Put back jobs that have been in the intermediate list for too long. The entry is the right to
#: start the job, so a worker that is only slow loses that right and drops the job: nothing doubles.
#: KEYS: queue, intermediate list, hash of the time at which each entry was first seen, registry of
#: started jobs (stock RQ workers leave the entry in the list until the job has started).
#: ARGV: time, seconds, prefix of job keys.
RETURN_STRAYS = """
local seen, present, returned = {}, {}, {}
local flat = redis.call('HGETALL', KEYS[3])
for at = 1, #flat, 2 do seen[flat[at]] = tonumber(flat[at + 1]) end
for _, job in ipairs(redis.call('LRANGE', KEYS[2], 0, -1)) do
  present[job] = true
  if not seen[job] then
    redis.call('HSET', KEYS[3], job, ARGV[1])
  elseif tonumber(ARGV[1]) - seen[job] >= tonumber(ARGV[2]) then
    local started = false
    for _, member in ipairs(redis.call('ZRANGE', KEYS[4], 0, -1)) do
      if string.sub(member, 1, #job + 1) == job .. ':' then started = true end
    end
    if not started and redis.call('LREM', KEYS[2], 1, job) > 0 then
      redis.call('HDEL', KEYS[3], job)
      redis.call('DEL', KEYS[2] .. ':first_seen:' .. job)
      if redis.call('HGET', ARGV[3] .. job, 'status') == 'queued' then
        redis.call('LPUSH', KEYS[1], job)
        returned[#returned + 1] = job
      end
    end
  end
end
for job in pairs(seen) do
  if not present[job] then redis.call('HDEL', KEYS[3], job) end
end
return returned
"""

log = logging.getLogger("rq.worker")


class _Scheduler(RQScheduler):
    """RQ's scheduler; calls ``on_promotion`` with queue and job ids before it enqueues them."""

    def __init__(
        self, on_promotion: Callable[[str, list[str]], None], *args: Any, **kwargs: Any
    ) -> None:
        self._on_promotion = on_promotion
        super().__init__(*args, **kwargs)

    def prepare_registries(self, *names: Any) -> None:
        """Prepare the registries from which RQ reads the due jobs."""
        super().prepare_registries(*names)
        for registry in self._scheduled_job_registries:
            self._observe(registry)

    def _observe(self, registry: Any) -> None:
        original = registry.get_jobs_to_schedule

        def get_jobs_to_schedule(*args: Any, **kwargs: Any) -> Any:
            jobs = original(*args, **kwargs)
            self._on_promotion(registry.name, jobs)
            return jobs

        registry.get_jobs_to_schedule = get_jobs_to_schedule


class Housekeeper:
    """Promotes scheduled jobs and maintains queues for one worker."""

    def __init__(self, worker: Any, retry: RedisRetry) -> None:
        self._worker = worker
        self._retry = retry
        self._scheduler: Any = None
        self._next_promotion = self._next_lock = self._locked_at = 0.0
        self._announce_slot = worker.connection.register_script(limits.ANNOUNCE_FREE_SLOT)
        self._move = worker.connection.register_script(MOVE_BY_PRIORITY)
        self._promoted: dict[str, list[str]] = {}

    def due(self) -> float:
        """Return the monotonic time at which to call ``promote`` next."""
        return self._next_promotion if self._holds_locks() else self._next_lock

    def promote(self) -> None:
        """Enqueue scheduled jobs that are due. Raises nothing: the loop notices outages itself."""
        at = time.monotonic()
        if at < self.due():
            return
        self._next_promotion = at + PROMOTE_SECONDS
        try:
            if at >= self._next_lock:
                self._next_lock = at + LOCK_SECONDS
                self._hold_locks(at)
                self._settle_failed_jobs()
            if self._holds_locks():
                if at - self._locked_at > LOCK_TRUST_SECONDS:
                    self.on_outage()
                    return
                self._scheduler.enqueue_scheduled_jobs()
                promoted, self._promoted = self._promoted, {}
                for name, jobs in promoted.items():
                    self.move_by_priority(Queue.redis_queue_namespace_prefix + name, jobs)
        except RedisError as error:
            log.debug("Worker %s: no promotion: %s", self._worker.name, error)
        except Exception:
            log.exception("Worker %s: could not enqueue scheduled jobs", self._worker.name)

    def move_by_priority(self, queue_key: str, jobs: Sequence[str]) -> None:
        """Move jobs that RQ put at the end of a queue to the position of their priority."""
        prefix = Job.redis_job_namespace_prefix
        for start in range(0, len(jobs), MAX_SEARCH // 10):
            chunk = jobs[start : start + MAX_SEARCH // 10]
            self._move(keys=[queue_key], args=[prefix, MAX_SEARCH, *chunk])

    def announce_free_slot(self, limit: str) -> None:
        """Wake workers to take held jobs of the limit's key."""
        self._announce_slot(keys=[limits.holding_key(limit)], args=[limit])

    def on_outage(self) -> None:
        """Give up the scheduler locks, which another worker may hold after the outage."""
        if self._holds_locks():
            self._scheduler._acquired_locks = set()
            self._scheduler._scheduled_job_registries = []
        self._next_lock = time.monotonic() + PROMOTE_SECONDS

    def leave(self) -> None:
        """Release the scheduler locks, so that another worker can promote at once."""
        if self._holds_locks():
            with contextlib.suppress(RedisError):
                self._scheduler.stop()

    def promote_ready(self) -> None:
        """Enqueue dependents that RQ 3 has marked ready and has not enqueued."""
        if RQ_MAJOR < 3:
            return
        from rq.registry import ReadyJobRegistry

        worker = self._worker
        with contextlib.suppress(RedisError):
            for queue in Queue.all(connection=worker.connection, serializer=worker.serializer):
                ReadyJobRegistry(queue=queue).cleanup()

    def clean(self, queue: Queue) -> None:
        """Maintain one queue, unless another worker holds its maintenance lock."""
        if not queue.acquire_maintenance_lock():
            return
        try:
            self._settle_abandoned(queue)
            self._return_strays(queue)
            clean_registries(queue, self._worker._exc_handlers)
            worker_registration.clean_worker_registry(queue)
        finally:
            queue.release_maintenance_lock()  # type: ignore[no-untyped-call]

    def _holds_locks(self) -> bool:
        return self._scheduler is not None and bool(self._scheduler.acquired_locks)

    def _hold_locks(self, at: float) -> None:
        if self._scheduler is None:
            self._scheduler = self._make_scheduler()
        scheduler = self._scheduler
        if scheduler.acquired_locks:
            scheduler.heartbeat()
        if scheduler._queue_names != scheduler.acquired_locks:
            had = bool(scheduler.acquired_locks)
            scheduler.acquire_locks()
            if scheduler.acquired_locks and not had and hasattr(scheduler, "register_birth"):
                scheduler.register_birth()
        self._locked_at = at

    def _make_scheduler(self) -> RQScheduler:
        worker = self._worker
        named: dict[str, Any] = {}
        if "name" in inspect.signature(RQScheduler.__init__).parameters:
            # The lock then holds the worker's name, so that recovery can release a dead worker's.
            named["name"] = worker.name
        scheduler = _Scheduler(
            self._on_promotion,
            worker.queues,
            worker.connection,
            logging_level=log.level or logging.INFO,
            serializer=worker.serializer,
            **named,
        )
        scheduler._connection = worker.connection
        return scheduler

    def _on_promotion(self, queue: str, jobs: list[str]) -> None:
        if jobs:
            self._promoted.setdefault(queue, []).extend(jobs)

    def _settle_failed_jobs(self) -> None:
        """Run callbacks and dependents of jobs that the operator failed: it runs no users' code."""
        worker = self._worker
        for queue in worker.queues:
            while self._settle_next(queue):
                pass

    def _settle_next(self, queue: Queue) -> bool:
        """Settle the queue's next such job; return False if there is none, or another claimed it.

        The entry is removed at the end. If this worker dies before, another settles the job after
        the claim has expired, and may call a failure callback a second time.
        """
        worker = self._worker
        waiting = drain.settle_key(queue.name)
        entry = worker.connection.lindex(waiting, 0)
        if entry is None:
            return False
        job_id = entry.decode()
        claim = drain.settling_key(job_id)
        if not worker.connection.set(claim, worker.name, nx=True, ex=SETTLING_SECONDS):
            return False
        try:
            job = worker.job_class.fetch(
                job_id, connection=worker.connection, serializer=worker.serializer
            )
            self._after_death(job, queue, "The worker of this job died.")
        except RedisError:
            raise
        except NoSuchJobError:
            pass
        except Exception:
            log.exception("Worker %s: job %s cannot be settled", worker.name, job_id)
        with worker.connection.pipeline() as pipeline:
            pipeline.lrem(waiting, 1, entry)
            pipeline.delete(claim)
            pipeline.execute()
        return True

    def _settle_abandoned(self, queue: Queue) -> None:
        worker = self._worker
        registry = StartedJobRegistry(queue=queue, job_class=worker.job_class)
        at = time.time()
        for member in worker.connection.zrangebyscore(registry.key, 0, at):
            job_id = member.decode().rpartition(":")[0]
            try:
                job = worker.job_class.fetch(
                    job_id, connection=worker.connection, serializer=worker.serializer
                )
            except NoSuchJobError:
                worker.connection.zrem(registry.key, member)
                continue
            self._settle_one(registry.key, member.decode(), job, queue, at)

    def _settle_one(
        self, registry_key: str, member: str, job: Job, queue: Queue, at: float
    ) -> None:
        worker = self._worker
        guard = TransactionGuard(
            "abandoned",
            (registry_key, worker.key),
            member=lambda: member,
            token=lambda: repr(at),
            extra=lambda: [("ZREM", registry_key, member), ("DEL", f"rq:execution:{member}")],
            retry=self._retry,
        )
        # The entry of a job that has ended otherwise is only removed.
        held = job.get_status(refresh=False) == JobStatus.STARTED
        retry = held and job.should_retry
        if job.failure_ttl is None:
            job.failure_ttl = worker.settings.dead_letter_ttl
        reason = f"Job abandoned: its worker sent no heartbeat for {executions.EXECUTION_TTL} s."
        bind_status(job, guard)
        try:
            with GuardedConnection(worker.connection, guard).pipeline() as pipeline:
                if not held:
                    pipeline.zrem(registry_key, member)
                elif retry:
                    job.retry(queue, pipeline)
                else:
                    job.ended_at = job.last_heartbeat
                    job.set_status(JobStatus.FAILED, pipeline=pipeline)
                    job._handle_failure(reason, pipeline)
                pipeline.execute()
        except NotHeldError:
            return
        finally:
            job.__dict__.pop("set_status", None)
        if held and not retry:
            self._after_death(job, queue, reason)

    def _after_death(self, job: Job, queue: Queue, reason: str) -> None:
        """Run the failure callback, dependents, webhooks and rate-limit release of a dead job."""
        worker = self._worker
        error = AbandonedJobError()
        try:
            if RQ_MAJOR >= 3:
                from rq.callbacks import execute_failure_callback

                run = functools.partial(execute_failure_callback, job)
            else:
                run = getattr(job, "execute_failure_callback")  # noqa: B009 - RQ 2 only
            run(worker.death_penalty_class, AbandonedJobError, error, None)
        except Exception:
            log.exception("Worker %s: failure callback of %s raised", worker.name, job.id)
        queue.enqueue_dependents(job)
        if hasattr(job, "send_webhooks"):
            job.send_webhooks(JobStatus.FAILED, exc_string=reason)
        if RQ_MAJOR >= 3:
            from rq.rate_limit import release_slot

            release_slot(job)

    def _return_strays(self, queue: Queue) -> None:
        script = self._worker.connection.register_script(RETURN_STRAYS)
        keys = [
            queue.key,
            queue.intermediate_queue_key,
            drain.strays_key(queue.name),
            queue.started_job_registry.key,
        ]
        returned = script(
            keys=keys, args=[time.time(), STRAY_SECONDS, Job.redis_job_namespace_prefix]
        )
        if returned:
            log.warning(
                "Worker %s: put stray jobs back on %s: %s", self._worker.name, queue.name, returned
            )


def bind_status(job: Job, guard: TransactionGuard) -> None:
    """Have RQ write the job's status in the guarded transaction.

    ``Job.retry`` with an interval writes the status SCHEDULED before the transaction that schedules
    the job. A crash in between would leave a job with that status in no registry.
    """

    def set_status(status: JobStatus, pipeline: Any = None) -> None:
        type(job).set_status(job, status, pipeline=pipeline or guard.pipeline)

    job.__dict__["set_status"] = set_status
