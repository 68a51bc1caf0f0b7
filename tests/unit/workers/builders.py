"""Short ways to say what a test is about; everything else has a plain default."""

from __future__ import annotations

from typing import Any

from engineroom.api.v1alpha1.workerpool import WorkerPool
from engineroom.queue.observe import PoolFacts, QueueFacts, WorkerFacts
from engineroom.workers.plan import Plan, plan_of
from engineroom.workers.projections import PodView
from tests.support import pool_document

NOW = 1_800_000_000.0


def pool(**spec: Any) -> WorkerPool:
    return WorkerPool.model_validate(pool_document(**spec))


def plan(**autoscaling: Any) -> Plan:
    return plan_of(pool(autoscaling=autoscaling))


def facts(at: float = NOW, **queue: Any) -> PoolFacts:
    return PoolFacts(at=at, queues=(QueueFacts(name="mail", **queue),))


def worker(pod: str, *, slot: int = 0, **fields: Any) -> WorkerFacts:
    defaults: dict[str, Any] = {"heartbeat": NOW, "birth": NOW - 100, "pod_uid": f"uid-{pod}"}
    return WorkerFacts(name=f"{pod}.{slot}.0a1b2c3d", pod=pod, **{**defaults, **fields})


def pod(name: str, **fields: Any) -> PodView:
    defaults: dict[str, Any] = {
        "uid": f"uid-{name}",
        "resource_version": "1",
        "pool": "mail",
        "phase": "Running",
        "ready": True,
        "deleting": False,
        "deletion_cost": 0,
        "drain_requested": False,
        "created": NOW - 100,
        "restarts": 0,
    }
    return PodView(name=name, **{**defaults, **fields})
