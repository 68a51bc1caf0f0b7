"""Putting work on queues, and seeing and steering it; RQ underneath, compatible both ways."""

from engineroom.tasks.client import AsyncTasks, Tasks
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
    JSONSerializer,
    PickleSerializer,
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
from engineroom.tasks.inspection.failures import Attempt, Failure, Page, Requeueing, Where
from engineroom.tasks.inspection.jobs import Impact, JobDetail, JobPage, JobSummary, State
from engineroom.tasks.inspection.queues import QueueCounts
from engineroom.tasks.inspection.workers import Health, Worker
from engineroom.tasks.limits import Limit, QueueLimit
from engineroom.tasks.results import JobResult, Progress, Reporter, reporter
from engineroom.tasks.retrying import FailureCategory, Rule, retrying
from engineroom.tasks.schedules import AsyncScheduler, Schedule, Scheduler
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
    "Flow",
    "Health",
    "Impact",
    "InvalidTaskError",
    "JSONSerializer",
    "JobDetail",
    "JobEndedError",
    "JobExistsError",
    "JobPage",
    "JobResult",
    "JobSummary",
    "Limit",
    "Missed",
    "NotConfirmedError",
    "NotFailedError",
    "NothingMatchesError",
    "Once",
    "Page",
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
    "Where",
    "Worker",
    "chain",
    "fan_in",
    "graph",
    "group",
    "parents",
    "reporter",
    "retrying",
]
