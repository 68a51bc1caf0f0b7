"""The objects of a cluster as the command line shows them, immutable.

A value that the cluster did not report is None, never zero.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engineroom.api import GROUP

if TYPE_CHECKING:
    from datetime import datetime

RESOURCE = f"workerpools.{GROUP}"
Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition of a pool."""

    type: str
    status: str
    reason: str
    message: str
    since: datetime | None


@dataclass(frozen=True, slots=True)
class Queue:
    """One queue of a pool: what the spec says of it and what the status saw in it."""

    name: str
    priority: int
    target_latency: str | None
    depth: int | None = None
    running: int | None = None
    scheduled: int | None = None
    failed: int | None = None
    oldest_job_age: str | None = None


@dataclass(frozen=True, slots=True)
class Autoscaling:
    """The part of ``spec.autoscaling`` that explains a size."""

    minimum: int
    maximum: int
    target_latency: str
    target_backlog: int | None
    stabilization_window: str
    max_pods_per_minute: int | None
    idle_timeout: str
    pause: str
    schedules: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """The status that the operator last wrote for a pool."""

    observed_generation: int
    replicas: int
    ready: int
    desired: int
    busy_workers: int
    draining: int
    jobs_per_minute: int
    last_scale: datetime | None
    decision: str
    recommended: Document | None
    conditions: tuple[Condition, ...]

    def condition(self, kind: str) -> Condition | None:
        """The condition of that type, if the operator wrote one."""
        return next((condition for condition in self.conditions if condition.type == kind), None)

    def holds(self, kind: str, status: str = "True") -> Condition | None:
        """The condition of that type if it has that status."""
        condition = self.condition(kind)
        return condition if condition is not None and condition.status == status else None


@dataclass(frozen=True, slots=True)
class Pool:
    """One WorkerPool. ``status`` is None as long as no operator has looked at it."""

    namespace: str
    name: str
    uid: str
    generation: int
    created: datetime | None
    deleting: bool
    suspend: bool
    replicas: int | None
    autoscaling: Autoscaling | None
    workers_per_pod: int
    strategy: str
    max_job_duration: str
    image: str
    managed_by: str | None
    queues: tuple[Queue, ...]
    status: PoolStatus | None
    #: The object as the API server gave it, without managedFields.
    document: Document = field(repr=False, compare=False)

    @property
    def id(self) -> str:
        """``namespace/name``, as everywhere in Engineroom."""
        return f"{self.namespace}/{self.name}"

    @property
    def workers(self) -> int | None:
        """Worker processes in the pods that are ready; None when unknown."""
        return None if self.status is None else self.status.ready * self.workers_per_pod

    @property
    def answered(self) -> bool:
        """True if the operator has observed the current generation of the spec."""
        return self.status is not None and self.status.observed_generation >= self.generation

    def total(self, what: str) -> int | None:
        """Sum of a number over the queues (depth, running, ...); None when unknown."""
        values = [getattr(queue, what) for queue in self.queues]
        reported = [value for value in values if value is not None]
        return sum(reported) if reported else None


@dataclass(frozen=True, slots=True)
class ResourceUsage:
    """The current usage of a pod: bytes and millicores."""

    memory: int
    cpu: int


@dataclass(frozen=True, slots=True)
class Pod:
    """One pod of a pool."""

    namespace: str
    name: str
    uid: str
    pool: str
    created: datetime | None
    phase: str
    ready: bool
    restarts: int
    node: str
    #: Why a container waits or last ended badly, or why the pod has no node; "" when all is well.
    trouble: str
    trouble_message: str
    deleting: bool
    #: Whether a worker in it holds a job; None where the operator has not said.
    busy: bool | None
    drain_requested: bool
    drained: bool
    usage: ResourceUsage | None = None
    document: Document = field(default_factory=dict, repr=False, compare=False)

    @property
    def state(self) -> str:
        """One word for people."""
        if self.deleting:
            return "leaving"
        if self.trouble and not self.ready:
            return self.trouble
        if self.drained:
            return "drained"
        if self.drain_requested:
            return "draining"
        if not self.ready:
            return "starting" if self.phase in ("Pending", "Running") else self.phase.lower()
        return "busy" if self.busy else "idle" if self.busy is False else "ready"


@dataclass(frozen=True, slots=True)
class Event:
    """One event on a pool."""

    type: str
    reason: str
    message: str
    count: int
    last: datetime | None


@dataclass(frozen=True, slots=True)
class InstalledComponent:
    """A Deployment or StatefulSet of the installation."""

    kind: str
    namespace: str
    name: str
    role: str
    image: str
    wanted: int
    ready: int
    #: Name of the Lease that its replicas elect a leader by, "" for none.
    lease: str = ""

    @property
    def version(self) -> str:
        """The image's tag, or "" where it is pinned by digest alone."""
        name = self.image.split("@", 1)[0].rsplit("/", 1)[-1]
        return name.partition(":")[2]


@dataclass(frozen=True, slots=True)
class KindDefinition:
    """The WorkerPool kind as the cluster has it."""

    served: tuple[str, ...]
    #: Release that installed it, "" where the label is missing or may not be read.
    release: str = ""


@dataclass(frozen=True, slots=True)
class WebhookRegistration:
    """A validating webhook configuration for our kinds."""

    name: str
    webhooks: int
    with_certificate: int


@dataclass(frozen=True, slots=True)
class Installation:
    """The installed parts of Engineroom; ``denied`` names what the account may not read."""

    server: str
    server_version: str
    definition: KindDefinition | None
    components: tuple[InstalledComponent, ...] = ()
    admission: WebhookRegistration | None = None
    leader: str | None = None
    #: Where it is installed; none if that is unknown.
    namespaces: tuple[str, ...] = ()
    denied: tuple[str, ...] = ()

    def role(self, role: str) -> tuple[InstalledComponent, ...]:
        """The components with that ``app.kubernetes.io/component``."""
        return tuple(component for component in self.components if component.role == role)
