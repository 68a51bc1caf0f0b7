"""``engineroom jobs retry``: put failed jobs back on their queues, by id or by filter."""

from typing import TYPE_CHECKING, Annotated

import typer

from engineroom.cli.app.context import CommandContext
from engineroom.cli.app.options import Yes
from engineroom.cli.commands.arguments import OutputOption
from engineroom.cli.commands.output import print_result
from engineroom.cli.commands.progress import progress_bar
from engineroom.cli.commands.tasks.bulk import BulkOperations
from engineroom.cli.commands.tasks.job_filters import FailureFilterOptions
from engineroom.cli.commands.tasks.queue_names import QueueOption, queue_names, require_queue
from engineroom.cli.errors import RefusedError, UsageError, program
from engineroom.cli.views.output_formats import OutputFormat
from engineroom.cli.views.tasks import document, impact_text
from engineroom.cli.views.text import count

if TYPE_CHECKING:
    from engineroom.cli.connections.tasks_connection import TasksConnection
    from engineroom.tasks import JobFilter, Requeueing, Tasks


def retry(
    context: CommandContext,
    filters: FailureFilterOptions,
    job_ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID", help="Ids of failed jobs.")
    ] = None,
    queue: QueueOption = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All failed jobs of the queue, without a filter.")
    ] = False,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="OPERATION", help="Continue an interrupted operation."),
    ] = None,
    yes: Yes = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Requeue failed jobs.

    Selects jobs by id, or all jobs of one queue that match a filter; then it first shows their
    number. It works in small steps, each of which stores its position in Redis. After an
    interruption, `--resume` continues from there, and no job is requeued twice. A job that fails
    again in the meantime stays failed. Through the API, the server does the work and continues if
    this command is interrupted; `--resume` and `operations` show its progress.
    """
    from engineroom.tasks import State

    filtered = everything or queue is not None or filters.any_given
    if sum((bool(job_ids), filtered, resume is not None)) != 1:
        raise UsageError(
            "say either ids, or a filter, or --resume",
            fix=f"`{program()} jobs retry ID`, `{program()} jobs retry --queue mail --error "
            "'*Timeout*'`, or with --all all of a queue",
        )
    if everything and filters.any_given:
        raise UsageError("--all and a filter exclude each other", fix="leave out one of them")
    if queue is not None and not everything and not filters.any_given:
        raise UsageError(
            f"which failed jobs of {queue}?", fix="give a filter, or --all for every one of them"
        )
    job_filter = filters.job_filter(context.clock.now())
    with context.tasks() as connection:
        if job_ids:
            _by_id(context, connection.tasks, job_ids, output)
        elif connection.server_operations and resume is not None:
            BulkOperations(context).watch(resume, output)
        elif connection.server_operations:
            name = _queue(connection, queue)
            BulkOperations(context).change("retry", State.FAILED, name, job_filter, output, yes=yes)
        elif resume is not None:
            _resume(context, connection.tasks, resume, output)
        else:
            operation = _begin(context, connection, queue, job_filter, yes)
            _resume(context, connection.tasks, operation, output)


def _by_id(
    context: CommandContext, tasks: "Tasks", job_ids: list[str], output: OutputFormat
) -> None:
    from engineroom.tasks import NotFailedError

    refused: NotFailedError | RefusedError | None = None
    done = []
    for job_id in dict.fromkeys(job_ids):
        try:
            done.append({"jobId": job_id, "queue": tasks.requeue(job_id)})
        except (NotFailedError, RefusedError) as error:
            if refused is not None:
                context.note(str(refused))
            refused = error
    if done:
        lines = "\n".join(f"job {entry['jobId']} is back on {entry['queue']}" for entry in done)
        names = "\n".join(entry["jobId"] for entry in done)
        print_result(context, {"requeued": done}, lines, output, name=names)
    if refused is not None:
        raise refused


def _queue(connection: "TasksConnection", queue: str | None) -> str:
    """Return the given queue, else the only queue with failed jobs."""
    from engineroom.tasks import NothingMatchesError

    if queue is not None:
        return require_queue(connection, queue)
    counts = connection.tasks.counts(queue_names(connection))
    failed = [count.name for count in counts if count.failed]
    if len(failed) > 1:
        raise UsageError(
            f"there are failed jobs in {count(len(failed), 'queue')}",
            why=", ".join(failed[:20]),
            fix="name one of them with --queue",
        )
    if not failed:
        raise NothingMatchesError(f"where: there is no failed job in {connection.title}")
    return failed[0]


def _begin(
    context: CommandContext,
    connection: "TasksConnection",
    queue: str | None,
    job_filter: "JobFilter",
    yes: bool,
) -> str:
    from engineroom.tasks import NothingMatchesError, State

    queue = _queue(connection, queue)
    impact = connection.tasks.count_jobs(State.FAILED, job_filter, queues=[queue])
    if impact.complete and not impact.matched:
        raise NothingMatchesError(
            f"where: matches none of the {impact.total} failed jobs of {queue!r}; "
            f"`{program()} jobs list --state failed` shows them"
        )
    context.note(f"matches {impact_text(impact)} of queue {queue}")
    context.confirm(f"Put {impact_text(impact)} back on {queue}?", yes=yes)
    operation = connection.tasks.start_requeueing(queue, job_filter).operation
    context.note(f"if this is interrupted: {program()} jobs retry --resume {operation}")
    return operation


def _resume(context: CommandContext, tasks: "Tasks", operation: str, output: OutputFormat) -> None:
    with progress_bar(context, "Putting back") as draw:

        def report(so_far: "Requeueing") -> None:
            draw(so_far.scanned, max(so_far.total, so_far.scanned), f"{so_far.requeued} put back")

        done = tasks.carry_on_requeueing(operation, report)
    text = f"{count(done.requeued, 'job')} put back on {done.queue}"
    if done.skipped:
        text += (
            f"; {done.skipped} left: another job has their unique key, or RQ itself has to admit "
            "them by its rate limit"
        )
    print_result(context, document(done), text, output, name=done.operation)
