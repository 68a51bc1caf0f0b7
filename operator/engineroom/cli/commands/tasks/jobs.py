"""``engineroom jobs list`` and ``engineroom jobs show``."""

from typing import TYPE_CHECKING, Annotated

import typer

from engineroom.cli.app.context import CommandContext
from engineroom.cli.commands.arguments import OutputOption
from engineroom.cli.commands.output import present
from engineroom.cli.commands.tasks.job_filters import FailureFilterOptions
from engineroom.cli.commands.tasks.queue_names import QueueOption, queue_names, require_queue
from engineroom.cli.errors import UsageError
from engineroom.cli.views.output_formats import OutputFormat
from engineroom.cli.views.tasks import document, job_view, jobs_table, page_document

if TYPE_CHECKING:
    from engineroom.tasks import JobSummary

#: Longest search for jobs that match a rare filter (seconds); the output then names the next page.
_PATIENCE = 5.0


def list_jobs(
    context: CommandContext,
    filters: FailureFilterOptions,
    states: Annotated[
        list[str] | None,
        typer.Option(
            "--state",
            "-s",
            metavar="STATE",
            help="Only jobs that are running, waiting, scheduled, deferred, failed, finished or "
            "canceled; may be given several times.",
        ),
    ] = None,
    queue: QueueOption = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=500, help="Jobs on one page.")] = 50,
    after: Annotated[
        str | None,
        typer.Option(
            "--after", metavar="CURSOR", help="Cursor of the page, from the previous one."
        ),
    ] = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """List jobs by state, page by page.

    Waiting and scheduled jobs are listed in the order in which workers take them, ended jobs with
    the latest first. Listing changes nothing. The last line is the command for the next page.
    """
    from engineroom.tasks import State

    chosen = []
    for name in states or [entry.value for entry in State]:
        if name not in list(State):
            raise UsageError(
                f"--state {name[:50]} is unknown",
                fix=f"use one of {', '.join(entry.value for entry in State)}",
            )
        chosen.append(State(name))
    job_filter = filters.job_filter(context.clock.now())
    with context.tasks() as connection:
        queues = [require_queue(connection, queue)] if queue else queue_names(connection)
        began = context.clock.monotonic()
        jobs: list[JobSummary] = []
        cursor = after
        while True:
            page = connection.tasks.jobs(
                chosen, job_filter, queues=queues, cursor=cursor, limit=limit - len(jobs)
            )
            jobs += page.jobs
            cursor = page.cursor
            waited = context.clock.monotonic() - began
            if cursor is None or len(jobs) >= limit or waited > _PATIENCE:
                break
    present(
        context, output, page_document(jobs, cursor), [job.job_id for job in jobs],
        lambda: jobs_table(jobs, context.clock.now(), wide=output is OutputFormat.WIDE),
        none="no such jobs" if cursor is None else "no such jobs so far",
    )  # fmt: skip
    if cursor is not None and output not in (OutputFormat.JSON, OutputFormat.YAML):
        context.note(f"there are more: the same command with --after {cursor}")


def show(
    context: CommandContext,
    job_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the job.")],
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Show all details of one job.

    The details are its state and history, the call, failures and tries, progress, its dependencies
    and its dependents. Arguments are parsed and never executed. Long ones are cut, and secrets in
    them are not shown.
    """
    with context.tasks() as connection:
        detail = connection.tasks.job(job_id)
    present(
        context, output, document(detail), [detail.job.job_id],
        lambda: job_view(detail, context.clock.now(), wide=output is OutputFormat.WIDE),
    )  # fmt: skip
