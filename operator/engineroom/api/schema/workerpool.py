"""CEL rules and printer columns of WorkerPool."""

from __future__ import annotations

from typing import Any

from engineroom.api.schema.common import CelRule, KindSchema
from engineroom.api.v1alpha1.workerpool import WorkerPoolSpec, WorkerPoolStatus

_NOT_ZERO = CelRule("self.matches('[1-9]')", "is zero; write more than zero, such as 30s")

_RULES: dict[str, tuple[CelRule, ...]] = {
    "spec": (
        CelRule(
            "!(has(self.replicas) && has(self.autoscaling))",
            "conflicts with spec.autoscaling; remove one of the two",
            field=".replicas",
        ),
        CelRule(
            "!has(self.autoscaling) || !has(self.autoscaling.targetBacklogPerWorker) || "
            "!self.queues.exists(queue, has(queue.targetLatency))",
            "spec.queues[].targetLatency: is set, but the pool scales by "
            "targetBacklogPerWorker; remove one of the two",
            field=".queues",
        ),
        CelRule(
            "!has(self.autoscaling) || !has(self.metricOutage.replicas) || "
            "(self.metricOutage.replicas >= self.autoscaling.minReplicas && "
            "self.metricOutage.replicas <= self.autoscaling.maxReplicas)",
            "is outside minReplicas and maxReplicas of spec.autoscaling; write a number between "
            "them",
            field=".metricOutage.replicas",
        ),
        CelRule(
            "!has(self.schedules) || self.schedules.all(schedule, !has(schedule.queue) || "
            "self.queues.exists(queue, queue.name == schedule.queue))",
            "spec.schedules[].queue: is none of the pool's queues; write the name of one of them",
            field=".schedules",
        ),
    ),
    "spec.schedules[]": (
        CelRule(
            "[has(self.cron), has(self.every), has(self.at)].filter(given, given).size() == 1",
            "says no time, or more than one; write exactly one of cron, every and at",
        ),
        CelRule(
            "!has(self.timeZone) || has(self.cron)",
            "is set without cron; remove it: only cron has a zone",
            field=".timeZone",
        ),
        CelRule(
            "!has(self.jitter) || !has(self.at)", "conflicts with at; remove it", field=".jitter"
        ),
    ),
    "spec.schedules[].every": (_NOT_ZERO,),
    "spec.schedules[].timeout": (_NOT_ZERO,),
    "spec.schedules[].cron": (
        CelRule(
            "!self.startsWith('@')",
            "is a nickname; write the five fields, such as 0 8 * * 1-5",
        ),
    ),
    "spec.queues[].targetLatency": (_NOT_ZERO,),
    "spec.autoscaling": (
        CelRule(
            "self.minReplicas <= self.maxReplicas",
            "is more than maxReplicas; lower it or raise maxReplicas",
            field=".minReplicas",
        ),
        CelRule(
            "!has(self.schedules) || "
            "self.schedules.all(schedule, schedule.minReplicas <= self.maxReplicas)",
            "spec.autoscaling.schedules[].minReplicas: is more than maxReplicas; lower it or "
            "raise maxReplicas",
            field=".schedules",
        ),
        CelRule(
            "!has(self.targetBacklogPerWorker) || self.targetLatency == '30s'",
            "conflicts with targetLatency; remove one of the two",
            field=".targetBacklogPerWorker",
        ),
    ),
    "spec.autoscaling.targetLatency": (_NOT_ZERO,),
    "spec.autoscaling.schedules[].duration": (_NOT_ZERO,),
    "spec.autoscaling.schedules[].cron": (
        CelRule(
            "!self.startsWith('@')",
            "is a nickname; write the five fields, such as 0 8 * * 1-5",
        ),
    ),
    "spec.drain.maxJobDuration": (_NOT_ZERO,),
    "spec.recovery.poisonWindow": (_NOT_ZERO,),
    "spec.deadLetter.ttl": (_NOT_ZERO,),
    # The API server tries the parent's default, {}, against these before mode has its own.
    "spec.metricOutage": (
        CelRule(
            "!has(self.mode) || self.mode != 'Fallback' || has(self.replicas)",
            "Fallback needs a size; set replicas, too",
            field=".mode",
        ),
        CelRule(
            "!has(self.replicas) || (has(self.mode) && self.mode == 'Fallback')",
            "is set, but mode is KeepReplicas; write mode: Fallback or remove it",
            field=".replicas",
        ),
    ),
}

_READY = '.status.conditions[?(@.type=="Ready")]'
_COLUMNS: tuple[dict[str, Any], ...] = (
    {
        "name": "Ready",
        "type": "string",
        "jsonPath": f"{_READY}.status",
        "description": "Whether the pool is as its spec says.",
    },
    {
        "name": "Size",
        "type": "integer",
        "jsonPath": ".status.desiredReplicas",
        "description": "Number of pods that the operator decided on.",
    },
    {
        "name": "Pods",
        "type": "integer",
        "jsonPath": ".status.readyReplicas",
        "description": "Pods that are ready.",
    },
    {
        "name": "Busy",
        "type": "integer",
        "jsonPath": ".status.busyWorkers",
        "description": "Workers that run a job.",
    },
    {
        "name": "Waiting",
        "type": "integer",
        "jsonPath": ".status.waitingJobs",
        "description": "Waiting jobs, in all queues together.",
    },
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    {
        "name": "Decision",
        "type": "string",
        "jsonPath": ".status.decision",
        "priority": 1,
        "description": "Why the pool has this size.",
    },
    {"name": "Min", "type": "integer", "jsonPath": ".spec.autoscaling.minReplicas", "priority": 1},
    {"name": "Max", "type": "integer", "jsonPath": ".spec.autoscaling.maxReplicas", "priority": 1},
    {"name": "Draining", "type": "integer", "jsonPath": ".status.drainingReplicas", "priority": 1},
    {"name": "Suspended", "type": "boolean", "jsonPath": ".spec.suspend", "priority": 1},
    {"name": "Reason", "type": "string", "jsonPath": f"{_READY}.reason", "priority": 1},
)

SCHEMA = KindSchema(spec=WorkerPoolSpec, status=WorkerPoolStatus, rules=_RULES, columns=_COLUMNS)
