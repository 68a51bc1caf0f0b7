"""A pool's status from what was seen and decided: pure; times change only on transitions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engineroom.api.v1alpha1.workerpool import Pause, RightSizingMode
from engineroom.core import reasons
from engineroom.core.conditions import find, remove_condition, set_condition
from engineroom.workers.job_schedules import declarations
from engineroom.workers.objects import selector

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from engineroom.core.errors import InvalidSpecError
    from engineroom.queue.observe import PoolFacts
    from engineroom.workers.decide import Decision
    from engineroom.workers.job_schedules.declarations import ScheduleFacts
    from engineroom.workers.plan import Plan
    from engineroom.workers.projections import DeploymentView, PodView
    from engineroom.workers.rightsizing.monitor import Sized

Status = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Seen:
    """All that a status is made from."""

    generation: int
    now: datetime
    deployment: DeploymentView | None
    pods: Sequence[PodView]
    facts: PoolFacts | None
    decision: Decision
    leaving: int = 0
    busy_workers: int = 0
    jobs_per_minute: int = 0
    scaled: bool = False
    #: The schedules, None when they could not be looked at, and who has which of their names.
    schedules: Sequence[ScheduleFacts] | None = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    #: (reason, message) of each thing that is wrong; see the functions below.
    redis_trouble: tuple[str, str] | None = None
    apply_trouble: tuple[str, str] | None = None
    #: What the workers' use suggests; None when nothing new is known of it.
    sized: Sized | None = None


def invalid_status(
    old: Mapping[str, Any], error: InvalidSpecError, generation: int, now: datetime
) -> Status:
    """Status of a pool whose spec got past admission and is wrong; everything else is kept."""
    message = "; ".join(str(problem) for problem in error.problems)[:1024]
    conditions = list(old.get("conditions") or ())
    for kind, value in (("Stalled", "True"), ("Ready", "False"), ("Reconciling", "False")):
        conditions = set_condition(
            conditions, kind, value, reasons.INVALID_SPEC, message, generation, now
        )
    return {**_plain(old), "observedGeneration": generation, "conditions": conditions}


def pool_status(name: str, plan: Plan, old: Mapping[str, Any], seen: Seen) -> Status:
    """The status to publish; equal to ``old`` at the fixed point."""
    deployment, decision = seen.deployment, seen.decision
    status: Status = {
        "observedGeneration": seen.generation,
        "selector": selector(name),
        "replicas": deployment.status_replicas if deployment else 0,
        "readyReplicas": deployment.ready if deployment else 0,
        "desiredReplicas": seen.decision.replicas,
        "busyWorkers": seen.busy_workers,
        "drainingReplicas": seen.leaving,
        "queues": _queues(old, seen.facts),
        "waitingJobs": _waiting(old, seen.facts),
        "jobsPerMinute": seen.jobs_per_minute,
        "decision": decision.sentence,
        "conditions": _conditions(plan, old, seen),
    }
    scaled = _time(seen.now) if seen.scaled else old.get("lastScaleTime")
    if scaled:
        status["lastScaleTime"] = scaled
    if plan.jobs:
        status["schedules"] = declarations.rows(old, plan, seen.schedules)
    status |= _sizes(plan, old, seen)
    return status


def _sizes(plan: Plan, old: Mapping[str, Any], seen: Seen) -> Status:
    """What use suggests; while nothing is known, what was said before."""
    if plan.right_sizing.mode is RightSizingMode.OFF:
        return {}
    recommended, last_kill = old.get("recommendedResources"), old.get("lastOutOfMemoryTime")
    if seen.sized is not None:
        recommended = seen.sized.recommended or recommended
        last_kill = seen.sized.last_kill or last_kill
    said = {"recommendedResources": recommended, "lastOutOfMemoryTime": last_kill}
    return {key: value for key, value in said.items() if value}


def _plain(old: Mapping[str, Any]) -> Status:
    return {key: value for key, value in old.items() if key != "conditions"}


def _queues(old: Mapping[str, Any], facts: PoolFacts | None) -> list[Status]:
    """The queues as seen; while blind what was seen last stays, with Redis' condition beside."""
    if facts is None:
        return list(old.get("queues") or ())
    rows = []
    for queue in facts.queues:
        row: Status = {
            "name": queue.name,
            "depth": queue.waiting + queue.intermediate,
            "running": queue.running,
            "scheduled": queue.scheduled,
            "failed": queue.failed,
        }
        if queue.oldest_enqueued is not None and queue.backlog:
            row["oldestJobAge"] = f"{max(0, int(facts.at - queue.oldest_enqueued))}s"
        rows.append(row)
    return rows


def _waiting(old: Mapping[str, Any], facts: PoolFacts | None) -> int:
    return int(old.get("waitingJobs") or 0) if facts is None else facts.backlog


def _conditions(plan: Plan, old: Mapping[str, Any], seen: Seen) -> list[Status]:
    conditions = list(old.get("conditions") or ())
    schedules: dict[str, Verdict] = {}
    if plan.jobs:
        schedules["SchedulesActive"] = declarations.verdict(plan, seen.schedules, seen.refused)
    else:
        conditions = remove_condition(conditions, "SchedulesActive")
    for kind, (value, reason, message) in {
        **schedules,
        "RedisReachable": _redis(seen),
        "ScalingActive": _active(plan, seen),
        "ScalingLimited": _limited(seen),
        "Draining": _draining(seen),
        "Stalled": _stalled(seen),
        "Reconciling": _reconciling(seen),
        "Ready": _ready(seen),
    }.items():
        conditions = set_condition(
            conditions, kind, value, reason, message, seen.generation, seen.now
        )
    if plan.right_sizing.mode is RightSizingMode.OFF:
        return remove_condition(conditions, RIGHT_SIZED)
    known = find(conditions, RIGHT_SIZED)
    if seen.sized is not None:
        verdict = seen.sized.verdict
    elif known is not None:
        verdict = known["status"], known["reason"], known["message"]
    else:
        # A pool that never had a pod has nothing to be sized.
        return conditions
    return set_condition(conditions, RIGHT_SIZED, *verdict, seen.generation, seen.now)


#: Whether requests and limits are what the workers' use suggests.
RIGHT_SIZED = "RightSized"

Verdict = tuple[str, str, str]


def _redis(seen: Seen) -> Verdict:
    if seen.redis_trouble is not None:
        return "False", *seen.redis_trouble
    return "True", reasons.RECONCILED, "Redis answers"


def _active(plan: Plan, seen: Seen) -> Verdict:
    if plan.suspend:
        return "False", reasons.SUSPENDED, "spec.suspend is true: workers stay but take no job"
    if not plan.autoscaled:
        return "False", reasons.MANUAL_SIZE, "sized by hand; set spec.autoscaling to follow work"
    if plan.pause is not Pause.NONE:
        return "False", reasons.PAUSED, f"spec.autoscaling.pause is {plan.pause.value}"
    if seen.facts is None:
        return "False", reasons.METRIC_OUTAGE, "Redis cannot be measured; see RedisReachable"
    return "True", reasons.RECONCILED, "size follows the work"


def _limited(seen: Seen) -> Verdict:
    if seen.decision.limited:
        return "True", seen.decision.limited, seen.decision.sentence
    return "False", reasons.WITHIN_RANGE, "the size that the work asks for is within the limits"


def _draining(seen: Seen) -> Verdict:
    if seen.leaving:
        pods = "1 pod is" if seen.leaving == 1 else f"{seen.leaving} pods are"
        return "True", reasons.DRAINING, f"{pods} finishing work before leaving"
    return "False", reasons.NOT_DRAINING, "no pod is leaving"


def _stalled(seen: Seen) -> Verdict:
    if seen.apply_trouble is not None:
        return "True", *seen.apply_trouble
    return "False", reasons.RECONCILED, "nothing keeps the spec from being applied"


def _reconciling(seen: Seen) -> Verdict:
    deployment = seen.deployment
    if seen.apply_trouble is not None:
        return "False", *seen.apply_trouble
    if deployment is None and seen.decision.replicas:
        return "True", reasons.SCALING, "the Deployment is being made"
    if deployment is None or not (
        deployment.replicas or deployment.status_replicas or seen.leaving
    ):
        return "False", reasons.RECONCILED, "the pool is as its spec says"
    if deployment.observed_generation < deployment.generation:
        return "True", reasons.SCALING, "the Deployment is being rolled out"
    wanted = deployment.replicas
    if deployment.ready < wanted or deployment.updated < wanted or seen.leaving:
        return "True", reasons.SCALING, f"{deployment.ready} of {wanted} pods are ready"
    return "False", reasons.RECONCILED, "the pool is as its spec says"


def _ready(seen: Seen) -> Verdict:
    """Whether the pool can do its work now; pods that are just starting do not make it unready."""
    for trouble in (seen.apply_trouble, seen.redis_trouble, pod_trouble(seen)):
        if trouble is not None:
            return "False", *trouble
    if seen.refused:
        name, holder = min(seen.refused.items())
        return "False", reasons.SCHEDULE_NAME_TAKEN, declarations.taken(name, holder)
    if seen.deployment is None and seen.decision.replicas:
        return "False", reasons.SCALING, "the Deployment is being made"
    return "True", reasons.RECONCILED, "the pool works"


def pod_trouble(seen: Seen) -> tuple[str, str] | None:
    """What keeps pods from running, in words that say what to do."""
    deployment = seen.deployment
    if deployment is not None and deployment.replica_failure is not None:
        reason, message = deployment.replica_failure
        quota = "exceeded quota" in message
        return (
            reasons.QUOTA_EXCEEDED if quota else reasons.PODS_NOT_READY,
            f"pods cannot be created ({reason}): {message}"[:1024],
        )
    for pod in seen.pods:
        if pod.trouble is None or pod.deleting or pod.ready:
            continue
        reason, said = pod.trouble
        return _pod_reason(reason, said), f"pod {pod.name}: {reason}: {said}"[:1024]
    return None


def _pod_reason(reason: str, said: str) -> str:
    if reason in ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"):
        return reasons.IMAGE_PULL_FAILED
    if "RQ is not installed" in said:
        return reasons.NO_RQ_IN_IMAGE
    if reason == "CreateContainerConfigError" and "secret" in said.lower():
        return reasons.SECRET_NOT_FOUND
    return reasons.PODS_NOT_READY


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
