"""Prints results in the format of ``-o``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

from engineroom.cli.views.output_formats import Output, dump

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import RenderableType

    from engineroom.cli.app.context import CommandContext


def present(
    context: CommandContext,
    output: Output,
    document: Any,
    names: Sequence[str],
    view: Callable[[], RenderableType],
    *,
    none: str = "",
) -> None:
    """Show ``document`` as JSON or YAML, ``names`` one a line, or what ``view`` makes for people.

    Without names there is nothing to look at: people are told ``none``.
    """
    if output in (Output.JSON, Output.YAML):
        context.show(dump(document, output))
    elif not names:
        context.note(none)
    elif output is Output.NAME:
        context.show(Text("\n".join(names)))
    else:
        context.show(view())


def print_result(
    context: CommandContext, done: Any, text: str, output: Output, *, name: str = ""
) -> None:
    """Print the outcome of a change: ``text`` for people, ``done`` as JSON or YAML, or ``name``."""
    present(context, output, done, [name], lambda: Text(text))
