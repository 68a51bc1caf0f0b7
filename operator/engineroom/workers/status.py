"""A pool's status from an observation and a decision; times change only on transitions."""

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
from engineroom.workers.tenancy import queue_claims

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from engineroom.queue.observe import PoolFacts
    from engineroom.workers.decide import SizeDecision
    from engineroom.workers.job_schedules.declarations import ScheduleFacts
    from engineroom.workers.plan import Plan
    from engineroom.workers.projections import DeploymentView, PodView
    from engineroom.workers.rightsizing.monitor import SizingStatus
    from engineroom.workers.tenancy.queue_claims import OwnedQueue

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
#: Refusals of writes that can end without a change of the spec.
_AWAITED = (reasons.QUOTA_EXCEEDED, reasons.AWAITING_DELETION)


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
    #: Whether the pool may not use its Redis, or one of its queues.
    refused: bool = False
    #: The queues that the pool's namespace owns; None while they cannot be read.
    owned: Sequence[OwnedQueue] | None = None
    #: A write that the API server refused.
    refusal: Trouble | None = None
    #: None if there is nothing new to report.
    sizing: SizingStatus | None = None


def pool_status(name: str, plan: Plan, old: Mapping[str, Any], inputs: StatusInputs) -> Status:
    """Return the status to publish; equal to ``old`` at the fixed point."""
    deployment = inputs.deployment
    status: Status = {
        "observedGeneration": inputs.generation,
        "selector": selector(name),
        "replicas": deployment.status_replicas if deployment else 0,
        "readyReplicas": deployment.ready if deployment else 0,
        "desiredReplicas": inputs.decision.replicas,
        "busyWorkers": inputs.busy_workers,
        "drainingReplicas": inputs.leaving,
        "queues": _queues(old, inputs.facts),
        "waitingJobs": _waiting(old, inputs.facts),
        "jobsPerMinute": inputs.jobs_per_minute,
        "decision": inputs.decision.sentence,
        "conditions": _conditions(plan, old, inputs),
    }
    scaled = timestamp(inputs.now) if inputs.scaled else old.get("lastScaleTime")
    if scaled:
        status["lastScaleTime"] = scaled
    if inputs.owned is not None:
        status["ownedQueues"] = queue_claims.status_rows(inputs.owned)
    elif old.get("ownedQueues"):
        status["ownedQueues"] = old["ownedQueues"]
    if plan.jobs:
        status["schedules"] = declarations.status_rows(old, plan.jobs, inputs.schedules)
    return status | _recommendation(plan, old, inputs)


def _recommendation(plan: Plan, old: Mapping[str, Any], inputs: StatusInputs) -> Status:
    """Return the resource fields; unchanged if there is nothing new."""
    if plan.right_sizing.mode is RightSizingMode.OFF:
        return {}
    recommended, last_kill = old.get("recommendedResources"), old.get("lastOutOfMemoryTime")
    if inputs.sizing is not None:
        recommended = inputs.sizing.recommended or recommended
        last_kill = inputs.sizing.last_kill or last_kill
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


def _conditions(plan: Plan, old: Mapping[str, Any], inputs: StatusInputs) -> list[Status]:
    conditions = list(old.get("conditions") or ())
    values: dict[str, ConditionValue] = {}
    if plan.jobs:
        values["SchedulesActive"] = declarations.schedules_condition(
            plan.jobs, inputs.schedules, inputs.refused_schedules
        )
    else:
        conditions = remove_condition(conditions, "SchedulesActive")
    values |= {
        "RedisReachable": _redis(inputs),
        "ScalingActive": _active(plan, inputs),
        "ScalingLimited": _limited_condition(inputs),
        "Draining": _draining(inputs),
    }
    for kind, value in values.items():
        conditions = set_condition(conditions, kind, *value, inputs.generation, inputs.now)
    conditions = summary_conditions(
        conditions,
        _rollout(conditions, inputs),
        _not_ready(inputs),
        generation=inputs.generation,
        now=inputs.now,
        since=inputs.spec_seen,
        working="the pool works",
    )
    return _right_sized(plan, conditions, inputs)


def _right_sized(plan: Plan, conditions: list[Status], inputs: StatusInputs) -> list[Status]:
    if plan.right_sizing.mode is RightSizingMode.OFF:
        return remove_condition(conditions, RIGHT_SIZED)
    before = find(conditions, RIGHT_SIZED)
    if inputs.sizing is not None:
        value = inputs.sizing.condition
    elif before is not None:
        value = before["status"], before["reason"], before["message"]
    else:
        return conditions  # a pool that never had a pod
    return set_condition(conditions, RIGHT_SIZED, *value, inputs.generation, inputs.now)


def _redis(inputs: StatusInputs) -> ConditionValue:
    if inputs.redis_trouble is not None:
        return "False", *inputs.redis_trouble
    return "True", reasons.RECONCILED, "Redis answers"


def _active(plan: Plan, inputs: StatusInputs) -> ConditionValue:
    if plan.suspend:
        return "False", reasons.SUSPENDED, "spec.suspend is true: workers stay but take no job"
    if not plan.autoscaled:
        return "False", reasons.MANUAL_SIZE, "sized by hand; set spec.autoscaling to follow work"
    if plan.pause is not Pause.NONE:
        return "False", reasons.PAUSED, f"spec.autoscaling.pause is {plan.pause.value}"
    if inputs.facts is None:
        return "False", reasons.METRIC_OUTAGE, "Redis cannot be measured; see RedisReachable"
    return "True", reasons.RECONCILED, "size follows the work"


def _limited_condition(inputs: StatusInputs) -> ConditionValue:
    if inputs.decision.limited:
        return "True", inputs.decision.limited, inputs.decision.sentence
    return "False", reasons.WITHIN_RANGE, "the size that the work asks for is within the limits"


def _draining(inputs: StatusInputs) -> ConditionValue:
    if inputs.leaving:
        return "True", reasons.DRAINING, f"{_pods(inputs.leaving)} finishing work before leaving"
    return "False", reasons.NOT_DRAINING, "no pod is leaving"


def _rollout(conditions: Sequence[Mapping[str, Any]], inputs: StatusInputs) -> Rollout:
    """Return how far the spec is in force: applied, without pods of an older template, started.

    Once it is, pods that load adds, that drain or that fail do not undo it. Only a pool that cannot
    have a single pod, because something that its spec refers to is missing, is rolled out again.
    """
    if inputs.refusal is not None:
        if inputs.refusal[0] in _AWAITED:
            return Rollout(complete=False, trouble=inputs.refusal)
        return Rollout(complete=False, stalled=inputs.refusal)
    if inputs.refused:
        return Rollout(complete=False, stalled=inputs.redis_trouble)
    deployment = inputs.deployment
    outdated = deployment is not None and (
        (bool(inputs.inputs_hash) and deployment.inputs_hash != inputs.inputs_hash)
        or deployment.updated < deployment.status_replicas
    )
    missing = _missing(inputs)
    started = deployment is not None and deployment.ready > 0
    if not outdated and rolled_out(conditions, inputs.generation) and (started or missing is None):
        return Rollout(complete=True)
    trouble = missing or pod_trouble(inputs)
    if trouble is not None:
        return Rollout(complete=False, trouble=trouble)
    awaited = _rollout_wait(deployment, inputs.decision.replicas, outdated=outdated)
    return Rollout(complete=not awaited, awaited=awaited)


def _missing(inputs: StatusInputs) -> Trouble | None:
    """Return what the spec refers to and the cluster does not provide: Secret, account, quota."""
    if inputs.redis_trouble is not None and inputs.redis_trouble[0] not in _OUTAGES:
        return inputs.redis_trouble
    if inputs.deployment is not None and inputs.deployment.replica_failure is not None:
        return pod_trouble(inputs)
    unstarted = [
        pod for pod in inputs.pods if pod.trouble and pod.trouble[0] == "CreateContainerConfigError"
    ]
    return pod_trouble(replace(inputs, pods=unstarted)) if unstarted else None


def _rollout_wait(deployment: DeploymentView | None, wanted: int, *, outdated: bool) -> str:
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


def _not_ready(inputs: StatusInputs) -> Trouble | None:
    """Return what keeps the pool from doing its work; pods that are just starting do not."""
    for trouble in (inputs.refusal, inputs.redis_trouble, pod_trouble(inputs)):
        if trouble is not None:
            return trouble
    if inputs.refused_schedules:
        name, owner = min(inputs.refused_schedules.items())
        return reasons.SCHEDULE_NAME_TAKEN, declarations.name_taken(name, owner)
    if inputs.deployment is None and inputs.decision.replicas:
        return reasons.ROLLING_OUT, "the Deployment is being created"
    return None


def pod_trouble(inputs: StatusInputs) -> Trouble | None:
    """Return what keeps pods from running."""
    deployment = inputs.deployment
    if deployment is not None and deployment.replica_failure is not None:
        reason, message = deployment.replica_failure
        quota = "exceeded quota" in message
        return (
            reasons.QUOTA_EXCEEDED if quota else reasons.PODS_NOT_READY,
            f"pods cannot be created ({reason}): {message}"[:MESSAGE_LENGTH],
        )
    for pod in inputs.pods:
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
