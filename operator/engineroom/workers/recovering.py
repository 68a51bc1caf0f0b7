"""Jobs of dead workers: who is dead is decided from pod and heartbeat together, never from one.

Redis gone for a minute makes every heartbeat old, a slow API server hides a pod: only both at once
mean that a worker is dead, and before anything is taken from it the pod is read live.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog

from engineroom.core import reasons
from engineroom.core.errors import DependencyError
from engineroom.kube.client.errors import NotFound
from engineroom.kube.client.resources import PODS
from engineroom.queue import recovery, stale_workers
from engineroom.workers.projections import pod_view

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Redis

    from engineroom.kube.client.client import Client
    from engineroom.kube.client.resources import ObjectRef
    from engineroom.kube.runtime.events import Recorder
    from engineroom.queue.observe import PoolFacts, WorkerFacts
    from engineroom.workers.plan import Plan
    from engineroom.workers.projections import PodView

log = structlog.get_logger(__name__)

#: Workers report every 5 s; three reports missed, and the pod gone, is dead (seconds).
SILENT = 15.0
#: A pod that is there but not ready, silent for so long: its node is gone (seconds).
SILENT_UNREADY = 60.0
#: A worker in a pod that is ready, silent for so long: it hangs (seconds).
SILENT_READY = 60.0
#: A worker ends its job a minute after the job's time-out; this much later it has failed to.
OVERDUE = 120.0
#: Ghosts are looked for so often (seconds).
GHOSTS_EVERY = 300.0

_REASONS = {
    "requeued": reasons.JOB_REQUEUED,
    "failed": reasons.JOB_FAILED,
    "poisoned": reasons.JOB_POISONED,
}


@dataclass(frozen=True, slots=True)
class Dead:
    """A worker that will not come back, and how that is known."""

    worker: WorkerFacts
    why: str


def find_dead(facts: PoolFacts, pods: Sequence[PodView]) -> list[Dead]:
    """The workers that both their heartbeat and their pod say are dead: pure."""
    by_name = {pod.name: pod for pod in pods}
    youngest: dict[tuple[str, str], float] = {}
    for worker in facts.workers:
        place = (worker.pod, worker.slot)
        youngest[place] = max(youngest.get(place, 0.0), worker.birth or 0.0)
    dead = []
    for worker in facts.workers:
        silence = facts.at - worker.heartbeat if worker.heartbeat is not None else float("inf")
        if silence < SILENT:
            continue
        pod = by_name.get(worker.pod)
        if pod is None or (worker.pod_uid and pod.uid != worker.pod_uid):
            dead.append(Dead(worker, "its pod is gone"))
        elif pod.phase in ("Succeeded", "Failed"):
            dead.append(Dead(worker, f"its pod is {pod.phase}"))
        elif (worker.birth or 0.0) < youngest[(worker.pod, worker.slot)]:
            dead.append(Dead(worker, "its container was started anew"))
        elif not pod.ready and silence >= SILENT_UNREADY:
            dead.append(Dead(worker, "its pod is not ready"))
    return dead


@dataclass(frozen=True, slots=True)
class Stuck:
    """A worker that is there and does not go on, and how that is known."""

    worker: WorkerFacts
    why: str


def find_stuck(facts: PoolFacts, pods: Sequence[PodView]) -> list[Stuck]:
    """Workers that are not dead, by their pod, and do not go on: pure.

    The runtime ends a worker that hangs by itself, after five minutes; what stays longer is in the
    kernel's hands (a disk that does not answer), and a person has to look.
    """
    ready = {pod.name: pod for pod in pods if pod.ready and not pod.deleting}
    gone = {one.worker.name for one in find_dead(facts, pods)}
    stuck = []
    for worker in facts.workers:
        pod = ready.get(worker.pod)
        if worker.heartbeat is None or worker.name in gone or pod is None:
            continue
        if worker.pod_uid and worker.pod_uid != pod.uid:
            continue
        if facts.at - worker.heartbeat >= SILENT_READY:
            stuck.append(Stuck(worker, "has sent no heartbeat for a minute and its pod is ready"))
        elif worker.job_started is not None and worker.job_timeout is not None:
            over = facts.at - worker.job_started - worker.job_timeout
            if over > OVERDUE:
                stuck.append(Stuck(worker, f"runs job {worker.job} beyond its time-out"))
    return stuck


def tell_stuck(
    recorder: Recorder, reference: ObjectRef, facts: PoolFacts, pods: Sequence[PodView]
) -> None:
    """An event for each worker that is stuck; repeats are a series."""
    for one in find_stuck(facts, pods):
        recorder.record(
            reference, "Warning", reasons.WORKER_STUCK, f"worker {one.worker.name} {one.why}"
        )


async def clear_ghosts(
    redis: Redis, recorder: Recorder, reference: ObjectRef, plan: Plan, facts: PoolFacts
) -> int:
    """Take workers that are no more off RQ's lists of the pool's queues; returns how many."""
    cleared = await stale_workers.clear(redis, plan.queues, datetime.fromtimestamp(facts.at, UTC))
    if cleared:
        shown = ", ".join(cleared[:5]) + (", ..." if len(cleared) > 5 else "")
        recorder.record(
            reference,
            "Normal",
            reasons.GHOST_WORKERS_CLEARED,
            f"{len(cleared)} workers of the pool's queues are no more: {shown}",
        )
    return len(cleared)


async def recover_dead(
    redis: Redis,
    client: Client,
    recorder: Recorder,
    reference: ObjectRef,
    plan: Plan,
    facts: PoolFacts,
    pods: Sequence[PodView],
) -> int:
    """Give back the jobs of dead workers and take the workers off the list; returns how many died.

    Each is recovered in one atomic step of Redis, so another operator doing the same, or RQ's own
    maintenance, cannot make two of one job.
    """
    dead = find_dead(facts, pods)
    pool = f"{reference.namespace}/{reference.name}"
    for one in dead:
        if one.why == "its pod is gone" and await _alive(client, reference.namespace, one.worker):
            continue
        outcome = await recovery.recover(
            redis,
            recovery.DeadWorker(
                name=one.worker.name,
                pool=pool,
                heartbeat=one.worker.heartbeat,
                queues=plan.queues,
                why=one.why,
            ),
            recovery.RecoveryPolicy(
                requeue_orphans=plan.requeue_orphans.value,
                poison_threshold=plan.poison_threshold,
                poison_window=plan.poison_window,
                dead_letter_ttl=plan.dead_letter_ttl,
            ),
            facts.at,
        )
        if outcome.job:
            recorder.record(
                reference,
                "Warning",
                _REASONS.get(outcome.action, reasons.WORKER_LOST),
                f"worker {one.worker.name} died ({one.why}) with job {outcome.job}: "
                f"{outcome.action}",
            )
            log.warning(
                "job of a dead worker", pool=pool, worker=one.worker.name, job=outcome.job,
                action=outcome.action, why=one.why,
            )  # fmt: skip
    if any(queue.intermediate for queue in facts.queues):
        strays = await recovery.return_strays(redis, plan.queues, facts.at)
        for queue, jobs in strays.items():
            recorder.record(
                reference,
                "Warning",
                reasons.JOB_REQUEUED,
                f"{len(jobs)} jobs of queue {queue} were taken by a worker that died before it "
                "started them: put back",
            )
    return len(dead)


async def _alive(client: Client, namespace: str, worker: WorkerFacts) -> bool:
    """Whether the pod is there after all; an API server that does not answer counts as yes."""
    try:
        pod = pod_view(await client.get(PODS, namespace, worker.pod))
    except NotFound:
        return False
    except DependencyError:
        return True
    return pod.uid == worker.pod_uid and pod.phase in ("Pending", "Running")
