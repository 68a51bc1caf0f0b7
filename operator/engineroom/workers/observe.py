"""Observation of a pool: the state of Redis, the Deployment and the pods in one value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engineroom.core import reasons
from engineroom.workers.decide import SizeInputs
from engineroom.workers.drain.plan import busy_pods, retired_pods, unaccounted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engineroom.core.conditions import Trouble
    from engineroom.queue.observe import PoolFacts, WorkerFacts
    from engineroom.workers.projections import DeploymentView, PodView

#: Reasons for which a pool has no pods: it may not use its Redis, or one of its queues.
REFUSALS = (reasons.REDIS_NOT_SHARED, reasons.QUEUE_OWNED_ELSEWHERE)

EndedJobs = tuple[tuple[float, int], ...]


@dataclass(frozen=True, slots=True)
class PoolObservation:
    """One observation; ``facts`` is None while Redis cannot be measured, for ``redis_trouble``."""

    #: Unix seconds.
    at: float
    facts: PoolFacts | None
    #: (reason, message).
    redis_trouble: Trouble | None
    deployment: DeploymentView | None
    pods: Sequence[PodView]
    #: Registered workers by pod name.
    workers: Mapping[str, Sequence[WorkerFacts]]
    #: Pods that the Deployment's size counts and that take no job any more.
    retired: int

    @property
    def refused(self) -> bool:
        """Whether the pool may not use its Redis, or one of its queues."""
        return self.redis_trouble is not None and self.redis_trouble[0] in REFUSALS

    @property
    def busy(self) -> bool:
        """Whether a job waits, runs, or is held by a worker."""
        facts = self.facts
        return facts is not None and (
            facts.backlog > 0 or facts.running > 0 or any(worker.busy for worker in facts.workers)
        )

    @property
    def busy_workers(self) -> int:
        """Workers that hold a job."""
        return sum(worker.busy for worker in self.facts.workers) if self.facts else 0

    @property
    def size_inputs(self) -> SizeInputs:
        """The inputs of the decision on the size."""
        deployment = self.deployment
        return SizeInputs(
            at=self.at,
            facts=self.facts,
            current=None if deployment is None else max(0, deployment.replicas - self.retired),
            busy_pods=busy_pods(self.pods, self.workers),
            outage=self.redis_trouble[1] if self.redis_trouble else "",
            refused=self.refused,
        )


def combine(
    now: float,
    facts: PoolFacts | None,
    redis_trouble: Trouble | None,
    deployment: DeploymentView | None,
    pods: Sequence[PodView],
) -> PoolObservation:
    """Combine what was read; ``now`` (Unix seconds) counts where Redis gave no time of its own."""
    workers = workers_by_pod(facts)
    retired = 0
    if deployment is not None:
        retired = unaccounted(retired_pods(pods, workers), pods, deployment.replicas)
    at = now if facts is None else facts.at
    return PoolObservation(at, facts, redis_trouble, deployment, pods, workers, retired)


def workers_by_pod(facts: PoolFacts | None) -> dict[str, list[WorkerFacts]]:
    """Return the registered workers by pod name.

    One with an old heartbeat counts: right after an outage of Redis every heartbeat is old. Dead
    workers are removed by recovery, which looks at the pods too.
    """
    workers: dict[str, list[WorkerFacts]] = {}
    if facts is not None:
        for worker in facts.workers:
            if worker.state != "expired":
                workers.setdefault(worker.pod, []).append(worker)
    return workers


def ended_last_minute(facts: PoolFacts | None, past: EndedJobs) -> tuple[int, EndedJobs]:
    """Return the jobs that ended in the last minute, and the samples to remember.

    ``past`` are the (Unix seconds, total) samples of the observation before.
    """
    if facts is None:
        return 0, past
    total = sum(queue.finished_total + queue.failed_total for queue in facts.queues)
    samples = [(at, count) for at, count in past if facts.at - 60.0 <= at <= facts.at]
    if not samples or facts.at - samples[-1][0] >= 5.0:
        samples.append((facts.at, total))
    ended = max(0, total - samples[0][1])
    # A minute in which no job ended and none can end needs no memory.
    return ended, tuple(samples) if ended or facts.running or facts.backlog else ()
