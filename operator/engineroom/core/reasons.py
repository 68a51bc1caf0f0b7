"""The reasons of conditions and events, as constants.

The reference documentation is generated from ``DESCRIPTIONS``.
"""

from __future__ import annotations

from typing import Final

# All is well.
RECONCILED: Final = "Reconciled"
WITHIN_RANGE: Final = "WithinRange"
NOT_DRAINING: Final = "NotDraining"

# Under way.
ROLLING_OUT: Final = "RollingOut"
SCALING: Final = "Scaling"
SCALED_UP: Final = "ScaledUp"
SCALED_DOWN: Final = "ScaledDown"
DRAINING: Final = "Draining"
DRAIN_CANCELLED: Final = "DrainCancelled"
DELETING: Final = "Deleting"

# Set by the user.
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
PROGRESS_DEADLINE_EXCEEDED: Final = "ProgressDeadlineExceeded"
SECRET_NOT_FOUND: Final = "SecretNotFound"  # noqa: S105 # nosec B105 - a reason, not a secret
SECRET_KEY_NOT_FOUND: Final = "SecretKeyNotFound"  # noqa: S105 # nosec B105 - a reason, not a secret
SECRET_FORBIDDEN: Final = "SecretForbidden"  # noqa: S105 # nosec B105 - a reason, not a secret
REDIS_URL_INVALID: Final = "RedisUrlInvalid"
REDIS_NOT_SHARED: Final = "RedisNotShared"
QUEUE_OWNED_ELSEWHERE: Final = "QueueOwnedElsewhere"
QUEUE_REQUESTED_ELSEWHERE: Final = "QueueRequestedElsewhere"
NAME_TAKEN: Final = "NameTaken"
AWAITING_DELETION: Final = "AwaitingDeletion"
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
    RECONCILED: "The state matches the spec.",
    WITHIN_RANGE: "The desired size is within minReplicas and maxReplicas.",
    NOT_DRAINING: "No pod is draining.",
    ROLLING_OUT: "The spec is coming into force; the message names what is awaited.",
    SCALING: "The number of ready pods is moving to the desired number.",
    SCALED_UP: "The pool grew; the message shows the calculation.",
    SCALED_DOWN: "The pool shrank by pods that had drained.",
    DRAINING: "Pods finish their running jobs before they stop.",
    DRAIN_CANCELLED: "Demand returned; draining pods take jobs again.",
    DELETING: "The object is being deleted and its pods finish their jobs.",
    PAUSED: "spec.autoscaling.pause fixes the size.",
    SUSPENDED: "spec.suspend is true: workers stay and take no job.",
    RESUMED: "spec.suspend was lifted; workers take jobs again.",
    MANUAL_SIZE: "The size is spec.replicas; there is no spec.autoscaling.",
    AT_MAX_REPLICAS: "The load needs more pods than maxReplicas.",
    AT_MIN_REPLICAS: "The load needs fewer pods than minReplicas.",
    RATE_LIMITED: "The pool shrinks at the limit of scaleDown.maxPodsPerMinute.",
    QUOTA_EXCEEDED: "A ResourceQuota refuses more pods; raise it or lower maxReplicas.",
    INVALID_SPEC: "The spec breaks a rule; the message names field, problem and fix.",
    PROGRESS_DEADLINE_EXCEEDED: "The spec did not come into force within 10 minutes; see message.",
    SECRET_NOT_FOUND: "A Secret that the spec refers to does not exist.",
    SECRET_KEY_NOT_FOUND: "The Secret exists but has no such key.",
    SECRET_FORBIDDEN: "The operator may not read the Secret; grant get in that namespace.",
    REDIS_URL_INVALID: "The value in the Secret is not a redis:// or rediss:// URL.",
    REDIS_NOT_SHARED: "The namespace lacks the label of the installation's Redis.",
    QUEUE_OWNED_ELSEWHERE: "Another namespace owns a queue of the pool on this Redis.",
    QUEUE_REQUESTED_ELSEWHERE: "A pool of another namespace names a queue that this one owns.",
    NAME_TAKEN: "An object with a needed name exists and has another owner; see message.",
    AWAITING_DELETION: "A needed name belongs to an object that is being deleted.",
    SCHEDULE_NAME_TAKEN: "A schedule with that name in Redis has another owner.",
    REDIS_UNREACHABLE: "Redis does not answer; metricOutage decides the size.",
    REDIS_AUTH_FAILED: "Redis refuses the user or the password of the URL.",
    REDIS_RECOVERED: "Redis answers again.",
    METRIC_OUTAGE: "The queues cannot be measured, so the size does not follow them.",
    NO_RQ_IN_IMAGE: "The worker's image has no RQ that its Python can import.",
    IMAGE_PULL_FAILED: "An image of the pod template cannot be pulled.",
    PODS_NOT_READY: "Pods do not become ready; the message names them and the cause.",
    SCHEDULE_MISSED: "A schedule missed ticks and will not run them later.",
    JOB_REQUEUED: "A job of a lost worker was put back into its queue.",
    JOB_FAILED: "A job of a lost worker was marked as failed.",
    JOB_POISONED: "A job crashed its worker too often and was set aside.",
    DEAD_LETTERS_DROPPED: "The oldest failed jobs beyond deadLetter.maxJobs were dropped.",
    WORKER_LOST: "A worker died while it ran a job.",
    WORKER_STUCK: "A worker hangs, or its job exceeded its timeout; the message says which.",
    GHOST_WORKERS_CLEARED: "Workers that no longer exist were removed from RQ's lists.",
    WORKER_OUT_OF_MEMORY: "A worker was killed for memory; the recommended memory rises.",
    DEADLINE_EXCEEDED: "A job exceeded drain.maxJobDuration; onDeadline was applied.",
    MEASURING_USE: "There is too little data on the workers' use to recommend resources.",
    METRICS_UNAVAILABLE: "No metrics API answers, and the workers reported too little yet.",
    RESOURCES_FIT: "Requests and limits are within a tenth of the recommended ones.",
    RESOURCES_DIFFER: "Use suggests other requests or limits; see status.recommendedResources.",
    RESIZED: "Pods are being resized to the recommended resources, without a restart.",
    RESIZING: "The kubelet is changing the resources of pods.",
    RESIZE_DEFERRED: "A pod's node has no room for the recommended resources at present.",
    RESIZE_INFEASIBLE: "A pod's node can never provide the recommended resources; see maxAllowed.",
    RESIZE_FAILED: "The kubelet failed to change a pod's resources and will retry.",
    RESIZE_REFUSED: "The API server refuses to resize a pod; the message is its own.",
    RESIZE_NEEDS_RESTART: "A container needs a restart for a resize, so it is not resized.",
    RESIZE_UNSUPPORTED: "This Kubernetes version cannot resize pods in place.",
    ACCEPTED: "The policy is valid and has no conflict over its targets.",
    CONFLICTED: "An older policy has the same target, or another installation writes the "
    "policies of this namespace into the same Redis; the message says which.",
    TARGET_NOT_FOUND: "The policy's target, or its section, does not exist; the policy applies "
    "once it does.",
    PARTLY_CONFLICTED: "An older policy has some of the targets; this one has the rest.",
    PROGRAMMED: "The policy is in the document that enforcers follow.",
    LAST_VALID: "The spec is invalid; enforcers follow the last valid one.",
    TOO_MANY_POLICIES: "The namespace has more policies than one document holds; remove some.",
    ENFORCED: "Every live enforcer acknowledged the policy.",
    AWAITING_ENFORCERS: "Some live enforcer has not acknowledged the policy yet.",
    NO_ENFORCERS: "No enforcer follows the namespace: nothing is limited.",
    ENFORCER_LOST: "An enforcer vanished without signing off; it may enforce an older policy.",
    FAILING_OPEN: "Redis does not answer in time; all requests are admitted meanwhile.",
    FAILING_CLOSED: "Redis does not answer in time; all requests get 503 meanwhile.",
    DECIDING_LOCALLY: "Redis does not answer in time; each enforcer admits its share of the rate.",
    REDIS_DECIDES: "Redis answers in time.",
    NOT_PROGRAMMED: "The policy is not in the document that enforcers follow.",
    APPLY_REFUSED: "The API server refuses an object of the pool; the message is its own.",
}
