"""``engineroom lint FILE...``: check manifests by the rules of the admission webhooks.

No ``from __future__ import annotations`` here, see ``engineroom.cli.commands``.
"""

import json
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from engineroom.api.manifests import MAX_BYTES, ManifestFinding, ManifestReport, check
from engineroom.api.validation.pod_security import PodSecurityLevel
from engineroom.cli.errors import ExitCode

_ENDINGS = frozenset({".yaml", ".yml", ".json"})
STDIN = "-"


class LintOutput(StrEnum):
    """Formats of the findings."""

    TEXT = "text"
    JSON = "json"
    GITHUB = "github"


class PodSecurity(StrEnum):
    """The levels of the Pod Security Standards."""

    RESTRICTED = "restricted"
    BASELINE = "baseline"
    PRIVILEGED = "privileged"


def lint(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...",
            help="YAML or JSON files, folders (searched for *.yaml, *.yml, *.json), or - for "
            "standard input.",
        ),
    ],
    output: Annotated[
        LintOutput, typer.Option("--output", "-o", help="Format of the findings.")
    ] = LintOutput.TEXT,
    pod_security: Annotated[
        PodSecurity,
        typer.Option(
            "--pod-security",
            help="Pod Security level of namespaces that are not in the files.",
        ),
    ] = PodSecurity.RESTRICTED,
    strict: Annotated[bool, typer.Option("--strict", help="Treat warnings as errors.")] = False,
) -> None:
    """Check manifests by the rules of the admission webhooks.

    Every document of every file is checked; objects of other API groups are skipped. It needs no
    cluster. The exit status is 1 if admission would refuse anything.
    """
    report = lint_files(files, PodSecurityLevel(pod_security.value))
    for line in render(report, output):
        sys.stdout.write(f"{line}\n")
    if report.errors or (strict and report.warnings):
        raise typer.Exit(ExitCode.PROBLEM)


def lint_files(
    names: list[str], level: PodSecurityLevel = PodSecurityLevel.RESTRICTED
) -> ManifestReport:
    """Read and check files, folders and ``-``; an unreadable file is one of the errors."""
    texts: list[tuple[str, str]] = []
    unread: list[ManifestFinding] = []
    lenient: set[str] = set()
    for name in names:
        for path, within_folder in _paths(name):
            if within_folder:
                lenient.add(path)
            try:
                texts.append((path, _text(path)))
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
                unread.append(
                    ManifestFinding(
                        path, 1, "error", "(file)", f"cannot be read: {reason}", "check it"
                    )
                )
    report = check(list(dict(texts).items()), level, lenient=frozenset(lenient))
    report.findings = [*unread, *report.findings]
    report.files += len(unread)
    return report


def _paths(name: str) -> Iterator[tuple[str, bool]]:
    """Yield each path with whether it was found in a folder."""
    folder = Path(name)
    if name == STDIN or not folder.is_dir():
        yield name, False
        return
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix in _ENDINGS and path.is_file() and not hidden:
            yield str(path), True


def _text(name: str) -> str:
    """Return the text of a file; of a file that is too large, one byte more than the limit."""
    if name == STDIN:
        return sys.stdin.buffer.read(MAX_BYTES + 1).decode()
    with Path(name).open("rb") as file:
        return file.read(MAX_BYTES + 1).decode("utf-8-sig")


def render(report: ManifestReport, output: LintOutput) -> Iterator[str]:
    """Return the lines to print."""
    if output is LintOutput.JSON:
        yield json.dumps(_document(report), indent=2, ensure_ascii=False)
        return
    for finding in report.findings:
        name = "<stdin>" if finding.file == STDIN else finding.file
        if output is LintOutput.GITHUB:
            yield (
                f"::{finding.level} file={_property(name)},line={finding.line},"
                f"title={_property(finding.field)}::{_message(finding.text)}"
            )
        else:
            mark = "warning: " if finding.level == "warning" else ""
            yield f"{name}:{finding.line}: {mark}{finding.text}"
    if output is LintOutput.TEXT:
        yield _summary(report)


def _summary(report: ManifestReport) -> str:
    parts = [f"{_count(report.checked, 'object')} checked in {_count(report.files, 'file')}"]
    if report.skipped:
        parts.append(f"{_count(report.skipped, 'document')} of other kinds passed over")
    parts += [_count(report.errors, "error"), _count(report.warnings, "warning")]
    return ", ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _document(report: ManifestReport) -> dict[str, Any]:
    return {
        "files": report.files,
        "checked": report.checked,
        "skipped": report.skipped,
        "errors": report.errors,
        "warnings": report.warnings,
        "findings": [
            {
                "file": finding.file,
                "line": finding.line,
                "level": finding.level,
                "object": finding.object,
                "field": finding.field,
                "problem": finding.problem,
                "fix": finding.fix,
            }
            for finding in report.findings
        ],
    }


def _message(text: str) -> str:
    """Escape a message for GitHub's workflow commands, so that no value can add a command."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")
