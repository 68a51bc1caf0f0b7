"""Views of kinds that have none of their own: a table and a line of ``status``.

``Kind.table_view``, ``Kind.explain_view`` and ``Kind.status_view`` name functions with the types
``TableView``, ``ExplainView`` and ``StatusView``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Protocol

from engineroom.cli.connections.parsing import parse_time
from engineroom.cli.views.diagnose import Check, Severity
from engineroom.cli.views.output_formats import table, word
from engineroom.cli.views.text import ABSENT, age

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from rich.console import RenderableType
    from rich.text import Text

    from engineroom.api.kinds import Kind
    from engineroom.cli.app.context import CommandContext
    from engineroom.cli.connections.model import Document
    from engineroom.cli.views.output_formats import ReportFormat
    from engineroom.cli.views.status import InstallationOverview


class TableView(Protocol):
    """A function that shows objects of a kind as a table."""

    def __call__(
        self,
        kind: Kind,
        documents: Sequence[Document],
        now: datetime,
        *,
        namespaces: bool,
        wide: bool,
    ) -> RenderableType:
        """Return a table with one line for each object."""


class ExplainView(Protocol):
    """A function that explains the state of one object."""

    def __call__(
        self, context: CommandContext, kind: Kind, name: str, output: ReportFormat
    ) -> None:
        """Read the object, show its state, the reasons for it, and possible fixes."""


class StatusView(Protocol):
    """A function that sums up all objects of a kind."""

    def __call__(
        self, kind: Kind, documents: Sequence[Document], overview: InstallationOverview
    ) -> Check | None:
        """Return a line of ``status``, or None to leave it out."""


def condition(document: Document, kind: str) -> Document:
    """Return the condition of that type if it is of the newest generation, else status Unknown."""
    generation = document["metadata"].get("generation")
    for entry in (document.get("status") or {}).get("conditions") or ():
        if entry["type"] == kind:
            if entry.get("observedGeneration") == generation:
                return dict(entry)
            message = "the operator has not looked at the last change yet"
            return {"type": kind, "status": "Unknown", "reason": "Outdated", "message": message}
    noun = "policy" if document.get("kind") == "RateLimitPolicy" else "object"
    message = f"no operator has looked at the {noun} yet"
    return {"type": kind, "status": "Unknown", "reason": "Unseen", "message": message}


def state_of(document: Document) -> str:
    """Return ``Ready``, or the reason why the object is not ready."""
    ready = condition(document, "Ready")
    return "Ready" if ready["status"] == "True" else str(ready["reason"])


def general_table(
    kind: Kind, documents: Sequence[Document], now: datetime, *, namespaces: bool, wide: bool
) -> RenderableType:
    """Show the printer columns of the kind's CRD, as ``kubectl get`` does."""
    columns = [
        column for column in kind.schema.load().columns if wide or not column.get("priority")
    ]
    names = ["NAME", *(str(column["name"]).upper() for column in columns)]
    if "AGE" not in names:
        names.append("AGE")
        columns.append({"type": "date", "jsonPath": ".metadata.creationTimestamp"})
    rows: list[list[str | Text]] = []
    for document in documents:
        metadata = document["metadata"]
        cells = [_cell(column, document, now) for column in columns]
        rows.append([*([metadata["namespace"]] if namespaces else []), metadata["name"], *cells])
    numbers = [str(c["name"]).upper() for c in columns if c["type"] in ("integer", "number")]
    return table(["NAMESPACE", *names] if namespaces else names, rows, right=numbers)


def _cell(column: Any, document: Document, now: datetime) -> str | Text:
    value = json_path(document, column["jsonPath"])
    if value is None or value == []:
        return ABSENT
    if column["type"] == "date":
        return age(parse_time(str(value)), now)
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value)


_STEP = re.compile(
    r"""\.(?P<name>[A-Za-z0-9_-]+)|\[\?\(@\.(?P<key>\w+)\s*==\s*["'](?P<value>[^"']*)["']\)\]"""
    r"""|\[(?P<index>\d+|\*)\]"""
)


def json_path(document: Document, path: str) -> Any:
    """Return the value at a printer column's JSONPath, or None if there is none.

    Supports names, list indexes, ``[*]`` and filters of the form ``[?(@.type=="Ready")]``.
    """
    values: list[Any] = [document]
    several = False
    for step in _STEP.finditer(path):
        if step["name"]:
            values = [value.get(step["name"]) for value in values if isinstance(value, dict)]
        else:
            items = [item for value in values if isinstance(value, list) for item in value]
            if step["key"]:
                values = [item for item in items if item.get(step["key"]) == step["value"]]
            elif step["index"] == "*":
                values, several = items, True
            else:
                values = items[int(step["index"]) : int(step["index"]) + 1]
        values = [value for value in values if value is not None]
    if several:
        return values
    return values[0] if values else None


def general_status(
    kind: Kind, documents: Sequence[Document], overview: InstallationOverview
) -> Check | None:
    """Count the objects that are not ready, and name the first of them."""
    if not documents:
        return None
    noun = kind.noun if len(documents) == 1 else kind.plural_noun
    pending = [document for document in documents if state_of(document) != "Ready"]
    if not pending:
        return Check(kind.plural_noun, Severity.OK, f"{len(documents)} {noun}, all ready")
    metadata, state = pending[0]["metadata"], state_of(pending[0])
    more = f" and {len(pending) - 1} more" if len(pending) > 1 else ""
    return Check(
        kind.plural_noun,
        Severity.WARNING,
        f"{len(documents)} {noun}, {len(pending)} not ready: "
        f"{metadata['namespace']}/{metadata['name']} ({state}){more}",
        f"{overview.program} explain {kind.noun} {metadata['name']} -n {metadata['namespace']}",
    )


def conditions_table(conditions: Sequence[Document], now: datetime) -> RenderableType:
    """Return a table of conditions."""
    rows = [
        (
            entry["type"],
            str(entry["status"]),
            word(str(entry.get("reason", ""))),
            age(parse_time(entry.get("lastTransitionTime")), now),
            str(entry.get("message", "")),
        )
        for entry in conditions
    ]
    return table(("CONDITION", "STATUS", "REASON", "FOR", "MESSAGE"), rows)
