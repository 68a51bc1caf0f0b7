"""``engineroom enqueue``: one job, checked before anything is written."""

import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engineroom.cli.app.context import CommandContext
from engineroom.cli.commands.arguments import OutputOption
from engineroom.cli.commands.tasks.shared import (
    complete_queues,
    known_queue,
    moment,
    report,
    seconds,
)
from engineroom.cli.errors import NotFoundError, UsageError
from engineroom.cli.views.output_formats import Output
from engineroom.cli.views.tasks import document

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engineroom.cli.connections.tasks_connection import TasksConnection


class Until(StrEnum):
    """When a key of ``--unique`` is free again."""

    WINDOW = "window"
    END = "end"


class Form(StrEnum):
    """How arguments are stored; workers must read the same."""

    PICKLE = "pickle"
    JSON = "json"


FunctionName = Annotated[
    str, typer.Argument(metavar="FUNCTION", help="Dotted path of the function: shop.jobs.report.")
]
Arguments = Annotated[
    list[str] | None,
    typer.Option("--arg", metavar="JSON", help="An argument; give it once for each, in order."),
]
Keywords = Annotated[
    list[str] | None,
    typer.Option("--kwarg", metavar="NAME=JSON", help="A named argument; once for each."),
]
ToQueue = Annotated[
    str,
    typer.Option("--queue", "-q", metavar="NAME", help="Where it waits.",
                 autocompletion=complete_queues),
]  # fmt: skip
NewQueue = Annotated[
    bool, typer.Option("--create-queue", help="The queue may be one that is not known yet.")
]
RetryOption = Annotated[
    str | None,
    typer.Option(
        "--retry",
        metavar="N[:SECONDS,...]",
        help="Try again so often when it fails, after so many seconds each time: 3:10,60,300.",
    ),
]
Timeout = Annotated[
    int, typer.Option("--timeout", metavar="SECONDS", help="How long it may run; -1 for ever.")
]
FormOption = Annotated[
    Form, typer.Option("--serializer", help="How arguments are stored; as the workers read them.")
]
Priority = Annotated[
    int,
    typer.Option(
        "--priority",
        metavar="0-9",
        help="How urgent it is: each step counts for 400 s of waiting, for none longer.",
    ),
]
LimitOption = Annotated[
    str | None,
    typer.Option("--limit", metavar="KEY", help="All jobs of one key have a limit together."),
]
Concurrency = Annotated[
    int | None,
    typer.Option("--concurrency", metavar="N", help="With --limit: so many run at once."),
]
Rate = Annotated[
    str | None,
    typer.Option("--rate", metavar="N/TIME", help="With --limit: so many begin: 10/s, 100/min."),
]
Ttl = Annotated[
    str | None,
    typer.Option("--ttl", metavar="LENGTH", help="How long it may wait; gone after that: 1d."),
]
ResultTtl = Annotated[
    str | None,
    typer.Option(
        "--result-ttl",
        metavar="LENGTH",
        help="How long its result is kept; 0 for not at all, -1 for ever.",
    ),
]
FailureTtl = Annotated[
    str | None,
    typer.Option(
        "--failure-ttl", metavar="LENGTH", help="How long it is kept failed; -1 for ever."
    ),
]
MaxBytes = Annotated[
    int,
    typer.Option(
        "--max-bytes",
        min=1,
        envvar="ENGINEROOM_MAX_JOB_BYTES",
        show_envvar=False,
        help="The largest that function and arguments may be, stored; also "
        "ENGINEROOM_MAX_JOB_BYTES.",
    ),
]


def enqueue(
    context: CommandContext,
    function: FunctionName,
    args: Arguments = None,
    kwargs: Keywords = None,
    queue: ToQueue = "default",
    create_queue: NewQueue = False,
    delay: Annotated[
        str | None, typer.Option("--delay", metavar="LENGTH", help="Not before then: 90s, 2h.")
    ] = None,
    at: Annotated[
        str | None,
        typer.Option("--at", metavar="TIME", help="Not before then: 2026-01-31T12:00Z, or in 2h."),
    ] = None,
    unique: Annotated[
        str | None,
        typer.Option("--unique", metavar="KEY", help="The same work: of one key only one is made."),
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(
            "--window", metavar="LENGTH", help="With --unique: for so long, 1h unless given."
        ),
    ] = None,
    until: Annotated[
        Until,
        typer.Option(
            "--until",
            help="With --unique: end frees the key already when the job has ended.",
        ),
    ] = Until.WINDOW,
    depends_on: Annotated[
        list[str] | None,
        typer.Option(
            "--depends-on",
            metavar="ID",
            help="A job that has to finish first; once for each.",
        ),
    ] = None,
    allow_failure: Annotated[
        bool, typer.Option("--allow-failure", help="Those of --depends-on may fail, too.")
    ] = False,
    retry: RetryOption = None,
    priority: Priority = 0,
    limit: LimitOption = None,
    concurrency: Concurrency = None,
    rate: Rate = None,
    ttl: Ttl = None,
    result_ttl: ResultTtl = None,
    failure_ttl: FailureTtl = None,
    timeout: Timeout = 180,
    job_id: Annotated[
        str | None,
        typer.Option("--id", metavar="ID", help="Its id; refused if there is such a job."),
    ] = None,
    serializer: FormOption = Form.PICKLE,
    max_bytes: MaxBytes = 1 << 20,
    output: OutputOption = Output.TABLE,
) -> None:
    """Enqueue one job.

    All is checked first: that the queue is known, the jobs that it waits for are there, the
    arguments can be read and are not too large. Then the job is written whole, or not at all.

    A job waits for jobs that are there already, so no cycle can come of it; flows, whose jobs name
    each other, are made in the application by engineroom.tasks, which refuses a cycle.
    """
    from engineroom.tasks import JSONSerializer, PickleSerializer, Task, Unique

    now = context.clock.now()
    if delay is not None and at is not None:
        raise UsageError("--delay and --at exclude each other", fix="leave out one of them")
    if unique is None and (window is not None or until is not Until.WINDOW):
        raise UsageError("--window and --until need a key", fix="add --unique KEY")
    if allow_failure and not depends_on:
        raise UsageError("--allow-failure needs a job to wait for", fix="add --depends-on ID")
    once = None
    if unique is not None:
        once = Unique(unique, seconds("--window", window or "1h"), until.value)
    task = Task(
        function,
        arguments(args or ()),
        keywords(kwargs or ()),
        queue=queue,
        timeout=timeout,
        ttl=kept("--ttl", ttl),
        result_ttl=kept("--result-ttl", result_ttl),
        failure_ttl=kept("--failure-ttl", failure_ttl),
        priority=priority,
        limit=limited(limit, concurrency, rate),
        retry=retries(retry),
        delay=None if delay is None else seconds("--delay", delay),
        at=None if at is None else moment("--at", at, now, ago=False),
        unique=once,
        job_id=job_id,
        depends_on=depends_on or (),
        allow_failure=allow_failure,
    )
    with context.tasks() as connection:
        if not create_queue:
            known_queue(connection, queue)
        known_jobs(connection, task.depends_on)
        form = JSONSerializer if serializer is Form.JSON else PickleSerializer
        made = connection.writer(form, max_bytes).enqueue(task)
    text = f"job {made.job_id} waits on {made.queue}"
    if not made.created:
        text = f"job {made.job_id} of {made.queue} stands for this work already"
    elif task.at is not None or task.delay is not None:
        text = f"job {made.job_id} is scheduled on {made.queue}"
    elif depends_on:
        text = f"job {made.job_id} of {made.queue} follows {', '.join(depends_on)}"
    report(context, document(made), text, output, name=made.job_id)


def known_jobs(connection: "TasksConnection", ids: "Sequence[str]") -> None:
    """Raises NotFoundError where one is not there: the library takes it as finished long ago."""
    from engineroom.core.errors import JobMissingError

    for job_id in ids:
        try:
            connection.tasks.job(job_id)
        except (JobMissingError, NotFoundError):
            raise NotFoundError(
                f"--depends-on {job_id[:50]}: no such job",
                fix="`jobs list` shows those that are; one that has ended and is gone needs no "
                "waiting for: leave it out",
            ) from None


def limited(key: str | None, concurrency: int | None, rate: str | None) -> Any:
    """The Limit that the options mean, or None. Raises UsageError, InvalidTaskError."""
    from engineroom.tasks import Limit

    if key is not None:
        return Limit(key, concurrency, rate)
    if concurrency is not None or rate is not None:
        raise UsageError("--concurrency and --rate need a key", fix="add --limit KEY")
    return None


def kept(option: str, said: str | None) -> int | None:
    """A time to live in whole seconds, or -1. Raises UsageError."""
    if said is None or said == "-1":
        return None if said is None else -1
    length = seconds(option, said)
    if not length.is_integer():
        raise UsageError(f"{option} {said[:50]} is no whole second", fix="write 90s, 2h or 1d12h")
    return int(length)


def arguments(given: Any) -> tuple[Any, ...]:
    """Values of ``--arg``. Raises UsageError, naming which is at fault and not its value."""
    return tuple(_value(f"--arg {number}", said) for number, said in enumerate(given, 1))


def keywords(given: Any) -> dict[str, Any]:
    """Values of ``--kwarg`` by name. Raises UsageError."""
    found: dict[str, Any] = {}
    for said in given:
        name, equals, value = said.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(
                f"--kwarg {name[:50]!r} names no argument", fix="write --kwarg NAME=JSON"
            )
        if name in found:
            raise UsageError(f"--kwarg {name} is there twice", fix="give it once")
        found[name] = _value(f"--kwarg {name}", value)
    return found


def _value(option: str, said: str) -> Any:
    try:
        return json.loads(said)
    except (ValueError, RecursionError) as error:
        where = f" at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else ""
        raise UsageError(
            f"{option} is no JSON",
            why=f"it cannot be read{where}",
            fix="""write 42, '"text"', '[1, 2]' or '{"key": true}'; a text needs its quotes""",
        ) from None


def retries(said: str | None) -> Any:
    """``3`` or ``3:10,60,300`` as a Retry. Raises UsageError, InvalidTaskError."""
    from engineroom.tasks import Retry

    if said is None:
        return None
    number, _, intervals = said.partition(":")
    try:
        waits = tuple(int(one) for one in intervals.split(",")) if intervals else (0,)
        return Retry(int(number), waits)
    except ValueError:
        raise UsageError(
            f"--retry {said[:50]} is unknown", fix="write how often, and how long after: 3:10,60"
        ) from None
