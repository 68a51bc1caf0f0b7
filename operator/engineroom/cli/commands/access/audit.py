"""``engineroom audit``: list the audit log, and verify that it was not changed."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from engineroom.cli.app.context import CommandContext
from engineroom.cli.errors import ExitCode, UsageError
from engineroom.cli.views.access import audit_table
from engineroom.cli.views.output_formats import ReportFormat, dump

_MAX_LINE = 1 << 20
_SECRET, _SECRET_FILE = "ENGINEROOM_API_SECRET", "ENGINEROOM_API_SECRET_FILE"  # nosec B105

ReportOption = Annotated[
    ReportFormat, typer.Option("--output", "-o", help="Output format.", case_sensitive=False)
]


def list_audit(
    context: CommandContext,
    after: Annotated[
        int, typer.Option("--after", metavar="NUMBER", min=0, help="Only records after this one.")
    ] = 0,
    limit: Annotated[
        int, typer.Option("--limit", min=1, help="Maximum number of entries to show.")
    ] = 100,
    everything: Annotated[
        bool, typer.Option("--all", help="Show all records to the end of the log.")
    ] = False,
    output: ReportOption = ReportFormat.TABLE,
) -> None:
    """List the audit log, oldest records first.

    With -o json the output is the input of `audit verify --file`.
    """
    records: list[dict[str, Any]] = []
    place: int | None = after
    while place is not None and (everything or len(records) < limit):
        most = 200 if everything else min(200, limit - len(records))
        page = context.api.get("/audit", after=place, limit=most)
        records += page["items"]
        place = page["nextAfter"]
    if output in (ReportFormat.JSON, ReportFormat.YAML):
        context.show(dump({"items": records}, output))
    elif records:
        context.show(audit_table(records, wide=output is ReportFormat.WIDE))
    else:
        context.note("no records")
    if place is not None and not everything:
        context.note(f"there are more: the same command with --after {place}")


def verify(
    context: CommandContext,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            metavar="FILE",
            help=(
                "Check this export (`audit list --all -o json`, or the log lines of the pods) "
                "without a server; needs the installation's secret."
            ),
        ),
    ] = None,
    anchor: Annotated[
        str | None,
        typer.Option(
            "--anchor",
            metavar="NUMBER:MAC",
            help="A record stored earlier; it reveals a log that was restored from an older copy.",
        ),
    ] = None,
    secret_file: Annotated[
        Path | None,
        typer.Option(
            "--secret-file",
            metavar="FILE",
            help=f"With --file: the installation's secret; also {_SECRET_FILE}.",
        ),
    ] = None,
    output: ReportOption = ReportFormat.TABLE,
) -> None:
    """Check that the audit log has not been changed.

    Each record is chained to the previous one by a code that requires the installation's secret.
    The exit status is 0 if the log is intact, 1 if a record was edited, removed, added or
    reordered, and another code if the log could not be checked. Store the last number and code that
    the command prints: passed as --anchor later, they prove that the log was not restored from an
    older copy.
    """
    noted = None if anchor is None else _anchor(anchor)
    if file is None:
        query = {} if noted is None else {"sequence": noted[0], "mac": noted[1]}
        check = context.api.get("/audit/check", **query)
    else:
        check = _verify_export(file, _secret(secret_file), noted)
    if output in (ReportFormat.JSON, ReportFormat.YAML):
        context.show(dump(check, output))
    else:
        for problem in check["problems"]:
            context.show(Text(problem))
        state = "intact" if check["intact"] else "NOT as it was written"
        context.show(
            Text(f"{check['records']} records, {state}; ends at {check['sequence']}:{check['mac']}")
        )
    first = check["sequence"] - check["records"] + 1
    if file is not None and check["intact"] and first > 1 and noted is None:
        context.note(f"it begins at record {first}: what was before it, it cannot tell")
    if not check["intact"]:
        raise typer.Exit(ExitCode.PROBLEM)


def _anchor(anchor: str) -> tuple[int, str]:
    number, _, mac = anchor.partition(":")
    if not number.isascii() or not number.isdigit() or len(mac) != 64 or len(number) > 15:
        raise UsageError(
            "--anchor is none", fix="write NUMBER:MAC, as `audit verify` ends its answer with"
        )
    return int(number), mac.lower()


def _secret(path: Path | None) -> bytes:
    named = path or (Path(os.environ[_SECRET_FILE]) if os.environ.get(_SECRET_FILE) else None)
    try:
        secret = named.read_text().strip() if named else os.environ.get(_SECRET, "").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError("the secret cannot be read", why=type(error).__name__) from error
    if len(secret) < 32:
        raise UsageError(
            "an export can only be checked with the installation's secret",
            fix=f"give --secret-file, or {_SECRET_FILE}: the key `secret` of the API's Secret",
        )
    return secret.encode()


def _verify_export(file: Path, secret: bytes, anchor: tuple[int, str] | None) -> dict[str, Any]:
    from engineroom.auth.audit.hash_chain import derive_secret, verify_export

    records, (sequence, mac), problems = verify_export(
        _records(file), derive_secret(secret, "audit"), anchor
    )
    return {
        "intact": not problems and records > 0,
        "records": records,
        "sequence": sequence,
        "mac": mac,
        "problems": problems or ([] if records else ["there is no record in it"]),
    }


def _records(file: Path) -> list[tuple[dict[str, Any], str]]:
    """Yield the bodies and MACs of an export, JSON document or log lines."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read", why=type(error).__name__) from error
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if isinstance(document, dict) and isinstance(document.get("items"), list):
        return [
            (item["body"], str(item.get("mac", "")))
            for item in document["items"]
            if isinstance(item, dict) and isinstance(item.get("body"), dict)
        ]
    records: list[tuple[dict[str, Any], str]] = []
    for line in text.splitlines():
        # Between the records stand the process's other lines.
        if '"audit"' not in line[:4096] or len(line) > _MAX_LINE:
            continue
        try:
            record = json.loads(line)["audit"]
        except (ValueError, RecursionError, KeyError, TypeError):
            continue
        if isinstance(record, dict) and record.get("chained") is not False:
            records.append(
                ({k: v for k, v in record.items() if k != "mac"}, str(record.get("mac", "")))
            )
    return records
