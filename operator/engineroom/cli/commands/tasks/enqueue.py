"""``engineroom enqueue``: enqueues one job, checked before anything is written."""

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from engineroom.cli.app.context import CommandContext
from engineroom.cli.commands.arguments import OutputOption
from engineroom.cli.commands.output import print_result
from engineroom.cli.commands.tasks.job_options import FunctionName, JobOptions
from engineroom.cli.commands.times import parse_length, parse_moment
from engineroom.cli.errors import NotFoundError, UsageError
from engineroom.cli.views.output_formats import OutputFormat
from engineroom.cli.views.tasks import document

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from engineroom.cli.connections.tasks_connection import TasksConnection
    from engineroom.tasks import Enqueued, Task, Unique


class UniqueUntil(StrEnum):
    """Ends of the time for which a key of ``--unique`` is taken."""

    WINDOW = "window"
    END = "end"


@dataclass(frozen=True, slots=True)
class StartOptions:
    """The earliest start of a job, and the jobs that it waits for."""

    delay: Annotated[
        str | None,
        typer.Option("--delay", metavar="LENGTH", help="Start no sooner than in: 90s, 2h."),
    ] = None
    at: Annotated[
        str | None,
        typer.Option(
            "--at", metavar="TIME", help="Start no sooner than at: 2026-01-31T12:00Z, or in 2h."
        ),
    ] = None
    depends_on: Annotated[
        list[str] | None,
        typer.Option(
            "--depends-on",
            metavar="ID",
            help="A job that must finish first; repeat it for several.",
        ),
    ] = None
    allow_failure: Annotated[
        bool,
        typer.Option("--allow-failure", help="Also start if a job of --depends-on fails."),
    ] = False

    def check(self) -> None:
        """Raise UsageError for options that exclude or need each other."""
        if self.delay is not None and self.at is not None:
            raise UsageError("--delay and --at exclude each other", fix="leave out one of them")
        if self.allow_failure and not self.depends_on:
            raise UsageError("--allow-failure needs a job to wait for", fix="add --depends-on ID")


@dataclass(frozen=True, slots=True)
class UniqueOptions:
    """The key that keeps the same work from being enqueued twice."""

    unique: Annotated[
        str | None,
        typer.Option(
            "--unique", metavar="KEY", help="Enqueue nothing if a job with this key exists."
        ),
    ] = None
    window: Annotated[
        str | None,
        typer.Option(
            "--window", metavar="LENGTH", help="With --unique: time that the key is taken, 1h."
        ),
    ] = None
    until: Annotated[
        UniqueUntil,
        typer.Option("--until", help="With --unique: `end` frees the key when the job has ended."),
    ] = UniqueUntil.WINDOW

    def key(self) -> "Unique | None":
        """Return the unique key, or None. Raises UsageError, InvalidTaskError."""
        from engineroom.tasks import Unique

        if self.unique is not None:
            window = parse_length("--window", self.window or "1h")
            return Unique(self.unique, window, self.until.value)
        if self.window is not None or self.until is not UniqueUntil.WINDOW:
            raise UsageError("--window and --until need a key", fix="add --unique KEY")
        return None


def enqueue(
    context: CommandContext,
    function: FunctionName,
    job: JobOptions,
    start: StartOptions,
    unique: UniqueOptions,
    job_id: Annotated[
        str | None,
        typer.Option("--id", metavar="ID", help="Id of the job; refused if the id is taken."),
    ] = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Enqueue one job.

    Everything is checked first: the queue and the jobs of --depends-on must exist, the arguments
    must be JSON and small enough. Then the job is written as a whole, or not at all.

    A job can only wait for jobs that exist already, so no cycle is possible. Jobs that refer to
    each other (flows) are enqueued in the application by engineroom.tasks, which refuses cycles.
    """
    start.check()
    task = _task(function, job, start, unique, job_id, context.clock.now())
    with context.tasks() as connection:
        tasks = job.writer(connection)
        require_jobs(connection, task.depends_on)
        enqueued = tasks.enqueue(task)
    print_result(
        context, document(enqueued), _outcome(task, enqueued), output, name=enqueued.job_id
    )


def _task(
    function: str,
    job: JobOptions,
    start: StartOptions,
    unique: UniqueOptions,
    job_id: str | None,
    now: "datetime",
) -> "Task":
    return job.task(
        function,
        delay=None if start.delay is None else parse_length("--delay", start.delay),
        at=None if start.at is None else parse_moment("--at", start.at, now, ago=False),
        unique=unique.key(),
        job_id=job_id,
        depends_on=start.depends_on or (),
        allow_failure=start.allow_failure,
    )


def _outcome(task: "Task", enqueued: "Enqueued") -> str:
    if not enqueued.created:
        return f"job {enqueued.job_id} of {enqueued.queue} has this unique key already"
    if task.at is not None or task.delay is not None:
        return f"job {enqueued.job_id} is scheduled on {enqueued.queue}"
    if task.depends_on:
        return f"job {enqueued.job_id} of {enqueued.queue} follows {', '.join(task.depends_on)}"
    return f"job {enqueued.job_id} waits on {enqueued.queue}"


def require_jobs(connection: "TasksConnection", ids: "Sequence[str]") -> None:
    """Raise NotFoundError for a job that does not exist.

    The library itself counts a missing job as one that finished long ago.
    """
    from engineroom.core.errors import JobMissingError

    for job_id in ids:
        try:
            connection.tasks.job(job_id)
        except (JobMissingError, NotFoundError):
            raise NotFoundError(
                f"--depends-on {job_id[:50]}: no such job",
                fix="`jobs list` shows the jobs; leave out one that ended and was deleted, because "
                "there is nothing to wait for",
            ) from None
