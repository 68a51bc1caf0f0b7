"""What the room keeps of its children: a Deployment or Pod boiled down to what decisions need."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from engineroom.api import (
    ANNOTATION_DRAIN,
    ANNOTATION_EQUIPPED,
    ANNOTATION_TEMPLATE_HASH,
    LABEL_POOL,
)
from engineroom.workers.rightsizing.resizing import Container, container_of

if TYPE_CHECKING:
    from collections.abc import Mapping

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
#: Cost of a pod whose workers have retired: the ReplicaSet takes the cheapest first.
RETIRED_COST = -1000


@dataclass(frozen=True, slots=True)
class DeploymentView:
    """A pool's Deployment."""

    name: str
    uid: str
    resource_version: str
    generation: int
    observed_generation: int
    replicas: int
    status_replicas: int
    ready: int
    updated: int
    unavailable: int
    inputs_hash: str
    equipped: str = ""
    #: (reason, message) when the ReplicaSet could not create pods (quota, admission).
    replica_failure: tuple[str, str] | None = None

    @property
    def rolling(self) -> bool:
        """Whether pods of an older template are still there, or a change is not yet seen."""
        return self.observed_generation < self.generation or self.updated < self.status_replicas

    def same_sight(self, other: DeploymentView) -> bool:
        """Whether a reconcile would see the same in both; versions and hashes apart."""
        return (
            self.uid == other.uid
            and self.generation == other.generation
            and self.replicas == other.replicas
            and self.status_replicas == other.status_replicas
            and self.ready == other.ready
            and self.updated == other.updated
            and self.rolling == other.rolling
            and self.replica_failure == other.replica_failure
        )


@dataclass(frozen=True, slots=True)
class PodView:
    """A pod of a pool. ``started`` is Unix seconds."""

    name: str
    uid: str
    resource_version: str
    pool: str
    phase: str
    ready: bool
    deleting: bool
    deletion_cost: int
    drain_asked: bool
    created: float
    restarts: int
    #: (reason, message) of a container that waits or was terminated, with what it wrote last.
    trouble: tuple[str, str] | None = None
    protected: bool = False
    #: Whether it has a node.
    scheduled: bool = True
    #: The container that runs the workers, as far as its resources go.
    worker: Container | None = None

    @property
    def present(self) -> bool:
        """Whether the ReplicaSet counts it: neither leaving nor ended."""
        return not self.deleting and self.phase in ("Pending", "Running")


def deployment_view(obj: Mapping[str, Any]) -> DeploymentView:
    """Project a Deployment as the API server sent it."""
    meta, spec, status = obj["metadata"], obj["spec"], obj.get("status") or {}
    failure = next(
        (
            (c.get("reason", ""), c.get("message", ""))
            for c in status.get("conditions") or ()
            if c["type"] == "ReplicaFailure" and c["status"] == "True"
        ),
        None,
    )
    return DeploymentView(
        name=meta["name"],
        uid=meta["uid"],
        resource_version=meta["resourceVersion"],
        generation=meta.get("generation", 0),
        observed_generation=status.get("observedGeneration", 0),
        replicas=spec.get("replicas", 1),
        status_replicas=status.get("replicas", 0),
        ready=status.get("readyReplicas", 0),
        updated=status.get("updatedReplicas", 0),
        unavailable=status.get("unavailableReplicas", 0),
        inputs_hash=(meta.get("annotations") or {}).get(ANNOTATION_TEMPLATE_HASH, ""),
        equipped=(meta.get("annotations") or {}).get(ANNOTATION_EQUIPPED, ""),
        replica_failure=failure,
    )


def pod_view(obj: Mapping[str, Any]) -> PodView:
    """Project a Pod as the API server sent it."""
    meta, status = obj["metadata"], obj.get("status") or {}
    annotations = meta.get("annotations") or {}
    ready = any(
        c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions") or ()
    )
    statuses = [
        *(status.get("initContainerStatuses") or ()),
        *(status.get("containerStatuses") or ()),
    ]
    return PodView(
        name=meta["name"],
        uid=meta["uid"],
        resource_version=meta["resourceVersion"],
        pool=(meta.get("labels") or {}).get(LABEL_POOL, ""),
        phase=status.get("phase", "Pending"),
        ready=ready,
        deleting="deletionTimestamp" in meta,
        deletion_cost=_number(annotations.get(DELETION_COST)),
        drain_asked=annotations.get(ANNOTATION_DRAIN) == "true",
        created=datetime.fromisoformat(meta["creationTimestamp"]).timestamp(),
        restarts=sum(c.get("restartCount", 0) for c in statuses),
        trouble=_trouble(statuses),
        protected=annotations.get(SAFE_TO_EVICT) == "false",
        scheduled=bool((obj.get("spec") or {}).get("nodeName")),
        worker=container_of(obj),
    )


SAFE_TO_EVICT = "cluster-autoscaler.kubernetes.io/safe-to-evict"
DO_NOT_DISRUPT = "karpenter.sh/do-not-disrupt"


def _trouble(statuses: list[Mapping[str, Any]]) -> tuple[str, str] | None:
    """The first container that cannot run: why it waits, or how it ended before."""
    for container in statuses:
        state = container.get("state") or {}
        waiting = state.get("waiting") or {}
        if waiting.get("reason") in (None, "", "PodInitializing", "ContainerCreating"):
            continue
        last = (container.get("lastState") or {}).get("terminated") or {}
        said = (last.get("message") or waiting.get("message") or "").strip()
        return str(waiting["reason"]), said[:512]
    for container in statuses:
        ended = (container.get("state") or {}).get("terminated") or {}
        if ended.get("exitCode"):
            return str(ended.get("reason", "Error")), (ended.get("message") or "").strip()[:512]
    return None


def _number(text: str | None) -> int:
    try:
        return int(text or 0)
    except ValueError:
        return 0
