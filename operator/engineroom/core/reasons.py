"""Reasons of conditions and events: one word for programs, documented once.

Constants only, so that whoever writes a condition and whoever waits for one use the same word.
``DESCRIPTIONS`` is what the reference in the documentation is made from.
"""

from __future__ import annotations

from typing import Final

# All is well.
RECONCILED: Final = "Reconciled"
WITHIN_RANGE: Final = "WithinRange"
NOT_DRAINING: Final = "NotDraining"

# Under way.
SCALING: Final = "Scaling"
SCALED_UP: Final = "ScaledUp"
SCALED_DOWN: Final = "ScaledDown"
DRAINING: Final = "Draining"
DRAIN_CANCELLED: Final = "DrainCancelled"
DELETING: Final = "Deleting"

# By the user's wish.
PAUSED: Final = "Paused"
SUSPENDED: Final = "Suspended"
RESUMED: Final = "Resumed"
MANUAL_SIZE: Final = "ManualSize"

# Limits.
AT_MAX_REPLICAS: Final = "AtMaxReplicas"
AT_MIN_REPLICAS: Final = "AtMinReplicas"
RATE_LIMITED: Final = "RateLimited"
QUOTA_EXCEEDED: Final = "QuotaExceeded"

# The spec or what it refers to.
INVALID_SPEC: Final = "InvalidSpec"
SECRET_NOT_FOUND: Final = "SecretNotFound"  # noqa: S105 # nosec B105 - a reason, not a secret
SECRET_KEY_NOT_FOUND: Final = "SecretKeyNotFound"  # noqa: S105 # nosec B105 - a reason, not a secret
SECRET_FORBIDDEN: Final = "SecretForbidden"  # noqa: S105 # nosec B105 - a reason, not a secret
REDIS_URL_INVALID: Final = "RedisUrlInvalid"
NAME_TAKEN: Final = "NameTaken"
SCHEDULE_NAME_TAKEN: Final = "ScheduleNameTaken"

# Redis.
REDIS_UNREACHABLE: Final = "RedisUnreachable"
REDIS_AUTH_FAILED: Final = "RedisAuthFailed"
REDIS_RECOVERED: Final = "RedisRecovered"
METRIC_OUTAGE: Final = "MetricOutage"

# Pods and jobs.
NO_RQ_IN_IMAGE: Final = "NoRqInImage"
IMAGE_PULL_FAILED: Final = "ImagePullFailed"
PODS_NOT_READY: Final = "PodsNotReady"
SCHEDULE_MISSED: Final = "ScheduleMissed"
JOB_REQUEUED: Final = "JobRequeued"
JOB_FAILED: Final = "JobFailed"
JOB_POISONED: Final = "JobPoisoned"
DEAD_LETTERS_DROPPED: Final = "DeadLettersDropped"
WORKER_LOST: Final = "WorkerLost"
WORKER_STUCK: Final = "WorkerStuck"
GHOST_WORKERS_CLEARED: Final = "GhostWorkersCleared"
WORKER_OUT_OF_MEMORY: Final = "WorkerOutOfMemory"
DEADLINE_EXCEEDED: Final = "DeadlineExceeded"

# Right-sizing.
MEASURING_USE: Final = "MeasuringUse"
METRICS_UNAVAILABLE: Final = "MetricsUnavailable"
RESOURCES_FIT: Final = "ResourcesFit"
RESOURCES_DIFFER: Final = "ResourcesDiffer"
RESIZED: Final = "Resized"
RESIZING: Final = "Resizing"
RESIZE_DEFERRED: Final = "ResizeDeferred"
RESIZE_INFEASIBLE: Final = "ResizeInfeasible"
RESIZE_FAILED: Final = "ResizeFailed"
RESIZE_REFUSED: Final = "ResizeRefused"
RESIZE_NEEDS_RESTART: Final = "ResizeNeedsRestart"
RESIZE_UNSUPPORTED: Final = "ResizeUnsupported"
# Rate limits; the first three are the Gateway API's own words.
ACCEPTED: Final = "Accepted"
CONFLICTED: Final = "Conflicted"
TARGET_NOT_FOUND: Final = "TargetNotFound"
PARTLY_CONFLICTED: Final = "PartlyConflicted"
PROGRAMMED: Final = "Programmed"
LAST_VALID: Final = "LastValid"
TOO_MANY_POLICIES: Final = "TooManyPolicies"
ENFORCED: Final = "Enforced"
AWAITING_ENFORCERS: Final = "AwaitingEnforcers"
NO_ENFORCERS: Final = "NoEnforcers"
ENFORCER_LOST: Final = "EnforcerLost"
FAILING_OPEN: Final = "FailingOpen"
FAILING_CLOSED: Final = "FailingClosed"
DECIDING_LOCALLY: Final = "DecidingLocally"
REDIS_DECIDES: Final = "RedisDecides"
NOT_PROGRAMMED: Final = "NotProgrammed"

# The cluster.
APPLY_REFUSED: Final = "ApplyRefused"

DESCRIPTIONS: Final[dict[str, str]] = {
    RECONCILED: "Everything is as the spec says.",
    WITHIN_RANGE: "The size that the work asks for is within minReplicas and maxReplicas.",
    NOT_DRAINING: "No pod is on its way out.",
    SCALING: "The number of ready pods is on its way to the number wanted.",
    SCALED_UP: "The pool was made larger; the message is the arithmetic.",
    SCALED_DOWN: "The pool was made smaller by pods that had drained.",
    DRAINING: "Pods finish the jobs they hold before they leave.",
    DRAIN_CANCELLED: "Demand came back; pods that were to leave take jobs again.",
    DELETING: "The object is being deleted and its pods finish their jobs.",
    PAUSED: "spec.autoscaling.pause holds the size.",
    SUSPENDED: "spec.suspend is true: workers stay and take no job.",
    RESUMED: "spec.suspend was lifted; workers take jobs again.",
    MANUAL_SIZE: "The size is spec.replicas; there is no spec.autoscaling.",
    AT_MAX_REPLICAS: "The work asks for more pods than maxReplicas.",
    AT_MIN_REPLICAS: "The work asks for fewer pods than minReplicas.",
    RATE_LIMITED: "The pool shrinks as fast as scaleDown.maxPodsPerMinute lets it.",
    QUOTA_EXCEEDED: "A ResourceQuota refuses more pods; raise it or lower maxReplicas.",
    INVALID_SPEC: "The spec breaks a rule; the message names field, problem and fix.",
    SECRET_NOT_FOUND: "A Secret that the spec refers to does not exist.",
    SECRET_KEY_NOT_FOUND: "The Secret exists but has no such key.",
    SECRET_FORBIDDEN: "The operator may not read the Secret; grant get in that namespace.",
    REDIS_URL_INVALID: "The value in the Secret is not a redis:// or rediss:// URL.",
    NAME_TAKEN: "An object of a needed name exists and belongs to somebody else.",
    SCHEDULE_NAME_TAKEN: "A schedule of that name in Redis belongs to somebody else.",
    REDIS_UNREACHABLE: "Redis does not answer; the size is held as metricOutage says.",
    REDIS_AUTH_FAILED: "Redis refuses the user or the password of the URL.",
    REDIS_RECOVERED: "Redis answers again.",
    METRIC_OUTAGE: "The queues cannot be measured, so the size does not follow them.",
    NO_RQ_IN_IMAGE: "The worker's image has no RQ that its Python can import.",
    IMAGE_PULL_FAILED: "An image of the pod template cannot be pulled.",
    PODS_NOT_READY: "Pods exist and do not become ready; the message says which and why.",
    SCHEDULE_MISSED: "Ticks of a schedule were not run in time and are not made up for.",
    JOB_REQUEUED: "A job whose worker was lost was put back into its queue.",
    JOB_FAILED: "A job whose worker was lost was marked as failed.",
    JOB_POISONED: "A job took its worker down too often and was set aside.",
    DEAD_LETTERS_DROPPED: "The oldest failed jobs beyond deadLetter.maxJobs were dropped.",
    WORKER_LOST: "A worker died with a job in hand.",
    WORKER_STUCK: "A worker hangs, or its job outlived its time-out; the message says which.",
    GHOST_WORKERS_CLEARED: "Workers that were on RQ's lists and are no more were taken off.",
    WORKER_OUT_OF_MEMORY: "A worker was killed for memory; more is recommended from now on.",
    DEADLINE_EXCEEDED: "A job outlived drain.maxJobDuration; onDeadline was applied.",
    MEASURING_USE: "Too little of the workers' use was seen to recommend resources.",
    METRICS_UNAVAILABLE: "There is no metrics API that answers; the workers said too little yet.",
    RESOURCES_FIT: "Requests and limits are what the workers' use suggests, give or take a tenth.",
    RESOURCES_DIFFER: "Use suggests other requests or limits; see status.recommendedResources.",
    RESIZED: "Pods were asked to take on the recommended resources, without a restart.",
    RESIZING: "The kubelet is changing the resources of pods.",
    RESIZE_DEFERRED: "A pod's node has no room for the recommended resources now; it waits.",
    RESIZE_INFEASIBLE: "A pod's node can never give the recommended resources; see maxAllowed.",
    RESIZE_FAILED: "The kubelet could not change a pod's resources yet and tries again.",
    RESIZE_REFUSED: "The API server refuses to resize a pod; the message is its own.",
    RESIZE_NEEDS_RESTART: "A container asks to be restarted for a resize, so it is left alone.",
    RESIZE_UNSUPPORTED: "This Kubernetes is too old to resize pods in place.",
    ACCEPTED: "The policy is valid and has what it is attached to for itself.",
    CONFLICTED: "An older policy is attached to the same, or another installation writes the "
    "policies of this namespace into the same Redis; the message says which.",
    TARGET_NOT_FOUND: "What the policy is attached to, or the section of it that is named, does "
    "not exist; it holds when it appears.",
    PARTLY_CONFLICTED: "An older policy has some of the targets; the others are this one's.",
    PROGRAMMED: "The policy is in the document that enforcers follow.",
    LAST_VALID: "The spec is invalid now; what enforcers follow is the last valid one.",
    TOO_MANY_POLICIES: "The namespace has more policies than one document holds; remove some.",
    ENFORCED: "Every live enforcer acknowledged the policy.",
    AWAITING_ENFORCERS: "Some live enforcer has not acknowledged the policy yet.",
    NO_ENFORCERS: "Nobody who can enforce the policy follows the namespace: nothing is limited.",
    ENFORCER_LOST: "An enforcer vanished without signing off; it may enforce something older.",
    FAILING_OPEN: "Redis does not decide in time, and meanwhile everything is admitted.",
    FAILING_CLOSED: "Redis does not decide in time, and meanwhile everything is refused with 503.",
    DECIDING_LOCALLY: "Redis does not decide in time; each enforcer admits its share by itself.",
    REDIS_DECIDES: "Redis decides in time.",
    NOT_PROGRAMMED: "The policy is not in the document that enforcers follow.",
    APPLY_REFUSED: "The API server refuses an object of the pool; the message is its own.",
}
