"""What RQ does beside running jobs, inside the worker and without doubling any.

Scheduled jobs are promoted by whichever worker holds RQ's own scheduler lock, from its loop; RQ
would fork a process per worker for that.  RQ's maintenance runs as ever, except for the two parts
of it that decide what becomes of a job in several steps: here each decision is one transaction,
which only the first of all who try can apply.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import time
from typing import TYPE_CHECKING, Any

import rq
from redis.exceptions import RedisError
from rq import worker_registration
from rq.exceptions import AbandonedJobError, NoSuchJobError
from rq.job import Job, JobStatus
from rq.queue import Queue
from rq.registry import StartedJobRegistry, clean_registries
from rq.scheduler import RQScheduler

from engineroom_worker import drain, limits
from engineroom_worker.priority import LATEST, TO_PLACES
from engineroom_worker.transactions import Guard, GuardedConnection, NotHeldError, Patience

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

RQ_MAJOR = int(rq.__version__.split(".")[0])

#: Without a heartbeat for so long an execution is taken for abandoned by maintenance.
EXECUTION_TTL = 90
#: Scheduled jobs are looked for so often by the worker that holds RQ's scheduler lock,
PROMOTE_SECONDS = 1.0
#: which it refreshes, and others try to get, so often,
LOCK_SECONDS = 15.0
#: and which RQ's scripts let expire after 61 s: a holder that could not refresh it lets go before.
LOCK_TRUST_SECONDS = 50.0
#: A job that was taken and not started for so long is put back.
STRAY_SECONDS = 60.0
#: Who settles a job for the dead is given so long, its failure callback included.
SETTLING_SECONDS = 300

#: Put back what has been in the intermediate list for too long.  The entry is the right to start
#: the job, so a worker that is merely slow finds itself without it and drops the job: no double.
#: KEYS: queue, intermediate list, hash of when each entry was first seen, registry of started jobs
#: (stock RQ workers leave the entry in the list until the job has begun).
#: ARGV: now, seconds, prefix of job keys.
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
    """RQ's own, which also tells what it is about to enqueue."""

    def __init__(self, told: Callable[[str, list[str]], None], *args: Any, **kwargs: Any) -> None:
        self._told = told
        super().__init__(*args, **kwargs)

    def prepare_registries(self, *names: Any) -> None:
        """Make the registries that RQ asks for what is due."""
        super().prepare_registries(*names)
        for registry in self._scheduled_job_registries:
            self._listen(registry)

    def _listen(self, registry: Any) -> None:
        asked = registry.get_jobs_to_schedule

        def get_jobs_to_schedule(*args: Any, **kwargs: Any) -> Any:
            jobs = asked(*args, **kwargs)
            self._told(registry.name, jobs)
            return jobs

        registry.get_jobs_to_schedule = get_jobs_to_schedule


class Housekeeper:
    """The side work of one worker."""

    def __init__(self, worker: Any, patience: Patience) -> None:
        self._worker = worker
        self._patience = patience
        self._scheduler: Any = None
        self._next_promotion = self._next_lock = self._locked_at = 0.0
        self._failures = 0
        self._freed = worker.connection.register_script(limits.FREED)
        self._to_places = worker.connection.register_script(TO_PLACES)
        self._promoted: dict[str, list[str]] = {}

    def due(self) -> float:
        """When to call ``promote`` next, in monotonic seconds."""
        return self._next_promotion if self._holds_locks() else self._next_lock

    def promote(self) -> None:
        """Enqueue scheduled jobs that are due; never raises, the loop notices an outage itself."""
        at = time.monotonic()
        if at < self.due():
            return
        self._next_promotion = at + PROMOTE_SECONDS
        try:
            if at >= self._next_lock:
                self._next_lock = at + LOCK_SECONDS
                self._hold_locks(at)
                self._settle_for_the_dead()
            if self._holds_locks():
                if at - self._locked_at > LOCK_TRUST_SECONDS:
                    self.outage()
                    return
                self._scheduler.enqueue_scheduled_jobs()
                promoted, self._promoted = self._promoted, {}
                for name, jobs in promoted.items():
                    self.to_places(Queue.redis_queue_namespace_prefix + name, jobs)
        except RedisError as error:
            log.debug("Worker %s: no promotion: %s", self._worker.name, error)
        except Exception:
            log.exception("Worker %s: could not enqueue scheduled jobs", self._worker.name)

    def to_places(self, queue_key: str, jobs: Sequence[str]) -> None:
        """Take jobs that RQ has just put at the end of a queue to where their priority says."""
        prefix = Job.redis_job_namespace_prefix
        for start in range(0, len(jobs), LATEST // 10):
            chunk = jobs[start : start + LATEST // 10]
            self._to_places(keys=[queue_key], args=[prefix, LATEST, *chunk])

    def freed(self, limit: str) -> None:
        """Say that a job has given up its place of the limit."""
        self._freed(keys=[limits.holding_key(limit)], args=[limit])

    def outage(self) -> None:
        """Redis was away: another may hold the locks by now."""
        if self._holds_locks():
            self._scheduler._acquired_locks = set()
            self._scheduler._scheduled_job_registries = []
        self._next_lock = time.monotonic() + PROMOTE_SECONDS

    def leave(self) -> None:
        """Let another worker promote at once."""
        if self._holds_locks():
            with contextlib.suppress(RedisError):
                self._scheduler.stop()

    def promote_ready(self) -> None:
        """Enqueue dependents that RQ 3 has marked ready and that nobody has enqueued."""
        if RQ_MAJOR < 3:
            return
        from rq.registry import ReadyJobRegistry

        worker = self._worker
        with contextlib.suppress(RedisError):
            for queue in Queue.all(connection=worker.connection, serializer=worker.serializer):
                ReadyJobRegistry(queue=queue).cleanup()

    def clean(self, queue: Queue) -> None:
        """Maintain one queue, unless another worker does so just now."""
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
            # The lock then carries the worker's name, and who finds the worker dead can free it.
            named["name"] = worker.name
        scheduler = _Scheduler(
            self._promoted_from,
            worker.queues,
            worker.connection,
            logging_level=log.level or logging.INFO,
            serializer=worker.serializer,
            **named,
        )
        scheduler._connection = worker.connection
        return scheduler

    def _promoted_from(self, queue: str, jobs: list[str]) -> None:
        if jobs:
            self._promoted.setdefault(queue, []).extend(jobs)

    def _settle_for_the_dead(self) -> None:
        """What the operator leaves undone for jobs that it failed: it runs nobody's code."""
        worker = self._worker
        for queue in worker.queues:
            while self._settle_next(queue):
                pass

    def _settle_next(self, queue: Queue) -> bool:
        """Settle the queue's next such job; False if there is none, or another is at it.

        The entry goes when all is done: who dies in between leaves it to another, whose claim
        waits for that of the dead to expire. A failure callback may so be called twice.
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
        guard = Guard(
            "abandoned",
            (registry_key, worker.key),
            member=lambda: member,
            token=lambda: repr(at),
            extra=lambda: [("ZREM", registry_key, member), ("DEL", f"rq:execution:{member}")],
            patience=self._patience,
        )
        # Left over from a job that has ended otherwise: nothing to decide.
        held = job.get_status(refresh=False) == JobStatus.STARTED
        retry = held and job.should_retry
        if job.failure_ttl is None:
            job.failure_ttl = worker.settings.dead_letter_ttl
        reason = f"Job abandoned: its worker sent no heartbeat for {EXECUTION_TTL} s."
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
        """The failure callback, dependents, webhooks and rate-limit slot of an abandoned job."""
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


def bind_status(job: Job, guard: Guard) -> None:
    """Have RQ set the job's status in the guarded transaction.

    ``Job.retry`` with an interval writes the status SCHEDULED by itself, ahead of the transaction
    that schedules; a crash in between would leave a job that is scheduled nowhere.
    """

    def set_status(status: JobStatus, pipeline: Any = None) -> None:
        type(job).set_status(job, status, pipeline=pipeline or guard.pipeline)

    job.__dict__["set_status"] = set_status
