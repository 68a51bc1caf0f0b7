"""What the commands on tasks share: filters, times, names of queues, and a bar for long work."""

from __future__ import annotations

import re
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from engineroom.cli.app.context import CommandContext
from engineroom.cli.commands.output import present
from engineroom.cli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from engineroom.cli.connections.tasks_connection import TasksConnection
    from engineroom.cli.views.output_formats import Output
    from engineroom.tasks import JobFilter

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LENGTH = re.compile(r"(?:\d{1,6}[smhd])+")


def complete_queues(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of queues for the shell: those of the Redis that was named, else those of pools."""
    context = CommandContext.of_completion(ctx)
    try:
        if context.options.redis_url:
            with context.tasks() as connection:
                names = set(connection.tasks.queue_names())
        else:
            # What the pools say costs one request; the way to their Redis costs a second.
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
Function = Annotated[
    str | None,
    typer.Option("--function", metavar="PATTERN", help="Only of this function: 'shop.jobs.*'."),
]
Category = Annotated[
    str | None,
    typer.Option(
        "--category", metavar="WORD", help="Only failures that are transient, permanent or poison."
    ),
]
ErrorClass = Annotated[
    str | None,
    typer.Option("--error", metavar="PATTERN", help="Only failures of this class: '*Timeout*'."),
]
TextOption = Annotated[
    str | None,
    typer.Option(
        "--text", metavar="TEXT", help="Only with this text in the error's message or the call."
    ),
]
Since = Annotated[
    str | None,
    typer.Option(
        "--since",
        metavar="TIME",
        help="Only since then: how long ago (2h, 1d12h) or a time (2026-01-31T12:00Z). Counts the "
        "time of the state: enqueued, begun, due, ended.",
    ),
]
Until = Annotated[
    str | None,
    typer.Option("--until", metavar="TIME", help="Only before then, written like --since."),
]
Prefix = Annotated[
    str | None,
    typer.Option("--id", metavar="PREFIX", help="Only jobs whose id begins so."),
]


def where(
    now: datetime,
    *,
    function: str | None = None,
    category: str | None = None,
    error: str | None = None,
    text: str | None = None,
    since: str | None = None,
    until: str | None = None,
    prefix: str | None = None,
) -> JobFilter:
    """The filter that the options mean. Raises UsageError, InvalidTaskError."""
    from engineroom.tasks import FailureCategory, JobFilter

    categories = [one.value for one in FailureCategory]
    if category is not None and category not in categories:
        raise UsageError(
            f"--category {category} is unknown", fix=f"use one of {', '.join(categories)}"
        )
    return JobFilter(
        function=function,
        exception=error,
        category=category,
        text=text,
        before=None if until is None else moment("--until", until, now, ago=True),
        after=None if since is None else moment("--since", since, now, ago=True),
        prefix=prefix,
    )


def moment(option: str, said: str, now: datetime, *, ago: bool) -> datetime:
    """A time, or a length of time before ``now`` (after it without ``ago``)."""
    try:
        length = timedelta(seconds=seconds(option, said))
    except UsageError:
        try:
            found = datetime.fromisoformat(said)
        except ValueError:
            raise UsageError(
                f"{option} {said[:50]} is no time",
                fix="write a length (90s, 2h, 1d12h) or a time (2026-01-31T12:00Z)",
            ) from None
        return found if found.tzinfo else found.replace(tzinfo=UTC)
    return now - length if ago else now + length


def seconds(option: str, said: str) -> float:
    """A length of time such as ``90s`` or ``1d12h``; a bare number is seconds."""
    if re.fullmatch(r"\d{1,9}(\.\d+)?", said):
        return float(said)
    if not _LENGTH.fullmatch(said):
        raise UsageError(f"{option} {said[:50]} is no length of time", fix="write 90s, 2h or 1d12h")
    return float(
        sum(int(count) * _UNITS[unit] for count, unit in re.findall(r"(\d+)([smhd])", said))
    )


def known_queues(connection: TasksConnection) -> list[str]:
    """Queues that RQ knows or a pool reads, sorted."""
    return sorted({*connection.tasks.queue_names(), *connection.declared_queues})


def known_queue(connection: TasksConnection, name: str) -> str:
    """The name itself. Raises UnknownQueueError where neither RQ nor a pool knows it."""
    from engineroom.tasks import UnknownQueueError

    known = known_queues(connection)
    if name not in known:
        listing = ", ".join(known[:10]) + (", ..." if len(known) > 10 else "")
        fix = f"use one of {listing}" if known else "there is none yet"
        raise UnknownQueueError("queue", f"{name[:100]!r} is not known in {connection.title}", fix)
    return name


def report(
    context: CommandContext, done: Any, text: str, output: Output, *, name: str = ""
) -> None:
    """Say what was done, in the shape that was asked for."""
    present(context, output, done, [name], lambda: Text(text))


@contextmanager
def bar(
    context: CommandContext, title: str
) -> Iterator[Callable[[float, float | None, str], None]]:
    """Tells how far long work is: a bar on a terminal, a line now and then elsewhere."""
    if not context.err.is_terminal:
        began = context.clock.monotonic()
        said = [began]

        def line(count: float, total: float | None, text: str) -> None:
            now = context.clock.monotonic()
            if now - said[0] >= 5:
                said[0] = now
                of = "" if total is None else f" of {total:g}"
                context.note(f"{title}: {count:g}{of}, {text}")

        yield line
        return
    from rich import progress as bars

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.TextColumn("{task.completed:.0f} of {task.total:.0f}, {task.fields[text]}"),
        bars.TimeElapsedColumn(),
    )
    with bars.Progress(*columns, console=context.err, transient=True) as display:
        task = display.add_task(title, total=1, text="")

        def draw(count: float, total: float | None, text: str) -> None:
            display.update(task, completed=count, total=total or max(count, 1), text=text)

        yield draw
