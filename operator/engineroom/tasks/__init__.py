"""Putting work on queues, and seeing and steering it; RQ underneath, compatible both ways."""

from engineroom.tasks.client import AsyncTasks, Tasks
from engineroom.tasks.enqueue import Enqueued
from engineroom.tasks.errors import (
    InvalidTaskError,
    JobExistsError,
    NotConfirmedError,
    NotFailedError,
    NothingMatchesError,
    TaskError,
    TasksUnavailableError,
    TaskTooLargeError,
    UnknownQueueError,
)
from engineroom.tasks.failures import Attempt, Failure, Page, Requeueing, Where
from engineroom.tasks.queues import QueueCounts
from engineroom.tasks.results import JobResult, Progress, Reporter, reporter
from engineroom.tasks.retrying import FailureCategory, Rule, retrying
from engineroom.tasks.task import JSONSerializer, PickleSerializer, Retry, Task, Unique

__all__ = [
    "AsyncTasks",
    "Attempt",
    "Enqueued",
    "Failure",
    "FailureCategory",
    "InvalidTaskError",
    "JSONSerializer",
    "JobExistsError",
    "JobResult",
    "NotConfirmedError",
    "NotFailedError",
    "NothingMatchesError",
    "Page",
    "PickleSerializer",
    "Progress",
    "QueueCounts",
    "Reporter",
    "Requeueing",
    "Retry",
    "Rule",
    "Task",
    "TaskError",
    "TaskTooLargeError",
    "Tasks",
    "TasksUnavailableError",
    "Unique",
    "UnknownQueueError",
    "Where",
    "reporter",
    "retrying",
]
