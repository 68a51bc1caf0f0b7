"""Objects as an API server gives them, at a fixed time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)


def ago(**span: float) -> str:
    return (NOW - timedelta(**span)).strftime("%Y-%m-%dT%H:%M:%SZ")


def condition(kind: str, status: str, reason: str, message: str, minutes: float = 5) -> Any:
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": ago(minutes=minutes),
        "observedGeneration": 3,
    }


READY = condition("Ready", "True", "Reconciled", "Everything is as the spec says.")


def pool(
    name: str = "mail",
    namespace: str = "default",
    *,
    autoscaling: dict[str, Any] | None = None,
    status: dict[str, Any] | None = None,
    metadata: dict[str, Any] | None = None,
    **spec: Any,
) -> dict[str, Any]:
    """A pool; without a status when ``status`` is None, else on top of a healthy one."""
    document: dict[str, Any] = {
        "apiVersion": "engineroom.dev/v1alpha1",
        "kind": "WorkerPool",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": f"uid-{name}",
            "generation": 3,
            "resourceVersion": "1",
            "creationTimestamp": ago(days=2),
            "managedFields": [{"manager": "kubectl"}],
            **(metadata or {}),
        },
        "spec": {
            "queues": [{"name": "default"}, {"name": "urgent", "priority": 10}],
            "template": {"spec": {"containers": [{"name": "worker", "image": "example/app:1.2"}]}},
            **spec,
        },
    }
    if autoscaling is not None:
        document["spec"]["autoscaling"] = autoscaling
    if status is not None:
        document["status"] = {
            "observedGeneration": 3,
            "replicas": 7,
            "readyReplicas": 7,
            "desiredReplicas": 7,
            "busyWorkers": 3,
            "jobsPerMinute": 120,
            "lastScaleTime": ago(minutes=4),
            "decision": "7 pods: 840 waiting x 0.25 s each within 30 s, 3 running",
            "queues": [
                {"name": "default", "depth": 830, "running": 2, "failed": 4, "oldestJobAge": "12s"},
                {"name": "urgent", "depth": 10, "running": 1, "scheduled": 2, "oldestJobAge": "1s"},
            ],
            "conditions": [READY],
            **status,
        }
    return document


def pod(
    name: str = "mail-1",
    pool: str = "mail",
    namespace: str = "default",
    *,
    ready: bool = True,
    annotations: dict[str, str] | None = None,
    container: dict[str, Any] | None = None,
    conditions: list[dict[str, Any]] | None = None,
    **metadata: Any,
) -> dict[str, Any]:
    return {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": f"uid-{name}",
            "labels": {"engineroom.dev/pool": pool},
            "annotations": annotations or {},
            "creationTimestamp": ago(hours=1),
            **metadata,
        },
        "spec": {"nodeName": "node-a"},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": str(ready)}, *(conditions or [])],
            "containerStatuses": [{"name": "worker", "restartCount": 1, **(container or {})}],
        },
    }


BUSY = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}


def event(reason: str, message: str, minutes: float, kind: str = "Normal") -> dict[str, Any]:
    return {
        "metadata": {"name": reason.lower(), "creationTimestamp": ago(minutes=minutes)},
        "involvedObject": {"kind": "WorkerPool", "name": "mail", "uid": "uid-mail"},
        "type": kind,
        "reason": reason,
        "message": message,
        "count": 2,
        "lastTimestamp": ago(minutes=minutes),
    }


def deployment(role: str, *, wanted: int = 2, ready: int = 2, lease: str = "") -> dict[str, Any]:
    env = [{"name": "ENGINEROOM_LEASE_NAME", "value": lease}] if lease else []
    return {
        "metadata": {
            "name": f"engineroom-{role}",
            "namespace": "engineroom-system",
            "labels": {
                "app.kubernetes.io/part-of": "engineroom",
                "app.kubernetes.io/component": role,
            },
        },
        "spec": {
            "replicas": wanted,
            "template": {
                "spec": {"containers": [{"name": role, "image": "engineroom:0.1.0", "env": env}]}
            },
        },
        "status": {"readyReplicas": ready},
    }
