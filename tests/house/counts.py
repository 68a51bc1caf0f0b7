"""Counts of the language and the shape of Python files: pure."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: Words that make a docstring begin with a clause instead of a verb or a noun.
CLAUSE = re.compile(r"^(who|what|whether|how|where|when|why|whoever|whatever)\b", re.IGNORECASE)
#: Identifiers that say nothing about their content.
VAGUE = frozenset(
    (
        *("said", "told", "known", "made", "found", "each", "one", "kept"),
        *("asked", "seen", "shown", "gone", "given", "meant", "heard", "others"),
    )
)
#: Pronouns that hide the subject of a sentence.
PRONOUNS = re.compile(r"\b(whoever|nobody|somebody|himself|whosoever)\b|\b(he|his|him)\b")
#: Lines from which a function is long.
LONG_FUNCTION = 50

#: The limits, by the name of the count.
LIMITS = {
    "clause docstrings, %": 1.0,
    "vague identifiers per 1,000 lines": 1.0,
    "lines with a pronoun for a subject": 10,
    "lines of the largest class": 450,
    f"functions over {LONG_FUNCTION} lines, %": 1.5,
    "files in the fullest folder": 22,
}

_Function = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass
class Counts:
    """The counts of a set of files, and the place of each thing that a limit is about."""

    lines: int = 0
    docstrings: int = 0
    functions: int = 0
    clauses: list[str] = field(default_factory=list)
    vague: list[str] = field(default_factory=list)
    pronouns: list[str] = field(default_factory=list)
    long_functions: list[str] = field(default_factory=list)
    #: (lines, place) of each class.
    classes: list[tuple[int, str]] = field(default_factory=list)
    #: Number of files by folder.
    folders: dict[str, int] = field(default_factory=dict)

    def add(self, path: str, text: str) -> None:
        """Count a file.

        Raises:
            SyntaxError: The text is no Python.
        """
        folder = str(PurePath(path).parent)
        self.folders[folder] = self.folders.get(folder, 0) + 1
        self.lines += text.count("\n")
        self.pronouns += [
            f"{path}:{number}"
            for number, line in enumerate(text.splitlines(), 1)
            if PRONOUNS.search(line)
        ]
        for node in ast.walk(ast.parse(text)):
            self._add_docstring(path, node)
            self._add_shape(path, node)
            self.vague += [f"{path}:{line} {name}" for line, name in _vague_names(node)]

    def _add_docstring(self, path: str, node: ast.AST) -> None:
        if not isinstance(node, (*_Function, ast.ClassDef, ast.Module)):
            return
        if docstring := ast.get_docstring(node):
            self.docstrings += 1
            if CLAUSE.match(docstring):
                self.clauses.append(f"{path}:{getattr(node, 'lineno', 1)}")

    def _add_shape(self, path: str, node: ast.AST) -> None:
        if not isinstance(node, (*_Function, ast.ClassDef)):
            return
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        place = f"{path}:{node.lineno} {node.name}, {length} lines"
        if isinstance(node, ast.ClassDef):
            self.classes.append((length, place))
            return
        self.functions += 1
        if length > LONG_FUNCTION:
            self.long_functions.append(place)

    def figures(self) -> dict[str, float]:
        """Return each count by its name in LIMITS."""
        return dict(
            zip(
                LIMITS,
                (
                    _share(len(self.clauses), self.docstrings, 100),
                    _share(len(self.vague), self.lines, 1000),
                    len(self.pronouns),
                    max((length for length, _ in self.classes), default=0),
                    _share(len(self.long_functions), self.functions, 100),
                    max(self.folders.values(), default=0),
                ),
                strict=True,
            )
        )

    def places(self) -> dict[str, list[str]]:
        """Return where the counted things are, by the name of the count."""
        fullest = max(self.folders.values(), default=0)
        folders = [folder for folder, files in self.folders.items() if files == fullest]
        classes = [place for _, place in sorted(self.classes, reverse=True)[:1]]
        pronouns, long_functions = self.pronouns, self.long_functions
        places = (self.clauses, self.vague, pronouns, classes, long_functions, folders)
        return dict(zip(LIMITS, places, strict=True))


def problems(counts: Counts) -> Iterator[str]:
    """Yield a line for each limit that is exceeded, and one for each place."""
    places = counts.places()
    for name, figure in counts.figures().items():
        if figure > LIMITS[name]:
            yield f"{name}: {figure:g}, limit {LIMITS[name]:g}"
            yield from (f"  {place}" for place in places[name])


def count(files: Iterable[tuple[str, str]]) -> Counts:
    """Return the counts of files, given as (path, text).

    Raises:
        SyntaxError: A text is no Python.
    """
    counts = Counts()
    for path, text in files:
        counts.add(path, text)
    return counts


def _vague_names(node: ast.AST) -> Iterator[tuple[int, str]]:
    if isinstance(node, _Function):
        name = node.name
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        name = node.id
    elif isinstance(node, ast.arg):
        name = node.arg
    else:
        return
    if name.strip("_") in VAGUE:
        yield node.lineno, name


def _share(part: int, whole: int, of: int) -> float:
    return round(of * part / whole, 1) if whole else 0.0
