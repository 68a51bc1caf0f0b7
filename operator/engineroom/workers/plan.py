"""A WorkerPool's spec reduced to what every reconcile needs: small, frozen, numbers in seconds.

Ten thousand of these stay in memory; the pydantic model is parsed only when the spec changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engineroom.api import validation
from engineroom.api.v1alpha1.workerpool import MetricOutageMode, Pause, RequeueOrphans, WorkerPool
from engineroom.kube.client.resources import WORKERPOOLS
from engineroom.kube.runtime.redis_addresses import RedisReference, redis_reference
from engineroom.workers.job_plans import JobPlan, job_plans
from engineroom.workers.objects import worker_container
from engineroom.workers.rightsizing.recommendation import SizingPlan, sizing_plan

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engineroom.api.validation.pod_security import PodSecurityLevel


@dataclass(frozen=True, slots=True)
class ScalingWindow:
    """A recurring time with a larger minimum; ``duration`` in seconds."""

    name: str
    cron: str
    time_zone: str
    duration: float
    min_replicas: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The spec with all defaults resolved. Durations are seconds; sizes are pods."""

    queues: tuple[str, ...]
    #: How long a job of the queue at the same place may wait.
    latencies: tuple[float, ...]
    workers_per_pod: int
    #: None: sized by hand, to ``manual_replicas``.
    autoscaled: bool
    manual_replicas: int
    min_replicas: int
    max_replicas: int
    backlog_per_worker: int | None
    stabilization: float
    max_pods_per_minute: int | None
    idle_timeout: float
    windows: tuple[ScalingWindow, ...]
    pause: Pause
    suspend: bool
    max_job_duration: float
    requeue_orphans: RequeueOrphans
    poison_threshold: int
    poison_window: float
    dead_letter_ttl: float
    #: Failed jobs that a queue keeps at most; None: as many as there are.
    dead_letter_jobs: int | None
    fallback_replicas: int | None
    #: None: the installation's own Redis.
    redis: RedisReference | None
    right_sizing: SizingPlan
    #: Jobs that are enqueued on a schedule.
    jobs: tuple[JobPlan, ...] = ()


def plan_of(pool: WorkerPool) -> Plan:
    """Return the plan of a valid pool."""
    spec = pool.spec
    auto = spec.autoscaling
    outage = spec.metric_outage
    ordered = sorted(spec.queues, key=lambda queue: -queue.priority)
    target = auto.target_latency.seconds if auto else 30.0
    return Plan(
        queues=tuple(queue.name for queue in ordered),
        latencies=tuple(
            queue.target_latency.seconds if queue.target_latency else target for queue in ordered
        ),
        workers_per_pod=spec.workers_per_pod,
        autoscaled=auto is not None,
        manual_replicas=1 if spec.replicas is None else spec.replicas,
        min_replicas=auto.min_replicas if auto else 0,
        max_replicas=auto.max_replicas if auto else 0,
        backlog_per_worker=auto.target_backlog_per_worker if auto else None,
        stabilization=auto.scale_down.stabilization_window.seconds if auto else 0.0,
        max_pods_per_minute=auto.scale_down.max_pods_per_minute if auto else None,
        idle_timeout=auto.idle_timeout.seconds if auto else 0.0,
        windows=tuple(
            ScalingWindow(s.name, s.cron, s.time_zone, s.duration.seconds, s.min_replicas)
            for s in (auto.schedules if auto else ())
        ),
        pause=auto.pause if auto else Pause.NONE,
        suspend=spec.suspend,
        max_job_duration=spec.drain.max_job_duration.seconds,
        requeue_orphans=spec.recovery.requeue_orphans,
        poison_threshold=spec.recovery.poison_threshold,
        poison_window=spec.recovery.poison_window.seconds,
        dead_letter_ttl=spec.dead_letter.ttl.seconds,
        dead_letter_jobs=spec.dead_letter.max_jobs,
        fallback_replicas=outage.replicas if outage.mode is MetricOutageMode.FALLBACK else None,
        redis=redis_reference(spec.redis),
        right_sizing=sizing_plan(
            spec.right_sizing,
            worker_container(spec.template["spec"]["containers"]).get("resources"),
        ),
        jobs=job_plans(spec),
    )


def parse_pool(obj: Mapping[str, Any], level: PodSecurityLevel) -> WorkerPool:
    """Return the model of a pool in a namespace of that Pod Security level.

    Raises InvalidSpecError with every problem.
    """
    return validation.parse(WorkerPool, _document(obj), validation.ValidationContext(level))


def needs_namespace(obj: Mapping[str, Any]) -> bool:
    """Return whether the pool's template asks for more than the restricted Pod Security level."""
    return bool(validation.escalations(_document(obj)))


def _document(obj: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of the object that validation reads."""
    metadata = {name: obj["metadata"].get(name) for name in ("namespace", "name", "uid")}
    return {
        "apiVersion": WORKERPOOLS.api_version,
        "kind": WORKERPOOLS.kind,
        "metadata": metadata,
        "spec": obj.get("spec") or {},
    }
