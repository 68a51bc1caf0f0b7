"""Enqueueing, inspecting and managing RQ jobs, compatible with stock RQ in both directions."""

from engineroom.tasks.async_client import AsyncTasks
from engineroom.tasks.client import Tasks
from engineroom.tasks.enqueueing.dependents import Canceled
from engineroom.tasks.enqueueing.enqueue import Enqueued, Reason
from engineroom.tasks.enqueueing.flows import (
    EnqueuedFlow,
    Flow,
    chain,
    fan_in,
    graph,
    group,
    parents,
)
from engineroom.tasks.enqueueing.task import (
    Callback,
    Retry,
    Task,
    Unique,
)
from engineroom.tasks.errors import (
    InvalidTaskError,
    JobEndedError,
    JobExistsError,
    NotConfirmedError,
    NotFailedError,
    NothingMatchesError,
    ParentCanceledError,
    ScheduleNotFoundError,
    ScheduleOwnedError,
    SupersededError,
    TaskError,
    TasksUnavailableError,
    TaskTooLargeError,
    UnknownQueueError,
)
from engineroom.tasks.inspection.failures import Attempt, Failure, FailurePage
from engineroom.tasks.inspection.job_detail import JobDetail
from engineroom.tasks.inspection.job_filter import JobFilter
from engineroom.tasks.inspection.jobs import Impact, JobPage, JobSummary, State
from engineroom.tasks.inspection.queues import QueueCounts
from engineroom.tasks.inspection.requeueing import Requeueing
from engineroom.tasks.inspection.workers import Health, Worker
from engineroom.tasks.limits import Limit, QueueLimit
from engineroom.tasks.results import JobResult, Progress, Reporter, reporter
from engineroom.tasks.retrying import FailureCategory, Rule, retrying
from engineroom.tasks.schedules.model import Schedule, ScheduleInfo
from engineroom.tasks.schedules.scheduler import AsyncScheduler, Scheduler
from engineroom.tasks.serializers import JSONSerializer, PickleSerializer
from engineroom.tasks.triggers import Cron, Every, Missed, Once

__all__ = [
    "AsyncScheduler",
    "AsyncTasks",
    "Attempt",
    "Callback",
    "Canceled",
    "Cron",
    "Enqueued",
    "EnqueuedFlow",
    "Every",
    "Failure",
    "FailureCategory",
    "FailurePage",
    "Flow",
    "Health",
    "Impact",
    "InvalidTaskError",
    "JSONSerializer",
    "JobDetail",
    "JobEndedError",
    "JobExistsError",
    "JobFilter",
    "JobPage",
    "JobResult",
    "JobSummary",
    "Limit",
    "Missed",
    "NotConfirmedError",
    "NotFailedError",
    "NothingMatchesError",
    "Once",
    "ParentCanceledError",
    "PickleSerializer",
    "Progress",
    "QueueCounts",
    "QueueLimit",
    "Reason",
    "Reporter",
    "Requeueing",
    "Retry",
    "Rule",
    "Schedule",
    "ScheduleInfo",
    "ScheduleNotFoundError",
    "ScheduleOwnedError",
    "Scheduler",
    "State",
    "SupersededError",
    "Task",
    "TaskError",
    "TaskTooLargeError",
    "Tasks",
    "TasksUnavailableError",
    "Unique",
    "UnknownQueueError",
    "Worker",
    "chain",
    "fan_in",
    "graph",
    "group",
    "parents",
    "reporter",
    "retrying",
]
