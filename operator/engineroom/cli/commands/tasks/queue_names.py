"""Names of queues: their completion, and the check that a queue exists."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from engineroom.cli.app.context import CommandContext

if TYPE_CHECKING:
    from engineroom.cli.connections.tasks_connection import TasksConnection


def complete_queues(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return names of queues for the shell: those of --redis-url, else those of the pools."""
    context = CommandContext.of_completion(ctx)
    try:
        if context.options.redis_url:
            with context.tasks() as connection:
                names = set(connection.tasks.queue_names())
        else:
            # Listing the pools takes one request; connecting to their Redis takes a second.
            pools = context.cluster.pools(context.namespace)
            names = {queue.name for pool in pools for queue in pool.queues}
    except Exception:  # noqa: BLE001 - a shell that completes must never see an error
        return []
    return sorted(name for name in names if name.startswith(incomplete))


QueueName = Annotated[
    str,
    typer.Argument(metavar="QUEUE", help="Name of the queue.", autocompletion=complete_queues),
]
QueueOption = Annotated[
    str | None,
    typer.Option("--queue", "-q", metavar="NAME", help="Only jobs of this queue.",
                 autocompletion=complete_queues),
]  # fmt: skip


def queue_names(connection: TasksConnection) -> list[str]:
    """Return the queues that RQ has or a pool reads, sorted."""
    return sorted({*connection.tasks.queue_names(), *connection.declared_queues})


def require_queue(connection: TasksConnection, name: str) -> str:
    """Return the name. Raises UnknownQueueError if neither RQ nor a pool has such a queue."""
    from engineroom.tasks import UnknownQueueError

    names = queue_names(connection)
    if name not in names:
        listing = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        fix = f"use one of {listing}" if names else "there is no queue yet"
        raise UnknownQueueError("queue", f"{name[:100]!r} is not known in {connection.title}", fix)
    return name
