"""``engineroom jobs cancel``: cancel jobs and their dependents, by id or by filter."""

from typing import TYPE_CHECKING, Annotated

import typer

from engineroom.cli.app.context import CommandContext
from engineroom.cli.app.options import Yes
from engineroom.cli.commands.arguments import OutputOption
from engineroom.cli.commands.output import print_result
from engineroom.cli.commands.progress import progress_bar
from engineroom.cli.commands.tasks.bulk import BulkOperations
from engineroom.cli.commands.tasks.job_filters import FilterOptions
from engineroom.cli.commands.tasks.queue_names import QueueOption, require_queue
from engineroom.cli.errors import UsageError, program
from engineroom.cli.views.output_formats import OutputFormat
from engineroom.cli.views.tasks import impact_text
from engineroom.cli.views.text import count

if TYPE_CHECKING:
    from engineroom.cli.connections.tasks_connection import TasksConnection
    from engineroom.tasks import JobFilter, State, Tasks

_STATES = ("waiting", "scheduled", "deferred")


def cancel(
    context: CommandContext,
    filters: FilterOptions,
    job_ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help="Ids of jobs.")] = None,
    queue: QueueOption = None,
    state: Annotated[
        str | None,
        typer.Option(
            "--state", "-s", metavar="STATE", help="With a filter: waiting, scheduled or deferred."
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All such jobs of the queue, without a filter.")
    ] = False,
    stop: Annotated[
        bool, typer.Option("--stop", help="Also stop those that are already running.")
    ] = False,
    yes: Yes = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Cancel jobs and their dependents.

    Selects jobs by id, or all jobs of one queue and state that match a filter; then it first shows
    their number. After an interruption, run the same command again to cancel the rest. Through the
    API, the server continues, and `operations` shows and stops it.
    """
    from engineroom.tasks import State

    filtered = everything or filters.any_given or queue is not None or state is not None
    if bool(job_ids) == filtered:
        raise UsageError(
            "say either ids or a filter",
            fix=f"`{program()} jobs cancel ID`, or `{program()} jobs cancel --queue mail --state "
            "waiting --function 'shop.jobs.*'`",
        )
    if job_ids:
        with context.tasks() as connection:
            context.confirm(
                f"Cancel {count(len(job_ids), 'job')} and what waits for them?", yes=yes
            )
            _cancel_all(context, connection.tasks, job_ids, stop, output)
        return
    if queue is None or state not in _STATES:
        raise UsageError(
            "a filter is for the jobs of one queue in one state",
            fix=f"give --queue and --state, one of {', '.join(_STATES)}",
        )
    if everything == filters.any_given:
        raise UsageError(
            f"which {state} jobs of {queue}?", fix="give a filter, or --all for every one of them"
        )
    job_filter = filters.job_filter(context.clock.now())
    with context.tasks() as connection:
        require_queue(connection, queue)
        if connection.server_operations:
            BulkOperations(context).change(
                "cancel", State(state), queue, job_filter, output, yes=yes, stop=stop
            )
            return
        matching = _matching(context, connection, queue, State(state), job_filter, yes)
        _cancel_all(context, connection.tasks, matching, stop, output)


def _matching(
    context: CommandContext,
    connection: "TasksConnection",
    queue: str,
    state: "State",
    job_filter: "JobFilter",
    yes: bool,
) -> list[str]:
    """Return the ids of the matching jobs. Raises NothingMatchesError."""
    from engineroom.tasks import NothingMatchesError

    impact = connection.tasks.count_jobs(state, job_filter, queues=[queue])
    if impact.complete and not impact.matched:
        raise NothingMatchesError(
            f"where: matches none of the {impact.total} {state.value} jobs of {queue!r}; "
            f"`{program()} jobs list --state {state.value}` shows them"
        )
    context.note(f"matches {impact_text(impact)} of queue {queue}")
    context.confirm(f"Cancel {impact_text(impact)} and what waits for them?", yes=yes)
    matching: list[str] = []
    cursor = None
    with progress_bar(context, "Looking") as draw:
        while True:
            page = connection.tasks.jobs(
                [state], job_filter, queues=[queue], cursor=cursor, limit=500
            )
            matching += [job.job_id for job in page.jobs]
            cursor = page.cursor
            draw(len(matching), None, "found")
            if cursor is None:
                return matching


def _cancel_all(
    context: CommandContext, tasks: "Tasks", job_ids: list[str], stop: bool, output: OutputFormat
) -> None:
    """Cancel the jobs one by one; reports missing jobs and raises an error for them at the end."""
    from engineroom.core.errors import Category, EngineroomError

    canceled: dict[str, None] = {}
    running: dict[str, None] = {}
    refused = None
    with progress_bar(context, "Cancelling") as draw:
        for number, job_id in enumerate(dict.fromkeys(job_ids), 1):
            try:
                done = tasks.cancel(job_id, stop=stop)
            except EngineroomError as error:
                # It ended or expired meanwhile: the others are cancelled all the same.
                if error.category not in (Category.NOT_FOUND, Category.CONFLICT):
                    raise
                if refused is not None:
                    context.note(str(refused))
                refused = error
                continue
            canceled.update(dict.fromkeys(done.canceled))
            running.update(dict.fromkeys(done.running))
            draw(number, len(job_ids), f"{len(canceled)} cancelled")
    for job_id in canceled:
        running.pop(job_id, None)
    text = f"{count(len(canceled), 'job')} cancelled"
    if running:
        text += f"; {count(len(running), 'job')} ran already and "
        text += "was job_filter to stop" if stop else "goes on: --stop ends them"
    if canceled or running:
        result = {"canceled": list(canceled), "running": list(running)}
        print_result(context, result, text, output, name="\n".join(canceled))
    if refused is not None:
        raise refused
