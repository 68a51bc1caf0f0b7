"""What every command is given, and the options that all commands share.

``command`` turns ``def get(context, names, ...)`` into a typer command with -n, -A, --context,
--kubeconfig, --no-color and --debug added; the same options are accepted before the command's name.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
import time
import typing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from engineroom.cli.errors import UsageError
from engineroom.core.clock import Clock, SystemClock

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from rich.console import RenderableType

    from engineroom.cli.connections.cluster import Cluster
    from engineroom.cli.connections.redis_connection import Link
    from engineroom.cli.connections.remote.api import Api

#: For what is not a terminal: wide enough that no line is ever broken or cut, so grep works.
_UNBROKEN = 10_000
_PANEL = "Options of all commands"

Kubeconfig = Annotated[
    str | None,
    typer.Option("--kubeconfig", metavar="FILE", help="Kubeconfig to use.", rich_help_panel=_PANEL),
]
Context = Annotated[
    str | None,
    typer.Option(
        "--context", metavar="NAME", help="Context of the kubeconfig.", rich_help_panel=_PANEL
    ),
]
Namespace = Annotated[
    str | None,
    typer.Option(
        "--namespace",
        "-n",
        metavar="NAME",
        help="Namespace; without it the context's own.",
        rich_help_panel=_PANEL,
    ),
]
NoColor = Annotated[
    bool,
    typer.Option(
        "--no-color",
        help="No colours; so does NO_COLOR in the environment.",
        rich_help_panel=_PANEL,
    ),
]
Debug = Annotated[
    bool,
    typer.Option("--debug", help="Show the stack trace of an error.", rich_help_panel=_PANEL),
]

Server = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="URL",
        help="Go through the API process there, as logged in by `login`; also ENGINEROOM_SERVER.",
        rich_help_panel=_PANEL,
    ),
]
CaFile = Annotated[
    str | None,
    typer.Option(
        "--ca-file",
        metavar="FILE",
        help="Certificates (PEM) to verify that server by; also ENGINEROOM_CA_FILE.",
        rich_help_panel=_PANEL,
    ),
]

_REDIS_PANEL = "Which Redis"
RedisUrl = Annotated[
    str | None,
    typer.Option(
        "--redis-url",
        metavar="URL",
        envvar="ENGINEROOM_REDIS_URL",
        show_envvar=False,
        help="Redis to use instead of a pool's. Better in ENGINEROOM_REDIS_URL: what stands on a "
        "command line can be seen by whoever lists processes. Never shown.",
        rich_help_panel=_REDIS_PANEL,
    ),
]
OfPool = Annotated[
    str | None,
    typer.Option(
        "--pool",
        metavar="NAME",
        help="Use the Redis of this pool; needed where the namespace's pools use several.",
        rich_help_panel=_REDIS_PANEL,
    ),
]

AllNamespaces = Annotated[
    bool, typer.Option("--all-namespaces", "-A", help="Of all namespaces, not just one.")
]
Selector = Annotated[
    str | None,
    typer.Option(
        "--selector", "-l", metavar="LABELS", help="Only pools with these labels: app=mail."
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@dataclass(frozen=True, slots=True)
class Shared:
    """The options of all commands, as typed; None and False mean not given."""

    kubeconfig: str | None = None
    context: str | None = None
    namespace: str | None = None
    no_color: bool = False
    debug: bool = False
    redis_url: str | None = field(default=None, repr=False)
    pool: str | None = None
    server: str | None = None
    ca_file: str | None = None

    def over(self, before: Shared) -> Shared:
        """These options, completed by those typed before the command's name."""
        return Shared(
            self.kubeconfig or before.kubeconfig,
            self.context or before.context,
            self.namespace or before.namespace,
            self.no_color or before.no_color,
            self.debug or before.debug,
            self.redis_url or before.redis_url,
            self.pool or before.pool,
            self.server or before.server,
            self.ca_file or before.ca_file,
        )


def _connect(shared: Shared) -> Cluster:
    from engineroom.cli.connections.remote.credentials import selected

    if selected(shared) is not None:
        from engineroom.cli.connections.remote.api import open_api
        from engineroom.cli.connections.remote.cluster import ApiCluster

        return ApiCluster(open_api(shared))
    from engineroom.cli.connections.cluster import KubernetesCluster

    return KubernetesCluster(shared.kubeconfig, shared.context)


def _api(shared: Shared) -> Api:
    from engineroom.cli.connections.remote.api import open_api

    return open_api(shared)


def _link(context: CommandContext) -> AbstractContextManager[Link]:
    from engineroom.cli.connections.remote.credentials import selected

    if not context.shared.redis_url and selected(context.shared) is not None:
        from engineroom.cli.connections.remote.tasks import api_link

        return api_link(context)
    from engineroom.cli.connections.redis_connection import open_link

    return open_link(context)


def _enter(question: str) -> str:
    return str(typer.prompt(question, default="", show_default=False, err=True))


@dataclass(slots=True)
class CommandContext:
    """What a command works with: the cluster, two streams, the time, and who may be asked."""

    shared: Shared = field(default_factory=Shared)
    connect: Callable[[Shared], Cluster] = _connect
    #: The API process, for what only it has.
    open_api: Callable[[Shared], Api] = _api
    #: The way to Redis, for as long as the block runs.
    link: Callable[[CommandContext], AbstractContextManager[Link]] = _link
    out: Console = field(default_factory=lambda: console(sys.stdout))
    err: Console = field(default_factory=lambda: console(sys.stderr))
    clock: Clock = field(default_factory=SystemClock)
    sleep: Callable[[float], None] = time.sleep
    interactive: bool = field(default_factory=lambda: sys.stdin.isatty() and sys.stdout.isatty())
    ask: Callable[[str], bool] = field(default=lambda question: typer.confirm(question, err=True))
    #: Has somebody type something in.
    enter: Callable[[str], str] = field(
        default=lambda question: str(
            typer.prompt(question, default="", show_default=False, err=True)
        )
    )
    _cluster: Cluster | None = None
    _opened_api: Api | None = None

    @property
    def api(self) -> Api:
        """The API process that was chosen. Raises UsageError where none was."""
        if self._opened_api is None:
            self._opened_api = self.open_api(self.shared)
        return self._opened_api

    @property
    def remote(self) -> bool:
        """Whether the command goes through the API process, and not by the kubeconfig."""
        from engineroom.cli.connections.remote.credentials import selected

        return selected(self.shared) is not None

    @property
    def cluster(self) -> Cluster:
        """The cluster, connected at first use."""
        if self._cluster is None:
            self._cluster = self.connect(self.shared)
        return self._cluster

    @property
    def namespace(self) -> str:
        """The namespace that was asked for, else the context's."""
        return self.shared.namespace or self.cluster.namespace

    def scope(self, all_namespaces: bool) -> str | None:
        """The namespace to list, None for all of them."""
        if not all_namespaces:
            return self.namespace
        if self.shared.namespace:
            raise UsageError(
                "--namespace and --all-namespaces exclude each other", fix="leave out one of them"
            )
        return None

    def show(self, renderable: RenderableType) -> None:
        """Print to standard output."""
        # Text is left to the terminal to wrap: JSON stays JSON, and a command can be copied.
        self.out.print(renderable, crop=False, soft_wrap=isinstance(renderable, Text))

    def note(self, text: str) -> None:
        """Say something beside the answer, on standard error, where it spoils no pipe."""
        self.err.print(Text(text, style="dim"), soft_wrap=True)

    def confirm(self, question: str, *, yes: bool) -> None:
        """Ask before something that is felt, but only somebody who can answer.

        Raises typer.Abort for a no.
        """
        if yes or not self.interactive:
            return
        if not self.ask(question):
            raise typer.Abort


def console(stream: typing.TextIO) -> Console:
    """A console for a stream: as wide as the terminal, unbroken lines anywhere else."""
    width = None if stream.isatty() or "COLUMNS" in os.environ else _UNBROKEN
    return Console(file=stream, width=width, highlight=False, emoji=False, soft_wrap=False)


_SHARED: dict[str, Any] = {
    "namespace": Namespace,
    "kubeconfig": Kubeconfig,
    "context": Context,
    "server": Server,
    "ca_file": CaFile,
    "no_color": NoColor,
    "debug": Debug,
}
_REDIS: dict[str, Any] = {"redis_url": RedisUrl, "pool": OfPool}


def shared_parameters(*, redis: bool = False) -> list[inspect.Parameter]:
    """The shared options as parameters of a typer function; with ``redis``, which one to use."""
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=False if typing.get_args(kind)[0] is bool else None,
            annotation=kind,
        )
        for name, kind in {**(_REDIS if redis else {}), **_SHARED}.items()
    ]


def command(function: Callable[..., None], *, redis: bool = False) -> Callable[..., None]:
    """A typer command function from one that takes a CommandContext first."""
    added = shared_parameters(redis=redis)
    hints = typing.get_type_hints(function, include_extras=True)
    signature = inspect.signature(function)
    _, *own = signature.parameters.values()
    own = [
        one.replace(annotation=hints[one.name], kind=inspect.Parameter.KEYWORD_ONLY) for one in own
    ]

    @functools.wraps(function)
    def run(ctx: typer.Context, **arguments: Any) -> None:
        shared = Shared(**{one.name: arguments.pop(one.name) for one in added})
        before = ctx.obj if isinstance(ctx.obj, Shared) else Shared()
        function(CommandContext(shared.over(before)), **arguments)

    context = inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    parameters = [context, *own, *added]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run
