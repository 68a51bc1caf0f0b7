"""A pool's children as cached: Deployments and Pods reduced to what decisions need."""

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
from engineroom.kube.runtime.ownership import controller_of
from engineroom.workers.objects import RUNTIME_PATH
from engineroom.workers.resources import NO_RESOURCES, ResourceAmounts

if TYPE_CHECKING:
    from collections.abc import Mapping

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
#: Cost of a pod whose workers have retired: the ReplicaSet deletes the cheapest first.
RETIRED_COST = -1000


SAFE_TO_EVICT = "cluster-autoscaler.kubernetes.io/safe-to-evict"
DO_NOT_DISRUPT = "karpenter.sh/do-not-disrupt"

#: What became of a resize in place, in the words of Kubernetes.
RESIZE_DEFERRED, RESIZE_INFEASIBLE = "Deferred", "Infeasible"
RESIZE_ERROR, RESIZE_IN_PROGRESS = "Error", "InProgress"

_START = f"{RUNTIME_PATH}/start"


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
    #: The uid of its controller; "" without one.
    owner: str = ""
    #: (reason, message) when the ReplicaSet could not create pods (quota, admission).
    replica_failure: tuple[str, str] | None = None

    @property
    def rolling(self) -> bool:
        """Whether pods of an older template exist, or a change has not been observed yet."""
        return self.observed_generation < self.generation or self.updated < self.status_replicas

    def same_state(self, other: DeploymentView) -> bool:
        """Return whether a reconcile sees the same in both; versions and hashes apart."""
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
class ContainerView:
    """The container that runs a pod's workers. Times are Unix seconds."""

    name: str
    running: bool
    #: The resources of its spec.
    desired: ResourceAmounts
    #: The resources that the kubelet reports; empty where it reports none.
    actual: ResourceAmounts = NO_RESOURCES
    #: Resources whose change restarts it, by its resizePolicy.
    restarts_for: frozenset[str] = frozenset()
    #: When it was last killed for memory.
    oom_killed: float | None = None
    #: State of the last resize: one of the RESIZE constants, "" when none is open.
    resize: str = ""
    resize_message: str = ""


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
    drain_requested: bool
    created: float
    restarts: int
    #: (reason, message) of a container that waits or was terminated, with its last output.
    trouble: tuple[str, str] | None = None
    protected: bool = False
    #: Whether it has a node.
    scheduled: bool = True
    #: The container that runs the workers.
    worker: ContainerView | None = None

    @property
    def present(self) -> bool:
        """Whether the ReplicaSet counts it: neither being deleted nor ended."""
        return not self.deleting and self.phase in ("Pending", "Running")


def deployment_view(obj: Mapping[str, Any]) -> DeploymentView:
    """Reduce a Deployment as the API server sent it."""
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
        owner=controller_of(obj).get("uid", ""),
        replica_failure=failure,
    )


def pod_view(obj: Mapping[str, Any]) -> PodView:
    """Reduce a Pod as the API server sent it."""
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
        drain_requested=annotations.get(ANNOTATION_DRAIN) == "true",
        created=datetime.fromisoformat(meta["creationTimestamp"]).timestamp(),
        restarts=sum(c.get("restartCount", 0) for c in statuses),
        trouble=_trouble(statuses),
        protected=annotations.get(SAFE_TO_EVICT) == "false",
        scheduled=bool((obj.get("spec") or {}).get("nodeName")),
        worker=container_view(obj),
    )


def _trouble(statuses: list[Mapping[str, Any]]) -> tuple[str, str] | None:
    """Return why the first container that cannot run waits, or how it ended."""
    for container in statuses:
        state = container.get("state") or {}
        waiting = state.get("waiting") or {}
        if waiting.get("reason") in (None, "", "PodInitializing", "ContainerCreating"):
            continue
        last = (container.get("lastState") or {}).get("terminated") or {}
        message = (last.get("message") or waiting.get("message") or "").strip()
        return str(waiting["reason"]), message[:512]
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


def container_view(pod: Mapping[str, Any]) -> ContainerView | None:
    """Reduce the worker container of a Pod; None if no container runs the worker runtime."""
    containers = (pod.get("spec") or {}).get("containers") or ()
    # Found by its command: sidecar injectors may have put a container of theirs first.
    spec = next((c for c in containers if (c.get("command") or [""])[0] == _START), None)
    if spec is None:
        return None
    pod_status = pod.get("status") or {}
    statuses = pod_status.get("containerStatuses") or ()
    status: Mapping[str, Any] = next((c for c in statuses if c.get("name") == spec["name"]), {})
    resize, message = _resize_state(pod_status.get("conditions") or ())
    return ContainerView(
        name=spec["name"],
        running="running" in (status.get("state") or {}),
        desired=ResourceAmounts.of(spec.get("resources")),
        actual=ResourceAmounts.of(status.get("resources")),
        restarts_for=frozenset(
            policy.get("resourceName", "")
            for policy in spec.get("resizePolicy") or ()
            if policy.get("restartPolicy") == "RestartContainer"
        ),
        oom_killed=_oom_killed(status),
        resize=resize,
        resize_message=message[:256],
    )


def _resize_state(conditions: Any) -> tuple[str, str]:
    state, message = "", ""
    for condition in conditions:
        if condition.get("status") != "True":
            continue
        text = str(condition.get("message") or "")
        if condition["type"] == "PodResizePending":
            # A new request that is pending says more than an older one in progress.
            return str(condition.get("reason") or RESIZE_DEFERRED), text
        if condition["type"] == "PodResizeInProgress":
            failed = condition.get("reason") == RESIZE_ERROR
            state, message = (RESIZE_ERROR if failed else RESIZE_IN_PROGRESS), text
    return state, message


def _oom_killed(status: Mapping[str, Any]) -> float | None:
    for state in ("state", "lastState"):
        ended = (status.get(state) or {}).get("terminated") or {}
        if ended.get("reason") == "OOMKilled" and ended.get("finishedAt"):
            return datetime.fromisoformat(ended["finishedAt"]).timestamp()
    return None
