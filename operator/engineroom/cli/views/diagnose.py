"""Diagnosis of pools and of the installation: pure functions that return findings.

Condition types are those of ``WorkerPoolStatus.conditions``. A finding shows the operator's message
and adds a fix: the next command to run.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from engineroom.cli.connections.release import FIX
from engineroom.cli.errors import INSTALL
from engineroom.cli.views.text import count, seconds
from engineroom.core import reasons

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from engineroom.cli.connections.model import (
        Installation,
        InstalledComponent,
        Pod,
        Pool,
        WebhookRegistration,
    )

#: A running operator writes the first status of a pool within this time, in seconds.
_FIRST_STATUS_SECONDS = 15.0


class Severity(StrEnum):
    """Severity of a finding; only problems change the exit code."""

    PROBLEM = "problem"
    WARNING = "warning"
    OK = "ok"


@dataclass(frozen=True, slots=True)
class PoolFinding:
    """A problem of a pool, its cause and its fix."""

    severity: Severity
    what: str
    why: str
    fix: str


@dataclass(frozen=True, slots=True)
class Check:
    """The health of one part of the installation."""

    part: str
    severity: Severity
    summary: str
    fix: str = ""


def pool_state(pool: Pool) -> str:
    """Return the state of a pool in one word; the most urgent one if several apply."""
    status = pool.status
    if pool.deleting:
        return "Deleting"
    if status is None:
        return "Unseen"
    if status.holds("Stalled"):
        return "Stalled"
    if status.holds("RedisReachable", "False"):
        return "RedisUnreachable"
    if pool.suspend:
        return "Draining" if status.busy_workers else "Suspended"
    if pool.autoscaling is not None and pool.autoscaling.pause != "None":
        return "Paused"
    if not pool.answered:
        return "Updating"
    if status.holds("Ready"):
        return "Ready"
    return "NotReady"


def pool_findings(
    pool: Pool, pods: Sequence[Pod], now: datetime, program: str
) -> tuple[PoolFinding, ...]:
    """Return the findings of one pool, worst first. ``pods`` are the pool's own."""
    if pool.deleting:
        return ()
    if pool.status is None:
        young = pool.created is not None and (now - pool.created).total_seconds() < (
            _FIRST_STATUS_SECONDS
        )
        if young:
            return ()
        return (
            PoolFinding(
                Severity.PROBLEM,
                "no operator has reconciled this pool",
                "its status is empty",
                f"`{program} status` shows whether an operator runs and watches this namespace",
            ),
        )
    findings = [
        *_conditions(pool, program),
        *_pods(pool, pods),
        *_queues(pool, program),
    ]
    order = list(Severity)
    return tuple(sorted(findings, key=lambda finding: order.index(finding.severity)))


def _conditions(pool: Pool, program: str) -> list[PoolFinding]:
    status = pool.status
    assert status is not None  # noqa: S101 - for the type checker; pool_findings returned before
    findings = []
    stalled = status.holds("Stalled")
    if stalled is not None:
        findings.append(
            PoolFinding(
                Severity.PROBLEM,
                f"stalled: {stalled.reason}",
                stalled.message,
                _fix(stalled.reason, pool, program),
            )
        )
    redis = status.holds("RedisReachable", "False")
    if redis is not None:
        findings.append(
            PoolFinding(
                Severity.PROBLEM,
                f"Redis cannot be measured: {redis.reason}",
                redis.message,
                _redis_fix(pool),
            )
        )
    ready = status.holds("Ready", "False")
    if ready is not None and stalled is None and redis is None:
        # A pool is also not ready during a change, which is only a warning.
        moving = status.holds("Reconciling") is not None or not pool.answered
        findings.append(
            PoolFinding(
                Severity.WARNING if moving else Severity.PROBLEM,
                f"not ready: {ready.reason}",
                ready.message,
                _fix(ready.reason, pool, program),
            )
        )
    limited = status.holds("ScalingLimited")
    if limited is not None and pool.autoscaling is not None and _at_maximum(pool):
        findings.append(
            PoolFinding(
                Severity.WARNING,
                f"wants more than its {count(pool.autoscaling.maximum, 'pod')}: {limited.reason}",
                limited.message or status.decision,
                f"`{program} scale {pool.name} -n {pool.namespace} --max N`, if Redis, database "
                "and nodes can carry more workers",
            )
        )
    return findings


def _at_maximum(pool: Pool) -> bool:
    return (
        pool.autoscaling is not None
        and pool.status is not None
        and pool.status.desired >= pool.autoscaling.maximum
    )


#: The fix for each reason: the next command to run.
_REASON_FIXES = {
    reasons.INVALID_SPEC: "correct the field in the message (`{edit}`); `{program} lint FILE` "
    "checks a manifest before it is applied",
    reasons.NAME_TAKEN: "delete the object in the message, or rename the pool; an account can be "
    "named in spec.template.spec.serviceAccountName instead (`{edit}`)",
    reasons.AWAITING_DELETION: "wait; if the object in the message stays, delete it",
    reasons.SECRET_NOT_FOUND: "create the Secret; the pool then recovers by itself",
    reasons.SECRET_KEY_NOT_FOUND: "add the key to the Secret, or name another in `{edit}`",
    reasons.SECRET_FORBIDDEN: "let the operator read it: install the chart for this namespace too",
    reasons.NO_RQ_IN_IMAGE: "add rq to the image's requirements, or name the interpreter that has "
    "it as the worker container's command",
    reasons.IMAGE_PULL_FAILED: "check the image's name and tag, and imagePullSecrets in "
    "spec.template",
    reasons.QUOTA_EXCEEDED: "raise the ResourceQuota, or `{program} scale {pool} --max N`",
    reasons.APPLY_REFUSED: "change the field in the API server's message",
}


def _fix(reason: str, pool: Pool, program: str) -> str:
    fix = _REASON_FIXES.get(reason, "`{program} explain {pool}` shows its pods and events")
    here = f"{pool.name} -n {pool.namespace}"
    return fix.format(program=program, pool=here, edit=f"kubectl edit workerpool {here}")


def _redis_fix(pool: Pool) -> str:
    reference = (pool.document.get("spec", {}).get("redis") or {}).get("urlSecretRef") or {}
    if not reference:
        return "the pool uses the chart's own Redis: check its pod in the operator's namespace"
    return (
        f"check key {reference.get('key')} of Secret {reference.get('name')} in namespace "
        f"{pool.namespace} (URL, password, TLS) and that a NetworkPolicy lets the operator through"
    )


_POD_FIXES = {
    "ErrImagePull": "check the image's name and tag, and imagePullSecrets in spec.template",
    "ImagePullBackOff": "check the image's name and tag, and imagePullSecrets in spec.template",
    "InvalidImageName": "correct the image's name in spec.template",
    "CrashLoopBackOff": "`kubectl logs {pod} -n {namespace} --previous` shows why it ends",
    "RunContainerError": "the container cannot start: check its command and its image's user",
    "CreateContainerConfigError": "a Secret, ConfigMap or security setting of spec.template is "
    "missing or wrong",
    "OOMKilled": "raise the memory limit in spec.template",
    "Unschedulable": "no node has room for it: lower the requests in spec.template, add nodes, or "
    "lower maxReplicas",
}


def _pods(pool: Pool, pods: Sequence[Pod]) -> list[PoolFinding]:
    """Return one finding for each kind of trouble of the pods."""
    by_trouble: dict[str, list[Pod]] = {}
    for pod in pods:
        if pod.trouble and not pod.ready and not pod.deleting:
            by_trouble.setdefault(pod.trouble, []).append(pod)
    findings = []
    for trouble, affected in sorted(by_trouble.items()):
        first = affected[0]
        fix = _POD_FIXES.get(trouble, "`kubectl describe pod {pod} -n {namespace}` shows more")
        findings.append(
            PoolFinding(
                Severity.PROBLEM,
                f"{count(len(affected), 'pod')} of {len(pods)}: {trouble}",
                first.trouble_message or f"first of them: {first.name}",
                fix.format(pod=first.name, namespace=pool.namespace),
            )
        )
    return findings


def _queues(pool: Pool, program: str) -> list[PoolFinding]:
    if pool.suspend:
        return []
    findings = []
    for queue in pool.queues:
        if queue.oldest_job_age is None or queue.target_latency is None or not queue.depth:
            continue
        if seconds(queue.oldest_job_age) <= seconds(queue.target_latency):
            continue
        findings.append(
            PoolFinding(
                Severity.WARNING,
                f"jobs of queue {queue.name} wait longer than the target latency",
                f"the oldest waits {queue.oldest_job_age}, the target is {queue.target_latency}; "
                f"{count(queue.depth, 'job')} waiting",
                f"`{program} explain {pool.name} -n {pool.namespace}` shows what holds the size",
            )
        )
    return findings


def checks(installation: Installation, pools: Sequence[Pool]) -> tuple[Check, ...]:
    """Return the health of each part of the installation."""
    return (
        _definition(installation),
        _operator(installation),
        _webhooks(installation),
        _redis(installation, pools),
    )


def _definition(installation: Installation) -> Check:
    definition = installation.definition
    if definition is None:
        return Check("CRD", Severity.PROBLEM, "the kind WorkerPool is not installed", INSTALL)
    release = f", from release {definition.release}" if definition.release else ""
    return Check("CRD", Severity.OK, f"workerpools {', '.join(definition.served)} served{release}")


def _operator(installation: Installation) -> Check:
    operators = installation.role("operator")
    if not operators:
        return _absent(installation, "operator", "no operator runs", INSTALL)
    leader = f", leader {installation.leader}" if installation.leader else ""
    return _deployment_check("operator", operators, leader)


def _webhooks(installation: Installation) -> Check:
    servers = installation.role("webhooks")
    if not servers:
        fix = "helm upgrade with webhooks.enabled=true, so that wrong specs are refused at once"
        return _absent(installation, "webhooks", "not installed", fix, Severity.WARNING)
    check = _deployment_check("webhooks", servers, _registration_text(installation.admission))
    admission = installation.admission
    if check.severity is Severity.OK and "webhook configurations" not in installation.denied:
        if admission is None:
            return Check(
                "webhooks",
                Severity.WARNING,
                f"{check.summary}, not registered with the API server",
                "helm upgrade the release: its ValidatingWebhookConfiguration is gone",
            )
        if admission.with_certificate < admission.webhooks:
            return Check(
                "webhooks",
                Severity.PROBLEM,
                f"{check.summary}, without a CA certificate",
                f"the webhook server writes it at its start: `kubectl logs -n "
                f"{servers[0].namespace} deploy/{servers[0].name}`",
            )
    return check


def _registration_text(admission: WebhookRegistration | None) -> str:
    return "" if admission is None else f", registered as {admission.name}"


def _redis(installation: Installation, pools: Sequence[Pool]) -> Check:
    looked = [pool for pool in pools if pool.status is not None]
    unreached = [
        entry for entry in looked if entry.status and entry.status.holds("RedisReachable", "False")
    ]
    reached = f"reached for {len(looked) - len(unreached)} of {count(len(looked), 'pool')}"
    bundled = installation.role("redis")
    if bundled:
        check = _deployment_check("Redis", bundled, f", {reached}" if looked else "")
        if check.severity is not Severity.OK:
            return check
        summary = check.summary
    else:
        own = "your own" if installation.namespaces else "of an unknown installation"
        summary = f"{own}, {reached}" if looked else f"{own}; no pool uses one yet"
    if unreached:
        return Check("Redis", Severity.PROBLEM, summary, "see the pools below")
    return Check("Redis", Severity.OK, summary)


def _absent(
    installation: Installation,
    part: str,
    summary: str,
    fix: str,
    severity: Severity = Severity.PROBLEM,
) -> Check:
    """Return a check of a missing part; unknown if it cannot be looked for."""
    if not installation.namespaces:
        forbidden = "webhook configurations" in installation.denied
        return Check(
            part,
            Severity.WARNING if forbidden else severity,
            "unknown: you may not list the webhook configurations, which name its namespace"
            if forbidden
            else "unknown: no webhook configuration names the installation's namespace",
            FIX if forbidden else f"{FIX}, or install it: {INSTALL}",
        )
    if "Deployments" in installation.denied:
        return Check(
            part,
            Severity.WARNING,
            "unknown: you may not list Deployments",
            "ask an administrator for the right to list Deployments",
        )
    return Check(part, severity, summary, fix)


def _deployment_check(part: str, components: Sequence[InstalledComponent], more: str) -> Check:
    texts, severity, fix = [], Severity.OK, ""
    for component in components:
        version = f", {component.version}" if component.version else ""
        texts.append(
            f"{component.namespace}/{component.name} {component.ready}/{component.wanted} "
            f"ready{version}"
        )
        if component.ready < component.wanted or not component.wanted:
            down = component.ready == 0
            severity = Severity.PROBLEM if down else max(severity, Severity.WARNING, key=_weight)
            fix = (
                f"kubectl scale -n {component.namespace} "
                f"{component.kind.lower()}/{component.name} --replicas=1"
                if not component.wanted
                else f"kubectl describe -n {component.namespace} "
                f"{component.kind.lower()}/{component.name}; "
                f"kubectl logs -n {component.namespace} {component.kind.lower()}/{component.name}"
            )
    return Check(part, severity, "; ".join(texts) + more, fix)


def _weight(severity: Severity) -> int:
    return -list(Severity).index(severity)
