"""The explanation of a pool's size, as text and as a document."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.text import Text

from engineroom.cli.connections.model import RESOURCE
from engineroom.cli.views.diagnose import pool_findings, pool_state
from engineroom.cli.views.output_formats import STYLES, Indent, table, word
from engineroom.cli.views.text import ABSENT, age, count, cpu, memory, number, seconds

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from rich.console import RenderableType

    from engineroom.cli.connections.model import Event, Pod, Pool, Queue
    from engineroom.cli.views.diagnose import PoolFinding

_EVENTS_SHOWN = 10
_PODS_SHOWN = 50


@dataclass(frozen=True, slots=True)
class Explanation:
    """A pool and what its size depends on.

    ``pods`` and ``events`` are None if they could not be read.
    """

    pool: Pool
    pods: tuple[Pod, ...] | None
    events: tuple[Event, ...] | None
    now: datetime
    program: str

    @property
    def findings(self) -> tuple[PoolFinding, ...]:
        """The findings of the pool."""
        return pool_findings(self.pool, self.pods or (), self.now, self.program)


def headline(pool: Pool) -> str:
    """Return a summary of the pool in one sentence."""
    if pool.status is None:
        return f"{pool.id}: not looked at by any operator yet"
    status = pool.status
    workers = count(pool.workers or 0, "worker")
    return (
        f"{pool.id}: {count(status.replicas, 'pod')}, {status.ready} ready, {status.desired} "
        f"wanted; {status.busy_workers} of {workers} busy"
    )


def arithmetic(pool: Pool, now: datetime) -> tuple[tuple[str, str], ...]:
    """Return the inputs of the decision about the size, as pairs of name and value."""
    status, lines = pool.status, []
    waiting, running, due = (pool.total(state) for state in ("depth", "running", "scheduled"))
    if waiting is not None:
        lines.append(
            ("work seen", f"{waiting} waiting + {running} running; {due} scheduled for later")
        )
    if pool.autoscaling is None:
        size = 1 if pool.replicas is None else pool.replicas
        lines.append(("set by hand", f"{count(size, 'pod')} in spec.replicas"))
    else:
        auto = pool.autoscaling
        rule = (
            f"{auto.target_backlog} jobs a worker"
            if auto.target_backlog is not None
            else f"a job waits at most {auto.target_latency}"
        )
        lines += [("target", rule), ("range", f"{auto.minimum} to {count(auto.maximum, 'pod')}")]
        lines += [("schedule", schedule) for schedule in auto.schedules]
    lines.append(("workers a pod", str(pool.workers_per_pod)))
    if status is not None:
        leaving = f", {status.draining} on their way out" if status.draining else ""
        lines.append(
            (
                "pods",
                f"{status.desired} wanted, {status.replicas} there, {status.ready} ready{leaving}",
            )
        )
        lines.append(("speed", f"{status.jobs_per_minute} jobs finished in the last minute"))
        if status.last_scale is not None:
            moment = status.last_scale.strftime("%Y-%m-%d %H:%M:%S UTC")
            lines.append(("last scaled", f"{age(status.last_scale, now)} ago ({moment})"))
    return tuple(lines)


def levers(pool: Pool, program: str) -> tuple[str, ...]:
    """Return the actions that would change the size, the nearest obstacle first."""
    here = f"{pool.name} -n {pool.namespace}"
    sentences = []
    if pool.suspend:
        sentences.append(f"Suspended: its workers take no job until `{program} resume {here}`.")
    if pool.autoscaling is None:
        sentences.append(
            f"Sized by hand: only `{program} scale {here} N` (or kubectl scale) changes it; add "
            "spec.autoscaling to let it follow the work."
        )
        return tuple(sentences)
    auto, status = pool.autoscaling, pool.status
    held = {
        "All": "The size is held",
        "ScaleIn": "It grows but does not shrink",
        "ScaleOut": "It shrinks but does not grow",
    }.get(auto.pause)
    if held is not None:
        sentences.append(f"{held} (pause {auto.pause}) until `{program} resume {here}`.")
    if status is not None and status.desired >= auto.maximum:
        sentences.append(
            f"It is at maxReplicas ({auto.maximum}); `{program} scale {here} --max N` lets it grow "
            "further."
        )
    elif status is not None and auto.target_backlog is not None:
        most = status.desired * pool.workers_per_pod * auto.target_backlog
        sentences.append(f"It grows when more than {count(most, 'job')} wait or run.")
    elif status is not None:
        sentences.append(
            f"It grows when, at the measured pace, jobs would wait longer than {_targets(pool)}."
        )
    if status is not None and status.desired <= auto.minimum:
        sentences.append(
            f"It is at minReplicas ({auto.minimum}) and shrinks no further."
            if auto.minimum
            else "It is at zero: the first job wakes it."
        )
    elif status is not None:
        speed = (
            f", by at most {count(auto.max_pods_per_minute, 'pod')} a minute"
            if auto.max_pods_per_minute
            else ""
        )
        last = f"; the last pod goes when idle for {auto.idle_timeout}" if auto.minimum == 0 else ""
        sentences.append(
            f"It shrinks to {_needed(pool)} when less has been needed for "
            f"{auto.stabilization_window}{speed}{last}. A pod that holds a job stays until the job "
            "is done."
        )
    return tuple(sentences)


def _targets(pool: Pool) -> str:
    targets = {queue.target_latency for queue in pool.queues if queue.target_latency}
    if len(targets) <= 1:
        return next(iter(targets), "their target")
    return " or ".join(
        f"{queue.target_latency} ({queue.name})" for queue in pool.queues if queue.target_latency
    )


def _needed(pool: Pool) -> str:
    """Return the size that the current jobs need, if the target is a backlog per worker."""
    auto, waiting, running = pool.autoscaling, pool.total("depth"), pool.total("running")
    if auto is None or auto.target_backlog is None or waiting is None:
        return "what the work needs"
    workers = math.ceil((waiting + (running or 0)) / auto.target_backlog)
    pods = math.ceil(workers / pool.workers_per_pod)
    return count(min(max(pods, auto.minimum), auto.maximum), "pod")


def _late(queue: Queue) -> bool:
    return bool(
        queue.oldest_job_age
        and queue.target_latency
        and queue.depth
        and seconds(queue.oldest_job_age) > seconds(queue.target_latency)
    )


def _section(title: str, body: RenderableType) -> tuple[RenderableType, ...]:
    return (Text(), Text(title, style="bold"), Indent(body))


def _queues(pool: Pool) -> RenderableType:
    columns = ("QUEUE", "PRIORITY", "WAITING", "RUNNING", "SCHEDULED", "FAILED", "OLDEST", "TARGET")
    rows = [
        (
            queue.name,
            str(queue.priority),
            number(queue.depth),
            number(queue.running),
            number(queue.scheduled),
            number(queue.failed),
            Text(queue.oldest_job_age or ABSENT, style="yellow" if _late(queue) else ""),
            queue.target_latency or ABSENT,
        )
        for queue in pool.queues
    ]
    return table(columns, rows, right=columns[1:6])


def pods_table(pods: Sequence[Pod], workers_per_pod: int, now: datetime) -> RenderableType:
    """Return a table of pods with their state and use."""
    columns = ("POD", "STATE", "WORKERS", "RESTARTS", "MEMORY", "CPU", "AGE", "NODE")
    rows = [
        (
            pod.name,
            word(pod.state),
            str(workers_per_pod),
            str(pod.restarts),
            memory(pod.usage.memory if pod.usage else None),
            cpu(pod.usage.cpu if pod.usage else None),
            age(pod.created, now),
            pod.node or ABSENT,
        )
        for pod in pods
    ]
    return table(columns, rows, right=("WORKERS", "RESTARTS", "MEMORY", "CPU"))


def findings_list(findings: Sequence[PoolFinding]) -> RenderableType:
    """Return findings with their reasons and fixes."""
    lines = []
    for finding in findings:
        lines.append(
            Text.assemble(
                (str(finding.severity), STYLES.get(finding.severity, "")), f": {finding.what}"
            )
        )
        if finding.why:
            lines.append(Text(f"  why: {finding.why}"))
        lines.append(Text(f"  fix: {finding.fix}"))
    return Group(*lines)


def explain_text(explanation: Explanation) -> RenderableType:
    """Return the whole explanation, the decision first."""
    pool, now = explanation.pool, explanation.now
    state = pool_state(pool)
    parts: list[RenderableType] = [
        Text(headline(pool), style="bold"),
        Text.assemble("state: ", word(state)),
    ]
    if pool.status is not None and pool.status.decision:
        parts += _section("Why this size", Text(pool.status.decision))
    if not pool.answered and pool.status is not None:
        parts.append(
            Text(
                f"  (of generation {pool.status.observed_generation}; the spec is at "
                f"{pool.generation}, the operator has not answered it yet)",
                style="yellow",
            )
        )
    parts += _section("Arithmetic", table(("", ""), arithmetic(pool, now), header=False))
    parts += _section(
        "What would change it", Group(*(Text(line) for line in levers(pool, explanation.program)))
    )
    if explanation.findings:
        parts += _section("Findings", findings_list(explanation.findings))
    parts += _section("Queues", _queues(pool))
    if pool.status is not None and pool.status.conditions:
        rows = [
            (
                condition.type,
                condition.status,
                condition.reason,
                age(condition.since, now),
                condition.message,
            )
            for condition in pool.status.conditions
        ]
        columns = ("CONDITION", "STATUS", "REASON", "SINCE", "MESSAGE")
        parts += _section("Conditions", table(columns, rows))
    if explanation.pods:
        first_pods = explanation.pods[:_PODS_SHOWN]
        more = len(explanation.pods) - len(first_pods)
        body = pods_table(first_pods, pool.workers_per_pod, now)
        parts += _section("Pods", body)
        if more:
            parts.append(
                Text(f"  and {more} more: `{explanation.program} top workers {pool.name}`", "dim")
            )
    if explanation.events:
        parts += _section("Events", events_table(explanation.events, now))
    return Group(*parts)


def events_table(events: Sequence[Event], now: datetime) -> RenderableType:
    """Return a table of the latest events."""
    rows = [
        (age(event.last, now), event.type, event.reason, str(event.count), event.message)
        for event in events[:_EVENTS_SHOWN]
    ]
    columns = ("LAST", "TYPE", "REASON", "COUNT", "MESSAGE")
    return table(columns, rows, right=("COUNT",))


def event_documents(events: Sequence[Event] | None) -> list[dict[str, Any]] | None:
    """Return events for ``-o json``; None if they could not be read."""
    if events is None:
        return None
    return [
        {
            "type": event.type,
            "reason": event.reason,
            "message": event.message,
            "count": event.count,
            "last": event.last.isoformat() if event.last else None,
        }
        for event in events
    ]


def finding_document(finding: PoolFinding) -> dict[str, str]:
    """Return a finding for ``-o json``."""
    return {
        "severity": str(finding.severity),
        "what": finding.what,
        "why": finding.why,
        "fix": finding.fix,
    }


def pod_document(pod: Pod) -> dict[str, Any]:
    """Return a worker pod for ``-o json``."""
    return {
        "namespace": pod.namespace,
        "name": pod.name,
        "pool": pod.pool,
        "state": pod.state,
        "ready": pod.ready,
        "busy": pod.busy,
        "restarts": pod.restarts,
        "node": pod.node or None,
        "usage": asdict(pod.usage) if pod.usage else None,
    }


def pool_document(pool: Pool) -> dict[str, Any]:
    """Return a pool's numbers for ``-o json``; unknown ones are None."""
    status = pool.status
    return {
        "namespace": pool.namespace,
        "name": pool.name,
        "state": pool_state(pool),
        "suspend": pool.suspend,
        "desiredReplicas": status.desired if status else None,
        "replicas": status.replicas if status else None,
        "readyReplicas": status.ready if status else None,
        "drainingReplicas": status.draining if status else None,
        "workers": pool.workers,
        "busyWorkers": status.busy_workers if status else None,
        "jobsPerMinute": status.jobs_per_minute if status else None,
        "waiting": pool.total("depth"),
        "running": pool.total("running"),
    }


def explain_document(explanation: Explanation) -> dict[str, Any]:
    """Return the whole explanation for ``-o json``."""
    pool, status = explanation.pool, explanation.pool.status
    return {
        "resource": f"{RESOURCE}/{pool.name}",
        **pool_document(pool),
        "decision": status.decision if status else None,
        "answersSpec": pool.answered,
        "lastScaleTime": status.last_scale.isoformat() if status and status.last_scale else None,
        "arithmetic": [
            {"name": name, "value": value} for name, value in arithmetic(pool, explanation.now)
        ],
        "whatWouldChangeIt": list(levers(pool, explanation.program)),
        "findings": [finding_document(finding) for finding in explanation.findings],
        "queues": [
            {
                "name": queue.name,
                "priority": queue.priority,
                "targetLatency": queue.target_latency,
                "depth": queue.depth,
                "running": queue.running,
                "scheduled": queue.scheduled,
                "failed": queue.failed,
                "oldestJobAge": queue.oldest_job_age,
            }
            for queue in pool.queues
        ],
        "conditions": list(pool.document.get("status", {}).get("conditions") or []),
        "recommendedResources": status.recommended if status else None,
        "pods": None
        if explanation.pods is None
        else [pod_document(pod) for pod in explanation.pods],
        "events": event_documents(explanation.events),
    }
