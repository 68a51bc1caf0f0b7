"""The shapes of output: tables, JSON, YAML, names, and the difference between two objects."""

from __future__ import annotations

import difflib
import json
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeAlias

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from engineroom.cli.model import Document


class Output(StrEnum):
    """What ``-o`` can say where objects are listed or changed."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


class Report(StrEnum):
    """What ``-o`` can say where a report is given."""

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
}


def word(text: str) -> Text:
    """A state in its colour."""
    return Text(text, style=STYLES.get(text, ""))


def table(
    columns: Sequence[str],
    rows: Iterable[Row],
    *,
    right: Sequence[str] = (),
    header: bool = True,
) -> Table:
    """Columns without lines around them, as kubectl shows them; ``right`` names the numbers."""
    grid = Table(
        box=None, pad_edge=False, show_header=header, padding=(0, 3, 0, 0), header_style="bold"
    )
    for column in columns:
        grid.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        # As Text, so that a message with brackets is never taken for markup.
        grid.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    return grid


def dump(document: Any, shape: str) -> Text:
    """A document as JSON or YAML, to be printed as it is."""
    if shape == "json":
        return Text(json.dumps(document, indent=2, ensure_ascii=False))
    return Text(_yaml(document).rstrip("\n"))


def _yaml(document: Any) -> str:
    import yaml

    text: str = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100)
    return text


def listing(documents: Sequence[Document]) -> Document:
    """Several objects as one, as kubectl does."""
    return {"apiVersion": "v1", "kind": "List", "items": list(documents)}


def difference(before: Document, after: Document, name: str) -> Text:
    """What would change, as a unified diff of the YAML; empty when nothing does."""
    lines = difflib.unified_diff(
        _yaml(before).splitlines(), _yaml(after).splitlines(), f"{name} (now)", f"{name} (then)",
        lineterm="",
    )  # fmt: skip
    styles = {"+": "green", "-": "red", "@": "cyan"}
    text = Text()
    for line in lines:
        text.append(f"{line}\n", style=styles.get(line[:1], ""))
    text.rstrip()
    return text
