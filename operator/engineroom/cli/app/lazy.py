"""A group of commands whose modules are imported when a command is run, not when help is shown.

Start-up is felt on every key of a completing shell; what a command needs is not paid for by others.
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
class Entry:
    """One command: where its function is, and the line that help shows of it.

    The line repeats the first of the function's docstring (a test compares them), so that
    ``--help`` need not import every command.
    """

    name: str
    module: str
    panel: str
    summary: str
    #: Whether the function takes a CommandContext, and so the options of all commands.
    takes_context: bool = True
    #: Whether it works on Redis, and so takes the options that say which one.
    redis: bool = False
    #: The function's name where it is not the command's.
    attribute: str = ""

    @property
    def present(self) -> bool:
        """True if the module is installed."""
        return importlib.util.find_spec(self.module) is not None

    def function(self) -> Callable[..., None]:
        """The command's function, imported."""
        function: Callable[..., None] = getattr(
            importlib.import_module(self.module), self.attribute or self.name
        )
        return function

    def load(self) -> Any:
        """The command with its options."""
        function = self.function()
        single = typer.Typer(add_completion=False)
        single.command(
            self.name, help=paragraphs(inspect.getdoc(function) or ""), rich_help_panel=self.panel
        )(command(function, redis=self.redis) if self.takes_context else function)
        return typer.main.get_command(single)


@dataclass(frozen=True, slots=True)
class Family:
    """Commands under one word: ``jobs list``, ``jobs show``."""

    name: str
    panel: str
    summary: str
    entries: tuple[Entry, ...]

    @property
    def present(self) -> bool:
        """True if all its modules are installed."""
        return all(entry.present for entry in self.entries)

    def load(self) -> Any:
        """The group; its commands are loaded when they are asked for."""
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
    """A group does nothing itself."""


def paragraphs(text: str) -> str:
    """A docstring whose lines are broken where the terminal needs it, not where the source did."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def group(entries: tuple[Entry | Family, ...]) -> type[TyperGroup]:
    """A class of group that knows ``entries`` and loads each when it is asked for."""
    index = {entry.name: entry for entry in entries if entry.present}

    class Group(TyperGroup):
        """The commands, loaded late."""

        summaries = False

        def list_commands(self, ctx: Any) -> list[str]:
            """In the order of the entries."""
            del ctx
            return list(index)

        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            """The command, or None; while help is written only its summary."""
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

    return Group
