"""What goes wrong with tasks; each message names the field, the problem and the fix."""

from __future__ import annotations

from engineroom.core.errors import Category, DependencyError, EngineroomError


class TaskError(EngineroomError):
    """Base of what this package raises itself."""

    code = "task"
    category = Category.BUG


class InvalidTaskError(TaskError):
    """What was to be enqueued or asked for cannot be; nothing was written."""

    code = "task_invalid"
    category = Category.VALIDATION
    http_status = 422

    def __init__(self, field: str, problem: str, fix: str) -> None:
        self.field = field
        super().__init__(f"{field}: {problem}; {fix}")


class UnknownQueueError(InvalidTaskError):
    """The queue is none of those that the application said it has."""

    code = "task_queue_unknown"


class TaskTooLargeError(InvalidTaskError):
    """Function, arguments and meta together are larger than the limit."""

    code = "task_too_large"
    http_status = 413


class JobExistsError(TaskError):
    """A job of that id is there already; nothing was written."""

    code = "job_exists"
    category = Category.CONFLICT
    http_status = 409


class NotConfirmedError(TaskError):
    """Something would be deleted that waits, and was not asked for by its name."""

    code = "task_not_confirmed"
    category = Category.VALIDATION
    http_status = 422


class TasksUnavailableError(DependencyError):
    """Redis did not answer or refused.

    Whether the last step was applied is not known: enqueue with a ``unique`` key to be able to try
    again. ``done`` is how many tasks of a batch are known to be enqueued, the first ones.
    """

    code = "tasks_unavailable"

    def __init__(self, message: str, done: int = 0) -> None:
        self.done = done
        super().__init__(message)


class NotFailedError(TaskError):
    """The job is not among the failed ones, so it cannot be put back."""

    code = "job_not_failed"
    category = Category.CONFLICT
    http_status = 409


class SupersededError(NotFailedError):
    """Another job has the unique key of the failed one by now, so it is not put back."""

    code = "job_superseded"


class NothingMatchesError(TaskError):
    """A filter matched no failed job."""

    code = "task_nothing_matches"
    category = Category.NOT_FOUND
    http_status = 404


class ScheduleNotFoundError(TaskError):
    """There is no schedule of that name."""

    code = "schedule_not_found"
    category = Category.NOT_FOUND
    http_status = 404


class ScheduleChangedError(TaskError):
    """The schedule is not in the version that was named; nothing was written."""

    code = "schedule_changed"
    category = Category.CONFLICT
    http_status = 409


class JobEndedError(TaskError):
    """The job has ended, so it cannot be cancelled."""

    code = "job_ended"
    category = Category.CONFLICT
    http_status = 409


class ParentCanceledError(TaskError):
    """A job that was to be waited for is cancelled or stopped and never finishes."""

    code = "job_parent_canceled"
    category = Category.CONFLICT
    http_status = 409


class ScheduleOwnedError(TaskError):
    """The schedule of that name belongs to somebody else; nothing was written.

    ``owner`` is the WorkerPool that declares it, ``namespace/name``; "" for one made at run time.
    """

    code = "schedule_owned"
    category = Category.CONFLICT
    http_status = 409

    def __init__(self, name: str, owner: str) -> None:
        self.owner = owner
        told = f"name: {name[:100]!r} "
        if owner:
            told += f"is declared by WorkerPool {owner[:200]}; change its spec.schedules"
        else:
            told += "was made at run time; remove that one, or use another name"
        super().__init__(told)
