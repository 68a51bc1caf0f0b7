"""Keys, sessions, audit records and transactions as tables."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Group
from rich.text import Text

from engineroom.cli.views.output_formats import Indent, table, word
from engineroom.cli.views.tasks import when
from engineroom.cli.views.text import ABSENT, clip

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from engineroom.cli.connections.model import Document


def _time(at: float | None) -> datetime | None:
    return None if at is None else datetime.fromtimestamp(at, UTC)


def _stamp(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}"


def _grants(key: Document) -> str:
    text = "; ".join(f"{g['role']} in {','.join(g['namespaces'])}" for g in key["grants"])
    return text or ABSENT


def keys_table(keys: Sequence[Document], now: datetime, *, wide: bool = False) -> Table:
    """Return a table with one row per API key."""
    columns = ["ID", "NAME", "STATE", "MADE", "EXPIRES", "LAST USED", "MAY"]
    rows: list[list[str | Text]] = []
    for key in keys:
        ends = _time(key["expires"])
        state = "revoked" if key["revoked"] else "expired" if ends and ends <= now else "good"
        scopes = key["scopes"]
        may = _grants(key)
        if scopes is not None:
            may += f" ({', '.join(scopes)})" if wide else f" ({len(scopes)} scopes)"
        rows.append(
            [key["id"], key["name"], word(state), when(_time(key["created"]), now),
             when(ends, now), when(_time(key["lastUsed"]), now), may]
        )  # fmt: skip
    return table(columns, rows)


def sessions_table(sessions: Sequence[Document], now: datetime) -> Table:
    """Return a table with one row per session."""
    columns = ["HANDLE", "WHO", "SIGNED IN", "LAST USED", "ENDS", "ADDRESS", "BROWSER"]
    rows = [
        (session["handle"], session["subject"], when(_time(session["created"]), now),
         when(_time(session["seen"]), now), when(_time(session["ends"]), now), session["address"],
         clip(session["agent"], 60) or ABSENT)
        for session in sessions
    ]  # fmt: skip
    return table(columns, rows)


def signing_keys_table(keys: Sequence[Document], now: datetime) -> Table:
    """Return a table with one row per signing key."""
    columns = ["KEY", "ALGORITHM", "STATE", "SIGNS FROM", "VERIFIES UNTIL"]
    rows = [
        (key["kid"], key["jwk"]["alg"], key["state"], when(_time(key["signsFrom"]), now),
         when(_time(key["verifiesUntil"]), now))
        for key in keys
    ]  # fmt: skip
    return table(columns, rows)


def audit_table(records: Sequence[Document], *, wide: bool = False) -> Table:
    """Return a table with one row per audit record, times in UTC."""
    columns = ["NO", "WHEN (UTC)", "WHO", "ACTION", "TARGET", "OUTCOME"]
    if wide:
        columns += ["HOW", "ADDRESS", "REQUEST", "REASON"]
    rows: list[list[str | Text]] = []
    for record in records:
        body = record["body"]
        row: list[str | Text] = [
            str(record["sequence"]), _stamp(record["at"]), body.get("who", ABSENT),
            body.get("action", ABSENT), body.get("target", ABSENT),
            word(body.get("outcome", ABSENT)),
        ]  # fmt: skip
        if wide:
            row += [body.get(key) or ABSENT for key in ("how", "address", "request", "reason")]
        rows.append(row)
    return table(columns, rows, right=("NO",))


def transactions_table(transactions: Sequence[Document], now: datetime) -> Table:
    """Return a table with one row per transaction."""
    columns = ["ID", "STATUS", "BY", "BEGUN", "TOOK", "OBJECTS"]
    rows: list[list[str | Text]] = [
        [entry["id"], word(entry["status"]), entry["by"], when(_time(entry["started"]), now),
         ABSENT if entry["duration"] is None else f"{entry['duration']:.2f}s",
         ", ".join(entry["objects"][:3]) + (", ..." if len(entry["objects"]) > 3 else "")]
        for entry in transactions
    ]  # fmt: skip
    return table(columns, rows)


def operations_table(operations: Sequence[Document], now: datetime) -> Table:
    """Return a table with one row per bulk operation."""
    columns = ["ID", "ACTION", "STATUS", "DONE", "QUEUES", "BY", "BEGUN"]
    rows: list[list[str | Text]] = [
        [entry["id"], f"{entry['action']} {entry['state']}", word(entry["status"]),
         f"{entry['done']} of {entry['matched']}",
         ", ".join(entry["queues"][:3]) + (", ..." if len(entry["queues"]) > 3 else ""),
         entry["by"], when(_time(entry["started"]), now)]
        for entry in operations
    ]  # fmt: skip
    return table(columns, rows)


def operation_text(operation: Document) -> str:
    """Return a sentence about a bulk operation."""
    text = (
        f"operation {operation['id']} ({operation['action']} {operation['state']} jobs of "
        f"{', '.join(operation['queues'])}) is {operation['status']}: "
        f"{operation['done']} of {operation['matched']} done"
    )
    if operation["skipped"]:
        text += f", {operation['skipped']} left alone"
    return f"{text}; {operation['problem']}" if operation["problem"] else text


def transaction_view(transaction: Document, now: datetime) -> Group:
    """Return a transaction and its steps for the terminal."""
    facts = [
        ("by", transaction["by"]),
        ("namespace", transaction["namespace"]),
        (
            "begun",
            f"{_stamp(transaction['started'])} UTC, {when(_time(transaction['started']), now)}",
        ),
        ("took", ABSENT if transaction["duration"] is None else f"{transaction['duration']:.3f}s"),
        *(
            ("object" if not number else "", text)
            for number, text in enumerate(transaction["objects"])
        ),
    ]
    steps = [
        (f"{datetime.fromtimestamp(step['at'], UTC):%H:%M:%S.%f}", step["kind"], step["step"],
         step["detail"] or "")
        for step in transaction["steps"]
    ]  # fmt: skip
    return Group(
        Text.assemble((transaction["id"], "bold"), "  ", word(transaction["status"])),
        table(["", ""], facts, header=False),
        Text("\nSteps", style="bold"),
        Indent(table(["", "", "", ""], steps, header=False)),
    )
