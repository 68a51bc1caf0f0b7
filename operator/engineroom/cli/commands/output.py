"""Functions that print results in the format of ``-o``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

from engineroom.cli.views.output_formats import OutputFormat, dump

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import RenderableType

    from engineroom.cli.app.context import CommandContext


def present(
    context: CommandContext,
    output: OutputFormat,
    document: Any,
    names: Sequence[str],
    view: Callable[[], RenderableType],
    *,
    none: str = "",
) -> None:
    """Print ``document`` as JSON or YAML, ``names`` one per line, or ``view()`` as a table.

    If ``names`` is empty, prints the message ``none`` instead of the table.
    """
    if output in (OutputFormat.JSON, OutputFormat.YAML):
        context.show(dump(document, output))
    elif not names:
        context.note(none)
    elif output is OutputFormat.NAME:
        context.show(Text("\n".join(names)))
    else:
        context.show(view())


def print_result(
    context: CommandContext, done: Any, text: str, output: OutputFormat, *, name: str = ""
) -> None:
    """Print the result of a change: ``text`` by default, ``done`` as JSON or YAML, or ``name``."""
    present(context, output, done, [name], lambda: Text(text))
