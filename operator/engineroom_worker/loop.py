"""The worker's main loop: take a job, run it, and do the other work of the worker in between."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError
from rq.exceptions import NoSuchJobError
from rq.registry import FailedJobRegistry

from engineroom_worker.observability import logs, tracing
from engineroom_worker.observability.metrics import DRAIN_STATES, STATES
from engineroom_worker.state import CurrentJob
from engineroom_worker.transactions import NotHeldError, is_outage
from engineroom_worker.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable

    from rq.job import Job
    from rq.queue import Queue

    from engineroom_worker.bookkeeping import Bookkeeper
    from engineroom_worker.dequeue.dequeuer import DequeueResult, TakenJob
    from engineroom_worker.drain import ControlRequests
    from engineroom_worker.housekeeping import Housekeeper
    from engineroom_worker.record import WorkerRecord
    from engineroom_worker.state import WorkerState

#: Consecutive unexpected errors after which the worker exits.
MAX_FAILURES = 10

log = logging.getLogger("rq.worker")


class WorkLoop:
    """Runs jobs until the worker has to stop; outages of Redis never end the loop."""

    def __init__(
        self,
        worker: Any,
        state: WorkerState,
        record: WorkerRecord,
        housekeeper: Housekeeper,
        bookkeeper: Bookkeeper,
    ) -> None:
        self._worker = worker
        self._state = state
        self._record = record
        self._housekeeper = housekeeper
        self._bookkeeper = bookkeeper
        self._tracing: tracing.Tracing | tracing.NoTracing = tracing.NoTracing()
        self._failures = 0

    def run(self, log_level: str, *, burst: bool, max_jobs: int | None) -> bool:
        """Run jobs until told to stop; with ``burst``, until the queues are empty.

        Return whether any job ran.
        """
        worker, state = self._worker, self._state
        self._tracing = tracing.start(state.settings.pool, VERSION)
        self._until_redis_answers(lambda: worker.bootstrap(log_level))
        state.metrics.set("alive", 1)
        done = 0
        try:
            while not worker._stop_requested and (max_jobs is None or done < max_jobs):
                worked = self._try_turn(burst)
                if worked is None:
                    break
                done += worked
                if state.retired_since is not None and (
                    time.monotonic() - state.retired_since > worker.retired_seconds
                ):
                    log.info("Worker %s: retired, making room for a fresh one", worker.name)
                    break
        finally:
            state.metrics.set("alive", 0)
            state.dequeuer.close()
            worker.teardown()
            self._tracing.stop()
        return bool(done)

    def on_outage(self, error: BaseException) -> None:
        """Wait before the next attempt to reach Redis."""
        state = self._state
        if not state.retry.waiting:
            state.metrics.add("outages")
        state.quiet_until = time.monotonic() + self._worker.maintenance_grace
        state.metrics.set("looped", time.monotonic())
        self._housekeeper.on_outage()
        state.dequeuer.close()
        state.retry.wait(error)

    def _try_turn(self, burst: bool) -> int | None:
        """Run one turn; after an error, wait and return 0. Raises SystemExit after many errors."""
        name = self._worker.name
        try:
            worked = self._turn(burst)
        except NotHeldError as error:
            log.warning("Worker %s: %s is no longer mine, let go", name, error)
        except RedisError as error:
            if is_outage(error):
                self.on_outage(error)
            else:
                log.exception("Worker %s: Redis refuses", name)
                self._back_off()
        except Exception:  # one bad job must not end the worker
            log.exception("Worker %s: a turn of the loop failed", name)
            self._back_off()
        else:
            self._failures = 0
            return worked
        return 0

    def _turn(self, burst: bool) -> int | None:
        """Look at Redis and run the job that it returns.

        Return the number of jobs run, 0 or 1, or None to end the loop.
        """
        worker, state = self._worker, self._state
        state.metrics.set("looped", time.monotonic())
        _reap_orphans()
        self._housekeeper.promote()
        if worker.should_run_maintenance_tasks and time.monotonic() > state.quiet_until:
            worker.run_maintenance_tasks()
        queue_keys = [queue.key for queue in worker._ordered_queues]
        take = not worker._stop_requested and state.retired_since is None
        result = state.dequeuer.poll(queue_keys, self._record.heartbeat_fields(), take=take)
        self._on_answer()
        if not result.existed:
            self._record.write()
        self._apply_controls(result.controls)
        taken = result.taken
        if taken is None:
            if burst:
                return None
            taken = self._wait(queue_keys, result)
            if taken is None:
                return 0
        state.dequeuer.stop_watching()
        if worker._stop_requested:
            state.dequeuer.put_back(taken)
            return 0
        return self._run_job(taken)

    def _wait(self, queue_keys: list[str], result: DequeueResult) -> TakenJob | None:
        """Wait until a job may be there or something else is due; return a job taken meanwhile."""
        state = self._state
        resting = state.controls.leaving or state.retired_since is not None
        if result.controls.suspended or result.paused or resting:
            state.dequeuer.stop_watching()
            state.wakeup.wait(1.0 if result.again is None else min(1.0, result.again))
            return None
        due = self._housekeeper.due() - time.monotonic()
        seconds = max(0.05, min(float(self._worker.heartbeat_seconds), due))
        if result.again is not None:
            seconds = max(0.01, min(seconds, result.again))
        return state.dequeuer.wait(queue_keys, seconds, result.limited)

    def _run_job(self, taken: TakenJob) -> int:
        worker, metrics = self._worker, self._state.metrics
        queue = next(queue for queue in worker.queues if queue.key == taken.queue_key)
        job = self._read_job(taken, queue)
        if job is None:
            return 0
        worker.reorder_queues(queue)
        job.redis_server_version = worker.get_redis_server_version()
        described = job.description if worker.log_job_description else ""
        log.info("Worker %s: %s: %s (%s)", worker.name, queue.name, described, job.id)
        started = time.monotonic()
        metrics.set("started", time.time())
        try:
            with self._tracing.job(job, queue.name) as trace_ids:
                ids = {**logs.ids_of(job.meta), **trace_ids}
                with logs.bound(**{**ids, "object": self._state.settings.pool, "job_id": job.id}):
                    worker.execute_job(job, queue)
        finally:
            metrics.set("started", 0)
            metrics.set("state", STATES.index("idle"))
            metrics.add("busy_seconds", time.monotonic() - started)
            self._bookkeeper.clear()
            worker._horse_pid = 0
        return 1

    def _read_job(self, taken: TakenJob, queue: Queue) -> Job | None:
        """Return the RQ job of the hash; None for a missing hash, or one that RQ cannot read.

        A job that cannot be read becomes a failed job.
        """
        worker = self._worker
        if not taken.data:
            worker.connection.lrem(queue.intermediate_queue_key, 1, taken.job_id)
            self._state.dequeuer.in_hand = None
            return None
        job: Job = worker.job_class(
            taken.job_id, connection=worker.connection, serializer=worker.serializer
        )
        try:
            job.restore(taken.data)
        except Exception as error:
            log.exception("Worker %s: job %s cannot be read", worker.name, taken.job_id)
            self._fail_unreadable(job, queue, exists=not isinstance(error, NoSuchJobError))
            return None
        leased = b"er_limit_concurrency" in taken.data
        self._state.current = CurrentJob(
            queue=queue,
            has_priority=b"er_priority" in taken.data,
            limit=taken.data.get(b"er_limit", b"").decode() if leased else "",
        )
        if job.failure_ttl is None:
            job.failure_ttl = self._state.settings.dead_letter_ttl
        return job

    def _fail_unreadable(self, job: Job, queue: Queue, *, exists: bool) -> None:
        with self._worker.connection.pipeline() as pipeline:
            pipeline.lrem(queue.intermediate_queue_key, 1, job.id)
            if exists:
                pipeline.hset(job.key, mapping={"status": "failed"})
                expiry = time.time() + self._state.settings.dead_letter_ttl
                pipeline.zadd(FailedJobRegistry(queue=queue).key, {job.id: expiry})
            pipeline.execute()
        self._state.dequeuer.in_hand = None

    def _apply_controls(self, controls: ControlRequests) -> None:
        """Apply the operator's requests; the script has already written the acknowledgement."""
        state = self._state
        if controls != state.controls:
            log.info("Worker %s: now %s", self._worker.name, _describe(controls))
        state.controls = controls
        self._worker._state = "suspended" if controls.suspended else "idle"
        if controls.retired and state.retired_since is None:
            state.retired_since = time.monotonic()
        state.metrics.set("state", STATES.index(self._worker._state))
        state.metrics.set("drain", DRAIN_STATES.index(controls.drain))

    def _on_answer(self) -> None:
        self._state.retry.over()
        self._state.metrics.set("heartbeat", time.time())

    def _back_off(self) -> None:
        """Wait after an unexpected error. Raises SystemExit after MAX_FAILURES in a row."""
        self._failures += 1
        if self._failures >= MAX_FAILURES:
            raise SystemExit(1)
        self._state.wakeup.wait(min(30.0, 0.5 * 2**self._failures))

    def _until_redis_answers(self, action: Callable[[], Any]) -> Any:
        """Repeat the action through an outage. Raises SystemExit if told to stop meanwhile."""
        while True:
            try:
                result = action()
            except RedisError as error:
                if not is_outage(error):
                    raise
                if self._worker._stop_requested:
                    raise SystemExit(0) from None
                self._state.retry.wait(error)
                continue
            self._state.retry.over()
            return result


def _describe(controls: ControlRequests) -> str:
    if controls.drain:
        return f"{controls.drain} ({controls.drain_id})"
    return "suspended" if controls.suspended else "taking jobs"


def _reap_orphans() -> None:
    """As PID 1, collect processes that jobs left; safe only while there is no work horse."""
    if os.getpid() != 1:
        return
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
