"""Who leaves when the pool shrinks, and what each leaver needs next: pure, one step at a time.

A worker is asked to drain (reversible), says drained, is told to retire (irrevocable), says
retired; then its pod is marked as the cheapest to delete, and only then the Deployment shrinks, by
exactly the number of marked pods. Every step is read back before the next, so the operator may
die between any two. A pod that is deleted against this order still finishes its job: the runtime
takes SIGTERM as "finish and go".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from engineroom.api import ANNOTATION_DRAIN_PODS
from engineroom.workers.projections import RETIRED_COST

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engineroom.queue.observe import WorkerFacts
    from engineroom.workers.projections import PodView


@dataclass(frozen=True, slots=True)
class Leave:
    """The next step of every leaver. Names are workers' names, except ``mark``."""

    #: (worker, drain id): ask, or ask again before the request runs out.
    drain: tuple[tuple[str, str], ...] = ()
    cancel: tuple[str, ...] = ()
    retire: tuple[tuple[str, str], ...] = ()
    #: Pods to mark as the cheapest to delete.
    mark: tuple[PodView, ...] = ()
    #: The Deployment may shrink by so many: that many marked pods wait to be deleted.
    shrink_by: int = 0
    #: Pods on their way out.
    leaving: int = 0


def named_to_leave(annotations: Mapping[str, str] | None) -> frozenset[str]:
    """The pods that a pool's own annotations ask to leave."""
    said = (annotations or {}).get(ANNOTATION_DRAIN_PODS)
    if not said:
        return frozenset()
    return frozenset(filter(None, (each.strip() for each in said.split(","))))


def with_named(pods: Sequence[PodView], named: frozenset[str]) -> Sequence[PodView]:
    """The pods, with those named by the pool as if they had been asked themselves."""
    if not named:
        return pods
    return [replace(pod, drain_asked=True) if pod.name in named else pod for pod in pods]


def retired_pods(
    pods: Sequence[PodView], workers: Mapping[str, Sequence[WorkerFacts]]
) -> list[PodView]:
    """Pods that will never take a job again: marked, or with all of their workers retired."""
    return [p for p in pods if p.present and (_marked(p) or _retired(workers.get(p.name, ())))]


def unaccounted(retired: Sequence[PodView], pods: Sequence[PodView], replicas: int) -> int:
    """Of the retired pods, those that the Deployment's size still counts.

    After a size was lowered by them they are seen a little longer: the ReplicaSet has been told.
    """
    under_way = max(0, sum(pod.present for pod in pods) - replicas)
    return max(0, len(retired) - under_way)


def plan_leave(
    pods: Sequence[PodView],
    workers: Mapping[str, Sequence[WorkerFacts]],
    *,
    replicas: int,
    target: int,
    rolling: bool = False,
) -> Leave:
    """Next steps so that the pool gets from ``replicas`` pods to ``target``.

    ``workers`` are the registered workers by pod name. With ``target`` at or above ``replicas``
    whoever drains is called back; only the retired still go. While the Deployment is ``rolling``
    from one template to the next there are two ReplicaSets, and which of them a smaller size
    takes pods from is Kubernetes' choice: nobody is sent away then, unless everybody goes.
    """
    present = [pod for pod in pods if pod.present]
    # Marked pods that the ReplicaSet is already told to delete, and has not yet.
    under_way = max(0, len(present) - replicas)
    retired = retired_pods(present, workers)
    excess = max(replicas - target, unaccounted(retired, pods, replicas), 0)
    asked = [pod for pod in present if pod.drain_asked]
    ranked = sorted(present, key=lambda pod: _rank(pod, workers.get(pod.name, ())))
    if rolling and target:
        # Of more pods than replicas the surplus is new ones coming up, and nobody's to leave.
        excess = under_way = 0
    victims = {pod.name: pod for pod in [*ranked[: excess + under_way], *asked]}

    drain: list[tuple[str, str]] = []
    retire: list[tuple[str, str]] = []
    mark: list[PodView] = []
    marked = 0
    for pod in victims.values():
        crew = workers.get(pod.name, ())
        if _marked(pod):
            marked += 1
            continue
        if _retired(crew) or not crew:
            # Without a registered worker there is nobody to ask; should one start in this very
            # moment, it takes SIGTERM as "finish and go".
            mark.append(pod)
            continue
        for worker in crew:
            if worker.drain == "retired":
                continue
            if worker.drain == "drained" and not worker.busy and not (rolling and target):
                retire.append((worker.name, pod.uid))
            else:
                drain.append((worker.name, pod.uid))
    # Deleted already, by us or others. Should the signal not reach a worker, as through a shell of
    # the user's that passes none on, it takes no more jobs all the same.
    drain += [
        (worker.name, pod.uid)
        for pod in pods
        if pod.deleting
        for worker in workers.get(pod.name, ())
        if worker.drain != "retired"
    ]
    cancel = [
        worker.name
        for pod in present
        if pod.name not in victims
        for worker in workers.get(pod.name, ())
        if worker.drain in ("draining", "drained")
    ]
    return Leave(
        drain=tuple(drain),
        cancel=tuple(cancel),
        retire=tuple(retire),
        mark=tuple(mark),
        shrink_by=0
        if rolling and target
        else max(0, min(marked, _first_to_go(present)) - under_way),
        leaving=len(victims) + sum(1 for pod in pods if pod.deleting),
    )


#: A job that runs for so long makes its pod one not to be moved (seconds): a pod of short jobs
#: would be written to all the time, and moving it costs no more than such a job's length.
LONG_JOB = 10.0


def to_protect(
    pods: Sequence[PodView], workers: Mapping[str, Sequence[WorkerFacts]], at: float
) -> list[tuple[PodView, bool]]:
    """Pods whose protection against being moved is not as their work asks, with what it asks."""
    changes = []
    for pod in pods:
        crew = workers.get(pod.name, ())
        long = any(w.busy and at - (w.job_started or at) >= LONG_JOB for w in crew)
        idle = not any(w.busy for w in crew)
        if pod.present and (long if not pod.protected else idle):
            changes.append((pod, long))
    return changes


def busy_pods(pods: Sequence[PodView], workers: Mapping[str, Sequence[WorkerFacts]]) -> int:
    """Pods that hold a job and are not on their way out."""
    return sum(
        1
        for pod in pods
        if pod.present and any(w.busy and not w.drain for w in workers.get(pod.name, ()))
    )


def _first_to_go(present: Sequence[PodView]) -> int:
    """How many marked pods a ReplicaSet would delete before the first that is not marked.

    It takes pods without a node first, then those that do not run, then those that are not ready,
    and only among equals the cheapest (ActivePodsWithRanks in kubernetes/pkg/controller). A pod
    that has just come up as a replacement would go before the one it replaces.
    """
    order = sorted(
        present,
        key=lambda pod: (pod.scheduled, pod.phase == "Running", pod.ready, pod.deletion_cost),
    )
    return next((at for at, pod in enumerate(order) if not _marked(pod)), len(order))


def _marked(pod: PodView) -> bool:
    return pod.deletion_cost <= RETIRED_COST


def _retired(crew: Sequence[WorkerFacts]) -> bool:
    return bool(crew) and all(worker.drain == "retired" for worker in crew)


def _rank(pod: PodView, crew: Sequence[WorkerFacts]) -> tuple[int, float, str]:
    """Sooner leaves first: the ones already leaving, the idle, the unready, the youngest job."""
    if _marked(pod):
        stage = 0
    elif _retired(crew):
        stage = 1
    elif crew and all(worker.drain in ("drained", "retired") for worker in crew):
        stage = 2
    elif not crew and not pod.ready:
        stage = 3
    elif any(worker.drain for worker in crew):
        stage = 4
    elif not any(worker.busy for worker in crew):
        stage = 5 if crew else 6
    else:
        stage = 7
    youngest = max((w.job_started or 0.0 for w in crew if w.busy), default=0.0)
    return stage, -youngest, pod.name
