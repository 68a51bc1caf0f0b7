"""A pool's status from what was seen and decided: pure; times change only on transitions."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from engineroom.api.v1alpha1.workerpool import Pause, RightSizingMode
from engineroom.core import reasons
from engineroom.core.conditions import (
    MESSAGE_LENGTH,
    Rollout,
    Trouble,
    find,
    remove_condition,
    rolled_out,
    set_condition,
    summary_conditions,
    timestamp,
)
from engineroom.workers.job_schedules import declarations
from engineroom.workers.objects import selector

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from engineroom.queue.observe import PoolFacts
    from engineroom.workers.decide import SizeDecision
    from engineroom.workers.job_schedules.declarations import ScheduleFacts
    from engineroom.workers.plan import Plan
    from engineroom.workers.projections import DeploymentView, PodView
    from engineroom.workers.rightsizing.monitor import SizingStatus

Status = dict[str, Any]
ConditionValue = tuple[str, str, str]

#: Fields that change all the time while a pool works.
FIGURES = (
    "queues",
    "schedules",
    "waitingJobs",
    "jobsPerMinute",
    "busyWorkers",
    "decision",
    "readyReplicas",
    "replicas",
)
#: The condition that says whether requests and limits are what the workers' use suggests.
RIGHT_SIZED = "RightSized"
#: Troubles with Redis that no spec and no other object of the cluster can cause.
_OUTAGES = (reasons.REDIS_UNREACHABLE, reasons.REDIS_AUTH_FAILED)


@dataclass(frozen=True, slots=True)
class StatusInputs:
    """All that a status is made from."""

    generation: int
    now: datetime
    deployment: DeploymentView | None
    pods: Sequence[PodView]
    facts: PoolFacts | None
    decision: SizeDecision
    #: When this generation was first seen (Unix seconds), 0 if by an earlier process.
    spec_seen: float = 0.0
    #: Fingerprint of what the Deployment is made from; "" while unknown.
    inputs_hash: str = ""
    leaving: int = 0
    busy_workers: int = 0
    jobs_per_minute: int = 0
    scaled: bool = False
    #: The schedules, None while they cannot be read, and the owners of names that are taken.
    schedules: Sequence[ScheduleFacts] | None = ()
    refused_schedules: Mapping[str, str] = field(default_factory=dict)
    redis_trouble: Trouble | None = None
    #: A write that the API server refused.
    refusal: Trouble | None = None
    #: None if there is nothing new to report.
    sizing: SizingStatus | None = None


def pool_status(name: str, plan: Plan, old: Mapping[str, Any], seen: StatusInputs) -> Status:
    """Return the status to publish; equal to ``old`` at the fixed point."""
    deployment = seen.deployment
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
        "decision": seen.decision.sentence,
        "conditions": _conditions(plan, old, seen),
    }
    scaled = timestamp(seen.now) if seen.scaled else old.get("lastScaleTime")
    if scaled:
        status["lastScaleTime"] = scaled
    if plan.jobs:
        status["schedules"] = declarations.status_rows(old, plan.jobs, seen.schedules)
    return status | _recommendation(plan, old, seen)


def _recommendation(plan: Plan, old: Mapping[str, Any], seen: StatusInputs) -> Status:
    """Return the resource fields; unchanged if there is nothing new."""
    if plan.right_sizing.mode is RightSizingMode.OFF:
        return {}
    recommended, last_kill = old.get("recommendedResources"), old.get("lastOutOfMemoryTime")
    if seen.sizing is not None:
        recommended = seen.sizing.recommended or recommended
        last_kill = seen.sizing.last_kill or last_kill
    fields = {"recommendedResources": recommended, "lastOutOfMemoryTime": last_kill}
    return {name: value for name, value in fields.items() if value}


def _queues(old: Mapping[str, Any], facts: PoolFacts | None) -> list[Status]:
    """Return the queues; unchanged while Redis cannot be measured."""
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


def _conditions(plan: Plan, old: Mapping[str, Any], seen: StatusInputs) -> list[Status]:
    conditions = list(old.get("conditions") or ())
    values: dict[str, ConditionValue] = {}
    if plan.jobs:
        values["SchedulesActive"] = declarations.schedules_condition(
            plan.jobs, seen.schedules, seen.refused_schedules
        )
    else:
        conditions = remove_condition(conditions, "SchedulesActive")
    values |= {
        "RedisReachable": _redis(seen),
        "ScalingActive": _active(plan, seen),
        "ScalingLimited": _limited(seen),
        "Draining": _draining(seen),
    }
    for kind, value in values.items():
        conditions = set_condition(conditions, kind, *value, seen.generation, seen.now)
    conditions = summary_conditions(
        conditions,
        _rollout(conditions, seen),
        _not_ready(seen),
        generation=seen.generation,
        now=seen.now,
        since=seen.spec_seen,
        working="the pool works",
    )
    return _right_sized(plan, conditions, seen)


def _right_sized(plan: Plan, conditions: list[Status], seen: StatusInputs) -> list[Status]:
    if plan.right_sizing.mode is RightSizingMode.OFF:
        return remove_condition(conditions, RIGHT_SIZED)
    before = find(conditions, RIGHT_SIZED)
    if seen.sizing is not None:
        value = seen.sizing.condition
    elif before is not None:
        value = before["status"], before["reason"], before["message"]
    else:
        return conditions  # a pool that never had a pod
    return set_condition(conditions, RIGHT_SIZED, *value, seen.generation, seen.now)


def _redis(seen: StatusInputs) -> ConditionValue:
    if seen.redis_trouble is not None:
        return "False", *seen.redis_trouble
    return "True", reasons.RECONCILED, "Redis answers"


def _active(plan: Plan, seen: StatusInputs) -> ConditionValue:
    if plan.suspend:
        return "False", reasons.SUSPENDED, "spec.suspend is true: workers stay but take no job"
    if not plan.autoscaled:
        return "False", reasons.MANUAL_SIZE, "sized by hand; set spec.autoscaling to follow work"
    if plan.pause is not Pause.NONE:
        return "False", reasons.PAUSED, f"spec.autoscaling.pause is {plan.pause.value}"
    if seen.facts is None:
        return "False", reasons.METRIC_OUTAGE, "Redis cannot be measured; see RedisReachable"
    return "True", reasons.RECONCILED, "size follows the work"


def _limited(seen: StatusInputs) -> ConditionValue:
    if seen.decision.limited:
        return "True", seen.decision.limited, seen.decision.sentence
    return "False", reasons.WITHIN_RANGE, "the size that the work asks for is within the limits"


def _draining(seen: StatusInputs) -> ConditionValue:
    if seen.leaving:
        return "True", reasons.DRAINING, f"{_pods(seen.leaving)} finishing work before leaving"
    return "False", reasons.NOT_DRAINING, "no pod is leaving"


def _rollout(conditions: Sequence[Mapping[str, Any]], seen: StatusInputs) -> Rollout:
    """Return how far the spec is in force: applied, without pods of an older template, started.

    Once it is, pods that load adds, that drain or that fail do not undo it. Only a pool that cannot
    have a single pod, because something that its spec refers to is missing, is rolled out again.
    """
    if seen.refusal is not None:
        if seen.refusal[0] == reasons.QUOTA_EXCEEDED:
            return Rollout(complete=False, trouble=seen.refusal)
        return Rollout(complete=False, stalled=seen.refusal)
    deployment = seen.deployment
    outdated = deployment is not None and (
        (bool(seen.inputs_hash) and deployment.inputs_hash != seen.inputs_hash)
        or deployment.updated < deployment.status_replicas
    )
    missing = _missing(seen)
    started = deployment is not None and deployment.ready > 0
    if not outdated and rolled_out(conditions, seen.generation) and (started or missing is None):
        return Rollout(complete=True)
    trouble = missing or pod_trouble(seen)
    if trouble is not None:
        return Rollout(complete=False, trouble=trouble)
    awaited = _awaited(deployment, seen.decision.replicas, outdated=outdated)
    return Rollout(complete=not awaited, awaited=awaited)


def _missing(seen: StatusInputs) -> Trouble | None:
    """Return what the spec refers to and the cluster does not provide: Secret, account, quota."""
    if seen.redis_trouble is not None and seen.redis_trouble[0] not in _OUTAGES:
        return seen.redis_trouble
    if seen.deployment is not None and seen.deployment.replica_failure is not None:
        return pod_trouble(seen)
    unstarted = [
        pod for pod in seen.pods if pod.trouble and pod.trouble[0] == "CreateContainerConfigError"
    ]
    return pod_trouble(replace(seen, pods=unstarted)) if unstarted else None


def _awaited(deployment: DeploymentView | None, wanted: int, *, outdated: bool) -> str:
    """Return what the rollout waits for; "" if it is complete."""
    if deployment is None:
        return "the Deployment is being created" if wanted else ""
    if deployment.observed_generation < deployment.generation:
        return "the Deployment is being rolled out"
    if outdated:
        updated = min(deployment.updated, deployment.status_replicas)
        return f"{updated} of {deployment.status_replicas} pods have the new template"
    if deployment.replicas and not deployment.ready:
        return f"0 of {_pods(deployment.replicas)} ready"
    return ""


def _not_ready(seen: StatusInputs) -> Trouble | None:
    """Return what keeps the pool from doing its work; pods that are just starting do not."""
    for trouble in (seen.refusal, seen.redis_trouble, pod_trouble(seen)):
        if trouble is not None:
            return trouble
    if seen.refused_schedules:
        name, owner = min(seen.refused_schedules.items())
        return reasons.SCHEDULE_NAME_TAKEN, declarations.name_taken(name, owner)
    if seen.deployment is None and seen.decision.replicas:
        return reasons.ROLLING_OUT, "the Deployment is being created"
    return None


def pod_trouble(seen: StatusInputs) -> Trouble | None:
    """Return what keeps pods from running."""
    deployment = seen.deployment
    if deployment is not None and deployment.replica_failure is not None:
        reason, message = deployment.replica_failure
        quota = "exceeded quota" in message
        return (
            reasons.QUOTA_EXCEEDED if quota else reasons.PODS_NOT_READY,
            f"pods cannot be created ({reason}): {message}"[:MESSAGE_LENGTH],
        )
    for pod in seen.pods:
        if pod.trouble is None or pod.deleting or pod.ready:
            continue
        reason, text = pod.trouble
        return _pod_reason(reason, text), f"pod {pod.name}: {reason}: {text}"[:MESSAGE_LENGTH]
    return None


def _pod_reason(reason: str, text: str) -> str:
    if reason in ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"):
        return reasons.IMAGE_PULL_FAILED
    if "RQ is not installed" in text:
        return reasons.NO_RQ_IN_IMAGE
    if reason == "CreateContainerConfigError" and "secret" in text.lower():
        return reasons.SECRET_NOT_FOUND
    return reasons.PODS_NOT_READY


def _pods(count: int) -> str:
    return "1 pod is" if count == 1 else f"{count} pods are"
