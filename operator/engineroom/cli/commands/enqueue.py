"""``engineroom enqueue``: one job, checked before anything is written."""

import json
from enum import StrEnum
from typing import Annotated, Any

import typer

from engineroom.cli.commands.arguments import OutputOption
from engineroom.cli.commands.tasks import complete_queues, known_queue, moment, report, seconds
from engineroom.cli.errors import UsageError
from engineroom.cli.session import Session
from engineroom.cli.views.shape import Output
from engineroom.cli.views.tasks import document


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
    session: Session,
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
        str, typer.Option("--window", metavar="LENGTH", help="For so long with --unique.")
    ] = "1h",
    retry: RetryOption = None,
    priority: Priority = 0,
    limit: Annotated[
        str | None,
        typer.Option("--limit", metavar="KEY", help="All jobs of one key have a limit together."),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option("--concurrency", metavar="N", help="With --limit: so many run at once."),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            "--rate", metavar="N/TIME", help="With --limit: so many begin: 10/s, 100/min."
        ),
    ] = None,
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

    All is checked first: that the queue is known, the arguments can be read and are not too large.
    Then the job is written whole, or not at all.
    """
    from engineroom.tasks import JSONSerializer, Limit, PickleSerializer, Task, Unique

    now = session.clock.now()
    if delay is not None and at is not None:
        raise UsageError("--delay and --at exclude each other", fix="leave out one of them")
    if limit is None and (concurrency is not None or rate is not None):
        raise UsageError("--concurrency and --rate need a key", fix="add --limit KEY")
    task = Task(
        function,
        arguments(args or ()),
        keywords(kwargs or ()),
        queue=queue,
        timeout=timeout,
        priority=priority,
        limit=None if limit is None else Limit(limit, concurrency, rate),
        retry=retries(retry),
        delay=None if delay is None else seconds("--delay", delay),
        at=None if at is None else moment("--at", at, now, ago=False),
        unique=None if unique is None else Unique(unique, seconds("--window", window)),
        job_id=job_id,
    )
    with session.link(session) as link:
        if not create_queue:
            known_queue(link, queue)
        form = JSONSerializer if serializer is Form.JSON else PickleSerializer
        made = link.writing(form, max_bytes).enqueue(task)
    text = f"job {made.job_id} waits on {made.queue}"
    if not made.created:
        text = f"job {made.job_id} of {made.queue} stands for this work already"
    elif task.at is not None or task.delay is not None:
        text = f"job {made.job_id} is scheduled on {made.queue}"
    report(session, document(made), text, output, name=made.job_id)


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
