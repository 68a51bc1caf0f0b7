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
    said = "; ".join(f"{g['role']} in {','.join(g['namespaces'])}" for g in key["grants"])
    return said or ABSENT


def keys_table(keys: Sequence[Document], now: datetime, *, wide: bool = False) -> Table:
    """One line a key."""
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
    """One line a session."""
    columns = ["HANDLE", "WHO", "SIGNED IN", "LAST USED", "ENDS", "ADDRESS", "BROWSER"]
    rows = [
        (one["handle"], one["subject"], when(_time(one["created"]), now),
         when(_time(one["seen"]), now), when(_time(one["ends"]), now), one["address"],
         clip(one["agent"], 60) or ABSENT)
        for one in sessions
    ]  # fmt: skip
    return table(columns, rows)


def signing_keys_table(keys: Sequence[Document], now: datetime) -> Table:
    """One line a signing key."""
    columns = ["KEY", "ALGORITHM", "STATE", "SIGNS FROM", "VERIFIES UNTIL"]
    rows = [
        (one["kid"], one["jwk"]["alg"], one["state"], when(_time(one["signsFrom"]), now),
         when(_time(one["verifiesUntil"]), now))
        for one in keys
    ]  # fmt: skip
    return table(columns, rows)


def audit_table(records: Sequence[Document], *, wide: bool = False) -> Table:
    """One line a record, times in UTC."""
    columns = ["NO", "WHEN (UTC)", "WHO", "ACTION", "TARGET", "OUTCOME"]
    if wide:
        columns += ["HOW", "ADDRESS", "REQUEST", "REASON"]
    rows: list[list[str | Text]] = []
    for one in records:
        body = one["body"]
        row: list[str | Text] = [
            str(one["sequence"]), _stamp(one["at"]), body.get("who", ABSENT),
            body.get("action", ABSENT), body.get("target", ABSENT),
            word(body.get("outcome", ABSENT)),
        ]  # fmt: skip
        if wide:
            row += [body.get(key) or ABSENT for key in ("how", "address", "request", "reason")]
        rows.append(row)
    return table(columns, rows, right=("NO",))


def transactions_table(found: Sequence[Document], now: datetime) -> Table:
    """One line a transaction."""
    columns = ["ID", "STATUS", "BY", "BEGUN", "TOOK", "OBJECTS"]
    rows: list[list[str | Text]] = [
        [one["id"], word(one["status"]), one["by"], when(_time(one["started"]), now),
         ABSENT if one["duration"] is None else f"{one['duration']:.2f}s",
         ", ".join(one["objects"][:3]) + (", ..." if len(one["objects"]) > 3 else "")]
        for one in found
    ]  # fmt: skip
    return table(columns, rows)


def operations_table(found: Sequence[Document], now: datetime) -> Table:
    """One line a change of many jobs."""
    columns = ["ID", "ACTION", "STATUS", "DONE", "QUEUES", "BY", "BEGUN"]
    rows: list[list[str | Text]] = [
        [one["id"], f"{one['action']} {one['state']}", word(one["status"]),
         f"{one['done']} of {one['matched']}",
         ", ".join(one["queues"][:3]) + (", ..." if len(one["queues"]) > 3 else ""),
         one["by"], when(_time(one["started"]), now)]
        for one in found
    ]  # fmt: skip
    return table(columns, rows)


def operation_text(one: Document) -> str:
    """A change of many jobs in a sentence."""
    said = (
        f"operation {one['id']} ({one['action']} {one['state']} jobs of "
        f"{', '.join(one['queues'])}) is {one['status']}: {one['done']} of {one['matched']} done"
    )
    if one["skipped"]:
        said += f", {one['skipped']} left alone"
    return f"{said}; {one['problem']}" if one["problem"] else said


def transaction_view(one: Document, now: datetime) -> Group:
    """A transaction with its steps."""
    facts = [
        ("by", one["by"]),
        ("namespace", one["namespace"]),
        ("begun", f"{_stamp(one['started'])} UTC, {when(_time(one['started']), now)}"),
        ("took", ABSENT if one["duration"] is None else f"{one['duration']:.3f}s"),
        *(("object" if not number else "", said) for number, said in enumerate(one["objects"])),
    ]
    steps = [
        (f"{datetime.fromtimestamp(step['at'], UTC):%H:%M:%S.%f}", step["kind"], step["step"],
         step["detail"] or "")
        for step in one["steps"]
    ]  # fmt: skip
    return Group(
        Text.assemble((one["id"], "bold"), "  ", word(one["status"])),
        table(["", ""], facts, header=False),
        Text("\nSteps", style="bold"),
        Indent(table(["", "", "", ""], steps, header=False)),
    )
