"""``engineroom lint FILE...``: what admission would say, before anything is applied.

No ``from __future__ import annotations`` here, see ``engineroom.cli.commands``.
"""

import json
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from engineroom.api.manifests import MAX_BYTES, Finding, Report, check
from engineroom.api.validation.pod_security import Level
from engineroom.cli.errors import ExitCode

_ENDINGS = frozenset({".yaml", ".yml", ".json"})
STDIN = "-"


class LintOutput(StrEnum):
    """Formats of the findings."""

    TEXT = "text"
    JSON = "json"
    GITHUB = "github"


class PodSecurity(StrEnum):
    """The levels of Pod Security, as namespaces are labelled with them."""

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
    """Check manifests as admission would.

    Every document of every file is checked; objects of other API groups are skipped. It needs no
    cluster. The exit status is 1 if admission would refuse anything.
    """
    report = lint_files(files, Level[pod_security.name])
    for line in render(report, output):
        sys.stdout.write(f"{line}\n")
    if report.errors or (strict and report.warnings):
        raise typer.Exit(ExitCode.PROBLEM)


def lint_files(names: list[str], level: Level = Level.RESTRICTED) -> Report:
    """Read and check files, folders and ``-``; what cannot be read is an error among the others."""
    texts: list[tuple[str, str]] = []
    unread: list[Finding] = []
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
                    Finding(path, 1, "error", "(file)", f"cannot be read: {reason}", "check it")
                )
    report = check(list(dict(texts).items()), level, lenient=frozenset(lenient))
    report.findings = [*unread, *report.findings]
    report.files += len(unread)
    return report


def _paths(name: str) -> Iterator[tuple[str, bool]]:
    """(path, whether it was found in a folder)."""
    folder = Path(name)
    if name == STDIN or not folder.is_dir():
        yield name, False
        return
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix in _ENDINGS and path.is_file() and not hidden:
            yield str(path), True


def _text(name: str) -> str:
    """At most one byte more than is allowed is read: enough to be refused."""
    if name == STDIN:
        return sys.stdin.buffer.read(MAX_BYTES + 1).decode()
    with Path(name).open("rb") as file:
        return file.read(MAX_BYTES + 1).decode("utf-8-sig")


def render(report: Report, output: LintOutput) -> Iterator[str]:
    """The lines to print."""
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


def _summary(report: Report) -> str:
    parts = [f"{_count(report.checked, 'object')} checked in {_count(report.files, 'file')}"]
    if report.skipped:
        parts.append(f"{_count(report.skipped, 'document')} of other kinds passed over")
    parts += [_count(report.errors, "error"), _count(report.warnings, "warning")]
    return ", ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _document(report: Report) -> dict[str, Any]:
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
    """Escaped as GitHub's workflow commands want it, so that no value can make a command."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")
