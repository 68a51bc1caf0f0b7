"""The options that ``Tasks`` and ``AsyncTasks`` share; this module does not talk to Redis."""

from __future__ import annotations

from collections.abc import Collection
from types import NoneType
from typing import TYPE_CHECKING, Any

from engineroom.core.clock import Clock, SystemClock
from engineroom.tasks.enqueueing.task import EnqueueRules, Function, Task
from engineroom.tasks.errors import InvalidTaskError
from engineroom.tasks.inspection.job_filter import JobFilter
from engineroom.tasks.type_checks import check_type, whole_number, wrong_type

if TYPE_CHECKING:
    from engineroom.tasks.inspection.requeueing import Requeueing
    from engineroom.tasks.serializers import Serializer

NO_FILTER = JobFilter()


def ignore_step(_: Requeueing) -> None:
    """Ignore the progress of an operation."""


class TasksBase:
    """Checks and holds the options; see ``Tasks`` for their meaning. Raises InvalidTaskError."""

    def __init__(
        self,
        redis: Any,
        *,
        queues: Collection[str] | None,
        max_bytes: int,
        serializer: Serializer,
        clock: Clock | None,
        max_flow_bytes: int,
    ) -> None:
        # A string is a collection of characters, too.
        if isinstance(queues, (str, bytes)):
            raise wrong_type("queues", queues, "use a set of names")
        check_type("queues", queues, (Collection, NoneType), "use a set of names")
        for name in queues or ():
            check_type("queues", name, str, "use a set of names")
        for name, maximum in (("max_bytes", max_bytes), ("max_flow_bytes", max_flow_bytes)):
            if whole_number(name, maximum) < 1:
                raise InvalidTaskError(name, f"{maximum} bytes", "use 1 or more")
        if redis.connection_pool.connection_kwargs.get("decode_responses"):
            raise InvalidTaskError(
                "redis",
                "decodes responses",
                "jobs are bytes: leave decode_responses out, as for RQ",
            )
        self.redis = redis
        self.clock = clock or SystemClock()
        self.rules = EnqueueRules(
            None if queues is None else frozenset(queues), max_bytes, serializer, max_flow_bytes
        )


def to_task(task: Task | Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Task:
    """Return the Task, or one of the function and its arguments. Raises InvalidTaskError."""
    if not isinstance(task, Task):
        return Task(task, args, kwargs)
    if args or kwargs:
        raise InvalidTaskError("args", "conflict with a Task", "put them into the Task")
    return task
