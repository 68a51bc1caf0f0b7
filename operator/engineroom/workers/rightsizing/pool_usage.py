"""The resource monitor's memory of one pool that has had pods; safe to lose."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from engineroom.workers.resources import ResourceAmounts
from engineroom.workers.rightsizing.recommendation import HEADROOM, Recommender
from engineroom.workers.rightsizing.usage import UsageSample

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engineroom.queue.observe import PoolFacts
    from engineroom.workers.projections import PodView
    from engineroom.workers.rightsizing.recommendation import SizingPlan

#: Kills within so long count once: two workers of a pod report the same kill (seconds).
SAME_KILL: Final = 5.0


@dataclass(frozen=True, slots=True)
class ContainerUsage:
    """Cores and bytes of one container, from the metrics API, with its timestamp."""

    timestamp: str
    cpu: float
    memory: float


@dataclass(frozen=True, slots=True)
class OutOfMemoryKill:
    """A process killed for memory: Unix seconds, its container or pod, its limit in bytes."""

    at: float
    subject: str
    limit: float | None


@dataclass(slots=True)
class PodUsage:
    """One pod since the last round of the monitor."""

    #: Timestamp of the metrics that were counted last.
    timestamp: str = ""
    #: Bytes in use at the last round or observation, and the most since the last round.
    memory: float | None = None
    peak: float = 0.0
    busy: bool = False
    #: Cores that the workers reported while they held a job: sum, and number of the looks.
    cpu: float = 0.0
    looks: int = 0


@dataclass(frozen=True, slots=True)
class ResizeRequest:
    """A resize that is not requested again before ``until`` (monotonic seconds)."""

    target: ResourceAmounts
    until: float
    #: Why the API server refused it; "" if it did not.
    refused: str = ""


@dataclass(slots=True)
class PoolUsage:
    """The use of one pool's workers, and what was recommended and requested because of it."""

    recommender: Recommender
    recommended: ResourceAmounts = field(default_factory=ResourceAmounts)
    pods: dict[str, PodUsage] = field(default_factory=dict)
    requests: dict[str, ResizeRequest] = field(default_factory=dict)
    #: When a process was last killed for memory (Unix seconds).
    last_kill: float = 0.0
    #: Version of the profile and plan that the recommendation was computed from.
    computed_from: tuple[int, SizingPlan | None] = (-1, None)
    #: When the last round counted this pool (monotonic seconds).
    counted: float | None = None

    @classmethod
    def begin(cls, plan: SizingPlan, status: Mapping[str, Any], at: float) -> PoolUsage:
        """Start from the published status; ``at`` is Unix seconds."""
        published = ResourceAmounts.of(status.get("recommendedResources"))
        usage = cls(Recommender.begin(plan, published, at))
        last = status.get("lastOutOfMemoryTime")
        if last:
            usage.last_kill = datetime.fromisoformat(last).timestamp()
        return usage

    def recommend(self, plan: SizingPlan, at: float, patience: float) -> None:
        """Compute the recommendation anew if the profile or the plan changed."""
        computed_from = (self.recommender.profile.version, plan)
        if computed_from != self.computed_from:
            self.recommended = self.recommender.step(plan, at, patience)
            self.computed_from = computed_from

    def count_reports(self, facts: PoolFacts) -> None:
        """Count the usage that the workers report; called at each reconcile."""
        memory: dict[str, float] = {}
        cpu: dict[str, float] = {}
        for worker in facts.workers:
            if worker.state == "expired" or not worker.pod_uid:
                continue
            memory[worker.pod_uid] = memory.get(worker.pod_uid, 0.0) + worker.memory
            pod = self.pods.setdefault(worker.pod_uid, PodUsage())
            pod.busy = pod.busy or worker.busy
            if worker.busy and worker.cpu is not None:
                cpu[worker.pod_uid] = cpu.get(worker.pod_uid, 0.0) + worker.cpu
        for uid, cores in cpu.items():
            self.pods[uid].cpu += cores
            self.pods[uid].looks += 1
        for uid, total in memory.items():
            pod = self.pods[uid]
            # Memory shared by a work horse and its worker counts twice here: good enough for a
            # peak, which must not be too low, and otherwise used only without metrics.
            pod.peak = max(pod.peak, total)
            if not pod.timestamp:
                pod.memory = total or None

    def count_metrics(
        self,
        pods: Sequence[PodView],
        metrics: Mapping[str, Mapping[str, ContainerUsage]],
        *,
        without_metrics: bool,
    ) -> list[UsageSample]:
        """Return one sample for each running pod, and start the next round.

        ``metrics`` are by pod and container name. ``without_metrics``: there is no metrics API, so
        the workers' own reports count instead.
        """
        samples = []
        for pod in pods:
            if pod.worker is None or pod.phase != "Running":
                continue
            usage = self.pods.setdefault(pod.uid, PodUsage())
            measured = metrics.get(pod.name, {}).get(pod.worker.name)
            cpu = None
            if measured is not None:
                if measured.timestamp == usage.timestamp:
                    continue  # the same measurement again
                usage.timestamp, usage.memory = measured.timestamp, measured.memory
                # The CPU use of an idle worker does not tell what a job needs.
                cpu = measured.cpu if usage.busy else None
            elif without_metrics:
                usage.timestamp = ""
                cpu = usage.cpu / usage.looks if usage.looks else None
            complete = measured is not None or without_metrics
            samples.append(UsageSample(cpu, usage.memory if complete else None, usage.peak or None))
            usage.peak, usage.busy, usage.cpu, usage.looks = 0.0, False, 0.0, 0
        present = {pod.uid for pod in pods}
        for uid in self.pods.keys() - present:
            del self.pods[uid]
        return samples

    def new_kills(self, pods: Sequence[PodView], facts: PoolFacts | None) -> list[OutOfMemoryKill]:
        """Return the kills since the last reconcile; each counts as a peak beyond its limit."""
        kills = [
            kill
            for kill in sorted(kills_of(pods, facts), key=lambda kill: kill.at)
            if self._is_new(kill)
        ]
        for kill in kills:
            if kill.limit is not None:
                self.recommender.profile.killed(kill.limit, kill.at, HEADROOM)
        return kills

    def _is_new(self, kill: OutOfMemoryKill) -> bool:
        if kill.at <= self.last_kill + (SAME_KILL if self.last_kill else 0.0):
            return False
        self.last_kill = kill.at
        return True


def kills_of(pods: Sequence[PodView], facts: PoolFacts | None) -> list[OutOfMemoryKill]:
    """Return the kills for memory that containers and workers report."""
    kills = []
    by_uid = {pod.uid: pod for pod in pods}
    for pod in pods:
        container = pod.worker
        if container is not None and container.oom_killed is not None:
            limit = container.actual.memory_limit or container.desired.memory_limit
            subject = f"container {container.name} of pod {pod.name}"
            kills.append(OutOfMemoryKill(container.oom_killed, subject, limit))
    for worker in facts.workers if facts is not None else ():
        owner = by_uid.get(worker.pod_uid)
        if worker.killed_at is not None and owner is not None:
            subject = f"a process in pod {owner.name}"
            limit = float(worker.killed_limit) or None
            kills.append(OutOfMemoryKill(worker.killed_at, subject, limit))
    return kills
