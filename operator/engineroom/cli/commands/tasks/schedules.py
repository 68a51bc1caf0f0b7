"""``engineroom schedules``: those made at run time are steered here, those of pools are shown."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engineroom.cli.app.context import CommandContext
from engineroom.cli.app.options import Yes
from engineroom.cli.commands.arguments import OutputOption
from engineroom.cli.commands.output import present
from engineroom.cli.commands.tasks.enqueue import (
    Arguments,
    Concurrency,
    FailureTtl,
    Form,
    FormOption,
    FunctionName,
    Keywords,
    LimitOption,
    MaxBytes,
    NewQueue,
    Priority,
    Rate,
    ResultTtl,
    RetryOption,
    Timeout,
    ToQueue,
    Ttl,
    arguments,
    kept,
    keywords,
    limited,
    retries,
)
from engineroom.cli.commands.tasks.shared import known_queue, moment, report, seconds
from engineroom.cli.errors import UsageError
from engineroom.cli.views.output_formats import Output
from engineroom.cli.views.tasks import (
    page_document,
    schedule_document,
    schedule_view,
    schedules_table,
)

if TYPE_CHECKING:
    from engineroom.tasks.triggers import Trigger


class Misses(StrEnum):
    """What becomes of ticks that nobody was there to run in time."""

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
        str | None, typer.Option("--after", metavar="NAME", help="Those beyond this one.")
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List schedules by their next tick.

    Those that pools declare and those made at run time; the ones that will not tick stand last.
    """
    with context.tasks() as connection:
        known = connection.tasks.schedules(after=after or "", limit=limit)
        title = connection.title
    following = known[-1].name if len(known) == limit else None
    now = context.clock.now()
    present(
        context, output, page_document([schedule_document(one) for one in known], following),
        [one.name for one in known],
        lambda: schedules_table(known, now, wide=output is Output.WIDE),
        none=f"no schedules in {title}" if after is None else "no more schedules",
    )  # fmt: skip
    if following is not None and output not in (Output.JSON, Output.YAML):
        context.note(f"there may be more: the same command with --after {following}")


def show(context: CommandContext, name: Name, output: OutputOption = Output.TABLE) -> None:
    """Show one schedule and its next ticks."""
    with context.tasks() as connection:
        known = connection.tasks.schedule(name)
    present(
        context, output, schedule_document(known), [known.name],
        lambda: schedule_view(known, context.clock.now()),
    )  # fmt: skip


def add(
    context: CommandContext,
    name: Name,
    function: FunctionName,
    args: Arguments = None,
    kwargs: Keywords = None,
    cron: Annotated[
        str | None,
        typer.Option("--cron", metavar="LINE", help="By a cron line of five fields: '0 3 * * 1'."),
    ] = None,
    zone: Annotated[
        str | None,
        typer.Option(
            "--zone", metavar="NAME", help="With --cron: its time zone, UTC unless given."
        ),
    ] = None,
    every: Annotated[
        str | None, typer.Option("--every", metavar="LENGTH", help="So often: 5m, 1h.")
    ] = None,
    jitter: Annotated[
        str | None,
        typer.Option(
            "--jitter", metavar="LENGTH", help="With --cron or --every: up to so much later."
        ),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option("--at", metavar="TIME", help="Once: 2026-01-31T12:00Z, or in 2h."),
    ] = None,
    queue: ToQueue = "default",
    create_queue: NewQueue = False,
    missed: Annotated[
        Misses, typer.Option("--missed", help="What becomes of ticks that were missed.")
    ] = Misses.RUN_ONCE,
    grace: Annotated[
        str, typer.Option("--grace", metavar="LENGTH", help="A tick later by more was missed.")
    ] = "60s",
    retry: RetryOption = None,
    priority: Priority = 0,
    limit: LimitOption = None,
    concurrency: Concurrency = None,
    rate: Rate = None,
    ttl: Ttl = None,
    result_ttl: ResultTtl = None,
    failure_ttl: FailureTtl = None,
    timeout: Timeout = 180,
    serializer: FormOption = Form.PICKLE,
    max_bytes: MaxBytes = 1 << 20,
    output: OutputOption = Output.TABLE,
) -> None:
    """Make a schedule, or change the one of that name.

    The same again changes nothing. One that a pool declares is changed in the pool's
    spec.schedules.
    """
    from engineroom.tasks import (
        JSONSerializer,
        Missed,
        PickleSerializer,
        Schedule,
        Task,
    )

    trigger = _trigger(context, cron, zone, every, jitter, at)
    task = Task(
        function, arguments(args or ()), keywords(kwargs or ()), queue=queue, timeout=timeout,
        ttl=kept("--ttl", ttl), result_ttl=kept("--result-ttl", result_ttl),
        failure_ttl=kept("--failure-ttl", failure_ttl), priority=priority,
        limit=limited(limit, concurrency, rate), retry=retries(retry),
    )  # fmt: skip
    schedule = Schedule(name, trigger, task, Missed[missed.name], seconds("--grace", grace))
    with context.tasks() as connection:
        if not create_queue:
            known_queue(connection, queue)
        form = JSONSerializer if serializer is Form.JSON else PickleSerializer
        tasks = connection.writer(form, max_bytes)
        new = tasks.put_schedule(schedule)
        known = tasks.schedule(name)
    text = f"schedule {name} {'made' if new else 'is as said'}"
    if known.next is not None:
        text += f"; next tick {_time(known.next)}"
    report(context, schedule_document(known), text, output, name=name)


def pause(context: CommandContext, name: Name, output: OutputOption = Output.TABLE) -> None:
    """Have a schedule not tick until it is resumed.

    What it misses meanwhile is not made up for.
    """
    with context.tasks() as connection:
        connection.tasks.pause_schedule(name)
        known = connection.tasks.schedule(name)
    report(context, schedule_document(known), f"schedule {name} is paused", output, name=name)


def resume(context: CommandContext, name: Name, output: OutputOption = Output.TABLE) -> None:
    """Let a schedule tick again."""
    with context.tasks() as connection:
        connection.tasks.resume_schedule(name)
        known = connection.tasks.schedule(name)
    text = f"schedule {name} is resumed"
    if known.next is not None:
        text += f"; next tick {_time(known.next)}"
    report(context, schedule_document(known), text, output, name=name)


def run(context: CommandContext, name: Name, output: OutputOption = Output.TABLE) -> None:
    """Enqueue a schedule's job now, beside its ticks, paused or not."""
    with context.tasks() as connection:
        job_id = connection.tasks.run_schedule(name)
    done = {"name": name, "jobId": job_id}
    report(context, done, f"job {job_id} of schedule {name} enqueued", output, name=job_id)


def delete(
    context: CommandContext, name: Name, yes: Yes = False, output: OutputOption = Output.TABLE
) -> None:
    """Forget a schedule; jobs that it made stay."""
    with context.tasks() as connection:
        connection.tasks.schedule(name)
        context.confirm(f"Delete schedule {name}?", yes=yes)
        connection.tasks.remove_schedule(name)
    report(context, {"name": name, "deleted": True}, f"schedule {name} deleted", output, name=name)


def _trigger(
    context: CommandContext,
    cron: str | None,
    zone: str | None,
    every: str | None,
    jitter: str | None,
    at: str | None,
) -> "Trigger":
    from engineroom.tasks import Cron, Every, Once

    if sum(one is not None for one in (cron, every, at)) != 1:
        raise UsageError(
            "say when it ticks, in one way", fix="give one of --cron, --every and --at"
        )
    if zone is not None and cron is None:
        raise UsageError(
            "--zone is for a cron line",
            fix="leave it out; --at takes a time with its offset: 2026-01-31T12:00+01:00",
        )
    if jitter is not None and at is not None:
        raise UsageError("--jitter is for --cron and --every", fix="leave it out")
    later = 0.0 if jitter is None else seconds("--jitter", jitter)
    if cron is not None:
        return Cron(cron, "UTC" if zone is None else zone, later)
    if every is not None:
        return Every(seconds("--every", every), later)
    return Once(moment("--at", at or "", context.clock.now(), ago=False).timestamp())


def _time(at: float) -> Any:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
