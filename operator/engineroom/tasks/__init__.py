"""Putting work on queues, and seeing and steering it; RQ underneath, compatible both ways."""

from engineroom.tasks.client import AsyncTasks, Tasks
from engineroom.tasks.enqueue import Enqueued
from engineroom.tasks.errors import (
    InvalidTaskError,
    JobExistsError,
    NotConfirmedError,
    TaskError,
    TasksUnavailableError,
    TaskTooLargeError,
    UnknownQueueError,
)
from engineroom.tasks.queues import QueueCounts
from engineroom.tasks.results import JobResult, Progress, Reporter, reporter
from engineroom.tasks.task import JSONSerializer, PickleSerializer, Retry, Task, Unique

__all__ = [
    "AsyncTasks",
    "Enqueued",
    "InvalidTaskError",
    "JSONSerializer",
    "JobExistsError",
    "JobResult",
    "NotConfirmedError",
    "PickleSerializer",
    "Progress",
    "QueueCounts",
    "Reporter",
    "Retry",
    "Task",
    "TaskError",
    "TaskTooLargeError",
    "Tasks",
    "TasksUnavailableError",
    "Unique",
    "UnknownQueueError",
    "reporter",
]
