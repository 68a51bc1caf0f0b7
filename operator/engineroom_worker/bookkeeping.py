"""The start and the end of a job, each in one transaction that applies while the job is held.

RQ's own code decides what a start or an end writes. This module runs it on guarded connections,
adds the fields that the operator reads, and repeats it through outages of Redis.
"""

from __future__ import annotations

import contextlib
import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError
from rq.job import JobStatus
from rq.queue import Queue
from rq.utils import now, utcformat

from engineroom_worker import drain
from engineroom_worker.dequeue import limits
from engineroom_worker.executions import RQ_MAJOR, Executions
from engineroom_worker.housekeeping import bind_status
from engineroom_worker.observability.metrics import STATES
from engineroom_worker.record import NO_JOB, RECORD_TTL, job_fields
from engineroom_worker.transactions import (
    Command,
    GuardedConnection,
    NotHeldError,
    TransactionGuard,
    is_outage,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from rq.job import Job

    from engineroom_worker.housekeeping import Housekeeper
    from engineroom_worker.record import WorkerRecord
    from engineroom_worker.state import CurrentJob, WorkerState

log = logging.getLogger("rq.worker")


class Bookkeeper:
    """Writes the start and the end of the worker's jobs."""

    def __init__(
        self, worker: Any, state: WorkerState, record: WorkerRecord, housekeeper: Housekeeper
    ) -> None:
        self._worker = worker
        self._state = state
        self._record = record
        self._housekeeper = housekeeper
        self._executions = Executions(worker)
        #: The outcome that is being written; RQ calls one end from within another.
        self._outcome = ""

    def start(self, job: Job, prepare: Callable[[], Any]) -> Any:
        """Run ``prepare``, RQ's start, only if the job is still in this worker's hand.

        The same transaction writes what RQ's work horse would write on its own connection a moment
        later, so that all readers see a started job from then on. Raises NotHeldError.
        """
        current = self.current
        current.started_at = now()
        current.waited = current.started_at - job.enqueued_at if job.enqueued_at else timedelta(0)
        guard = TransactionGuard(
            "start",
            (current.queue.intermediate_queue_key, job.started_job_registry.key),
            member=lambda: self._executions.current().composite_key,
            token=lambda: job.id,
            extra=lambda: self._start_commands(job, current),
            retry=self._state.retry,
        )
        try:
            with self._guarded_pipelines(guard, job):
                prepared = prepare()
        except NotHeldError:
            self.clear()
            self._state.dequeuer.in_hand = None
            raise
        self._state.dequeuer.in_hand = None
        current.execution = self._executions.current()
        self._state.metrics.set("state", STATES.index("busy"))
        return prepared

    def end(
        self,
        outcome: str,
        job: Job,
        queue: Queue,
        write: Callable[..., None],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        """Run ``write``, RQ's end of the job, exactly once and through outages of Redis."""
        current = self._state.current
        execution = kwargs.get("execution") or (current.execution if current else None)
        if execution is None or self._outcome:
            # RQ calls this from within another end, whose guard holds already.
            write(job, queue, *args, **kwargs)
            return
        guard = self._end_guard(job, queue, execution, outcome)
        self._outcome = outcome
        try:
            self._write_through_outages(guard, job, lambda: write(job, queue, *args, **kwargs))
        except NotHeldError:
            log.warning("Worker %s: job %s was settled by another", self._worker.name, job.id)
            self._remove_execution(job, execution)
        finally:
            self._outcome = ""
        if guard.applied:
            self._state.metrics.add(outcome)
            if self.current.has_priority and outcome == "failed":
                # RQ puts an immediate retry at the end of the queue.
                with contextlib.suppress(RedisError):
                    self._housekeeper.move_by_priority(queue.key, [job.id])
            self._announce_free_slot()
        if guard.repeated:
            self._housekeeper.promote_ready()

    def give_up(self, job: Job, queue: Queue) -> None:
        """Requeue or fail a job that has not ended when its worker has to leave."""
        execution = self.current.execution
        longest = self._state.settings.max_job_duration
        name = self._worker.name
        if self._state.settings.on_deadline == "Requeue":
            log.warning("Worker %s: job %s requeued, not done in %d s", name, job.id, longest)
            guard = self._end_guard(job, queue, execution, "requeued")
            with (
                self._guarded_pipelines(guard, job),
                self._worker.connection.pipeline() as pipeline,
            ):
                job.started_at = None
                job.worker_name = None
                queue._enqueue_job(job, pipeline=pipeline, at_front=True)
                self._worker.cleanup_execution(job, pipeline, *([execution] * (RQ_MAJOR >= 3)))
                pipeline.execute()
            self._announce_free_slot()
        else:
            job.ended_at = now()
            reason = (
                f"Job stopped: its worker was told to leave and the job did not end within "
                f"drain.maxJobDuration ({longest} s)."
            )
            log.warning("Worker %s: job %s failed: %s", name, job.id, reason)
            more = {"execution": execution} if RQ_MAJOR >= 3 else {}
            self._worker.handle_job_failure(job, queue, exc_string=reason, **more)
        self._worker._horse_pid = 0
        self.clear()

    def held_guard(self, job: Job) -> TransactionGuard:
        """Return a guard for writes during the job, which apply while it is held."""
        execution = self.current.execution
        return TransactionGuard(
            "end",
            (job.started_job_registry.key, self._worker.key),
            member=lambda: execution.composite_key,
            token=lambda: "",
            extra=list,
            retry=self._state.retry,
        )

    @property
    def current(self) -> CurrentJob:
        """The job that the worker took last."""
        current = self._state.current
        if current is None:
            raise RuntimeError("no job was taken")
        return current

    def clear(self) -> None:
        """Forget the execution of the current job."""
        self._executions.clear()
        if self._state.current is not None:
            self._state.current.execution = None

    def _write_through_outages(
        self, guard: TransactionGuard, job: Job, write: Callable[[], None]
    ) -> None:
        worker = self._worker
        attributes, executions = dict(job.__dict__), self._executions.snapshot()
        stopped_job_id = worker._stopped_job_id
        while True:
            try:
                with self._guarded_pipelines(guard, job):
                    write()
                return
            except RedisError as error:
                if not is_outage(error):
                    raise
                self._state.retry.wait(error)
                # RQ counts down retries and repeats on the job while it writes: restore them.
                job.__dict__.clear()
                job.__dict__.update(attributes)
                self._executions.restore(executions)
                worker._stopped_job_id = stopped_job_id

    def _start_commands(self, job: Job, current: CurrentJob) -> list[Command]:
        worker = self._worker
        execution = self._executions.current()
        stamp = utcformat(current.started_at) if current.started_at else ""
        fields = {
            **self._record.heartbeat_fields(),
            **job_fields(current, execution),
            "er_job_timeout": Queue.DEFAULT_TIMEOUT if job.timeout is None else job.timeout,
            "er_taken": "",
        }
        if RQ_MAJOR < 3:
            fields.update({"current_job": job.id, "current_job_working_time": 0})
        job.worker_name = worker.name
        job.started_at = job.last_heartbeat = current.started_at
        job_values = {
            "status": JobStatus.STARTED.value,
            "started_at": stamp,
            "last_heartbeat": stamp,
            "worker_name": worker.name,
        }
        return [
            ("HSET", worker.key, *_flat(fields)),
            ("EXPIRE", worker.key, RECORD_TTL),
            ("HSET", job.key, *_flat(job_values)),
            ("PERSIST", job.key),
        ]

    def _end_guard(self, job: Job, queue: Queue, execution: Any, outcome: str) -> TransactionGuard:
        return TransactionGuard(
            "end",
            (job.started_job_registry.key, self._worker.key),
            member=lambda: execution.composite_key,
            token=lambda: execution.id,
            extra=lambda: self._end_commands(job, queue, execution, outcome),
            retry=self._state.retry,
        )

    def _end_commands(self, job: Job, queue: Queue, execution: Any, outcome: str) -> list[Command]:
        current = self.current
        ended = job.ended_at or now()
        started = job.started_at or current.started_at or ended
        busy = max(0, round((ended - started).total_seconds() * 1000))
        waited = max(0, round(current.waited.total_seconds() * 1000))
        stats = drain.stats_key(queue.name)
        commands: list[Command] = [
            ("HINCRBY", stats, outcome, 1),
            ("HINCRBY", stats, "busy_ms", busy),
            ("HINCRBY", stats, "wait_ms", waited),
            ("HSET", self._worker.key, "er_settled", execution.id, *_flat(NO_JOB)),
        ]
        if current.limit:
            commands.append(("ZREM", limits.slots_key(current.limit), job.id))
        return commands

    def _announce_free_slot(self) -> None:
        """Wake workers to take a held job of the limit of the job that ended."""
        if self.current.limit:
            with contextlib.suppress(RedisError):
                self._housekeeper.announce_free_slot(self.current.limit)

    def _remove_execution(self, job: Job, execution: Any) -> None:
        """Remove the traces of an execution whose job another process settled."""
        worker = self._worker
        with contextlib.suppress(RedisError), worker.connection.pipeline() as pipeline:
            execution.delete(job=job, pipeline=pipeline)
            pipeline.hset(worker.key, mapping=NO_JOB)
            pipeline.execute()
        self.clear()

    @contextlib.contextmanager
    def _guarded_pipelines(self, guard: TransactionGuard, job: Job) -> Iterator[None]:
        """Give RQ's code of this worker guarded pipelines."""
        worker = self._worker
        connection = worker.connection
        worker.connection = GuardedConnection(connection, guard)
        bind_status(job, guard)
        try:
            yield
        finally:
            worker.connection = connection
            job.__dict__.pop("set_status", None)


def _flat(fields: Mapping[str, Any]) -> list[Any]:
    return [word for pair in fields.items() for word in pair]
