"""Wrong specs, each with the exact words that its author reads.

One row a mistake: a valid pool, what is changed in it by path (``...`` takes it away), and every
problem that is told. The same words come from webhook, controller, command line and API.
"""

from __future__ import annotations

from typing import Any

import pytest

from engineroom.api.v1alpha1.workerpool import WorkerPool
from engineroom.api.validation import ValidationContext, parse, problems
from engineroom.api.validation.pod_security import PodSecurityLevel
from engineroom.core.errors import InvalidSpecError
from tests.unit.api.specs import pool

POD = "spec.template.spec"
CONTAINER = f"{POD}.containers[0]"
AUTO = "spec.autoscaling"

WRONG: dict[str, tuple[dict[str, Any], list[str]]] = {
    "api-version": (
        {"apiVersion": "engineroom.dev/v1"},
        [
            'apiVersion: "engineroom.dev/v1" is not known here; write engineroom.dev/v1alpha1',
        ],
    ),
    "kind": (
        {"kind": "WorkerPol"},
        [
            'kind: "WorkerPol" is not a kind of engineroom.dev; write WorkerPool',
        ],
    ),
    "name-missing": (
        {"metadata": {"namespace": "shop"}},
        [
            "metadata.name: is missing; add a name",
        ],
    ),
    "name-too-long": (
        {"metadata.name": "mmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmm"},
        [
            (
                "metadata.name: has 53 characters; shorten it to at most 52, so that the "
                "names made from it fit"
            ),
        ],
    ),
    "name-with-dot": (
        {"metadata.name": "mail.eu"},
        [
            (
                'metadata.name: "mail.eu" is not a DNS label; write lower-case letters, '
                "digits and dashes, with a letter or digit at both ends"
            ),
        ],
    ),
    "name-upper-case": (
        {"metadata.name": "Mail"},
        [
            (
                'metadata.name: "Mail" is not a DNS label; write lower-case letters, digits '
                "and dashes, with a letter or digit at both ends"
            ),
        ],
    ),
    "name-number": (
        {"metadata.name": 7},
        [
            "metadata.name: is a whole number, not a string; write it in quotes",
        ],
    ),
    "metadata-list": (
        {"metadata": []},
        [
            "metadata: is a list, not a map; write a map with a name",
        ],
    ),
    "top-level-field": (
        {"queues": []},
        [
            "queues: is not a known field; move it to spec.queues",
        ],
    ),
    "top-level-typo": (
        {"specs": {}},
        [
            "specs: is not a known field; did you mean spec?",
        ],
    ),
    "spec-missing": (
        {"spec": ...},
        [
            "spec: is missing; add it with queues and template",
        ],
    ),
    "spec-list": (
        {"spec": []},
        [
            "spec: is a list, not a map; write a map",
        ],
    ),
    "unknown-field": (
        {"spec.dequeStrategy": "Priority"},
        [
            "spec.dequeStrategy: is not a known field; did you mean dequeueStrategy?",
        ],
    ),
    "snake-case": (
        {"spec.workers_per_pod": 2},
        [
            "spec.workers_per_pod: is not a known field; did you mean workersPerPod?",
        ],
    ),
    "unknown-field-afar": (
        {"spec.colour": "red"},
        [
            (
                "spec.colour: is not a known field; remove it; the fields here are "
                "autoscaling, deadLetter, dequeueStrategy, drain, metricOutage, queues, "
                "recovery, redis, replicas, rightSizing, schedules, suspend, template, "
                "workersPerPod"
            ),
        ],
    ),
    "queues-missing": (
        {"spec.queues": ...},
        [
            "spec.queues: is missing; add it: The RQ queues that these workers read",
        ],
    ),
    "queues-empty": (
        {"spec.queues": []},
        [
            "spec.queues: is empty; add at least one item",
        ],
    ),
    "queues-map": (
        {"spec.queues": {"name": "mail"}},
        [
            "spec.queues: is a map, not a list; start each item with a dash (-)",
        ],
    ),
    "queues-too-many": (
        {"spec.queues": [{"name": f"q{index}"} for index in range(33)]},
        [
            "spec.queues: has 33 items; keep at most 32 of them",
        ],
    ),
    "queue-text": (
        {"spec.queues": ["mail"]},
        [
            'spec.queues[0]: "mail" is a string, not a map; write a map',
        ],
    ),
    "queue-name-missing": (
        {"spec.queues": [{"priority": 1}]},
        [
            (
                "spec.queues[0].name: is missing; add it: Name of the RQ queue, as the "
                "application enqueues to it"
            ),
        ],
    ),
    "queue-name-empty": (
        {"spec.queues[0].name": ""},
        [
            (
                "spec.queues[0].name: is empty; write it: Name of the RQ queue, as the "
                "application enqueues to it"
            ),
        ],
    ),
    "queue-name-space": (
        {"spec.queues[0].name": "mail eu"},
        [
            (
                'spec.queues[0].name: "mail eu" is not a name of a queue; leave out spaces, '
                "commas and curly brackets"
            ),
        ],
    ),
    "queue-name-number": (
        {"spec.queues[0].name": 5},
        [
            'spec.queues[0].name: 5 is a whole number, not a string; write "5", in quotes',
        ],
    ),
    "queue-twice": (
        {"spec.queues": [{"name": "mail"}, {"name": "mail"}]},
        [
            (
                'spec.queues[1].name: "mail" is already the name of spec.queues[0]; give '
                "each item a name of its own"
            ),
        ],
    ),
    "queue-priority-too-high": (
        {"spec.queues[0].priority": 1001},
        [
            ("spec.queues[0].priority: 1001 is more than 1000; write a number from -1000 to 1000"),
        ],
    ),
    "queue-priority-text": (
        {"spec.queues[0].priority": "1"},
        [
            (
                'spec.queues[0].priority: "1" is a string, not a whole number; write 1 '
                "without quotes"
            ),
        ],
    ),
    "queue-priority-fraction": (
        {"spec.queues[0].priority": 1.5},
        [
            (
                "spec.queues[0].priority: 1.5 is a number with a fraction, not a whole "
                "number; write a whole number"
            ),
        ],
    ),
    "strategy-case": (
        {"spec.dequeueStrategy": "roundrobin"},
        [
            (
                'spec.dequeueStrategy: "roundrobin" is not one of Priority, RoundRobin, '
                "Random; did you mean RoundRobin?"
            ),
        ],
    ),
    "strategy-unknown": (
        {"spec.dequeueStrategy": "Fifo"},
        [
            (
                'spec.dequeueStrategy: "Fifo" is not one of Priority, RoundRobin, Random; '
                "write one of Priority, RoundRobin, Random"
            ),
        ],
    ),
    "workers-zero": (
        {"spec.workersPerPod": 0},
        [
            "spec.workersPerPod: 0 is less than 1; write a number from 1 to 64",
        ],
    ),
    "workers-too-many": (
        {"spec.workersPerPod": 65},
        [
            "spec.workersPerPod: 65 is more than 64; write a number from 1 to 64",
        ],
    ),
    "suspend-text": (
        {"spec.suspend": "yes"},
        [
            (
                'spec.suspend: "yes" is a string, not true or false; write true or false, '
                "without quotes"
            ),
        ],
    ),
    "redis-without-secret": (
        {"spec.redis": {}},
        [
            (
                "spec.redis.urlSecretRef: is missing; add it: Secret key holding the URL: "
                "redis://, rediss:// or unix://, with credentials"
            ),
        ],
    ),
    "redis-url-in-plain": (
        {"spec.redis": {"url": "redis://a"}},
        [
            (
                "spec.redis.url: is not a known field; remove it; the fields here are tls, "
                "urlSecretRef"
            ),
            (
                "spec.redis.urlSecretRef: is missing; add it: Secret key holding the URL: "
                "redis://, rediss:// or unix://, with credentials"
            ),
        ],
    ),
    "redis-secret-name": (
        {"spec.redis": {"urlSecretRef": {"name": "Redis_URL", "key": "url"}}},
        [
            (
                'spec.redis.urlSecretRef.name: "Redis_URL" is not the name of an object; '
                "write lower-case letters, digits, '-' and '.', with a letter or digit at "
                "both ends"
            ),
        ],
    ),
    "redis-secret-key": (
        {"spec.redis": {"urlSecretRef": {"name": "redis", "key": "the url"}}},
        [
            (
                'spec.redis.urlSecretRef.key: "the url" is not a key of a Secret; write '
                "letters, digits, '-', '_' and '.'"
            ),
        ],
    ),
    "redis-other-namespace": (
        {"spec.redis": {"urlSecretRef": {"name": "redis", "key": "url", "namespace": "other"}}},
        [
            (
                "spec.redis.urlSecretRef.namespace: is not a known field; remove it; the "
                "fields here are key, name"
            ),
        ],
    ),
    "replicas-negative": (
        {"spec.replicas": -1},
        [
            "spec.replicas: -1 is less than 0; write a number from 0 to 10000",
        ],
    ),
    "replicas-text": (
        {"spec.replicas": "3"},
        [
            'spec.replicas: "3" is a string, not a whole number; write 3 without quotes',
        ],
    ),
    "replicas-beside-autoscaling": (
        {"spec.replicas": 3, AUTO: {}},
        [
            "spec.replicas: conflicts with spec.autoscaling; remove one of the two",
        ],
    ),
    "min-above-max": (
        {AUTO: {"minReplicas": 5, "maxReplicas": 3}},
        [
            (
                "spec.autoscaling.minReplicas: 5 is more than maxReplicas (3); lower it or "
                "raise maxReplicas"
            ),
        ],
    ),
    "min-above-default-max": (
        {AUTO: {"minReplicas": 11}},
        [
            (
                "spec.autoscaling.minReplicas: 11 is more than maxReplicas (10); lower it or "
                "raise maxReplicas"
            ),
        ],
    ),
    "max-zero": (
        {AUTO: {"maxReplicas": 0}},
        [
            "spec.autoscaling.maxReplicas: 0 is less than 1; write a number from 1 to 10000",
        ],
    ),
    "max-typo": (
        {AUTO: {"maxReplica": 5}},
        [
            "spec.autoscaling.maxReplica: is not a known field; did you mean maxReplicas?",
        ],
    ),
    "latency-without-unit": (
        {AUTO: {"targetLatency": 30}},
        [
            (
                "spec.autoscaling.targetLatency: 30 is a whole number, not a string; write a "
                "number and its unit (ms, s, m, h or d), such as 30s or 1h30m"
            ),
        ],
    ),
    "latency-unit": (
        {AUTO: {"targetLatency": "30 sec"}},
        [
            (
                'spec.autoscaling.targetLatency: "30 sec" is not a duration; write a number '
                "and its unit (ms, s, m, h or d), such as 30s or 1h30m"
            ),
        ],
    ),
    "latency-zero": (
        {AUTO: {"targetLatency": "0s"}},
        [
            ('spec.autoscaling.targetLatency: "0s" is zero; write more than zero, such as 30s'),
        ],
    ),
    "latency-too-long": (
        {AUTO: {"targetLatency": "9999d"}},
        [
            ('spec.autoscaling.targetLatency: "9999d" is longer than a year; write 365d or less'),
        ],
    ),
    "latency-and-backlog": (
        {AUTO: {"targetLatency": "10s", "targetBacklogPerWorker": 5}},
        [
            (
                "spec.autoscaling.targetBacklogPerWorker: conflicts with targetLatency; "
                "remove one of the two"
            ),
        ],
    ),
    "queue-latency-and-backlog": (
        {"spec.queues[0].targetLatency": "5s", AUTO: {"targetBacklogPerWorker": 5}},
        [
            (
                "spec.queues[0].targetLatency: is set, but the pool scales by "
                "targetBacklogPerWorker; remove one of the two"
            ),
        ],
    ),
    "backlog-zero": (
        {AUTO: {"targetBacklogPerWorker": 0}},
        [
            (
                "spec.autoscaling.targetBacklogPerWorker: 0 is less than 1; write a number "
                "from 1 to 1000000"
            ),
        ],
    ),
    "pause-typo": (
        {AUTO: {"pause": "ScaleDown"}},
        [
            (
                'spec.autoscaling.pause: "ScaleDown" is not one of None, All, ScaleIn, '
                "ScaleOut; did you mean ScaleIn?"
            ),
        ],
    ),
    "pause-boolean": (
        {AUTO: {"pause": True}},
        [
            (
                "spec.autoscaling.pause: true is a boolean, not a string; write one of None, "
                "All, ScaleIn, ScaleOut"
            ),
        ],
    ),
    "pods-per-minute-zero": (
        {AUTO: {"scaleDown": {"maxPodsPerMinute": 0}}},
        [
            (
                "spec.autoscaling.scaleDown.maxPodsPerMinute: 0 is less than 1; write a "
                "number from 1 to 10000"
            ),
        ],
    ),
    "schedule-twice": (
        {
            AUTO: {
                "schedules": [
                    {"name": "a", "cron": "0 8 * * *", "minReplicas": 1},
                    {"name": "a", "cron": "0 8 * * *", "minReplicas": 1},
                ]
            }
        },
        [
            (
                'spec.autoscaling.schedules[1].name: "a" is already the name of '
                "spec.autoscaling.schedules[0]; give each item a name of its own"
            ),
        ],
    ),
    "schedule-min-missing": (
        {AUTO: {"schedules": [{"name": "a", "cron": "0 8 * * *"}]}},
        [
            (
                "spec.autoscaling.schedules[0].minReplicas: is missing; add it: Smallest "
                "size during the peak"
            ),
        ],
    ),
    "schedule-min-above-max": (
        {AUTO: {"schedules": [{"name": "a", "cron": "0 8 * * *", "minReplicas": 50}]}},
        [
            (
                "spec.autoscaling.schedules[0].minReplicas: 50 is more than maxReplicas "
                "(10); lower it or raise maxReplicas"
            ),
        ],
    ),
    "schedule-name": (
        {AUTO: {"schedules": [{"name": "A B", "cron": "0 8 * * *", "minReplicas": 1}]}},
        [
            (
                'spec.autoscaling.schedules[0].name: "A B" is not a valid name; write '
                "lower-case letters, digits and dashes, with a letter or digit at both ends"
            ),
        ],
    ),
    "cron-four-fields": (
        {AUTO: {"schedules": [{"name": "a", "cron": "0 8 * *", "minReplicas": 1}]}},
        [
            (
                'spec.autoscaling.schedules[0].cron: "0 8 * *" has 4 fields, not 5; write '
                "five fields, such as 0 8 * * 1-5 (minute, hour, day, month, weekday)"
            ),
        ],
    ),
    "cron-six-fields": (
        {AUTO: {"schedules": [{"name": "a", "cron": "0 0 8 * * *", "minReplicas": 1}]}},
        [
            (
                'spec.autoscaling.schedules[0].cron: "0 0 8 * * *" has 6 fields, not 5; '
                "write five fields, such as 0 8 * * 1-5 (minute, hour, day, month, weekday)"
            ),
        ],
    ),
    "cron-nickname": (
        {AUTO: {"schedules": [{"name": "a", "cron": "@daily", "minReplicas": 1}]}},
        [
            ('spec.autoscaling.schedules[0].cron: "@daily" is a nickname; write 0 0 * * *'),
        ],
    ),
    "schedule-says-no-time": (
        {"spec.schedules": [{"name": "a", "function": "shop.jobs.report"}]},
        ["spec.schedules[0]: says no time; add one of cron, every and at"],
    ),
    "schedule-says-two-times": (
        {
            "spec.schedules": [
                {"name": "a", "cron": "0 3 * * *", "every": "1h", "function": "shop.jobs.report"}
            ]
        },
        ["spec.schedules[0].every: conflicts with cron; keep one of cron, every and at"],
    ),
    "schedule-words": (
        {
            "spec.schedules": [
                {
                    "name": "a",
                    "cron": "0 3 * * TUES",
                    "timeZone": "Europe/Berln",
                    "queue": "mal",
                    "function": "report",
                }
            ]
        },
        [
            (
                'spec.schedules[0].function: "report" is not the dotted path of a function; write '
                "package.module.function, as the workers import it"
            ),
            'spec.schedules[0].cron: "0 3 * * TUES" is not a cron line; did you mean TUE?',
            (
                'spec.schedules[0].timeZone: "Europe/Berln" is not a time zone; did you mean '
                "Europe/Berlin?"
            ),
            'spec.schedules[0].queue: "mal" is none of the pool\'s queues; did you mean mail?',
        ],
    ),
    "schedule-lengths": (
        {
            "spec.schedules": [
                {
                    "name": "a",
                    "every": "500ms",
                    "jitter": "1s",
                    "timeout": "1500ms",
                    "function": "shop.jobs.report",
                    "timeZone": "UTC",
                    "retry": {"max": 2, "intervals": ["10s", "1ms"]},
                }
            ]
        },
        [
            "spec.schedules[0].timeZone: conflicts with every; remove it: only cron has a zone",
            'spec.schedules[0].every: "500ms" is shorter than a second; write 1s or more',
            'spec.schedules[0].jitter: "1s" is not less than every; write less',
            (
                'spec.schedules[0].timeout: "1500ms" is not in whole seconds; write whole seconds, '
                "1s or more"
            ),
            (
                'spec.schedules[0].retry.intervals[1]: "1ms" is not in whole seconds; write whole '
                "seconds, 0s or more"
            ),
        ],
    ),
    "schedule-at": (
        {
            "spec.schedules": [
                {"name": "a", "at": "2026-02-30T08:00:00Z", "jitter": "1s", "function": "a.b"},
                {"name": "b", "at": "tomorrow", "function": "a.b"},
            ]
        },
        [
            (
                'spec.schedules[1].at: "tomorrow" is not a time with its offset; write it such as '
                "2026-03-01T08:00:00+01:00 or ...Z"
            ),
            (
                'spec.schedules[0].at: "2026-02-30T08:00:00Z" is no time that exists; correct '
                "the day or hour"
            ),
            "spec.schedules[0].jitter: conflicts with at; remove it",
        ],
    ),
    "schedule-arguments-too-large": (
        {
            "spec.schedules": [
                {"name": "a", "every": "1h", "function": "a.b", "kwargs": {"text": "x" * 9000}}
            ]
        },
        [
            (
                "spec.schedules[0].args: and kwargs have 9018 bytes of JSON, more than 8192; store "
                "the data elsewhere and pass its key"
            )
        ],
    ),
    "declared-schedule-twice": (
        {"spec.schedules": [{"name": "a", "every": "1h", "function": "a.b"}] * 2},
        [
            (
                'spec.schedules[1].name: "a" is already the name of spec.schedules[0]; give each '
                "item a name of its own"
            )
        ],
    ),
    "cron-out-of-range": (
        {AUTO: {"schedules": [{"name": "a", "cron": "61 8 * * *", "minReplicas": 1}]}},
        [
            (
                'spec.autoscaling.schedules[0].cron: "61 8 * * *" is not a cron line; write '
                "five fields, such as 0 8 * * 1-5 (minute, hour, day, month, weekday)"
            ),
        ],
    ),
    "cron-words": (
        {
            AUTO: {
                "schedules": [{"name": "a", "cron": "every day at eight o'clock", "minReplicas": 1}]
            }
        },
        [
            (
                'spec.autoscaling.schedules[0].cron: "every day at eight o\'clock" is not a '
                "cron line; write five fields, such as 0 8 * * 1-5 (minute, hour, day, "
                "month, weekday)"
            ),
        ],
    ),
    "cron-hashed": (
        {AUTO: {"schedules": [{"name": "a", "cron": "H 8 * * *", "minReplicas": 1}]}},
        [
            (
                'spec.autoscaling.schedules[0].cron: "H 8 * * *" uses H or R; write fixed '
                "times, such as 0 8 * * 1-5 (minute, hour, day, month, weekday)"
            ),
        ],
    ),
    "cron-never": (
        {AUTO: {"schedules": [{"name": "a", "cron": "0 0 30 2 *", "minReplicas": 1}]}},
        [
            (
                'spec.autoscaling.schedules[0].cron: "0 0 30 2 *" names a day that never '
                "comes; choose a day that the month has"
            ),
        ],
    ),
    "zone-typo": (
        {
            AUTO: {
                "schedules": [
                    {"name": "a", "cron": "0 8 * * *", "timeZone": "Europe/Berln", "minReplicas": 1}
                ]
            }
        },
        [
            (
                'spec.autoscaling.schedules[0].timeZone: "Europe/Berln" is not a time zone; '
                "did you mean Europe/Berlin?"
            ),
        ],
    ),
    "zone-path": (
        {
            AUTO: {
                "schedules": [
                    {
                        "name": "a",
                        "cron": "0 8 * * *",
                        "timeZone": "../../etc/passwd",
                        "minReplicas": 1,
                    }
                ]
            }
        },
        [
            (
                'spec.autoscaling.schedules[0].timeZone: "../../etc/passwd" is not a time '
                "zone; write an IANA name such as Europe/Berlin"
            ),
        ],
    ),
    "schedule-duration-zero": (
        {
            AUTO: {
                "schedules": [
                    {"name": "a", "cron": "0 8 * * *", "duration": "0m", "minReplicas": 1}
                ]
            }
        },
        [
            (
                'spec.autoscaling.schedules[0].duration: "0m" is zero; write more '
                "than zero, such as 30s"
            ),
        ],
    ),
    "drain-zero": (
        {"spec.drain": {"maxJobDuration": "0s"}},
        [
            ('spec.drain.maxJobDuration: "0s" is zero; write more than zero, such as 30s'),
        ],
    ),
    "drain-milliseconds": (
        {"spec.drain": {"maxJobDuration": "500ms"}},
        [
            'spec.drain.maxJobDuration: "500ms" is shorter than a second; write 1s or more',
        ],
    ),
    "deadline-typo": (
        {"spec.drain": {"onDeadline": "Retry"}},
        [
            (
                'spec.drain.onDeadline: "Retry" is not one of Requeue, Fail; write one of '
                "Requeue, Fail"
            ),
        ],
    ),
    "orphans": (
        {"spec.recovery": {"requeueOrphans": "always"}},
        [
            (
                'spec.recovery.requeueOrphans: "always" is not one of FollowRetry, Always, '
                "Never; did you mean Always?"
            ),
        ],
    ),
    "poison-threshold": (
        {"spec.recovery": {"poisonThreshold": 0}},
        [
            "spec.recovery.poisonThreshold: 0 is less than 1; write a number from 1 to 100",
        ],
    ),
    "dead-letter-zero": (
        {"spec.deadLetter": {"ttl": "0d"}},
        [
            'spec.deadLetter.ttl: "0d" is zero; write more than zero, such as 30s',
        ],
    ),
    "dead-letter-max": (
        {"spec.deadLetter": {"maxJobs": 0}},
        [
            "spec.deadLetter.maxJobs: 0 is less than 1; write a number from 1 to 10000000",
        ],
    ),
    "sizing-off-unquoted": (
        {"spec.rightSizing": {"mode": False}},
        [
            ('spec.rightSizing.mode: Off without quotes is read as false; write "Off", in quotes'),
        ],
    ),
    "sizing-quantity": (
        {"spec.rightSizing": {"minAllowed": {"cpu": "half"}}},
        [
            (
                'spec.rightSizing.minAllowed.cpu: "half" is not a quantity; write a '
                "Kubernetes quantity such as 500m, 2, 256Mi or 1Gi"
            ),
        ],
    ),
    "sizing-resource": (
        {"spec.rightSizing": {"maxAllowed": {"mem": "1Gi"}}},
        [
            (
                "spec.rightSizing.maxAllowed.mem: is not a resource that is sized; write cpu "
                "or memory"
            ),
        ],
    ),
    "sizing-min-above-max": (
        {"spec.rightSizing": {"minAllowed": {"memory": "2Gi"}, "maxAllowed": {"memory": "512Mi"}}},
        [
            (
                'spec.rightSizing.minAllowed.memory: "2Gi" is more than maxAllowed '
                '("512Mi"); lower it or raise maxAllowed'
            ),
        ],
    ),
    "sizing-zero": (
        {"spec.rightSizing": {"minAllowed": {"cpu": 0}}},
        [
            "spec.rightSizing.minAllowed.cpu: 0 is not more than zero; write more than zero",
        ],
    ),
    "fallback-without-size": (
        {"spec.metricOutage": {"mode": "Fallback"}},
        [
            "spec.metricOutage.mode: Fallback needs a size; set replicas, too",
        ],
    ),
    "size-without-fallback": (
        {"spec.metricOutage": {"replicas": 3}},
        [
            (
                "spec.metricOutage.replicas: is set, but mode is KeepReplicas; write mode: "
                "Fallback or remove it"
            ),
        ],
    ),
    "fallback-outside": (
        {AUTO: {"maxReplicas": 5}, "spec.metricOutage": {"mode": "Fallback", "replicas": 9}},
        [
            (
                "spec.metricOutage.replicas: 9 is outside minReplicas (0) and maxReplicas "
                "(5); write a number between them"
            ),
        ],
    ),
    "template-missing": (
        {"spec.template": ...},
        [
            (
                "spec.template: is missing; add it: PodTemplateSpec with the application's "
                "own image. The container named `worker`, or else the first one, runs the workers; "
                "it needs only Python and RQ"
            ),
        ],
    ),
    "template-list": (
        {"spec.template": []},
        [
            "spec.template: is a list, not a map; write a map",
        ],
    ),
    "template-empty": (
        {"spec.template": {}},
        [
            "spec.template.spec: is missing; add it with the application's container",
        ],
    ),
    "template-misplaced": (
        {"spec.template": {"containers": [{"name": "a", "image": "b:1"}]}},
        [
            (
                "spec.template.containers: is a field of the pod's spec; move it to "
                "spec.template.spec.containers"
            ),
        ],
    ),
    "containers-missing": (
        {POD: {}},
        [
            "spec.template.spec.containers: is missing; add it",
        ],
    ),
    "containers-empty": (
        {f"{POD}.containers": []},
        [
            (
                "spec.template.spec.containers: is empty; add the application's container, "
                "with its image"
            ),
        ],
    ),
    "containers-map": (
        {f"{POD}.containers": {"name": "worker"}},
        [
            (
                "spec.template.spec.containers: is a map, not a list; start each item with a "
                "dash (-)"
            ),
        ],
    ),
    "container-null": (
        {f"{POD}.containers": [None]},
        [
            "spec.template.spec.containers[0]: is nothing, not a map; write a map",
        ],
    ),
    "container-name-missing": (
        {f"{CONTAINER}.name": ...},
        [
            "spec.template.spec.containers[0].name: is missing; add it",
        ],
    ),
    "container-name": (
        {f"{CONTAINER}.name": "My_Worker"},
        [
            (
                'spec.template.spec.containers[0].name: "My_Worker" is not a valid name; '
                "write at most 63 lower-case letters, digits and dashes"
            ),
        ],
    ),
    "container-twice": (
        {f"{POD}.containers[1]": {"name": "worker", "image": "b:1"}},
        [
            (
                'spec.template.spec.containers[1].name: "worker" is already the name of '
                "spec.template.spec.containers[0]; give each item a name of its own"
            ),
        ],
    ),
    "init-container-same-name": (
        {f"{POD}.initContainers": [{"name": "worker", "image": "b:1"}]},
        [
            (
                'spec.template.spec.initContainers[0].name: "worker" is already the name of '
                "spec.template.spec.containers[0]; choose another"
            ),
        ],
    ),
    "image-missing": (
        {f"{CONTAINER}.image": ...},
        [
            (
                "spec.template.spec.containers[0].image: is missing; add the image of your "
                "application"
            ),
        ],
    ),
    "image-space": (
        {f"{CONTAINER}.image": "shop :1"},
        [
            ('spec.template.spec.containers[0].image: "shop :1" contains white space; remove it'),
        ],
    ),
    "pod-field-typo": (
        {f"{POD}.containrs": []},
        [
            "spec.template.spec.containrs: is not a known field; did you mean containers?",
        ],
    ),
    "container-field-typo": (
        {f"{CONTAINER}.resource": {}},
        [
            (
                "spec.template.spec.containers[0].resource: is not a known field; did you "
                "mean resources?"
            ),
        ],
    ),
    "probe-field-typo": (
        {f"{CONTAINER}.startupProbe": {"httpGet": {"port": 1, "pth": "/"}}},
        [
            (
                "spec.template.spec.containers[0].startupProbe.httpGet.pth: is not a known "
                "field; did you mean path?"
            ),
        ],
    ),
    "env-number": (
        {f"{CONTAINER}.env": [{"name": "LEVEL", "value": 5}]},
        [
            (
                "spec.template.spec.containers[0].env[0].value: the value is a whole number, "
                "not a string; put it in quotes"
            ),
        ],
    ),
    "env-twice": (
        {f"{CONTAINER}.env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]},
        [
            (
                'spec.template.spec.containers[0].env[1].name: "A" is already the name of '
                "spec.template.spec.containers[0].env[0]; give each item a name of its own"
            ),
        ],
    ),
    "env-map": (
        {f"{CONTAINER}.env": {"A": "1"}},
        [
            (
                "spec.template.spec.containers[0].env: is a map, not a list; start each item "
                "with a dash (-)"
            ),
        ],
    ),
    "env-both": (
        {
            f"{CONTAINER}.env": [
                {
                    "name": "A",
                    "value": "1",
                    "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}},
                }
            ]
        },
        [
            (
                "spec.template.spec.containers[0].env[0].valueFrom: conflicts with value; "
                "remove one of the two"
            ),
        ],
    ),
    "pull-policy": (
        {f"{CONTAINER}.imagePullPolicy": "IfNotPresnt"},
        [
            (
                'spec.template.spec.containers[0].imagePullPolicy: "IfNotPresnt" is not one '
                "of Always, IfNotPresent, Never; did you mean IfNotPresent?"
            ),
        ],
    ),
    "port-range": (
        {f"{CONTAINER}.ports": [{"containerPort": 70000}]},
        [
            (
                "spec.template.spec.containers[0].ports[0].containerPort: 70000 is not a "
                "port; write a number from 1 to 65535"
            ),
        ],
    ),
    "quantity": (
        {f"{CONTAINER}.resources": {"limits": {"memory": "1GB"}}},
        [
            (
                'spec.template.spec.containers[0].resources.limits.memory: "1GB" is not a '
                "quantity; write a Kubernetes quantity such as 500m, 2, 256Mi or 1Gi"
            ),
        ],
    ),
    "request-above-limit": (
        {f"{CONTAINER}.resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}},
        [
            (
                'spec.template.spec.containers[0].resources.requests.cpu: "2" is more than '
                'the limit ("1"); lower it or raise the limit'
            ),
        ],
    ),
    "mount-of-nothing": (
        {f"{CONTAINER}.volumeMounts": [{"name": "data", "mountPath": "/data"}]},
        [
            (
                'spec.template.spec.containers[0].volumeMounts[0].name: "data" is not among '
                "the volumes; add it to spec.template.spec.volumes"
            ),
        ],
    ),
    "volume-without-source": (
        {f"{POD}.volumes": [{"name": "data"}]},
        [
            (
                "spec.template.spec.volumes[0]: says nothing of where it comes from; add "
                "emptyDir: {}"
            ),
        ],
    ),
    "volume-two-sources": (
        {f"{POD}.volumes": [{"name": "data", "emptyDir": {}, "configMap": {"name": "a"}}]},
        [
            (
                "spec.template.spec.volumes[0]: has 2 sources; keep one and make volumes of "
                "the others"
            ),
        ],
    ),
    "label-value": (
        {"spec.template.metadata": {"labels": {"team": "a b"}}},
        [
            (
                'spec.template.metadata.labels.team: "a b" is not a valid label value; write '
                "at most 63 letters, digits, '-', '_' and '.', with a letter or digit at "
                "both ends"
            ),
        ],
    ),
    "label-key": (
        {"spec.template.metadata": {"labels": {"-team": "a"}}},
        [
            (
                'spec.template.metadata.labels["-team"]: is not a valid key; write a name of '
                "letters, digits, '-', '_' and '.', if need be after a domain and a slash"
            ),
        ],
    ),
    "label-number": (
        {"spec.template.metadata": {"labels": {"version": 1.2}}},
        [
            (
                "spec.template.metadata.labels.version: 1.2 is a number with a fraction, not "
                'a string; write "1.2", in quotes'
            ),
        ],
    ),
    "template-too-large": (
        {f"{CONTAINER}.env": [{"name": "BIG", "value": "x" * 70000}]},
        [
            (
                "spec.template: has 70094 bytes; keep it to at most 65536; put files into a "
                "ConfigMap or the image"
            ),
        ],
    ),
    "args": (
        {f"{CONTAINER}.args": ["worker", "mail"]},
        [
            (
                "spec.template.spec.containers[0].args: is set, but Engineroom starts the "
                "workers in this container; remove it; command may name the Python "
                "interpreter"
            ),
        ],
    ),
    "command-rq": (
        {f"{CONTAINER}.command": ["rq", "worker"]},
        [
            (
                "spec.template.spec.containers[0].command: starts something of its own, but "
                "`-m engineroom_worker` is put behind it; write only the Python interpreter, "
                'such as ["/venv/bin/python"], or remove it'
            ),
        ],
    ),
    "command-shell": (
        {f"{CONTAINER}.command": ["sh", "-c", "rq worker mail"]},
        [
            (
                "spec.template.spec.containers[0].command: starts something of its own, but "
                "`-m engineroom_worker` is put behind it; write only the Python interpreter, "
                'such as ["/venv/bin/python"], or remove it'
            ),
        ],
    ),
    "pre-stop": (
        {f"{CONTAINER}.lifecycle": {"preStop": {"exec": {"command": ["sleep", "5"]}}}},
        [
            (
                "spec.template.spec.containers[0].lifecycle.preStop: would run before the "
                "worker is told to finish, out of its grace period; remove it; the runtime "
                "finishes its job when the pod ends"
            ),
        ],
    ),
    "restart-policy": (
        {f"{POD}.restartPolicy": "Never"},
        [
            (
                'spec.template.spec.restartPolicy: "Never" would leave the pool without a '
                "worker that ended; remove it or write Always"
            ),
        ],
    ),
    "restart-policy-typo": (
        {f"{POD}.restartPolicy": "always"},
        [
            (
                'spec.template.spec.restartPolicy: "always" is not one of Always, OnFailure, '
                "Never; did you mean Always?"
            ),
        ],
    ),
    "grace-too-short": (
        {f"{POD}.terminationGracePeriodSeconds": 30},
        [
            (
                "spec.template.spec.terminationGracePeriodSeconds: 30 is shorter than "
                "spec.drain.maxJobDuration (3600 s), so jobs would be killed; remove it "
                "(Engineroom sets it) or lower spec.drain.maxJobDuration"
            ),
        ],
    ),
    "deadline-of-pod": (
        {f"{POD}.activeDeadlineSeconds": 600},
        [
            (
                "spec.template.spec.activeDeadlineSeconds: would kill workers with a job in "
                "hand; remove it; spec.drain.maxJobDuration bounds jobs"
            ),
        ],
    ),
    "node-name": (
        {f"{POD}.nodeName": "node-1"},
        [
            (
                "spec.template.spec.nodeName: ties every worker to one node, past the "
                "scheduler; use nodeSelector or affinity"
            ),
        ],
    ),
    "ephemeral": (
        {f"{POD}.ephemeralContainers": [{"name": "debug", "image": "b:1"}]},
        [
            (
                "spec.template.spec.ephemeralContainers: cannot be part of a template; "
                "remove it; kubectl debug adds them to a running pod"
            ),
        ],
    ),
    "python-path-from": (
        {
            f"{CONTAINER}.env": [
                {"name": "PYTHONPATH", "valueFrom": {"configMapKeyRef": {"name": "a", "key": "b"}}}
            ]
        },
        [
            (
                "spec.template.spec.containers[0].env[0].valueFrom: cannot be joined with "
                "the runtime's own PYTHONPATH; write a plain value"
            ),
        ],
    ),
    "own-container": (
        {f"{POD}.initContainers": [{"name": "engineroom-runtime", "image": "b:1"}]},
        [
            (
                'spec.template.spec.initContainers[0].name: "engineroom-runtime" is '
                "Engineroom's own container; choose another name"
            ),
        ],
    ),
    "own-volume": (
        {f"{POD}.volumes": [{"name": "engineroom-runtime", "emptyDir": {}}]},
        [
            (
                'spec.template.spec.volumes[0].name: "engineroom-runtime" is a name of '
                "Engineroom's own volumes; choose another"
            ),
        ],
    ),
    "own-variable": (
        {f"{CONTAINER}.env": [{"name": "ENGINEROOM_QUEUES", "value": "[]"}]},
        [
            (
                'spec.template.spec.containers[0].env[0].name: "ENGINEROOM_QUEUES" is set by '
                "Engineroom itself; choose a name that does not begin with ENGINEROOM_"
            ),
        ],
    ),
    "own-folder": (
        {
            f"{POD}.volumes": [{"name": "data", "emptyDir": {}}],
            f"{CONTAINER}.volumeMounts": [{"name": "data", "mountPath": "/engineroom/"}],
        },
        [
            (
                'spec.template.spec.containers[0].volumeMounts[0].mountPath: "/engineroom/" '
                "is Engineroom's own folder; choose another"
            ),
        ],
    ),
    "own-label": (
        {"spec.template.metadata": {"labels": {"engineroom.dev/pool": "other"}}},
        [
            (
                'spec.template.metadata.labels["engineroom.dev/pool"]: is set by Engineroom '
                "itself; remove it"
            ),
        ],
    ),
    "own-annotation": (
        {
            "spec.template.metadata": {
                "annotations": {"controller.kubernetes.io/pod-deletion-cost": "5"}
            }
        },
        [
            (
                ""
                'spec.template.metadata.annotations["controller.kubernetes.io/pod-deletion-cost"]: '
                "is set by Engineroom itself; remove it"
            ),
        ],
    ),
    "own-port": (
        {
            f"{POD}.containers[1]": {
                "name": "side",
                "image": "b:1",
                "ports": [{"containerPort": 9477}],
            }
        },
        [
            (
                "spec.template.spec.containers[1].ports[0].containerPort: 9477 is the port "
                "of the worker's metrics; choose another"
            ),
        ],
    ),
    "finalizer": (
        {"spec.template.metadata": {"finalizers": ["a.dev/b"]}},
        [
            "spec.template.metadata.finalizers: has no meaning in a pod template; remove it",
        ],
    ),
    "host-network": (
        {f"{POD}.hostNetwork": True},
        [
            (
                "spec.template.spec.hostNetwork: is true, which Pod Security level "
                "restricted forbids; remove it, or label the namespace "
                "pod-security.kubernetes.io/enforce=privileged"
            ),
        ],
    ),
    "host-pid": (
        {f"{POD}.hostPID": True},
        [
            (
                "spec.template.spec.hostPID: is true, which Pod Security level restricted "
                "forbids; remove it, or label the namespace "
                "pod-security.kubernetes.io/enforce=privileged"
            ),
        ],
    ),
    "host-ipc": (
        {f"{POD}.hostIPC": True},
        [
            (
                "spec.template.spec.hostIPC: is true, which Pod Security level restricted "
                "forbids; remove it, or label the namespace "
                "pod-security.kubernetes.io/enforce=privileged"
            ),
        ],
    ),
    "host-path": (
        {f"{POD}.volumes": [{"name": "data", "hostPath": {"path": "/"}}]},
        [
            (
                "spec.template.spec.volumes[0].hostPath: mounts a folder of the node, which "
                "Pod Security level restricted forbids; use a persistentVolumeClaim or an "
                "emptyDir, or label the namespace "
                "pod-security.kubernetes.io/enforce=privileged"
            ),
        ],
    ),
    "volume-nfs": (
        {f"{POD}.volumes": [{"name": "data", "nfs": {"server": "a", "path": "/"}}]},
        [
            (
                "spec.template.spec.volumes[0].nfs: is a volume of kind nfs, which Pod "
                "Security level restricted forbids; use a persistentVolumeClaim or an "
                "emptyDir, or label the namespace "
                "pod-security.kubernetes.io/enforce=baseline"
            ),
        ],
    ),
    "host-port": (
        {f"{CONTAINER}.ports": [{"containerPort": 80, "hostPort": 80}]},
        [
            (
                "spec.template.spec.containers[0].ports[0].hostPort: is 80, which Pod "
                "Security level restricted forbids; remove it, or label the namespace "
                "pod-security.kubernetes.io/enforce=privileged"
            ),
        ],
    ),
    "privileged": (
        {f"{CONTAINER}.securityContext": {"privileged": True}},
        [
            (
                "spec.template.spec.containers[0].securityContext.privileged: is true, which "
                "Pod Security level restricted forbids; remove it, or label the namespace "
                "pod-security.kubernetes.io/enforce=privileged"
            ),
        ],
    ),
    "privilege-escalation": (
        {f"{CONTAINER}.securityContext": {"allowPrivilegeEscalation": True}},
        [
            (
                "spec.template.spec.containers[0].securityContext.allowPrivilegeEscalation: "
                "is true, which Pod Security level restricted forbids; remove it, or label "
                "the namespace pod-security.kubernetes.io/enforce=baseline"
            ),
        ],
    ),
    "run-as-root": (
        {f"{CONTAINER}.securityContext": {"runAsUser": 0}},
        [
            (
                "spec.template.spec.containers[0].securityContext.runAsUser: is 0 (root), "
                "which Pod Security level restricted forbids; write the number of another "
                "user, or remove it, or label the namespace "
                "pod-security.kubernetes.io/enforce=baseline"
            ),
        ],
    ),
    "pod-run-as-root": (
        {f"{POD}.securityContext": {"runAsUser": 0}},
        [
            (
                "spec.template.spec.securityContext.runAsUser: is 0 (root), which Pod "
                "Security level restricted forbids; write the number of another user, or "
                "remove it, or label the namespace "
                "pod-security.kubernetes.io/enforce=baseline"
            ),
        ],
    ),
    "run-as-non-root-false": (
        {f"{POD}.securityContext": {"runAsNonRoot": False}},
        [
            (
                "spec.template.spec.securityContext.runAsNonRoot: is false, which Pod "
                "Security level restricted forbids; remove it, or label the namespace "
                "pod-security.kubernetes.io/enforce=baseline"
            ),
        ],
    ),
    "capability": (
        {f"{CONTAINER}.securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}},
        [
            (
                "spec.template.spec.containers[0].securityContext.capabilities.add[0]: adds "
                '"SYS_ADMIN", which Pod Security level restricted forbids; remove it, or '
                "label the namespace pod-security.kubernetes.io/enforce=privileged"
            ),
        ],
    ),
    "capability-baseline": (
        {
            f"{POD}.initContainers": [
                {
                    "name": "i",
                    "image": "b:1",
                    "securityContext": {"capabilities": {"add": ["CHOWN"]}},
                }
            ]
        },
        [
            (
                "spec.template.spec.initContainers[0].securityContext.capabilities.add[0]: "
                'adds "CHOWN", which Pod Security level restricted forbids; remove it, or '
                "label the namespace pod-security.kubernetes.io/enforce=baseline"
            ),
        ],
    ),
    "capabilities-kept": (
        {f"{CONTAINER}.securityContext": {"capabilities": {"drop": []}}},
        [
            (
                "spec.template.spec.containers[0].securityContext.capabilities.drop: leaves "
                "out ALL, which Pod Security level restricted forbids; write [ALL] or remove "
                "it (Engineroom drops all), or label the namespace "
                "pod-security.kubernetes.io/enforce=baseline"
            ),
        ],
    ),
    "seccomp": (
        {f"{POD}.securityContext": {"seccompProfile": {"type": "Unconfined"}}},
        [
            (
                "spec.template.spec.securityContext.seccompProfile.type: is Unconfined, "
                "which Pod Security level restricted forbids; write RuntimeDefault, or "
                "remove it, or label the namespace "
                "pod-security.kubernetes.io/enforce=privileged"
            ),
        ],
    ),
    "sysctl": (
        {f"{POD}.securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}},
        [
            (
                'spec.template.spec.securityContext.sysctls[0].name: sets "kernel.msgmax", '
                "which Pod Security level restricted forbids; remove it, or label the "
                "namespace pod-security.kubernetes.io/enforce=privileged"
            ),
        ],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_spec_is_told_in_exactly_these_words(name: str) -> None:
    changes, expected = WRONG[name]

    assert [str(problem) for problem in problems(pool(changes))] == expected


@pytest.mark.parametrize("name", WRONG)
def test_wrong_spec_does_not_parse(name: str) -> None:
    with pytest.raises(InvalidSpecError) as caught:
        parse(WorkerPool, pool(WRONG[name][0]))

    assert [str(problem) for problem in caught.value.problems] == WRONG[name][1]


def test_there_are_enough_of_them() -> None:
    assert len(WRONG) >= 60


def test_all_problems_are_told_at_once() -> None:
    found = problems(
        pool(
            {
                "metadata.name": "Mail",
                "spec.workersPerPod": 0,
                f"{CONTAINER}.args": ["worker"],
                f"{POD}.hostNetwork": True,
            }
        )
    )

    assert [problem.field for problem in found] == [
        "metadata.name",
        "spec.workersPerPod",
        f"{CONTAINER}.args",
        f"{POD}.hostNetwork",
    ]


@pytest.mark.parametrize(
    ("level", "changes"),
    [
        (PodSecurityLevel.PRIVILEGED, {f"{POD}.hostNetwork": True}),
        (PodSecurityLevel.PRIVILEGED, {f"{CONTAINER}.securityContext": {"privileged": True}}),
        (PodSecurityLevel.BASELINE, {f"{CONTAINER}.securityContext": {"runAsUser": 0}}),
        (PodSecurityLevel.PRIVILEGED, {f"{CONTAINER}.securityContext": {"runAsUser": 0}}),
    ],
)
def test_namespace_of_a_higher_level_lets_it_pass(
    level: PodSecurityLevel, changes: dict[str, Any]
) -> None:
    assert problems(pool(changes), ValidationContext(pod_security=level)) == []


def test_baseline_does_not_let_privileged_pass() -> None:
    found = problems(
        pool({f"{POD}.hostPID": True}), ValidationContext(pod_security=PodSecurityLevel.BASELINE)
    )

    assert [str(problem) for problem in found] == [
        (
            "spec.template.spec.hostPID: is true, which Pod Security level baseline forbids; "
            "remove it, or label the namespace pod-security.kubernetes.io/enforce=privileged"
        )
    ]
