"""What the controller remembers of one pool between two looks; ten thousand must stay small."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engineroom.api import validation
from engineroom.api.v1alpha1.workerpool import WorkerPool
from engineroom.api.validation.pod_security import Level
from engineroom.kube.client.resources import WORKERPOOLS, ObjectRef
from engineroom.workers.demand import Memory

if TYPE_CHECKING:
    from engineroom.workers.job_schedules.declarations import Declaration
    from engineroom.workers.plan import Plan
    from engineroom.workers.projections import DeploymentView
    from engineroom.workers.redis_connections import Address, Link
    from engineroom.workers.rightsizing.monitor import Sizing

#: Long ago, on a monotonic clock.
NEVER = -1e9


@dataclass(slots=True)
class Pool:
    """One pool. All of this may be lost at any time; it is found again by looking."""

    namespace: str
    name: str
    uid: str
    generation: int = 0
    #: What the namespace's Pod Security allows; asked for only where a template needs to know.
    level: Level = Level.RESTRICTED
    plan: Plan | None = None
    #: Fingerprint of what the objects are made from; "" until it was computed.
    inputs: str = ""
    memory: Memory = field(default_factory=Memory)
    link: Link | None = None
    address: Address | None = None
    #: What stands in Redis of its schedules; None before that is known.
    declared: Declaration | None = None
    #: The Deployment as our last write returned it, until the cache has caught up.
    written: DeploymentView | None = None
    #: The Deployment as the cache told of it last.
    sight: DeploymentView | None = None
    #: Generation of the Deployment after our last write; another one is somebody's edit.
    own_generation: int = 0
    #: Pods that the pool's own annotation asks to leave.
    drain_pods: frozenset[str] = frozenset()
    #: When each worker was last asked to drain (monotonic seconds).
    asked: dict[str, float] = field(default_factory=dict)
    looked: float = NEVER
    #: When ghosts among the workers were looked for (Unix seconds).
    ghosts: float = NEVER
    told: float = NEVER
    #: When figures that were held back are written (monotonic seconds); None when none are.
    due: float | None = None
    #: More failed jobs are to be dropped than one step takes.
    trimming: bool = False
    #: Nothing to do and no time at which that changes by itself.
    idle: bool = False
    scaled: bool = False
    #: (Unix seconds, jobs ended in all) of the last minute.
    ended: tuple[tuple[float, int], ...] = ()
    #: What its workers use; None until it had a pod.
    sizing: Sizing | None = None

    @property
    def key(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}"

    @property
    def reference(self) -> ObjectRef:
        """The pool as events name it."""
        return ObjectRef(
            WORKERPOOLS.api_version, WORKERPOOLS.kind, self.namespace, self.name, self.uid
        )

    def parse(self, spec: dict[str, Any]) -> WorkerPool:
        """The model of the spec; raises InvalidSpecError with every problem."""
        return validation.parse(
            WorkerPool, self.document(spec), validation.ValidationContext(self.level)
        )

    def document(self, spec: dict[str, Any]) -> dict[str, Any]:
        """The pool as validation wants to see it."""
        return {
            "apiVersion": WORKERPOOLS.api_version,
            "kind": WORKERPOOLS.kind,
            "metadata": {"namespace": self.namespace, "name": self.name, "uid": self.uid},
            "spec": spec,
        }
