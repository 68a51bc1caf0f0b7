"""Command groups that import the module of a command only when the command runs.

Shell completion starts the program on every key, so it must not import all commands.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

from engineroom.cli.app.signature import command

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class CommandEntry:
    """A command: the location of its function, and its summary for the help.

    The summary repeats the first line of the function's docstring (a test compares them), so that
    ``--help`` need not import every command.
    """

    name: str
    module: str
    panel: str
    summary: str
    #: True if the function takes a CommandContext, which adds the options of all commands.
    takes_context: bool = True
    #: True if the command uses Redis, which adds the options that select it.
    redis: bool = False
    #: The function's name if it differs from the command's.
    attribute: str = ""

    @property
    def present(self) -> bool:
        """True if the module is installed."""
        return importlib.util.find_spec(self.module) is not None

    def function(self) -> Callable[..., None]:
        """Import and return the command's function."""
        function: Callable[..., None] = getattr(
            importlib.import_module(self.module), self.attribute or self.name
        )
        return function

    def load(self) -> Any:
        """Import and return the command with its options."""
        function = self.function()
        single = typer.Typer(add_completion=False)
        single.command(
            self.name, help=paragraphs(inspect.getdoc(function) or ""), rich_help_panel=self.panel
        )(command(function, redis=self.redis) if self.takes_context else function)
        return typer.main.get_command(single)


@dataclass(frozen=True, slots=True)
class CommandGroup:
    """Commands with a common first word: ``jobs list``, ``jobs show``."""

    name: str
    panel: str
    summary: str
    entries: tuple[CommandEntry, ...]

    @property
    def present(self) -> bool:
        """True if all its modules are installed."""
        return all(entry.present for entry in self.entries)

    def load(self) -> Any:
        """Return the group, which imports each command at its first use."""
        app = typer.Typer(
            name=self.name,
            cls=group(self.entries),
            help=self.summary,
            rich_help_panel=self.panel,
            no_args_is_help=True,
            add_completion=False,
            context_settings={"help_option_names": ["--help", "-h"]},
        )
        app.callback()(_nothing)
        return typer.main.get_command(app)


def _nothing() -> None:
    """Do nothing: only the commands of a group have an effect."""


def paragraphs(text: str) -> str:
    """Join the lines of each paragraph of a docstring; the terminal wraps them."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def group(entries: tuple[CommandEntry | CommandGroup, ...]) -> type[TyperGroup]:
    """Return a Typer group class of ``entries`` that imports each command at its first use."""
    index = {entry.name: entry for entry in entries if entry.present}

    class LazyGroup(TyperGroup):
        """A Typer group that imports each command at its first use."""

        summaries = False

        def list_commands(self, ctx: Any) -> list[str]:
            """Return the names of the commands in the order of the entries."""
            del ctx
            return list(index)

        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            """Return the command or None; while help is written, only its summary."""
            del ctx
            entry = index.get(cmd_name)
            if entry is None:
                return None
            if self.summaries:
                return TyperCommand(
                    cmd_name, help=entry.summary, callback=None, rich_help_panel=entry.panel
                )
            return entry.load()

        def format_help(self, ctx: Any, formatter: Any) -> None:
            """Write the help from the summaries."""
            self.summaries = True
            try:
                super().format_help(ctx, formatter)
            finally:
                self.summaries = False

    return LazyGroup
