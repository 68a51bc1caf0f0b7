"""The shapes of output: tables, JSON, YAML, names, and the difference between two objects."""

from __future__ import annotations

import difflib
import json
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from engineroom.core.redaction import redact_object

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

    from engineroom.cli.connections.model import Document


class OutputFormat(StrEnum):
    """Formats of ``-o`` for commands that list or change objects."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


class ReportFormat(StrEnum):
    """Formats of ``-o`` for reports."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"


#: The cells of one line of a table.
Row: TypeAlias = "Sequence[str | Text]"

#: Colour by meaning; the word itself always says the same.
STYLES = {
    "ok": "green",
    "Ready": "green",
    "busy": "green",
    "problem": "bold red",
    "Stalled": "bold red",
    "RedisUnreachable": "bold red",
    "NotReady": "red",
    "warning": "yellow",
    "Unseen": "yellow",
    "Updating": "yellow",
    "Draining": "yellow",
    "draining": "yellow",
    "drained": "yellow",
    "leaving": "yellow",
    "Suspended": "yellow",
    "Paused": "yellow",
    "Deleting": "dim",
    "finished": "green",
    "running": "green",
    "failed": "red",
    "canceled": "dim",
    "silent": "yellow",
    "overdue": "yellow",
    "ghost": "dim",
}


def word(text: str) -> Text:
    """A state in its colour."""
    return Text(text, style=STYLES.get(text, ""))


#: A last column narrower than this is not worth folding into.
_LAST = 24
_GAP = 3


class Grid(Table):
    """A table whose last column folds where the line ends, and no other.

    Where not even that fits, lines grow over the edge and the terminal wraps them, as with kubectl:
    a name broken in two cannot be copied.
    """

    #: Columns of the terminal without which names would break.
    least = 0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table, at least as wide as its names and numbers."""
        wide = options.update(max_width=max(options.max_width, self.least))
        segments = (
            entry for entry in super().__rich_console__(console, wide) if isinstance(entry, Segment)
        )
        for line in Segment.split_lines(segments):
            # Trailing blanks disturb copying and grep.
            while line and not line[-1].text.strip():
                line.pop()
            if line:
                text, style, control = line[-1]
                line[-1] = Segment(text.rstrip(), style, control)
            yield from line
            yield Segment.line()


class Indent:
    """A renderable indented by two columns; unlike Padding, it cuts nothing off."""

    def __init__(self, renderable: RenderableType) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Each line after two blanks."""
        inner = options.update(max_width=max(1, options.max_width - 2))
        for line in Segment.split_lines(console.render(self._renderable, inner)):
            yield Segment("  ")
            yield from line
            yield Segment.line()


def table(
    columns: Sequence[str],
    rows: Iterable[Row],
    *,
    right: Sequence[str] = (),
    header: bool = True,
) -> Table:
    """Columns without lines around them, as kubectl shows them; ``right`` names the numbers."""
    grid = Grid(
        box=None, pad_edge=False, show_header=header, padding=(0, _GAP, 0, 0), header_style="bold"
    )
    last = len(columns) - 1
    for index, column in enumerate(columns):
        justify: Literal["left", "right"] = "right" if column in right else "left"
        grid.add_column(column, justify=justify, overflow="fold", no_wrap=index != last)
    # As Text, so that a message with brackets is never taken for markup.
    lines = [[cell if isinstance(cell, Text) else Text(cell) for cell in row] for row in rows]
    for line in lines:
        grid.add_row(*line)
    if header:
        lines.append([Text(column) for column in columns])
    widths = [max((line[index].cell_len for line in lines), default=0) for index in range(last + 1)]
    grid.least = sum(widths[:-1]) + _GAP * last + min(widths[-1], _LAST)
    return grid


def dump(document: Any, shape: str) -> Text:
    """Return a document as JSON or YAML, without markup."""
    if shape == "json":
        return Text(json.dumps(document, indent=2, ensure_ascii=False))
    from engineroom.cli.views.yaml_output import to_yaml  # takes 20 ms

    return Text(to_yaml(document).rstrip("\n"))


def listing(documents: Sequence[Document]) -> Document:
    """Several objects as one, as kubectl does."""
    return {"apiVersion": "v1", "kind": "List", "items": list(documents)}


def difference(before: Document, after: Document, name: str) -> Text:
    """Return a unified diff of the YAML without secrets; empty if nothing changes."""
    from engineroom.cli.views.yaml_output import to_yaml  # takes 20 ms

    now, then = (to_yaml(redact_object(entry)).splitlines() for entry in (before, after))
    lines = difflib.unified_diff(now, then, f"{name} (now)", f"{name} (then)", lineterm="")
    styles = {"+": "green", "-": "red", "@": "cyan"}
    text = Text()
    for line in lines:
        text.append(f"{line}\n", style=styles.get(line[:1], ""))
    text.rstrip()
    return text
