"""``engineroom queues``: list, pause, limit, move and empty queues."""

from typing import Annotated

import typer

from engineroom.cli.app.context import CommandContext
from engineroom.cli.app.options import Yes
from engineroom.cli.commands.arguments import OutputOption
from engineroom.cli.commands.output import present, print_result
from engineroom.cli.commands.tasks.queue_names import (
    QueueName,
    complete_queues,
    queue_names,
    require_queue,
)
from engineroom.cli.errors import UsageError, program
from engineroom.cli.views.output_formats import OutputFormat
from engineroom.cli.views.tasks import page_document, queues_table
from engineroom.cli.views.text import count


def list_queues(
    context: CommandContext,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="QUEUE",
            help="Names of queues; the default is all queues.",
            autocompletion=complete_queues,
        ),
    ] = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Show the number of jobs in each queue, by state."""
    with context.tasks() as connection:
        chosen = [require_queue(connection, name) for name in names or ()]
        counts = connection.tasks.counts(chosen or queue_names(connection))
        title = connection.title
    present(
        context, output, page_document(counts, None), [count.name for count in counts],
        lambda: queues_table(counts, wide=output is OutputFormat.WIDE),
        none=f"no queues in {title}",
    )  # fmt: skip


def pause(
    context: CommandContext,
    name: QueueName,
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Reason, shown with the queue.")
    ] = "",
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Stop workers from taking jobs from a queue.

    Running jobs continue, and jobs can still be enqueued. A stock `rq worker` ignores the pause.
    """
    with context.tasks() as connection:
        changed = connection.tasks.pause_queue(require_queue(connection, name), reason)
    done = {"name": name, "paused": True, "changed": changed, "reason": reason}
    undo = f"`{program()} queues resume {name}` undoes it"
    text = f"queue {name} is paused; {undo}" if changed else f"queue {name} was already paused"
    print_result(context, done, text, output, name=name)


def resume(
    context: CommandContext, name: QueueName, output: OutputOption = OutputFormat.TABLE
) -> None:
    """Let workers take jobs from a queue again."""
    with context.tasks() as connection:
        changed = connection.tasks.resume_queue(require_queue(connection, name))
    done = {"name": name, "paused": False, "changed": changed}
    text = f"queue {name} is resumed" if changed else f"queue {name} was not paused"
    print_result(context, done, text, output, name=name)


def limit(
    context: CommandContext,
    name: QueueName,
    concurrency: Annotated[
        int | None,
        typer.Option(
            "--concurrency", metavar="N", help="Number of jobs that may run at the same time."
        ),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            "--rate",
            metavar="N/TIME",
            help="Number of jobs that may start: 10/s, 100/min, 1000/24h.",
        ),
    ] = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Limit how many jobs run at the same time, and how many start per period.

    This replaces the present limit of the queue. A stock `rq worker` ignores the limit.
    """
    if concurrency is None and rate is None:
        raise UsageError("nothing to limit", fix="give --concurrency, --rate or both")
    with context.tasks() as connection:
        connection.tasks.limit_queue(
            require_queue(connection, name), concurrency=concurrency, rate=rate
        )
    done = {"name": name, "concurrency": concurrency, "rate": rate}
    limits = [f"{concurrency} at once"] if concurrency is not None else []
    limits += [rate] if rate is not None else []
    undo = f"`{program()} queues unlimit {name}` undoes it"
    text = f"queue {name} is limited to {' and '.join(limits)}; {undo}"
    print_result(context, done, text, output,
           name=name)  # fmt: skip


def unlimit(
    context: CommandContext, name: QueueName, output: OutputOption = OutputFormat.TABLE
) -> None:
    """Remove the limit of a queue."""
    with context.tasks() as connection:
        changed = connection.tasks.unlimit_queue(require_queue(connection, name))
    done = {"name": name, "changed": changed}
    text = f"queue {name} is not limited any more" if changed else f"queue {name} had no limit"
    print_result(context, done, text, output, name=name)


def move(
    context: CommandContext,
    source: QueueName,
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET", help="Queue that receives the jobs.", autocompletion=complete_queues
        ),
    ],
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", min=1, help="Maximum number of jobs, oldest first; the default is all."
        ),
    ] = None,
    create: Annotated[
        bool, typer.Option("--create", help="Create TARGET if it does not exist.")
    ] = False,
    yes: Yes = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Move waiting jobs to the end of another queue.

    The oldest jobs are moved first, in atomic steps. After an interruption, every job is in one of
    the two queues, and the same command continues.
    """
    if source == target:
        raise UsageError(f"{source} is both source and target", fix="name two queues")
    with context.tasks() as connection:
        require_queue(connection, source)
        if not create:
            require_queue(connection, target)
        [now] = connection.tasks.counts([source])
        number = now.waiting if limit is None else min(limit, now.waiting)
        if number:
            context.confirm(f"Move {count(number, 'job')} from {source} to {target}?", yes=yes)
        moved = connection.tasks.move_jobs(source, target, limit=limit)
    done = {"source": source, "target": target, "moved": moved}
    print_result(context, done, f"{count(moved, 'job')} moved to {target}", output, name=target)


def empty(
    context: CommandContext,
    name: QueueName,
    confirm: Annotated[
        str | None,
        typer.Option(
            "--confirm",
            metavar="QUEUE",
            help="Name of the queue, to confirm without a question.",
        ),
    ] = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Delete the waiting jobs of a queue.

    The jobs are lost, so you must repeat the queue's name. Running, scheduled and failed jobs stay.
    """
    with context.tasks() as connection:
        [now] = connection.tasks.counts([require_queue(connection, name)])
        if confirm is None and context.interactive:
            lost = count(now.waiting, "waiting job")
            confirm = context.prompt(f"{lost} will be lost; type the queue's name to delete them")
        deleted = connection.tasks.empty_queue(name, confirm=confirm or "")
    done = {"name": name, "deleted": deleted}
    print_result(context, done, f"{count(deleted, 'job')} deleted from {name}", output, name=name)
