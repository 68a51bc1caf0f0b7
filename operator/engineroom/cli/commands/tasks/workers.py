"""``engineroom workers``: list workers, and remove the entries of dead ones."""

from rich.text import Text

from engineroom.cli.app.context import CommandContext
from engineroom.cli.commands.arguments import OutputOption
from engineroom.cli.commands.output import present, print_result
from engineroom.cli.views.output_formats import OutputFormat
from engineroom.cli.views.tasks import page_document, workers_table
from engineroom.cli.views.text import count


def list_workers(context: CommandContext, output: OutputOption = OutputFormat.TABLE) -> None:
    """List workers and their state.

    The list contains the workers of pools and stock `rq worker`s, with the values of their last
    report. Only workers of pools report memory.
    """
    with context.tasks() as connection:
        workers = connection.tasks.workers()
        title = connection.title
    present(
        context, output, page_document(workers, None), [worker.name for worker in workers],
        lambda: workers_table(workers, context.clock.now(), wide=output is OutputFormat.WIDE),
        none=f"no workers in {title}",
    )  # fmt: skip


def clear(context: CommandContext, output: OutputOption = OutputFormat.TABLE) -> None:
    """Remove workers that no longer exist from RQ's lists.

    Their jobs are not changed: the operator recovers the jobs of dead workers.
    """
    with context.tasks() as connection:
        cleared = connection.tasks.clear_ghosts()
    if output is OutputFormat.TABLE and cleared:
        context.show(Text("\n".join(f"worker {name} taken off" for name in cleared)))
        return
    text = f"{count(len(cleared), 'worker')} taken off"
    print_result(context, {"cleared": cleared}, text, output, name="\n".join(cleared))
