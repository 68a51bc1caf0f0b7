"""Manifests from files, directories and standard input, and what they would change, to be read."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.text import Text

from engineroom.cli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from engineroom.cli.connections.model import Document

_ENDINGS = frozenset({".yaml", ".yml", ".json"})
#: Bytes of all of them together, as the API takes them.
MAX_BYTES = 512 * 1024
MAX_FILES = 500
_LINE = re.compile(r"document at line (\d+)")


@dataclass(frozen=True, slots=True)
class Manifest:
    """One text of several documents; ``parts`` says which line each file begins after."""

    text: str
    parts: tuple[tuple[int, str], ...]

    def in_files(self, message: str) -> str:
        """A message that names lines of the whole, with the files' own instead."""

        def own(match: re.Match[str]) -> str:
            line = int(match[1])
            before, name = max((part for part in self.parts if part[0] < line), default=(0, ""))
            return f"{name}, document at line {line - before}"

        return _LINE.sub(own, message)


def gather(names: Sequence[str], *, recursive: bool = False) -> Manifest:
    """The manifests of files, of directories and of ``-``. Raises UsageError."""
    sources: list[tuple[str, str]] = []
    size = 0
    for name in names:
        for source, text in _read(name, recursive):
            size += len(text.encode())
            if size > MAX_BYTES or len(sources) >= MAX_FILES:
                raise UsageError(
                    f"that is more than one transaction takes: {MAX_BYTES // 1024} KiB, "
                    f"{MAX_FILES} files",
                    fix="apply it in parts; each part is all or nothing by itself",
                )
            sources.append((source, text))
    if not sources:
        raise UsageError(
            "there is no manifest in what -f names", fix="name files that end in .yaml or .json"
        )
    parts: list[tuple[int, str]] = []
    lines: list[str] = []
    for source, text in sources:
        if lines:
            lines.append("---")
        parts.append((len(lines), source))
        lines += text.splitlines()
    return Manifest("\n".join(lines) + "\n", tuple(parts))


def _read(name: str, recursive: bool) -> list[tuple[str, str]]:
    if name == "-":
        data = sys.stdin.buffer.read(MAX_BYTES + 1)
        return [("standard input", _text("standard input", data))]
    path = Path(name)
    try:
        if path.is_dir():
            entries = path.rglob("*") if recursive else path.glob("*")
            paths = sorted(
                entry for entry in entries if entry.suffix in _ENDINGS and entry.is_file()
            )
        else:
            paths = [path]
        return [(str(path), _text(str(path), _head(path))) for path in paths[: MAX_FILES + 1]]
    except OSError as error:
        raise UsageError(f"{name} cannot be read", why=error.strerror or str(error)) from error


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def _text(name: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is no text", why="it is not UTF-8") from error


def namespace_of(manifest: Manifest, chosen: str | None) -> str | None:
    """Return the namespace of the objects: that of -n, else the only one that they name, or None.

    Raises UsageError where they name several: a transaction is of one namespace.
    """
    if chosen is not None:
        return chosen
    from engineroom.core.validation.documents import read

    named: set[str] = set()
    for document in read(manifest.text):
        value: Any = document.value
        metadata = value.get("metadata") if isinstance(value, dict) else None
        where = metadata.get("namespace") if isinstance(metadata, dict) else None
        if isinstance(where, str) and where:
            named.add(where)
    if len(named) > 1:
        raise UsageError(
            f"the manifests are of {len(named)} namespaces: {', '.join(sorted(named)[:10])}",
            why="a transaction is of one namespace",
            fix="apply each namespace by itself",
        )
    return next(iter(named), None)


def differences(objects: Sequence[Document]) -> RenderableType:
    """Return the change of each object, field by field."""
    parts: list[Text] = []
    for document in objects:
        if document["action"] == "unchanged":
            continue
        style = "green" if document["action"] == "create" else "yellow"
        parts.append(
            Text.assemble((document["action"], style), f" {document['kind']}/{document['name']}")
        )
        parts += [_change(change) for change in document["changes"]]
    return Group(*parts) if parts else Text("nothing differs")


def _change(change: Document) -> Text:
    path, before, after = change["path"], change["before"], change["after"]
    if before is None:
        return Text(f"  + {path}: {after}", style="green")
    if after is None:
        return Text(f"  - {path}: {before}", style="red")
    return Text.assemble(f"  ~ {path}: ", (before, "red"), " -> ", (after, "green"))
