"""Recovery of jobs of dead workers, and removal of stale workers and surplus failed jobs.

A worker is dead if its pod and its heartbeat both say so. An outage of Redis makes every heartbeat
old, and a slow API server hides pods, so neither alone is enough; and before a job is taken from a
worker its pod is read live.
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
from engineroom.queue import deadletters, recovery, stale_workers
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

#: Workers report every 5 s; after three missed reports one without a pod is dead (seconds).
SILENT = 15.0
#: Silence after which a pod that exists and is not ready has lost its node (seconds).
SILENT_UNREADY = 60.0
#: Silence after which a worker in a ready pod hangs (seconds).
SILENT_READY = 60.0
#: A worker ends its job a minute after the job's time-out; so much later it has failed to.
OVERDUE = 120.0
#: Seconds between removals of stale workers.
STALE_WORKERS_INTERVAL = 300.0

POD_GONE = "its pod is gone"

_REASONS = {
    "requeued": reasons.JOB_REQUEUED,
    "failed": reasons.JOB_FAILED,
    "poisoned": reasons.JOB_POISONED,
}


@dataclass(frozen=True, slots=True)
class WorkerDeath:
    """A worker that will not come back, and the evidence."""

    worker: WorkerFacts
    evidence: str


def find_dead(facts: PoolFacts, pods: Sequence[PodView]) -> list[WorkerDeath]:
    """Return the workers that are dead by their heartbeat and their pod."""
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
            dead.append(WorkerDeath(worker, POD_GONE))
        elif pod.phase in ("Succeeded", "Failed"):
            dead.append(WorkerDeath(worker, f"its pod is {pod.phase}"))
        elif (worker.birth or 0.0) < youngest[(worker.pod, worker.slot)]:
            dead.append(WorkerDeath(worker, "its container was started anew"))
        elif not pod.ready and silence >= SILENT_UNREADY:
            dead.append(WorkerDeath(worker, "its pod is not ready"))
    return dead


@dataclass(frozen=True, slots=True)
class StuckWorker:
    """A worker whose pod is ready and that makes no progress, and the evidence."""

    worker: WorkerFacts
    evidence: str


def find_stuck(facts: PoolFacts, pods: Sequence[PodView]) -> list[StuckWorker]:
    """Return the workers that are alive, by their pod, and make no progress.

    The runtime ends a hanging worker after five minutes. One that hangs longer waits in the kernel
    (for a disk that does not answer, say) and needs a person.
    """
    ready = {pod.name: pod for pod in pods if pod.ready and not pod.deleting}
    dead = {found.worker.name for found in find_dead(facts, pods)}
    stuck = []
    for worker in facts.workers:
        pod = ready.get(worker.pod)
        if worker.heartbeat is None or worker.name in dead or pod is None:
            continue
        if worker.pod_uid and worker.pod_uid != pod.uid:
            continue
        if facts.at - worker.heartbeat >= SILENT_READY:
            stuck.append(
                StuckWorker(worker, "has sent no heartbeat for a minute and its pod is ready")
            )
        elif worker.job_started is not None and worker.job_timeout is not None:
            over = facts.at - worker.job_started - worker.job_timeout
            if over > OVERDUE:
                stuck.append(StuckWorker(worker, f"runs job {worker.job} beyond its time-out"))
    return stuck


def report_stuck(
    recorder: Recorder, reference: ObjectRef, facts: PoolFacts, pods: Sequence[PodView]
) -> None:
    """Record an event for each stuck worker; repeats form a series."""
    for stuck in find_stuck(facts, pods):
        message = f"worker {stuck.worker.name} {stuck.evidence}"
        recorder.record(reference, "Warning", reasons.WORKER_STUCK, message)


async def remove_stale_workers(
    redis: Redis, recorder: Recorder, reference: ObjectRef, plan: Plan, facts: PoolFacts
) -> int:
    """Remove workers that no longer exist from RQ's lists of the queues; returns how many."""
    removed = await stale_workers.clear(redis, plan.queues, datetime.fromtimestamp(facts.at, UTC))
    if removed:
        names = ", ".join(removed[:5]) + (", ..." if len(removed) > 5 else "")
        recorder.record(
            reference,
            "Normal",
            reasons.GHOST_WORKERS_CLEARED,
            f"{len(removed)} workers of the pool's queues no longer exist: {names}",
        )
    return len(removed)


async def trim_failed_jobs(
    redis: Redis, recorder: Recorder, reference: ObjectRef, plan: Plan, facts: PoolFacts
) -> bool:
    """Drop failed jobs beyond ``spec.deadLetter.maxJobs``, one step of each queue.

    Returns whether jobs remain to be dropped.
    """
    if plan.dead_letter_jobs is None:
        return False
    more = False
    for queue in facts.queues:
        if queue.failed <= plan.dead_letter_jobs:
            continue
        dropped = await deadletters.trim(redis, queue.name, plan.dead_letter_jobs)
        more = more or dropped == deadletters.STEP
        if dropped:
            recorder.record(
                reference,
                "Normal",
                reasons.DEAD_LETTERS_DROPPED,
                f"the oldest failed jobs of queue {queue.name} were dropped: it keeps "
                f"{plan.dead_letter_jobs} by spec.deadLetter.maxJobs",
            )
    return more


async def recover_dead(
    redis: Redis,
    client: Client,
    recorder: Recorder,
    reference: ObjectRef,
    plan: Plan,
    facts: PoolFacts,
    pods: Sequence[PodView],
) -> int:
    """Requeue or fail the jobs of dead workers and remove the workers; returns their number.

    Each is recovered in one atomic step of Redis, so another operator doing the same, or RQ's own
    maintenance, cannot duplicate a job.
    """
    dead = find_dead(facts, pods)
    pool = reference.key
    for found in dead:
        worker = found.worker
        if found.evidence == POD_GONE and await _alive(client, reference.namespace, worker):
            continue
        outcome = await recovery.recover(
            redis,
            recovery.DeadWorker(
                name=worker.name,
                pool=pool,
                heartbeat=worker.heartbeat,
                queues=plan.queues,
                why=found.evidence,
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
                f"worker {worker.name} died ({found.evidence}) with job {outcome.job}: "
                f"{outcome.action}",
            )
            log.warning(
                "job of a dead worker", pool=pool, worker=worker.name, job=outcome.job,
                action=outcome.action, why=found.evidence,
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
    """Return whether the pod exists after all; True while the API server does not answer."""
    try:
        pod = pod_view(await client.get(PODS, namespace, worker.pod))
    except NotFound:
        return False
    except DependencyError:
        return True
    return pod.uid == worker.pod_uid and pod.phase in ("Pending", "Running")
