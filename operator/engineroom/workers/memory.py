"""The controller's memory of one pool between two reconciles; ten thousand must stay small."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engineroom.api.validation.pod_security import PodSecurityLevel
from engineroom.kube.runtime.object_memory import NEVER, ObjectMemory
from engineroom.workers.apply import AppliedState
from engineroom.workers.demand import DemandHistory
from engineroom.workers.plan import Plan
from engineroom.workers.redis_measurement import PoolConnection

if TYPE_CHECKING:
    from engineroom.workers.job_schedules.declarations import DeclaredSchedules
    from engineroom.workers.rightsizing.monitor import PoolUsage


@dataclass(slots=True)
class PoolMemory(ObjectMemory[Plan]):
    """One pool; only the controller writes it.

    ``demand``, ``redis``, ``applied`` and ``usage`` are written by what they are passed to.
    """

    #: What the namespace's Pod Security allows; read only where a template needs more than usual.
    level: PodSecurityLevel = PodSecurityLevel.RESTRICTED
    #: Fingerprint of what the objects are made from; "" before it is computed.
    inputs: str = ""
    #: When this generation was first seen (Unix seconds); 0 if an earlier process saw it first.
    spec_seen: float = 0.0
    demand: DemandHistory = field(default_factory=DemandHistory)
    redis: PoolConnection = field(default_factory=PoolConnection)
    #: The pool's schedules in Redis; None before they are declared.
    schedules: DeclaredSchedules | None = None
    applied: AppliedState = field(default_factory=AppliedState)
    #: When the pool was last looked at (monotonic seconds).
    looked: float = NEVER
    #: Nothing to do, and no time at which that changes by itself.
    idle: bool = False
    #: (Unix seconds, jobs ended in all) during the last minute.
    ended_jobs: tuple[tuple[float, int], ...] = ()
    #: What its workers use; None before the pool had a pod.
    usage: PoolUsage | None = None
