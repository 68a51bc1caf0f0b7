"""The context of one command: its connections, its output streams, and prompts."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, field, fields
from io import TextIOWrapper
from typing import TYPE_CHECKING, TextIO

import typer
from rich.console import Console
from rich.text import Text

from engineroom.cli.connections.factory import Connections
from engineroom.cli.connections.options import ConnectionOptions
from engineroom.cli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from rich.console import RenderableType

    from engineroom.cli.connections.cluster import Cluster
    from engineroom.cli.connections.remote.api import Api
    from engineroom.cli.connections.tasks_connection import TasksConnection
    from engineroom.core.clock import Clock

#: Columns of a stream that is not a terminal: no line is broken or cut, so that grep works.
_UNBROKEN = 10_000


def _prompt(question: str) -> str:
    return str(typer.prompt(question, default="", show_default=False, err=True))


@dataclass(slots=True)
class CommandContext:
    """The connections, output streams, clock and prompts of one command."""

    connections: Connections = field(default_factory=Connections)
    out: Console = field(default_factory=lambda: console(sys.stdout))
    err: Console = field(default_factory=lambda: console(sys.stderr))
    sleep: Callable[[float], None] = time.sleep
    #: Whether a person can answer a prompt; prompts go to standard error.
    interactive: bool = field(default_factory=lambda: sys.stdin.isatty() and sys.stderr.isatty())
    #: Asks a yes-or-no question.
    ask: Callable[[str], bool] = field(default=lambda question: typer.confirm(question, err=True))
    #: Asks for a line of text.
    prompt: Callable[[str], str] = _prompt

    @classmethod
    def of(cls, options: ConnectionOptions) -> CommandContext:
        """Return the context of a command with these options."""
        return cls(Connections(options))

    @classmethod
    def of_completion(cls, ctx: typer.Context) -> CommandContext:
        """Return the context for completing a command line with the options typed so far."""
        names = [option.name for option in fields(ConnectionOptions)]
        return cls.of(ConnectionOptions(**{name: ctx.params.get(name) for name in names}))

    @property
    def options(self) -> ConnectionOptions:
        """The connection options as typed."""
        return self.connections.options

    @property
    def clock(self) -> Clock:
        """The clock that tables and time-outs use."""
        return self.connections.clock

    @property
    def through_api(self) -> bool:
        """True if commands go through the API process instead of the kubeconfig."""
        return self.connections.through_api

    @property
    def api(self) -> Api:
        """The selected API process. Raises UsageError if none is selected."""
        return self.connections.api

    @property
    def cluster(self) -> Cluster:
        """The selected cluster."""
        return self.connections.cluster

    @property
    def namespace(self) -> str:
        """The namespace of --namespace, else the default one of the connection."""
        return self.connections.namespace

    def tasks(self) -> AbstractContextManager[TasksConnection]:
        """Open the queues and jobs that the options select, until the block ends."""
        return self.connections.tasks()

    def scope(self, all_namespaces: bool) -> str | None:
        """Return the namespace to list; None for all namespaces.

        Raises UsageError if both --namespace and --all-namespaces are given.
        """
        if not all_namespaces:
            return self.namespace
        if self.options.namespace:
            raise UsageError(
                "--namespace and --all-namespaces exclude each other", fix="leave out one of them"
            )
        return None

    def show(self, renderable: RenderableType) -> None:
        """Print to standard output."""
        # Text is left to the terminal to wrap: JSON stays JSON, and a command can be copied.
        self.out.print(renderable, crop=False, soft_wrap=isinstance(renderable, Text))

    def note(self, text: str) -> None:
        """Print a remark to standard error, so that pipes receive the result alone."""
        self.err.print(Text(text, style="dim"), soft_wrap=True)

    def confirm(self, question: str, *, yes: bool) -> None:
        """Ask for confirmation, unless ``yes`` is set.

        Raises UsageError without a terminal to ask on, and typer.Abort if the answer is no.
        """
        if yes:
            return
        if not self.interactive:
            raise UsageError(
                f"not confirmed: {question}",
                why="standard input or standard error is no terminal, so it cannot be asked",
                fix="add --yes",
            )
        if not self.ask(question):
            raise typer.Abort


def console(stream: TextIO) -> Console:
    """Return a console for a stream: as wide as the terminal, unbroken lines anywhere else."""
    if isinstance(stream, TextIOWrapper):
        # Names and messages come from a cluster; the terminal's encoding may lack a character.
        stream.reconfigure(errors="backslashreplace")
    width = None if stream.isatty() or "COLUMNS" in os.environ else _UNBROKEN
    return Console(file=stream, width=width, highlight=False, emoji=False, soft_wrap=False)
