"""Manifests as people write them: YAML or JSON, several documents a file, checked by line.

Reading is bounded (size, depth, aliases, number of values), knows no tags but YAML's own, and
refuses keys that stand twice. Scalars mean what they mean to kubectl: ``yes`` and ``off`` are
booleans, ``1:30`` is text. Nothing here touches files; see ``engineroom.cli.lint``.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from engineroom.api import GROUP, pod_security, validation
from engineroom.api.pod_security import Level
from engineroom.api.schema import child, shown
from engineroom.api.validation import Context
from engineroom.core.errors import Category, EngineroomError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

MAX_BYTES = 1024 * 1024
MAX_DEPTH = validation.MAX_DEPTH
MAX_ALIASES = 64
MAX_VALUES = 50_000
MAX_DOCUMENTS = 1_000

_PARSER: Any = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
_RESOLVER: Any = yaml.resolver.Resolver()
_TAG = "tag:yaml.org,2002:"
_TAGS = frozenset(
    _TAG + kind
    for kind in ("null", "bool", "int", "float", "str", "map", "seq", "timestamp", "merge")
)
_TRUE = frozenset({"yes", "true", "on"})


class UnreadableError(EngineroomError):
    """The text is no manifest; ``line`` counts from 1, ``problem`` says what and what to do."""

    code = "unreadable_manifest"
    category = Category.VALIDATION
    http_status = 422

    def __init__(self, line: int, problem: str, fix: str) -> None:
        self.line = line
        self.problem = Problem("(document)", problem, fix)
        super().__init__(f"line {line}: {problem}; {fix}")


@dataclass(frozen=True, slots=True)
class Document:
    """One document and where its fields stand; paths are those of ``core.errors.Problem``."""

    value: Any
    line: int
    lines: dict[str, int] = field(default_factory=dict, repr=False)

    def line_of(self, path: str) -> int:
        """The line of a field, or of the nearest one around it that is there."""
        while path and path not in self.lines:
            path = _around(path)
        return self.lines.get(path, self.line)


def _around(path: str) -> str:
    """The path of what a field is in; "" for the document."""
    if path.endswith('"]'):
        return path[: max(path.rfind('["'), 0)]
    return path[: max(path.rfind("["), path.rfind("."), 0)]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found; ``level`` is error or warning."""

    file: str
    line: int
    level: str
    field: str
    problem: str
    fix: str = ""
    #: ``namespace/name`` of the object, as far as it is known.
    object: str = ""

    @property
    def text(self) -> str:
        """Field, problem and fix."""
        told = f"{self.field}: {self.problem}" if self.field else self.problem
        return f"{told}; {self.fix}" if self.fix else told


@dataclass(slots=True)
class Report:
    """What checking came to."""

    findings: list[Finding] = field(default_factory=list)
    files: int = 0
    checked: int = 0
    skipped: int = 0

    @property
    def errors(self) -> int:
        """Findings that admission would refuse."""
        return sum(finding.level == "error" for finding in self.findings)

    @property
    def warnings(self) -> int:
        """Findings that admission would let pass with a warning."""
        return sum(finding.level == "warning" for finding in self.findings)


# -- reading ------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Frame:
    """A map or list that is being read."""

    value: Any
    path: str
    anchor: str | None
    count: int = 1
    key: str | None = None
    #: The next scalar of a map is a key.
    wants_key: bool = False
    merged: set[str] = field(default_factory=set)


def read(text: str) -> Iterator[Document]:
    """The documents of a file, empty ones left out; raises UnreadableError where reading ends."""
    if len(text.encode("utf-8", "replace")) > MAX_BYTES:
        raise UnreadableError(1, f"is larger than {MAX_BYTES} bytes", "split it")
    if text.lstrip()[:1] in {"{", "["}:
        # JSON may be indented by tabs, YAML may not.
        text = re.sub(r"^\t+", lambda tabs: " " * len(tabs[0]), text, flags=re.MULTILINE)
    count = 0
    try:
        events: Any = yaml.parse(text, Loader=_PARSER)
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                count += 1
                if count > MAX_DOCUMENTS:
                    line = _line(event)
                    raise UnreadableError(line, f"has over {MAX_DOCUMENTS} documents", "split it")
                document = _Builder().build(events)
                if document.value is not None:
                    yield document
    except yaml.MarkedYAMLError as error:
        mark: Any = error.problem_mark or error.context_mark
        line = 1 if mark is None else mark.line + 1
        raise UnreadableError(
            line, f"is not YAML: {error.problem or error.context}", "correct it"
        ) from error
    except yaml.YAMLError as error:
        reason = str(error).splitlines()[0]
        raise UnreadableError(1, f"is not YAML: {reason}", "correct it") from error


class _Builder:
    """Builds one document from events, without recursion."""

    def __init__(self) -> None:
        self._stack: list[_Frame] = []
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._aliases = 0
        self._total = 0
        self._lines: dict[str, int] = {}
        self._root: Any = None

    def build(self, events: Iterable[Any]) -> Document:
        first = 0
        for event in events:
            line = _line(event)
            if isinstance(event, yaml.DocumentEndEvent):
                break
            first = first or line
            if isinstance(event, yaml.AliasEvent):
                self._alias(str(event.anchor), line)
            elif isinstance(event, yaml.ScalarEvent):
                self._scalar(event, line)
            elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
                self._open(event, line)
            elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
                self._close(line)
        return Document(self._root, first, self._lines)

    def _open(self, event: Any, line: int) -> None:
        _known_tag(event.tag, line)
        is_map = isinstance(event, yaml.MappingStartEvent)
        if len(self._stack) >= MAX_DEPTH:
            raise UnreadableError(line, f"is nested deeper than {MAX_DEPTH} levels", "flatten it")
        if self._stack and self._stack[-1].wants_key:
            raise UnreadableError(line, "has a map or a list as a key", "write a string as key")
        value: Any = {} if is_map else []
        path = self._path()
        self._lines.setdefault(path, line)
        self._count(1, line)
        self._stack.append(_Frame(value, path, event.anchor, wants_key=is_map))

    def _close(self, line: int) -> None:
        frame = self._stack.pop()
        if frame.anchor is not None:
            self._anchors[frame.anchor] = (frame.value, frame.count)
        self._put(frame.value, frame.count, line)

    def _alias(self, anchor: str, line: int) -> None:
        self._aliases += 1
        if self._aliases > MAX_ALIASES:
            raise UnreadableError(line, f"has more than {MAX_ALIASES} aliases", "write it out")
        if anchor not in self._anchors:
            raise UnreadableError(
                line, f"the alias *{anchor} has no anchor before it", "write it out"
            )
        value, count = self._anchors[anchor]
        self._count(count, line)
        if self._stack and self._stack[-1].wants_key:
            self._key(value if isinstance(value, str) else str(value), line)
            return
        self._lines.setdefault(self._path(), line)
        self._put(value, count, line)

    def _scalar(self, event: Any, line: int) -> None:
        _known_tag(event.tag, line)
        value = _value(event)
        self._count(1, line)
        if event.anchor is not None:
            self._anchors[event.anchor] = (value, 1)
        if self._stack and self._stack[-1].wants_key:
            self._key(_key_text(value), line)
            return
        self._lines.setdefault(self._path(), line)
        self._put(value, 1, line)

    def _key(self, key: str, line: int) -> None:
        frame = self._stack[-1]
        if key in frame.value and key not in frame.merged:
            raise UnreadableError(line, f"the key {shown(key)} stands twice", "keep one of the two")
        frame.merged.discard(key)
        frame.key, frame.wants_key = key, False
        self._lines[child(frame.path, key)] = line

    def _path(self) -> str:
        if not self._stack:
            return ""
        frame = self._stack[-1]
        if isinstance(frame.value, list):
            return f"{frame.path}[{len(frame.value)}]"
        return child(frame.path, frame.key or "")

    def _put(self, value: Any, count: int, line: int) -> None:
        if not self._stack:
            self._root = value
            return
        frame = self._stack[-1]
        frame.count += count
        if isinstance(frame.value, list):
            frame.value.append(value)
            return
        key, frame.key, frame.wants_key = frame.key or "", None, True
        if key == "<<":
            self._merge(frame, value, line)
        else:
            frame.value[key] = value

    def _merge(self, frame: _Frame, value: Any, line: int) -> None:
        for source in value if isinstance(value, list) else [value]:
            if not isinstance(source, dict):
                raise UnreadableError(line, "<< takes in what is no map", "write it out")
            for key, inner in source.items():
                if key not in frame.value:
                    frame.value[key] = inner
                    frame.merged.add(key)
                    self._lines.setdefault(child(frame.path, key), line)

    def _count(self, number: int, line: int) -> None:
        self._total += number
        if self._total > MAX_VALUES:
            raise UnreadableError(line, f"has more than {MAX_VALUES} values", "make it smaller")


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _known_tag(tag: str | None, line: int) -> None:
    if tag is None or tag == "!" or tag in _TAGS:
        return
    raise UnreadableError(line, f"the tag {shown(tag)} is not allowed", "write a plain value")


def _value(event: Any) -> Any:
    """The scalar as kubectl reads it."""
    tag = event.tag
    if tag is None or tag == "!":
        tag = _RESOLVER.resolve(yaml.ScalarNode, event.value, event.implicit)
    kind, text = tag.removeprefix(_TAG), event.value
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() in _TRUE
    try:
        if kind == "int":
            return _integer(text)
        if kind == "float":
            return _number(text)
    except ValueError:
        return text
    return text


def _integer(text: str) -> int:
    plain = text.replace("_", "")
    sign = -1 if plain.startswith("-") else 1
    digits = plain.lstrip("+-")
    if len(digits) > 1 and digits[0] == "0" and digits.isdigit():
        return sign * int(digits, 8)
    return sign * int(digits, 0)


def _number(text: str) -> float:
    plain = text.replace("_", "").lower()
    if plain.endswith((".inf", ".nan")):
        return float(plain.replace(".", "", 1))
    return float(plain)


def _key_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value)


# -- checking -----------------------------------------------------------------------------------


def check(
    files: Sequence[tuple[str, str]],
    level: Level = Level.RESTRICTED,
    *,
    lenient: frozenset[str] = frozenset(),
) -> Report:
    """Check the texts of files, given as (name, text), together.

    ``level`` is the Pod Security level of namespaces that the files do not tell of themselves.
    Of the files in ``lenient`` those that look like templates only give a warning.
    """
    report = Report(files=len(files))
    read_ones: list[tuple[str, Document]] = []
    for name, text in files:
        try:
            for document in read(text):
                read_ones.extend((name, one) for one in _expanded(document))
        except UnreadableError as error:
            if name in lenient and "{{" in text:
                report.findings.append(
                    Finding(
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
                    Finding(name, error.line, "error", problem.field, problem.problem, problem.fix)
                )
    levels = _levels(document for _, document in read_ones)
    seen: dict[tuple[str, str], str] = {}
    for name, document in read_ones:
        if not _ours(document.value):
            report.skipped += 1
            continue
        report.checked += 1
        report.findings += _findings(name, document, levels, level)
        report.findings += _twice(name, document, seen)
    order = {name: index for index, (name, _) in enumerate(files)}
    report.findings.sort(key=lambda finding: (order[finding.file], finding.line))
    return report


def _expanded(document: Document) -> Iterator[Document]:
    """A List as its items."""
    value = document.value
    if not isinstance(value, dict) or value.get("kind") != "List":
        yield document
        return
    items = value.get("items")
    for index, item in enumerate(items if isinstance(items, list) else []):
        prefix = f"items[{index}]"
        yield Document(
            item,
            document.line_of(prefix),
            {
                path.removeprefix(prefix).removeprefix("."): line
                for path, line in document.lines.items()
                if path.startswith((f"{prefix}.", f"{prefix}["))
            },
        )


def _ours(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    version = value.get("apiVersion")
    return isinstance(version, str) and (version == GROUP or version.startswith(f"{GROUP}/"))


def _levels(documents: Iterable[Document]) -> dict[str, Level]:
    """Pod Security levels by namespace, from the Namespaces among the documents."""
    found = {}
    for document in documents:
        value = document.value
        if not isinstance(value, dict) or value.get("kind") != "Namespace":
            continue
        metadata = value.get("metadata")
        if not isinstance(metadata, dict):
            continue
        labels = metadata.get("labels")
        if isinstance(labels, dict) and pod_security.LABEL in labels:
            found[str(metadata.get("name"))] = Level.of(labels)
    return found


def _findings(
    name: str, document: Document, levels: dict[str, Level], level: Level
) -> Iterator[Finding]:
    namespace, object_ = _identity(document.value)
    context = Context(pod_security=levels.get(namespace, level))
    for problem in validation.problems(document.value, context):
        yield Finding(
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
        yield Finding(name, document.line_of(place), "warning", place, problem_text, fix, object_)


def _twice(name: str, document: Document, seen: dict[tuple[str, str], str]) -> Iterator[Finding]:
    metadata = document.value.get("metadata")
    own = metadata.get("name") if isinstance(metadata, dict) else None
    if not isinstance(own, str):
        return
    namespace, object_ = _identity(document.value)
    key = (namespace, f"{document.value.get('kind')}/{own}")
    line = document.line_of("metadata.name")
    if key in seen:
        yield Finding(
            name,
            line,
            "error",
            "metadata.name",
            f"{shown(own)} is already defined at {seen[key]}",
            "give it another name or remove it",
            object_,
        )
    seen.setdefault(key, f"{name}:{line}")


def _identity(value: dict[str, Any]) -> tuple[str, str]:
    metadata = value.get("metadata")
    known = metadata if isinstance(metadata, dict) else {}
    namespace, name = known.get("namespace"), known.get("name")
    place = namespace if isinstance(namespace, str) else ""
    told = name if isinstance(name, str) else ""
    return place, f"{place}/{told}" if place else told
