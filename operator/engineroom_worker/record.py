"""The worker's record in Redis: a hash that RQ and the operator read."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from rq import worker_registration
from rq.utils import now, utcformat

from engineroom_worker import drain, out_of_memory
from engineroom_worker.observability.metrics import cpu_seconds, resident_bytes
from engineroom_worker.version import VERSION

if TYPE_CHECKING:
    from engineroom_worker.state import CurrentJob, WorkerState

#: Time to live of the record after the last heartbeat: the operator reads from it which job a dead
#: worker held (seconds).
RECORD_TTL = 480

#: Fields of a worker without a job.
NO_JOB = {
    "er_job": "",
    "er_execution": "",
    "er_queue": "",
    "er_job_started": "",
    "er_job_timeout": "",
}


class WorkerRecord:
    """Writes the record, and measures memory and processor time for it."""

    def __init__(self, worker: Any, state: WorkerState) -> None:
        self._worker = worker
        self._state = state
        self._next_measurement = 0.0
        self._measured_cpu, self._measured_at = cpu_seconds(), time.monotonic()

    def write(self) -> None:
        """Write the whole record and register the worker, at its start or after Redis lost it."""
        worker, settings = self._worker, self._state.settings
        fields: dict[str, Any] = {
            "birth": utcformat(worker.birth_date or now()),
            "last_heartbeat": utcformat(now()),
            "queues": ",".join(worker.queue_names()),
            "pid": worker.pid,
            "hostname": worker.hostname or "",
            "ip_address": worker.ip_address,
            "version": worker.version,
            "python_version": worker.python_version,
            "er_pool": settings.pool,
            "er_pod": settings.pod_name,
            "er_pod_uid": settings.pod_uid,
            "er_version": VERSION,
            "er_memory": resident_bytes(os.getpid()),
        }
        current = self._state.current
        if current is None or current.execution is None:
            fields.update(NO_JOB)
        else:
            fields.update(job_fields(current, current.execution))
        with worker.connection.pipeline(transaction=False) as pipeline:
            pipeline.hset(worker.key, mapping=fields)
            for name in ("er_drain", "er_drain_id"):
                pipeline.hsetnx(worker.key, name, "")
            pipeline.expire(worker.key, RECORD_TTL)
            worker_registration.register(worker, pipeline)
            pipeline.sadd(drain.workers_key(settings.pool), worker.name)
            pipeline.execute()

    def heartbeat_fields(self) -> dict[str, Any]:
        """Return the fields of a heartbeat, with new measurements every few seconds."""
        worker = self._worker
        worker.last_heartbeat = now()
        fields: dict[str, Any] = {"last_heartbeat": utcformat(worker.last_heartbeat)}
        at = time.monotonic()
        if at >= self._next_measurement:
            # Not for every job: a measurement costs as much as a round trip to Redis.
            self._next_measurement = at + worker.heartbeat_seconds / 2
            fields.update(self._measure(at))
        if worker._shutdown_requested_date is not None:
            fields["shutdown_requested_date"] = utcformat(worker._shutdown_requested_date)
        return fields

    def _measure(self, at: float) -> dict[str, Any]:
        metrics = self._state.metrics
        horse = [self._worker._horse_pid] if self._worker._horse_pid else []
        memory = resident_bytes(os.getpid(), *horse)
        cpu = cpu_seconds(*horse)
        cores = max(0.0, cpu - self._measured_cpu) / max(0.1, at - self._measured_at)
        self._measured_cpu, self._measured_at = cpu, at
        metrics.set("memory", memory)
        metrics.set("cpu", cores)
        metrics.set("cpu_seconds", cpu)
        kills = out_of_memory.new_kill_fields(metrics)
        return {"er_memory": memory, "er_cpu": f"{cores:.3f}", **kills}


def job_fields(current: CurrentJob, execution: Any) -> dict[str, Any]:
    """Return the record's fields for a running job."""
    started = 0.0 if current.started_at is None else current.started_at.timestamp()
    return {
        "state": "busy",
        "er_job": execution.job_id,
        "er_execution": execution.id,
        "er_queue": current.queue.name,
        "er_job_started": f"{started:.3f}",
    }
