"""Lenient parsing of Kubernetes objects into the command line's model.

Unknown fields are ignored and missing fields are None, because a client must show the status of a
newer operator, which the API's own models would refuse.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from engineroom.api import ANNOTATION_DRAIN, LABEL_POOL
from engineroom.cli.connections.model import (
    Autoscaling,
    Condition,
    Document,
    Event,
    InstalledComponent,
    Pod,
    Pool,
    PoolStatus,
    Queue,
    ResourceUsage,
)

ANNOTATION_DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
ANNOTATION_SAFE_TO_EVICT = "cluster-autoscaler.kubernetes.io/safe-to-evict"
#: Deletion cost of a pod whose workers are drained; such a pod is deleted first.
DRAINED_COST = -1000

_GITOPS = {
    "argocd.argoproj.io/tracking-id": "Argo CD",
    "kustomize.toolkit.fluxcd.io/name": "Flux",
    "helm.toolkit.fluxcd.io/name": "Flux",
    "meta.helm.sh/release-name": "Helm",
}


def parse_time(text: str | None) -> datetime | None:
    """Return an RFC 3339 time with its time zone; None for no time or an invalid one."""
    if not text:
        return None
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        return None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def parse_pool(document: Document) -> Pool:
    """Return the pool of a WorkerPool object."""
    metadata = dict(document["metadata"])
    metadata.pop("managedFields", None)
    spec, raw_status = document.get("spec") or {}, document.get("status") or {}
    autoscaling = spec.get("autoscaling")
    document = {**document, "metadata": metadata}
    status = _status(raw_status) if raw_status.get("observedGeneration", 0) > 0 else None
    label_keys = {**(metadata.get("labels") or {}), **(metadata.get("annotations") or {})}
    return Pool(
        namespace=metadata.get("namespace", ""),
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        generation=metadata.get("generation", 0),
        created=parse_time(metadata.get("creationTimestamp")),
        deleting="deletionTimestamp" in metadata,
        suspend=bool(spec.get("suspend", False)),
        replicas=spec.get("replicas"),
        autoscaling=None if autoscaling is None else _autoscaling(autoscaling),
        workers_per_pod=spec.get("workersPerPod", 1),
        strategy=spec.get("dequeueStrategy", "Priority"),
        max_job_duration=(spec.get("drain") or {}).get("maxJobDuration", "1h"),
        image=_image(spec.get("template") or {}),
        managed_by=next((tool for key, tool in _GITOPS.items() if key in label_keys), None),
        queues=_queues(spec, raw_status if status else {}),
        status=status,
        document=document,
    )


def _autoscaling(spec: Document) -> Autoscaling:
    scale_down = spec.get("scaleDown") or {}
    return Autoscaling(
        minimum=spec.get("minReplicas", 0),
        maximum=spec.get("maxReplicas", 10),
        target_latency=spec.get("targetLatency", "30s"),
        target_backlog=spec.get("targetBacklogPerWorker"),
        stabilization_window=scale_down.get("stabilizationWindow", "2m"),
        max_pods_per_minute=scale_down.get("maxPodsPerMinute"),
        idle_timeout=spec.get("idleTimeout", "1m"),
        pause=spec.get("pause", "None"),
        schedules=tuple(
            f"{schedule.get('name')}: at least {schedule.get('minReplicas')} pods for "
            f"{schedule.get('duration', '1h')} from {schedule.get('cron')} "
            f"{schedule.get('timeZone', 'UTC')}"
            for schedule in spec.get("schedules") or ()
        ),
    )


def _status(status: Document) -> PoolStatus:
    conditions = tuple(
        Condition(
            type=condition.get("type", ""),
            status=condition.get("status", "Unknown"),
            reason=condition.get("reason", ""),
            message=condition.get("message", ""),
            since=parse_time(condition.get("lastTransitionTime")),
        )
        for condition in status.get("conditions") or ()
    )
    return PoolStatus(
        observed_generation=status.get("observedGeneration", 0),
        replicas=status.get("replicas", 0),
        ready=status.get("readyReplicas", 0),
        desired=status.get("desiredReplicas", 0),
        busy_workers=status.get("busyWorkers", 0),
        draining=status.get("drainingReplicas", 0),
        jobs_per_minute=status.get("jobsPerMinute", 0),
        last_scale=parse_time(status.get("lastScaleTime")),
        decision=status.get("decision", ""),
        recommended=status.get("recommendedResources"),
        conditions=conditions,
    )


def _queues(spec: Document, status: Document) -> tuple[Queue, ...]:
    default = (spec.get("autoscaling") or {}).get("targetLatency")
    if spec.get("autoscaling") is not None and default is None:
        default = "30s"
    observed = {queue.get("name"): queue for queue in status.get("queues") or ()}
    queues = []
    for declared in spec.get("queues") or ():
        queue = Queue(
            declared["name"], declared.get("priority", 0), declared.get("targetLatency", default)
        )
        if (counts := observed.get(queue.name)) is not None:
            queue = replace(
                queue,
                depth=counts.get("depth", 0),
                running=counts.get("running", 0),
                scheduled=counts.get("scheduled", 0),
                failed=counts.get("failed", 0),
                oldest_job_age=counts.get("oldestJobAge"),
            )
        queues.append(queue)
    # The highest priority first, the order in which workers take jobs.
    return tuple(sorted(queues, key=lambda queue: -queue.priority))


def _image(template: Document) -> str:
    containers = (template.get("spec") or {}).get("containers") or []
    named = [container for container in containers if container.get("name") == "worker"]
    return next((str(entry.get("image", "")) for entry in named or containers), "")


def parse_pod(document: Document) -> Pod:
    """Return the model of a Pod object."""
    metadata, status = document["metadata"], document.get("status") or {}
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    conditions = {condition.get("type"): condition for condition in status.get("conditions") or ()}
    trouble, message = _trouble(status, conditions)
    evict = annotations.get(ANNOTATION_SAFE_TO_EVICT)
    return Pod(
        namespace=metadata.get("namespace", ""),
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        pool=labels.get(LABEL_POOL, ""),
        created=parse_time(metadata.get("creationTimestamp")),
        phase=status.get("phase", "Unknown"),
        ready=(conditions.get("Ready") or {}).get("status") == "True",
        restarts=sum(
            container.get("restartCount", 0) for container in status.get("containerStatuses") or ()
        ),
        node=(document.get("spec") or {}).get("nodeName", ""),
        trouble=trouble,
        trouble_message=message,
        deleting="deletionTimestamp" in metadata,
        # The operator forbids the cluster autoscaler to evict a pod that runs a job.
        busy=None if evict is None else evict == "false",
        drain_requested=annotations.get(ANNOTATION_DRAIN) == "true",
        drained=annotations.get(ANNOTATION_DELETION_COST) == str(DRAINED_COST),
        document=document,
    )


_STARTING = {"ContainerCreating", "PodInitializing"}


def _trouble(status: Document, conditions: dict[Any, Document]) -> tuple[str, str]:
    scheduled = conditions.get("PodScheduled") or {}
    if scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable":
        return "Unschedulable", str(scheduled.get("message", ""))
    initial, main = status.get("initContainerStatuses"), status.get("containerStatuses")
    for entry in [*(initial or ()), *(main or ())]:
        waiting = (entry.get("state") or {}).get("waiting") or {}
        ended = (entry.get("lastState") or {}).get("terminated") or {}
        if ended.get("reason") == "OOMKilled":
            return "OOMKilled", f"container {entry.get('name')} used more memory than its limit"
        if waiting.get("reason") and waiting["reason"] not in _STARTING:
            return str(waiting["reason"]), str(waiting.get("message", ""))
    return "", ""


def parse_event(document: Document) -> Event:
    """Return the model of an Event object of core/v1 or events.k8s.io/v1."""
    series = document.get("series") or {}
    times = (
        series.get("lastObservedTime"),
        document.get("lastTimestamp"),
        document.get("eventTime"),
        document["metadata"].get("creationTimestamp"),
    )
    return Event(
        type=document.get("type", ""),
        reason=document.get("reason", ""),
        message=(document.get("message") or "").strip(),
        count=series.get("count") or document.get("count") or 1,
        last=parse_time(next((time for time in times if time), None)),
    )


def parse_component(kind: str, document: Document) -> InstalledComponent:
    """Return the model of a Deployment or StatefulSet of the installation."""
    metadata, spec = document["metadata"], document.get("spec") or {}
    labels, status = metadata.get("labels") or {}, document.get("status") or {}
    return InstalledComponent(
        kind=kind,
        namespace=metadata.get("namespace", ""),
        name=metadata["name"],
        role=labels.get("app.kubernetes.io/component", ""),
        image=_image(spec.get("template") or {}),
        wanted=spec.get("replicas", 1),
        ready=status.get("readyReplicas", 0),
        lease=_lease(spec.get("template") or {}),
    )


def _lease(template: Document) -> str:
    for container in (template.get("spec") or {}).get("containers") or ():
        for variable in container.get("env") or ():
            if variable.get("name") == "ENGINEROOM_LEASE_NAME":
                return str(variable.get("value", ""))
    return ""


_SUFFIXES = {
    "n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0,
    "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15,
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50,
}  # fmt: skip


def parse_quantity(text: str) -> float:
    """Return a Kubernetes quantity as a number. Raises ValueError for an invalid one."""
    number = text.rstrip("numkMGTPKi")
    suffix = text[len(number) :]
    if suffix not in _SUFFIXES:
        raise ValueError(f"{text!r} is not a quantity")
    return float(number) * _SUFFIXES[suffix]


def parse_usage(document: Document) -> ResourceUsage:
    """Return the memory (bytes) and CPU (millicores) of a PodMetrics object, all containers."""
    containers = document.get("containers") or []
    usages = [container.get("usage") or {} for container in containers]
    return ResourceUsage(
        memory=round(sum(parse_quantity(usage.get("memory", "0")) for usage in usages)),
        cpu=round(sum(parse_quantity(usage.get("cpu", "0")) for usage in usages) * 1000),
    )
