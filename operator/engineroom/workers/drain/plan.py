"""Which pods leave when a pool shrinks, and the next step for each: pure, one step at a time.

A worker is asked to drain (reversible) and reports drained; it is told to retire (irrevocable) and
reports retired. Then its pod is marked as the cheapest to delete, and only then does the Deployment
shrink, by exactly the number of marked pods. Every step is read back before the next, so the
operator may die between any two. A pod that is deleted against this order still finishes its job:
the runtime takes SIGTERM as "finish and exit".
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
class DrainPlan:
    """The next step of every pod that leaves. Names are workers' names, except ``mark``."""

    #: (worker, drain id): to be asked, or asked again before the request expires.
    drain: tuple[tuple[str, str], ...] = ()
    cancel: tuple[str, ...] = ()
    retire: tuple[tuple[str, str], ...] = ()
    #: Pods to mark as the cheapest to delete.
    mark: tuple[PodView, ...] = ()
    #: How much the Deployment may shrink: so many marked pods wait to be deleted.
    shrink_by: int = 0
    #: Pods that drain or are being deleted.
    leaving: int = 0

    @property
    def in_progress(self) -> bool:
        """Whether a step was taken whose effect is read soon."""
        return bool(self.drain or self.retire or self.mark or self.shrink_by)


def pods_to_drain(annotations: Mapping[str, str] | None) -> frozenset[str]:
    """Return the names of the pods that the pool's own annotation asks to drain."""
    names = (annotations or {}).get(ANNOTATION_DRAIN_PODS)
    if not names:
        return frozenset()
    return frozenset(filter(None, (name.strip() for name in names.split(","))))


def with_requested(pods: Sequence[PodView], requested: frozenset[str]) -> Sequence[PodView]:
    """Return the pods; those named in ``requested`` as if they carried the annotation."""
    if not requested:
        return pods
    return [replace(pod, drain_requested=True) if pod.name in requested else pod for pod in pods]


def retired_pods(
    pods: Sequence[PodView], workers: Mapping[str, Sequence[WorkerFacts]]
) -> list[PodView]:
    """Return the pods that never take a job again: marked, or with all of their workers retired."""
    return [
        pod
        for pod in pods
        if pod.present and (_is_marked(pod) or _retired(workers.get(pod.name, ())))
    ]


def unaccounted(retired: Sequence[PodView], pods: Sequence[PodView], replicas: int) -> int:
    """Return how many retired pods the Deployment's size still counts.

    After the size was lowered they exist a little longer, until the ReplicaSet deletes them.
    """
    under_way = max(0, sum(pod.present for pod in pods) - replicas)
    return max(0, len(retired) - under_way)


def plan_drain(
    pods: Sequence[PodView],
    workers: Mapping[str, Sequence[WorkerFacts]],
    *,
    replicas: int,
    target: int,
    rolling: bool = False,
) -> DrainPlan:
    """Return the next steps that take the pool from ``replicas`` pods to ``target``.

    ``workers`` are the registered workers by pod name. With ``target`` at or above ``replicas``
    draining workers are called back; only retired ones still leave. While the Deployment is
    ``rolling`` from one template to the next it has two ReplicaSets, and Kubernetes chooses from
    which of them a smaller size takes pods: then no pod leaves, unless all do.
    """
    present = [pod for pod in pods if pod.present]
    # Marked pods that the ReplicaSet is about to delete.
    under_way = max(0, len(present) - replicas)
    retired = retired_pods(present, workers)
    excess = max(replicas - target, unaccounted(retired, pods, replicas), 0)
    requested = [pod for pod in present if pod.drain_requested]
    ranked = sorted(present, key=lambda pod: _rank(pod, workers.get(pod.name, ())))
    if rolling and target:
        # The surplus of pods over replicas is new pods coming up, and none of them leaves.
        excess = under_way = 0
    victims = {pod.name: pod for pod in [*ranked[: excess + under_way], *requested]}

    drain: list[tuple[str, str]] = []
    retire: list[tuple[str, str]] = []
    mark: list[PodView] = []
    marked = 0
    for pod in victims.values():
        registered = workers.get(pod.name, ())
        if _is_marked(pod):
            marked += 1
            continue
        if _retired(registered) or not registered:
            # A pod without a registered worker cannot be asked; if one starts at this very moment,
            # it takes SIGTERM as "finish and exit".
            mark.append(pod)
            continue
        for worker in registered:
            if worker.drain == "retired":
                continue
            if worker.drain == "drained" and not worker.busy and not (rolling and target):
                retire.append((worker.name, pod.uid))
            else:
                drain.append((worker.name, pod.uid))
    # Deleted already, by us or others. If the signal does not reach a worker, because a shell of
    # the user's does not pass it on, the drain request still keeps it from taking jobs.
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
    return DrainPlan(
        drain=tuple(drain),
        cancel=tuple(cancel),
        retire=tuple(retire),
        mark=tuple(mark),
        shrink_by=0
        if rolling and target
        else max(0, min(marked, _first_to_go(present)) - under_way),
        leaving=len(victims) + sum(1 for pod in pods if pod.deleting),
    )


#: A job that runs for so long protects its pod from being moved (seconds): a pod of short jobs
#: would be written to all the time, and moving it costs no more than one of them.
LONG_JOB = 10.0


def pods_to_protect(
    pods: Sequence[PodView], workers: Mapping[str, Sequence[WorkerFacts]], at: float
) -> list[tuple[PodView, bool]]:
    """Return the pods whose protection from being moved has to change, with what it has to be."""
    changes = []
    for pod in pods:
        registered = workers.get(pod.name, ())
        long = any(w.busy and at - (w.job_started or at) >= LONG_JOB for w in registered)
        idle = not any(worker.busy for worker in registered)
        if pod.present and (long if not pod.protected else idle):
            changes.append((pod, long))
    return changes


def busy_pods(pods: Sequence[PodView], workers: Mapping[str, Sequence[WorkerFacts]]) -> int:
    """Return how many pods hold a job and are not leaving."""
    return sum(
        1
        for pod in pods
        if pod.present and any(w.busy and not w.drain for w in workers.get(pod.name, ()))
    )


def _first_to_go(present: Sequence[PodView]) -> int:
    """Return how many marked pods a ReplicaSet would delete before the first unmarked one.

    It deletes pods without a node first, then those that do not run, then those that are not
    ready, and only among equals the cheapest (ActivePodsWithRanks in kubernetes/pkg/controller). A
    replacement that has just come up would go before the pod that it replaces.
    """
    order = sorted(
        present,
        key=lambda pod: (pod.scheduled, pod.phase == "Running", pod.ready, pod.deletion_cost),
    )
    return next((place for place, pod in enumerate(order) if not _is_marked(pod)), len(order))


def _is_marked(pod: PodView) -> bool:
    return pod.deletion_cost <= RETIRED_COST


def _retired(workers: Sequence[WorkerFacts]) -> bool:
    return bool(workers) and all(worker.drain == "retired" for worker in workers)


def _rank(pod: PodView, workers: Sequence[WorkerFacts]) -> tuple[int, float, str]:
    """Return the order of leaving: pods already leaving, idle, not ready, with the youngest job."""
    if _is_marked(pod):
        stage = 0
    elif _retired(workers):
        stage = 1
    elif workers and all(worker.drain in ("drained", "retired") for worker in workers):
        stage = 2
    elif not workers and not pod.ready:
        stage = 3
    elif any(worker.drain for worker in workers):
        stage = 4
    elif not any(worker.busy for worker in workers):
        stage = 5 if workers else 6
    else:
        stage = 7
    youngest = max((w.job_started or 0.0 for w in workers if w.busy), default=0.0)
    return stage, -youngest, pod.name
