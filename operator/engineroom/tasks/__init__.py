"""Putting work on queues, and seeing and steering it; RQ underneath, compatible both ways."""

from engineroom.tasks.client import AsyncTasks, Tasks
from engineroom.tasks.dependents import Canceled
from engineroom.tasks.enqueue import Enqueued
from engineroom.tasks.errors import (
    InvalidTaskError,
    JobEndedError,
    JobExistsError,
    NotConfirmedError,
    NotFailedError,
    NothingMatchesError,
    ParentCanceledError,
    ScheduleNotFoundError,
    TaskError,
    TasksUnavailableError,
    TaskTooLargeError,
    UnknownQueueError,
)
from engineroom.tasks.failures import Attempt, Failure, Page, Requeueing, Where
from engineroom.tasks.flows import EnqueuedFlow, Flow, chain, fan_in, graph, group, parents
from engineroom.tasks.jobs import Impact, JobDetail, JobPage, JobSummary, State
from engineroom.tasks.queues import QueueCounts
from engineroom.tasks.results import JobResult, Progress, Reporter, reporter
from engineroom.tasks.retrying import FailureCategory, Rule, retrying
from engineroom.tasks.schedules import Schedule, Scheduler
from engineroom.tasks.task import (
    Callback,
    JSONSerializer,
    PickleSerializer,
    Retry,
    Task,
    Unique,
)
from engineroom.tasks.triggers import Cron, Every, Missed, Once
from engineroom.tasks.workers import WorkerState

__all__ = [
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
    "Impact",
    "InvalidTaskError",
    "JSONSerializer",
    "JobDetail",
    "JobEndedError",
    "JobExistsError",
    "JobPage",
    "JobResult",
    "JobSummary",
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
    "Reporter",
    "Requeueing",
    "Retry",
    "Rule",
    "Schedule",
    "ScheduleNotFoundError",
    "Scheduler",
    "State",
    "Task",
    "TaskError",
    "TaskTooLargeError",
    "Tasks",
    "TasksUnavailableError",
    "Unique",
    "UnknownQueueError",
    "Where",
    "WorkerState",
    "chain",
    "fan_in",
    "graph",
    "group",
    "parents",
    "reporter",
    "retrying",
]
