"""WorkerPool: a pool of RQ workers that grows when jobs wait and shrinks without losing one.

The descriptions are what ``kubectl explain`` shows; the CRD is generated from this module.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field

from engineroom.api.v1alpha1.jobschedule import (  # noqa: TC001 - pydantic needs them at run time
    JobSchedule,
    JobScheduleStatus,
)
from engineroom.api.v1alpha1.types import (
    Condition,
    Duration,
    Model,
    ObjectName,
    SecretKeyRef,
)


class DequeueStrategy(StrEnum):
    """Order in which a worker reads its queues."""

    PRIORITY = "Priority"
    ROUND_ROBIN = "RoundRobin"
    RANDOM = "Random"


class Pause(StrEnum):
    """Direction of scaling that is paused."""

    NONE = "None"
    ALL = "All"
    SCALE_IN = "ScaleIn"
    SCALE_OUT = "ScaleOut"


class OnDeadline(StrEnum):
    """Treatment of a job that runs longer than ``drain.maxJobDuration``."""

    REQUEUE = "Requeue"
    FAIL = "Fail"


class RequeueOrphans(StrEnum):
    """Treatment of a job whose worker died while it ran."""

    FOLLOW_RETRY = "FollowRetry"
    ALWAYS = "Always"
    NEVER = "Never"


class RightSizingMode(StrEnum):
    """Use of the recommended resources."""

    OFF = "Off"
    RECOMMEND = "Recommend"
    IN_PLACE = "InPlace"


class MetricOutageMode(StrEnum):
    """Size of the pool while Redis cannot be measured."""

    KEEP_REPLICAS = "KeepReplicas"
    FALLBACK = "Fallback"


class RedisTLS(Model):
    """TLS of the connection to Redis, for ``rediss://`` URLs."""

    ca_secret_ref: SecretKeyRef | None = Field(
        default=None, description="CA bundle (PEM) that signs Redis' certificate."
    )
    insecure_skip_verify: bool = Field(
        default=False, description="Do not verify Redis' certificate. For tests only."
    )


class RedisConnection(Model):
    """Redis that holds the queues. Absent: the Redis of the chart."""

    url_secret_ref: SecretKeyRef = Field(
        description="Secret key holding the URL: redis://, rediss:// or unix://, with credentials."
    )
    tls: RedisTLS | None = Field(default=None, description="TLS settings for rediss:// URLs.")


class Queue(Model):
    """One RQ queue that the pool's workers read."""

    name: str = Field(
        min_length=1,
        max_length=200,
        pattern=r"^[^\s,{}]+$",
        description="Name of the RQ queue, as the application enqueues to it.",
    )
    priority: int = Field(
        default=0,
        ge=-1000,
        le=1000,
        description="Queues of higher priority are emptied first (dequeueStrategy Priority).",
    )
    target_latency: Duration | None = Field(
        default=None,
        description=(
            "Longest time that a job of this queue should wait. Defaults to the pool's "
            "targetLatency."
        ),
    )


class ScaleDown(Model):
    """Limits of how fast the pool shrinks."""

    stabilization_window: Duration = Field(
        default=Duration("2m"),
        description=(
            "The pool shrinks at most to the largest size that was needed within this window."
        ),
    )
    max_pods_per_minute: int | None = Field(
        default=None, ge=1, le=10000, description="Maximum number of pods removed in any minute."
    )


class Schedule(Model):
    """A known peak: from each tick of cron the pool holds at least minReplicas."""

    name: str = Field(
        min_length=1,
        max_length=63,
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        description="Name of the schedule, shown in status.decision.",
    )
    cron: str = Field(
        min_length=1,
        max_length=100,
        description="Cron expression with five fields for the start of the peak.",
    )
    duration: Duration = Field(
        default=Duration("1h"), description="Time for which the minimum applies after each tick."
    )
    time_zone: str = Field(
        default="UTC", max_length=64, description="IANA time zone of the cron expression."
    )
    min_replicas: int = Field(ge=0, le=10000, description="Smallest size during the peak.")


class Autoscaling(Model):
    """Size follows the work: by how long jobs may wait, or by backlog per worker."""

    min_replicas: int = Field(default=0, ge=0, le=10000, description="Smallest number of pods.")
    max_replicas: int = Field(default=10, ge=1, le=10000, description="Largest number of pods.")
    target_latency: Duration = Field(
        default=Duration("30s"),
        description=(
            "Longest time that a job should wait before it starts. The operator "
            "computes the number of workers from measured arrivals and durations."
        ),
    )
    target_backlog_per_worker: int | None = Field(
        default=None,
        ge=1,
        le=1000000,
        description="Waiting jobs per worker, instead of targetLatency.",
    )
    scale_down: ScaleDown = Field(default=ScaleDown(), description="How fast the pool shrinks.")
    idle_timeout: Duration = Field(
        default=Duration("1m"),
        description="Time for which the last worker stays after the last job.",
    )
    schedules: list[Schedule] = Field(
        default_factory=list,
        max_length=32,
        description="Minimum sizes for known peaks.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    pause: Pause = Field(
        default=Pause.NONE, description="Stop scaling: None, All, ScaleIn, ScaleOut."
    )


class Drain(Model):
    """Drain of a worker before its pod is deleted."""

    max_job_duration: Duration = Field(
        default=Duration("1h"),
        description=(
            "Longest time that a job may run on a worker that ends; sets the pods' grace period."
        ),
    )
    on_deadline: OnDeadline = Field(
        default=OnDeadline.FAIL,
        description="A job that exceeds maxJobDuration is requeued or failed.",
    )


class Recovery(Model):
    """Recovery of jobs whose worker died."""

    requeue_orphans: RequeueOrphans = Field(
        default=RequeueOrphans.FOLLOW_RETRY,
        description=(
            "FollowRetry requeues the job if its Retry has tries left, and fails it otherwise."
        ),
    )
    poison_threshold: int = Field(
        default=3,
        ge=1,
        le=100,
        description="A job that has crashed this number of workers is quarantined.",
    )
    poison_window: Duration = Field(
        default=Duration("72h"), description="Period in which those crashes count."
    )


class DeadLetter(Model):
    """Retention of failed jobs."""

    ttl: Duration = Field(
        default=Duration("30d"), description="Time for which failed jobs are stored."
    )
    max_jobs: int | None = Field(
        default=None,
        ge=1,
        le=10000000,
        description="Maximum number of failed jobs per queue; the oldest are deleted.",
    )


class RightSizing(Model):
    """Requests and limits derived from the workers' measured use."""

    mode: RightSizingMode = Field(
        default=RightSizingMode.RECOMMEND,
        description=(
            "Off; Recommend: status.recommendedResources has the recommendation; "
            "InPlace: it is also applied to running pods, without a restart."
        ),
    )
    min_allowed: dict[str, str | int] | None = Field(
        default=None,
        max_length=2,
        description="Never recommend less than these quantities of cpu and memory.",
    )
    max_allowed: dict[str, str | int] | None = Field(
        default=None,
        max_length=2,
        description="Never recommend more than these quantities of cpu and memory.",
    )


class MetricOutage(Model):
    """The size while Redis cannot be measured."""

    mode: MetricOutageMode = Field(
        default=MetricOutageMode.KEEP_REPLICAS, description="KeepReplicas or Fallback."
    )
    replicas: int | None = Field(
        default=None, ge=0, le=10000, description="The size for mode Fallback."
    )


class WorkerPoolSpec(Model):
    """Desired state of a WorkerPool."""

    redis: RedisConnection | None = Field(
        default=None, description="Redis that holds the queues. Absent: the chart's own Redis."
    )
    queues: list[Queue] = Field(
        min_length=1,
        max_length=32,
        description="The RQ queues that these workers read.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    dequeue_strategy: DequeueStrategy = Field(
        default=DequeueStrategy.PRIORITY, description="Priority, RoundRobin or Random."
    )
    workers_per_pod: int = Field(
        default=1, ge=1, le=64, description="Worker processes in each pod."
    )
    template: dict[str, Any] = Field(
        description=(
            "PodTemplateSpec with the application's own image. The container named "
            "`worker`, or else the first one, runs the workers; it needs only Python "
            "and RQ."
        ),
        json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
    )
    replicas: int | None = Field(
        default=None,
        ge=0,
        le=10000,
        description=(
            "Fixed number of pods (kubectl scale). Not allowed with autoscaling; "
            "without both, the pool has 1 pod."
        ),
    )
    autoscaling: Autoscaling | None = Field(
        default=None, description="The size follows the load. Excludes replicas."
    )
    schedules: list[JobSchedule] = Field(
        default_factory=list,
        max_length=64,
        description="Jobs that are enqueued at given times, one job per tick.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    suspend: bool = Field(default=False, description="Workers stay and take no job.")
    drain: Drain = Field(default=Drain(), description="How a worker ends.")
    recovery: Recovery = Field(default=Recovery(), description="Jobs whose worker died.")
    dead_letter: DeadLetter = Field(default=DeadLetter(), description="Retention of failed jobs.")
    right_sizing: RightSizing = Field(
        default=RightSizing(),
        description="Requests and limits from the measured use of the workers.",
    )
    metric_outage: MetricOutage = Field(
        default=MetricOutage(), description="The size while Redis cannot be measured."
    )


class QueueStatus(Model):
    """One queue at the time of the last status."""

    name: str = Field(description="Name of the queue.")
    depth: int = Field(default=0, description="Jobs waiting.")
    running: int = Field(default=0, description="Jobs being executed.")
    scheduled: int = Field(default=0, description="Jobs scheduled for later.")
    failed: int = Field(default=0, description="Jobs in the failed registry.")
    oldest_job_age: Duration | None = Field(
        default=None, description="Waiting time of the oldest job."
    )


class OwnedQueue(Model):
    """A queue that the pool's namespace owns on its Redis."""

    name: str = Field(description="Name of the queue.")
    redis_id: str = Field(description="Id of the Redis, which it keeps whatever its address is.")
    since: str = Field(
        description="Time since when the namespace owns the queue (RFC 3339).",
        json_schema_extra={"format": "date-time"},
    )


class WorkerPoolStatus(Model):
    """Observed state of a WorkerPool."""

    observed_generation: int = Field(
        default=0,
        description=(
            "Generation of the spec that this status describes; -1 before the operator wrote one."
        ),
    )
    selector: str = Field(default="", description="Label selector of the pods, for kubectl scale.")
    replicas: int = Field(default=0, description="Pods that exist.")
    ready_replicas: int = Field(default=0, description="Pods that are ready.")
    desired_replicas: int = Field(
        default=0, description="Number of pods that the operator decided on."
    )
    busy_workers: int = Field(default=0, description="Workers that run a job.")
    draining_replicas: int = Field(default=0, description="Pods that are draining.")
    waiting_jobs: int = Field(default=0, description="Waiting jobs, in all queues together.")
    queues: list[QueueStatus] = Field(
        default_factory=list,
        description="The queues, as last read.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    owned_queues: list[OwnedQueue] = Field(
        default_factory=list,
        description=("Queues that the namespace owns: pools of other namespaces cannot read them."),
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    schedules: list[JobScheduleStatus] = Field(
        default_factory=list,
        description="The schedules, as last read.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    jobs_per_minute: int = Field(default=0, description="Jobs finished in the last minute.")
    last_scale_time: str | None = Field(
        default=None,
        description="Time of the last change of the size (RFC 3339).",
        json_schema_extra={"format": "date-time"},
    )
    decision: str = Field(
        default="", description="Reason for the pool's size, with the computation."
    )
    recommended_resources: dict[str, Any] | None = Field(
        default=None,
        description="Recommended requests and limits, from the workers' use.",
        json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
    )
    last_out_of_memory_time: str | None = Field(
        default=None,
        description="Time of the last out-of-memory kill of a worker (RFC 3339).",
        json_schema_extra={"format": "date-time"},
    )
    conditions: list[Condition] = Field(
        default_factory=list,
        description=(
            "Ready, Reconciling, Stalled, RedisReachable, ScalingActive, "
            "ScalingLimited, Draining, RightSized, and SchedulesActive if there are "
            "schedules."
        ),
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )


class WorkerPool(Model):
    """A pool of RQ workers: a Deployment that grows when jobs wait, shrinks without interrupting a
    running job, and scales to zero when no work is left."""

    api_version: Annotated[str, Field(pattern=r"^engineroom\.dev/v1alpha1$")]
    kind: Annotated[str, Field(pattern=r"^WorkerPool$")]
    metadata: dict[str, Any] = Field(json_schema_extra={"type": "object"})
    spec: WorkerPoolSpec = Field(description="Desired state of the pool.")
    status: dict[str, Any] | None = Field(default=None, description="Observed state of the pool.")

    @property
    def name(self) -> ObjectName:
        """The object's name."""
        return str(self.metadata["name"])

    @property
    def namespace(self) -> str:
        """The object's namespace."""
        return str(self.metadata["namespace"])

    @property
    def fixed_replicas(self) -> int | None:
        """The configured number of pods, 1 by default; None for an autoscaled pool."""
        if self.spec.autoscaling is not None:
            return None
        return 1 if self.spec.replicas is None else self.spec.replicas
