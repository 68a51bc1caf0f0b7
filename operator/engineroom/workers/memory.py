"""The controller's memory of one pool between two looks; ten thousand must stay small."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engineroom.api.validation.pod_security import Level
from engineroom.kube.runtime.object_memory import NEVER, ObjectMemory
from engineroom.workers.demand import DemandHistory
from engineroom.workers.plan import Plan

if TYPE_CHECKING:
    from engineroom.redis.address import Address
    from engineroom.workers.job_schedules.declarations import DeclaredSchedules
    from engineroom.workers.projections import DeploymentView
    from engineroom.workers.redis_connections import SharedConnection
    from engineroom.workers.rightsizing.monitor import PoolUsage


@dataclass(slots=True)
class PoolMemory(ObjectMemory[Plan]):
    """One pool; only the controller writes it."""

    #: What the namespace's Pod Security allows; read only where a template needs more than usual.
    level: Level = Level.RESTRICTED
    #: Fingerprint of what the objects are made from; "" before it is computed.
    inputs: str = ""
    #: When this generation was first seen (Unix seconds); 0 if an earlier process saw it first.
    spec_seen: float = 0.0
    demand: DemandHistory = field(default_factory=DemandHistory)
    connection: SharedConnection | None = None
    address: Address | None = None
    #: The pool's schedules in Redis; None before they are declared.
    schedules: DeclaredSchedules | None = None
    #: The Deployment as the last write returned it, until the cache has caught up.
    written: DeploymentView | None = None
    #: The Deployment as the cache held it last.
    cached: DeploymentView | None = None
    #: Generation of the Deployment after the last write; any other is an edit by someone else.
    own_generation: int = 0
    #: When each worker was last asked to drain (monotonic seconds).
    drain_requests: dict[str, float] = field(default_factory=dict)
    #: When the pool was last looked at (monotonic seconds).
    looked: float = NEVER
    #: When stale workers were last removed (Unix seconds).
    stale_workers_removed: float = NEVER
    #: More failed jobs are to be dropped than one step takes.
    trimming: bool = False
    #: Nothing to do, and no time at which that changes by itself.
    idle: bool = False
    #: The size changed since the last status.
    scaled: bool = False
    #: (Unix seconds, jobs ended in all) during the last minute.
    ended_jobs: tuple[tuple[float, int], ...] = ()
    #: What its workers use; None before the pool had a pod.
    usage: PoolUsage | None = None
