"""Options that describe a job, for `enqueue` and `schedules add`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engineroom.cli.commands.tasks.queue_names import complete_queues, require_queue
from engineroom.cli.commands.times import parse_length
from engineroom.cli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engineroom.cli.connections.tasks_connection import TasksConnection
    from engineroom.tasks import Limit, Retry, Task, Tasks


class SerializerName(StrEnum):
    """Formats of a job's arguments."""

    PICKLE = "pickle"
    JSON = "json"


FunctionName = Annotated[
    str, typer.Argument(metavar="FUNCTION", help="Dotted path of the function: shop.jobs.report.")
]


@dataclass(frozen=True, slots=True)
class JobOptions:
    """The queue, arguments, limits and retries of a job."""

    args: Annotated[
        list[str] | None,
        typer.Option(
            "--arg", metavar="JSON", help="A positional argument; repeat it for several, in order."
        ),
    ] = None
    kwargs: Annotated[
        list[str] | None,
        typer.Option(
            "--kwarg", metavar="NAME=JSON", help="A keyword argument; repeat it for several."
        ),
    ] = None
    queue: Annotated[
        str,
        typer.Option(
            "--queue",
            "-q",
            metavar="NAME",
            help="Queue of the job.",
            autocompletion=complete_queues,
        ),
    ] = "default"
    create_queue: Annotated[
        bool, typer.Option("--create-queue", help="Create the queue if it does not exist.")
    ] = False
    retry: Annotated[
        str | None,
        typer.Option(
            "--retry",
            metavar="N[:SECONDS,...]",
            help="Number of retries after a failure, and the delay before each: 3:10,60,300.",
        ),
    ] = None
    priority: Annotated[
        int,
        typer.Option(
            "--priority",
            metavar="0-9",
            help="Priority in the queue: each step counts as 400 s of waiting, so that no job "
            "waits for ever.",
        ),
    ] = 0
    limit: Annotated[
        str | None,
        typer.Option("--limit", metavar="KEY", help="All jobs with this key share one limit."),
    ] = None
    concurrency: Annotated[
        int | None,
        typer.Option(
            "--concurrency", metavar="N", help="With --limit: jobs that run at the same time."
        ),
    ] = None
    rate: Annotated[
        str | None,
        typer.Option(
            "--rate", metavar="N/TIME", help="With --limit: jobs that start: 10/s, 100/min."
        ),
    ] = None
    ttl: Annotated[
        str | None,
        typer.Option(
            "--ttl", metavar="LENGTH", help="Delete the job if it has not started by then: 1d."
        ),
    ] = None
    result_ttl: Annotated[
        str | None,
        typer.Option(
            "--result-ttl",
            metavar="LENGTH",
            help="Time to keep the result: 0 to drop it at once, -1 to keep it for ever.",
        ),
    ] = None
    failure_ttl: Annotated[
        str | None,
        typer.Option(
            "--failure-ttl",
            metavar="LENGTH",
            help="Time to keep the job if it fails; -1 for ever.",
        ),
    ] = None
    timeout: Annotated[
        int,
        typer.Option("--timeout", metavar="SECONDS", help="Longest run time; -1 for no limit."),
    ] = 180
    serializer: Annotated[
        SerializerName,
        typer.Option(
            "--serializer", help="Format of the arguments; the workers must use the same."
        ),
    ] = SerializerName.PICKLE
    max_bytes: Annotated[
        int,
        typer.Option(
            "--max-bytes",
            min=1,
            envvar="ENGINEROOM_MAX_JOB_BYTES",
            show_envvar=False,
            help="Largest stored size of function and arguments, in bytes; also "
            "ENGINEROOM_MAX_JOB_BYTES.",
        ),
    ] = 1 << 20

    def task(self, function: str, **start: Any) -> Task:
        """Return the task of these options; ``start`` are further fields of it.

        Raises UsageError, InvalidTaskError.
        """
        from engineroom.tasks import Task

        return Task(
            function,
            parse_args(self.args or ()),
            parse_kwargs(self.kwargs or ()),
            queue=self.queue,
            timeout=self.timeout,
            ttl=parse_ttl("--ttl", self.ttl),
            result_ttl=parse_ttl("--result-ttl", self.result_ttl),
            failure_ttl=parse_ttl("--failure-ttl", self.failure_ttl),
            priority=self.priority,
            limit=self.shared_limit(),
            retry=parse_retry(self.retry),
            **start,
        )

    def shared_limit(self) -> Limit | None:
        """Return the limit of --limit, --concurrency and --rate. Raises UsageError."""
        from engineroom.tasks import Limit

        if self.limit is not None:
            return Limit(self.limit, self.concurrency, self.rate)
        if self.concurrency is not None or self.rate is not None:
            raise UsageError("--concurrency and --rate need a key", fix="add --limit KEY")
        return None

    def writer(self, connection: TasksConnection) -> Tasks:
        """Return the tasks that write with this serializer and size limit.

        Raises UnknownQueueError if the queue does not exist and --create-queue is not given.
        """
        from engineroom.tasks import JSONSerializer, PickleSerializer

        if not self.create_queue:
            require_queue(connection, self.queue)
        json_chosen = self.serializer is SerializerName.JSON
        return connection.writer(
            JSONSerializer if json_chosen else PickleSerializer, self.max_bytes
        )


def parse_ttl(option: str, text: str | None) -> int | None:
    """Return a time to live in whole seconds, or -1 for none. Raises UsageError."""
    if text is None or text == "-1":
        return None if text is None else -1
    length = parse_length(option, text)
    if not length.is_integer():
        raise UsageError(
            f"{option} {text[:50]} is not a whole number of seconds", fix="write 90s, 2h or 1d12h"
        )
    return int(length)


def parse_args(values: Sequence[str]) -> tuple[Any, ...]:
    """Return the values of ``--arg``.

    Raises UsageError, which names the position of a wrong one and never its value.
    """
    return tuple(_json_value(f"--arg {number}", text) for number, text in enumerate(values, 1))


def parse_kwargs(values: Sequence[str]) -> dict[str, Any]:
    """Return the values of ``--kwarg`` by name. Raises UsageError."""
    parsed: dict[str, Any] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(
                f"--kwarg {name[:50]!r} is not NAME=JSON", fix="write --kwarg NAME=JSON"
            )
        if name in parsed:
            raise UsageError(f"--kwarg {name} is given twice", fix="give it once")
        parsed[name] = _json_value(f"--kwarg {name}", value)
    return parsed


def _json_value(option: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        place = f" at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else ""
        raise UsageError(
            f"{option} is not JSON",
            why=f"it cannot be parsed{place}",
            fix="""write 42, '"text"', '[1, 2]' or '{"key": true}'; a text needs its quotes""",
        ) from None


def parse_retry(text: str | None) -> Retry | None:
    """Return ``3`` or ``3:10,60,300`` as a Retry. Raises UsageError, InvalidTaskError."""
    from engineroom.tasks import Retry

    if text is None:
        return None
    number, _, intervals = text.partition(":")
    try:
        delays = tuple(map(int, intervals.split(","))) if intervals else (0,)
        return Retry(int(number), delays)
    except ValueError:
        raise UsageError(
            f"--retry {text[:50]} is invalid",
            fix="write the number of retries and their delays in seconds: 3:10,60",
        ) from None
