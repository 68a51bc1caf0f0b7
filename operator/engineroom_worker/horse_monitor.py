"""Watching over the work horse: heartbeats while it runs, and an end at the deadline."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError
from rq.executions import ExecutionRegistry
from rq.queue import Queue
from rq.suspension import WORKERS_SUSPENDED
from rq.utils import now

from engineroom_worker import drain, executions
from engineroom_worker.dequeue import limits
from engineroom_worker.observability.metrics import DRAIN_STATES
from engineroom_worker.record import RECORD_TTL
from engineroom_worker.transactions import NotHeldError, OutageError, is_outage, recorded

if TYPE_CHECKING:
    from collections.abc import Callable

    from rq.job import Job

    from engineroom_worker.bookkeeping import Bookkeeper
    from engineroom_worker.housekeeping import Housekeeper
    from engineroom_worker.record import WorkerRecord
    from engineroom_worker.state import WorkerState

#: A worker that has to stop gives up its job this long before the kubelet kills it (seconds).
DEADLINE_MARGIN = 10.0
#: Time after a job's timeout at which a work horse is killed: its own alarm did not end the job
#: (seconds).
OVERDUE_SECONDS = 60

log = logging.getLogger("rq.worker")


class HorseMonitor:
    """Watches the work horse of the current job."""

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
        self._job: Any = None
        self._exit: tuple[Any, Any, Any] | None = None
        #: Whether the deadline has passed, so that the job is given up.
        self._gave_up = False
        self._written_drain = ""

    def reset(self) -> None:
        """Prepare for the next job."""
        self._exit = None
        self._gave_up = False

    def monitor(
        self, job: Job, queue: Queue, wait: Callable[[], None], on_outage: Callable[..., None]
    ) -> None:
        """Run ``wait``, RQ's monitor, through outages; give up the job after the deadline."""
        self._job = job
        while True:
            try:
                if not self._gave_up:
                    wait()
                if self._gave_up:
                    self._bookkeeper.give_up(job, queue)
                return
            except NotHeldError as error:
                log.warning("Worker %s: %s was settled by another", self._worker.name, error)
                return
            except RedisError as error:
                if not is_outage(error):
                    raise
                on_outage(error)

    def wait_for_exit(self) -> tuple[Any, Any, Any]:
        """Return pid, status and resource usage of the work horse after its end."""
        if self._exit is None:
            self._exit = self._watch()
        # RQ must not record the exit of a job that was given up as a crash.
        return (self._exit[0], os.EX_OK, None) if self._gave_up else self._exit

    def _watch(self) -> tuple[Any, Any, Any]:
        worker = self._worker
        started = time.monotonic()
        next_heartbeat = started + worker.heartbeat_seconds
        killed = False
        while True:
            try:
                pid, status, usage = os.wait4(worker._horse_pid, os.WNOHANG)
            except ChildProcessError:
                return None, None, None
            if pid:
                return pid, status, usage
            at = time.monotonic()
            self._state.metrics.set("looped", at)
            deadline = self._deadline(started)
            if not killed and deadline is not None and at >= deadline:
                self._gave_up = killed = True
                worker.kill_horse()
            elif not killed and self._overdue(at - started):
                killed = True
                worker.kill_horse()
            if at >= next_heartbeat or self._state.wakeup.nudged:
                self._state.wakeup.clear_nudge()
                next_heartbeat = self._try_heartbeat(at, started)
            self._housekeeper.promote()
            wake = min(next_heartbeat, deadline or next_heartbeat, self._housekeeper.due())
            self._state.wakeup.wait(wake - time.monotonic())

    def _overdue(self, running: float) -> bool:
        """Return whether the job has run far beyond its timeout: its interpreter hangs."""
        timeout = self._job.timeout if self._job.timeout is not None else Queue.DEFAULT_TIMEOUT
        return bool(timeout > 0 and running > timeout + OVERDUE_SECONDS)

    def _deadline(self, started: float) -> float | None:
        """Return the monotonic time at which to give up the job; None if the worker stays.

        The job gets ``maxJobDuration`` from its start, but has to end shortly before the kubelet
        kills the container. The duration also bounds a drain, since the pod cannot leave before
        the job ends.
        """
        longest = float(self._state.settings.max_job_duration)
        stopping_since = self._state.stopping_since
        if stopping_since is None:
            return started + longest if self._state.controls.leaving else None
        margin = min(DEADLINE_MARGIN, longest / 10)
        return min(started + longest, stopping_since + longest - margin)

    def _try_heartbeat(self, at: float, started: float) -> float:
        """Send a heartbeat; return the monotonic time of the next one."""
        try:
            self._heartbeat(self._job, at - started)
        except RedisError as error:
            self._state.quiet_until = at + self._worker.maintenance_grace
            if not self._state.retry.waiting:
                self._state.metrics.add("outages")
                with contextlib.suppress(OutageError):
                    self._state.retry.wait(error)
            return time.monotonic() + 1.0
        return at + float(self._worker.heartbeat_seconds)

    def _heartbeat(self, job: Job, running: float) -> None:
        """Refresh worker, execution and job, and read the operator's requests, in one call."""
        worker = self._worker
        execution = self._bookkeeper.current.execution
        fields = self._record.heartbeat_fields()
        if executions.RQ_MAJOR < 3:
            fields["current_job_working_time"] = running
        guard = self._bookkeeper.held_guard(job)
        execution.last_heartbeat = now()

        with worker.connection.pipeline(transaction=False) as pipeline:
            pipeline.exists(worker.key)
            pipeline.hset(worker.key, mapping=fields)
            pipeline.expire(worker.key, RECORD_TTL)
            pipeline.mget(
                WORKERS_SUSPENDED,
                drain.suspended_key(self._state.settings.pool),
                drain.drain_key(worker.name),
            )
            commands = recorded(worker.connection, lambda p: self._refresh(p, job, execution))
            pipeline.execute_command(*guard.command(commands))
            existed, _, _, requests, _ = pipeline.execute()
        self._state.retry.over()
        self._state.metrics.set("heartbeat", time.time())
        if not existed:
            self._record.write()
        self._write_drain(drain.ControlRequests.read(*requests))

    def _refresh(self, pipeline: Any, job: Job, execution: Any) -> None:
        """Write the execution in full, unlike RQ's refresh: it may have expired in an outage."""
        worker, ttl = self._worker, executions.EXECUTION_TTL
        execution.save(ttl, pipeline=pipeline)
        ExecutionRegistry(job.id, connection=pipeline).add(execution, ttl=ttl, pipeline=pipeline)
        job.started_job_registry.add_execution(execution, pipeline=pipeline, ttl=ttl)
        job.heartbeat(now(), ttl, pipeline=pipeline)
        if executions.RQ_MAJOR >= 3:
            pipeline.sadd(worker.executions_key, execution.composite_key)
            pipeline.expire(worker.executions_key, RECORD_TTL)
        limit = self._bookkeeper.current.limit
        if limit:
            slots = limits.slots_key(limit)
            pipeline.zadd(slots, {job.id: time.time() + limits.LEASE})
            pipeline.expire(slots, 2 * limits.LEASE)

    def _write_drain(self, controls: drain.ControlRequests) -> None:
        """Acknowledge a request to leave; a busy worker is draining, and drained only later."""
        state = drain.DRAINING if controls.leaving else ""
        known_id = self._state.controls.drain_id
        if state == self._written_drain and controls.drain_id == known_id:
            return
        self._worker.connection.hset(
            self._worker.key, mapping={"er_drain": state, "er_drain_id": controls.drain_id}
        )
        self._written_drain = state
        self._state.controls = controls
        self._state.metrics.set("drain", DRAIN_STATES.index(state))
