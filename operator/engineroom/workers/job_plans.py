"""Jobs on a schedule, as a pool's spec has them: small, frozen, numbers in seconds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engineroom.api.v1alpha1.jobschedule import JobSchedule
    from engineroom.api.v1alpha1.workerpool import WorkerPoolSpec

#: The environment variable that names another serializer than RQ's own.
SERIALIZER = "ENGINEROOM_SERIALIZER"


@dataclass(frozen=True, slots=True)
class JobPlan:
    """One schedule of the spec; durations are seconds, ``at`` is Unix seconds."""

    name: str
    cron: str
    every: float
    at: float | None
    time_zone: str
    jitter: float
    missed: str
    suspend: bool
    queue: str
    function: str
    #: Positional and named arguments, as one JSON list of both.
    arguments: str
    timeout: int
    result_ttl: int | None
    #: Attempts after the first, and the seconds before each; None without retries.
    retry: tuple[int, tuple[int, ...]] | None
    #: Whether the workers' serializer is JSON instead of pickle.
    json: bool


def job_plans(spec: WorkerPoolSpec) -> tuple[JobPlan, ...]:
    """Return the schedules of the spec, defaults resolved."""
    if not spec.schedules:
        return ()
    as_json = "json" in _serializer(spec.template).lower()
    return tuple(_job_plan(job, spec.queues[0].name, as_json) for job in spec.schedules)


def _job_plan(job: JobSchedule, queue: str, as_json: bool) -> JobPlan:
    retry = job.retry
    waits = tuple(int(wait.seconds) for wait in retry.intervals) if retry else ()
    return JobPlan(
        name=job.name,
        cron=job.cron or "",
        every=job.every.seconds if job.every else 0.0,
        at=datetime.fromisoformat(job.at).timestamp() if job.at else None,
        time_zone=job.time_zone or "UTC",
        jitter=job.jitter.seconds if job.jitter else 0.0,
        missed=job.missed.value,
        suspend=job.suspend,
        queue=job.queue or queue,
        function=job.function,
        arguments=json.dumps([job.args, job.kwargs]),
        timeout=int(job.timeout.seconds),
        result_ttl=None if job.result_ttl is None else int(job.result_ttl.seconds),
        retry=(retry.max, waits or (0,)) if retry else None,
        json=as_json,
    )


def _serializer(template: Mapping[str, Any]) -> str:
    """Return the serializer that the worker container's environment names, or ""."""
    containers = (template.get("spec") or {}).get("containers") or ()
    workers = [c for c in containers if c.get("name") == "worker"] or containers
    for variable in (workers[0].get("env") or ()) if workers else ():
        if variable.get("name") == SERIALIZER:
            return str(variable.get("value") or "")
    return ""
