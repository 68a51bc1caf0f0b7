"""The queues and jobs that a command works on, whichever way it reaches them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

    from engineroom.cli.connections.redis_address import RedisTarget
    from engineroom.core.clock import Clock
    from engineroom.tasks import Tasks
    from engineroom.tasks.serializers import Serializer


@dataclass(slots=True)
class TasksConnection:
    """The tasks of one Redis, or of one namespace through the API process."""

    tasks: Tasks
    #: Queues that pools on this Redis read, known to RQ or not.
    declared_queues: frozenset[str]
    #: What messages call it: "the chart's Redis".
    title: str
    #: Returns tasks that write jobs with a serializer, of at most so many bytes.
    writer: Callable[[Serializer, int], Tasks]
    #: Whether the API process changes many jobs itself, as an operation.
    server_operations: bool = False


def redis_tasks(redis: Redis, target: RedisTarget, clock: Clock) -> TasksConnection:
    """Return the tasks of a Redis."""
    from engineroom.tasks import Tasks

    def tasks(**options: Any) -> Tasks:
        return Tasks(redis, clock=clock, **options)

    return TasksConnection(
        tasks(),
        frozenset(queue.name for pool in target.pools for queue in pool.queues),
        target.title,
        lambda serializer, max_bytes: tasks(serializer=serializer, max_bytes=max_bytes),
    )
