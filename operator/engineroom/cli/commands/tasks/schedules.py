"""``engineroom schedules``: list all schedules, and change those created at run time."""

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from engineroom.cli.app.context import CommandContext
from engineroom.cli.app.options import Yes
from engineroom.cli.commands.arguments import OutputOption
from engineroom.cli.commands.output import present, print_result
from engineroom.cli.commands.tasks.job_options import FunctionName, JobOptions
from engineroom.cli.commands.times import parse_length, parse_moment
from engineroom.cli.errors import UsageError
from engineroom.cli.views.output_formats import OutputFormat
from engineroom.cli.views.tasks import (
    page_document,
    schedule_document,
    schedule_view,
    schedules_table,
)

if TYPE_CHECKING:
    from engineroom.tasks.triggers import Trigger


class MissedPolicy(StrEnum):
    """Handling of ticks that no scheduler ran in time."""

    SKIP = "skip"
    RUN_ONCE = "run-once"
    RUN_ALL = "run-all"


Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the schedule.")]


def list_schedules(
    context: CommandContext,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=1000, help="Schedules on one page.")
    ] = 100,
    after: Annotated[
        str | None, typer.Option("--after", metavar="NAME", help="Only schedules after this one.")
    ] = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """List schedules, sorted by their next tick.

    The list contains schedules that pools declare and schedules that were created at run time.
    Schedules that will not tick are last.
    """
    with context.tasks() as connection:
        schedules = connection.tasks.schedules(after=after or "", limit=limit)
        title = connection.title
    following = schedules[-1].name if len(schedules) == limit else None
    now = context.clock.now()
    present(
        context, output,
        page_document([schedule_document(entry) for entry in schedules], following),
        [entry.name for entry in schedules],
        lambda: schedules_table(schedules, now, wide=output is OutputFormat.WIDE),
        none=f"no schedules in {title}" if after is None else "no more schedules",
    )  # fmt: skip
    if following is not None and output not in (OutputFormat.JSON, OutputFormat.YAML):
        context.note(f"there may be more: the same command with --after {following}")


def show(context: CommandContext, name: Name, output: OutputOption = OutputFormat.TABLE) -> None:
    """Show one schedule and its next ticks."""
    with context.tasks() as connection:
        schedule = connection.tasks.schedule(name)
    present(
        context, output, schedule_document(schedule), [schedule.name],
        lambda: schedule_view(schedule, context.clock.now()),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class TriggerOptions:
    """The trigger of a schedule: a cron line, an interval or one time."""

    cron: Annotated[
        str | None,
        typer.Option(
            "--cron", metavar="LINE", help="Cron expression with five fields: '0 3 * * 1'."
        ),
    ] = None
    zone: Annotated[
        str | None,
        typer.Option("--zone", metavar="NAME", help="With --cron: time zone; the default is UTC."),
    ] = None
    every: Annotated[
        str | None, typer.Option("--every", metavar="LENGTH", help="An interval: 5m, 1h.")
    ] = None
    jitter: Annotated[
        str | None,
        typer.Option(
            "--jitter",
            metavar="LENGTH",
            help="With --cron or --every: delay each tick by a random time up to this.",
        ),
    ] = None
    at: Annotated[
        str | None,
        typer.Option("--at", metavar="TIME", help="A single time: 2026-01-31T12:00Z, or in 2h."),
    ] = None

    def trigger(self, now: datetime) -> "Trigger":
        """Return the trigger of these options. Raises UsageError, InvalidTaskError."""
        from engineroom.tasks import Cron, Every, Once

        if sum(option is not None for option in (self.cron, self.every, self.at)) != 1:
            raise UsageError(
                "a schedule needs exactly one trigger", fix="give one of --cron, --every and --at"
            )
        if self.zone is not None and self.cron is None:
            raise UsageError(
                "--zone belongs to --cron",
                fix="leave it out; --at takes a time with its offset: 2026-01-31T12:00+01:00",
            )
        if self.jitter is not None and self.at is not None:
            raise UsageError("--jitter belongs to --cron and --every", fix="leave it out")
        jitter = 0.0 if self.jitter is None else parse_length("--jitter", self.jitter)
        if self.cron is not None:
            return Cron(self.cron, "UTC" if self.zone is None else self.zone, jitter)
        if self.every is not None:
            return Every(parse_length("--every", self.every), jitter)
        return Once(parse_moment("--at", self.at or "", now, ago=False).timestamp())


@dataclass(frozen=True, slots=True)
class MissedOptions:
    """Handling of ticks that no scheduler ran in time."""

    missed: Annotated[
        MissedPolicy, typer.Option("--missed", help="What happens to missed ticks.")
    ] = MissedPolicy.RUN_ONCE
    grace: Annotated[
        str,
        typer.Option("--grace", metavar="LENGTH", help="A tick that is later than this is missed."),
    ] = "60s"


def add(
    context: CommandContext,
    name: Name,
    function: FunctionName,
    trigger: TriggerOptions,
    job: JobOptions,
    missed: MissedOptions,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Create a schedule, or change the existing one of that name.

    Running the same command again changes nothing. A schedule that a pool declares is changed in
    the pool's spec.schedules.
    """
    from engineroom.tasks import Missed, Schedule

    schedule = Schedule(
        name,
        trigger.trigger(context.clock.now()),
        job.task(function),
        Missed[missed.missed.name],
        parse_length("--grace", missed.grace),
    )
    with context.tasks() as connection:
        tasks = job.writer(connection)
        new = tasks.put_schedule(schedule)
        stored = tasks.schedule(name)
    text = f"schedule {name} {'created' if new else 'is up to date'}"
    if stored.next is not None:
        text += f"; next tick {_time(stored.next)}"
    print_result(context, schedule_document(stored), text, output, name=name)


def pause(context: CommandContext, name: Name, output: OutputOption = OutputFormat.TABLE) -> None:
    """Stop a schedule until it is resumed.

    Ticks in the meantime are dropped.
    """
    with context.tasks() as connection:
        connection.tasks.pause_schedule(name)
        schedule = connection.tasks.schedule(name)
    print_result(
        context, schedule_document(schedule), f"schedule {name} is paused", output, name=name
    )


def resume(context: CommandContext, name: Name, output: OutputOption = OutputFormat.TABLE) -> None:
    """Resume a paused schedule."""
    with context.tasks() as connection:
        connection.tasks.resume_schedule(name)
        schedule = connection.tasks.schedule(name)
    text = f"schedule {name} is resumed"
    if schedule.next is not None:
        text += f"; next tick {_time(schedule.next)}"
    print_result(context, schedule_document(schedule), text, output, name=name)


def run(context: CommandContext, name: Name, output: OutputOption = OutputFormat.TABLE) -> None:
    """Enqueue a schedule's job now, in addition to its ticks, also if it is paused."""
    with context.tasks() as connection:
        job_id = connection.tasks.run_schedule(name)
    done = {"name": name, "jobId": job_id}
    print_result(context, done, f"job {job_id} of schedule {name} enqueued", output, name=job_id)


def delete(
    context: CommandContext, name: Name, yes: Yes = False, output: OutputOption = OutputFormat.TABLE
) -> None:
    """Delete a schedule; jobs that it has enqueued stay."""
    with context.tasks() as connection:
        connection.tasks.schedule(name)
        context.confirm(f"Delete schedule {name}?", yes=yes)
        connection.tasks.remove_schedule(name)
    print_result(
        context, {"name": name, "deleted": True}, f"schedule {name} deleted", output, name=name
    )


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
