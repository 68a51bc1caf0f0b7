"""Errors of tasks; each message names the field, the problem and the fix."""

from __future__ import annotations

from engineroom.core.errors import Category, DependencyError, EngineroomError


class TaskError(EngineroomError):
    """Base of the errors that this package raises."""

    code = "task"
    category = Category.BUG


class InvalidTaskError(TaskError):
    """Invalid input; nothing was written."""

    code = "task_invalid"
    category = Category.VALIDATION
    http_status = 422

    def __init__(self, field: str, problem: str, fix: str) -> None:
        self.field = field
        super().__init__(f"{field}: {problem}; {fix}")


class UnknownQueueError(InvalidTaskError):
    """The queue is not one of the queues that the application declared."""

    code = "task_queue_unknown"


class TaskTooLargeError(InvalidTaskError):
    """Function, arguments and meta together exceed the size limit."""

    code = "task_too_large"
    http_status = 413


class JobExistsError(TaskError):
    """A job with this id exists; nothing was written."""

    code = "job_exists"
    category = Category.CONFLICT
    http_status = 409


class NotConfirmedError(TaskError):
    """The confirmation does not repeat the name of the queue to empty; nothing was deleted."""

    code = "task_not_confirmed"
    category = Category.VALIDATION
    http_status = 422


class TasksUnavailableError(DependencyError):
    """Redis did not answer or refused.

    Redis may or may not have applied the last step: use a ``unique`` key so that you can safely
    enqueue again. ``done`` is the number of tasks of a batch that certainly are enqueued, counted
    from the first.
    """

    code = "tasks_unavailable"

    def __init__(self, message: str, done: int = 0) -> None:
        self.done = done
        super().__init__(message)


class NotFailedError(TaskError):
    """The job is not a failed job, so it cannot be requeued."""

    code = "job_not_failed"
    category = Category.CONFLICT
    http_status = 409


class SupersededError(NotFailedError):
    """Another job now holds the failed job's unique key, so the job is not requeued."""

    code = "job_superseded"


class NothingMatchesError(TaskError):
    """The filter matches no failed job."""

    code = "task_nothing_matches"
    category = Category.NOT_FOUND
    http_status = 404


class ScheduleNotFoundError(TaskError):
    """There is no schedule with this name."""

    code = "schedule_not_found"
    category = Category.NOT_FOUND
    http_status = 404


class ScheduleChangedError(TaskError):
    """The schedule does not have the expected version; nothing was written."""

    code = "schedule_changed"
    category = Category.CONFLICT
    http_status = 409


class JobEndedError(TaskError):
    """The job has ended, so it cannot be cancelled."""

    code = "job_ended"
    category = Category.CONFLICT
    http_status = 409


class ParentCanceledError(TaskError):
    """A dependency is cancelled or stopped and never finishes."""

    code = "job_parent_canceled"
    category = Category.CONFLICT
    http_status = 409


class ScheduleOwnedError(TaskError):
    """The schedule belongs to another owner; nothing was written.

    ``owner`` is the ``namespace/name`` of the WorkerPool that declares the schedule; empty for a
    schedule made at run time.
    """

    code = "schedule_owned"
    category = Category.CONFLICT
    http_status = 409

    def __init__(self, name: str, owner: str) -> None:
        self.owner = owner
        message = f"name: {name[:100]!r} "
        if owner:
            message += f"is declared by WorkerPool {owner[:200]}; change its spec.schedules"
        else:
            message += "was made at run time; remove that one, or use another name"
        super().__init__(message)
