"""Checks of manifests (YAML or JSON, several documents a file) with the line of each finding.

Texts are passed in; the command that reads files is ``engineroom.cli.commands.manifests.lint``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engineroom.api import GROUP, validation
from engineroom.api.validation import ValidationContext, pod_security
from engineroom.api.validation.pod_security import PodSecurityLevel
from engineroom.core.validation.documents import (
    MAX_BYTES,
    Document,
    UnreadableError,
    read,
)
from engineroom.core.validation.json_values import as_text
from engineroom.core.validation.paths import quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
__all__ = [
    "MAX_BYTES",
    "Document",
    "ManifestFinding",
    "ManifestReport",
    "UnreadableError",
    "check",
    "read",
]


@dataclass(frozen=True, slots=True)
class ManifestFinding:
    """An error or a warning (``level``) at a line of a file."""

    file: str
    line: int
    level: str
    field: str
    problem: str
    fix: str = ""
    #: ``namespace/name`` of the object, or what it has of them.
    object: str = ""

    @property
    def text(self) -> str:
        """The finding as one line: field, problem and fix."""
        text = f"{self.field}: {self.problem}" if self.field else self.problem
        return f"{text}; {self.fix}" if self.fix else text


@dataclass(slots=True)
class ManifestReport:
    """The findings in some files, and counts of files and documents."""

    findings: list[ManifestFinding] = field(default_factory=list)
    files: int = 0
    checked: int = 0
    skipped: int = 0

    @property
    def errors(self) -> int:
        """Count the findings that admission would refuse."""
        return sum(finding.level == "error" for finding in self.findings)

    @property
    def warnings(self) -> int:
        """Count the findings that admission would accept with a warning."""
        return sum(finding.level == "warning" for finding in self.findings)


# -- checking -----------------------------------------------------------------------------------


def check(
    files: Sequence[tuple[str, str]],
    level: PodSecurityLevel = PodSecurityLevel.RESTRICTED,
    *,
    lenient: frozenset[str] = frozenset(),
) -> ManifestReport:
    """Check files, given as (name, text), together.

    ``level`` is the Pod Security level of namespaces that the files do not define themselves. A
    file in ``lenient`` that cannot be parsed and looks like a template gives a warning only.
    """
    report = ManifestReport(files=len(files))
    read_ones: list[tuple[str, Document]] = []
    for name, text in files:
        try:
            for document in read(text):
                read_ones.extend((name, item) for item in _expand_lists(document))
        except UnreadableError as error:
            if name in lenient and "{{" in text:
                report.findings.append(
                    ManifestFinding(
                        name,
                        error.line,
                        "warning",
                        "(document)",
                        "is a template, not a manifest",
                        "render it first: helm template ... | engineroom lint -",
                    )
                )
            else:
                problem = error.problem
                report.findings.append(
                    ManifestFinding(
                        name, error.line, "error", problem.field, problem.problem, problem.fix
                    )
                )
    levels = _levels(document for _, document in read_ones)
    places: dict[tuple[str, str], str] = {}
    for name, document in read_ones:
        if not _ours(document.value):
            report.skipped += 1
            continue
        report.checked += 1
        report.findings += _findings(name, document, levels, level)
        report.findings += _twice(name, document, places)
    order = {name: index for index, (name, _) in enumerate(files)}
    report.findings.sort(key=lambda finding: (order[finding.file], finding.line))
    return report


def _expand_lists(document: Document) -> Iterator[Document]:
    """Yield the items of a ``List``, and any other document as it is."""
    value = document.value
    if not isinstance(value, dict) or value.get("kind") != "List":
        yield document
        return
    yield from document.items()


def _ours(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    version = value.get("apiVersion")
    return isinstance(version, str) and (version == GROUP or version.startswith(f"{GROUP}/"))


def _levels(documents: Iterable[Document]) -> dict[str, PodSecurityLevel]:
    """Read Pod Security levels by namespace from the Namespaces among the documents."""
    levels = {}
    for document in documents:
        value = document.value
        if not isinstance(value, dict) or value.get("kind") != "Namespace":
            continue
        metadata = value.get("metadata")
        if not isinstance(metadata, dict):
            continue
        labels = metadata.get("labels")
        if isinstance(labels, dict) and pod_security.LABEL in labels:
            levels[str(metadata.get("name"))] = PodSecurityLevel.of(labels)
    return levels


def _findings(
    name: str, document: Document, levels: dict[str, PodSecurityLevel], level: PodSecurityLevel
) -> Iterator[ManifestFinding]:
    namespace, object_ = _identity(document.value)
    context = ValidationContext(pod_security=levels.get(namespace, level))
    for problem in validation.problems(document.value, context):
        yield ManifestFinding(
            name,
            document.line_of(problem.field),
            "error",
            problem.field,
            problem.problem,
            problem.fix,
            object_,
        )
    for warning in validation.warnings(document.value):
        place, _, text = warning.partition(": ")
        problem_text, _, fix = text.partition("; ")
        yield ManifestFinding(
            name, document.line_of(place), "warning", place, problem_text, fix, object_
        )


def _twice(
    name: str, document: Document, places: dict[tuple[str, str], str]
) -> Iterator[ManifestFinding]:
    metadata = document.value.get("metadata")
    own = metadata.get("name") if isinstance(metadata, dict) else None
    if not isinstance(own, str):
        return
    namespace, object_ = _identity(document.value)
    key = (namespace, f"{document.value.get('kind')}/{own}")
    line = document.line_of("metadata.name")
    if key in places:
        yield ManifestFinding(
            name,
            line,
            "error",
            "metadata.name",
            f"{quoted(own)} is already defined at {places[key]}",
            "give it another name or remove it",
            object_,
        )
    places.setdefault(key, f"{name}:{line}")


def _identity(value: dict[str, Any]) -> tuple[str, str]:
    metadata = value.get("metadata")
    fields = metadata if isinstance(metadata, dict) else {}
    namespace, name = fields.get("namespace"), fields.get("name")
    place, title = as_text(namespace), as_text(name)
    return place, f"{place}/{title}" if place else title
