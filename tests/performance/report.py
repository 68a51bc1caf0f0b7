"""The page docs/benchmarks.md, made from the recorded closing lines: ``make generate``.

``python -m tests.performance.report [--check]``; each benchmark's docstring is its description.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tests.performance.__main__ import RECORDED, names
from tests.support import ROOT

PAGE = ROOT / "docs" / "benchmarks.md"
_INTRODUCTION = """# Benchmarks

<!-- Written by `make generate` from docs/benchmarks.jsonl: record a run, do not edit this page. -->

Each goal has a program: `make bench NAME=reaction`. It starts what it needs (a real API server, a
real Redis, real pods where pods matter) and ends with one line of JSON: name, figures, goals, and
whether they are met. `ARGS="--help"` lists its options, `ARGS=--record` records its line.

A figure that depends on the machine's speed has a floor: the machine's own cost of the same work,
such as a bare PATCH to the same API server, measured in the same run in alternating turns. The
ratio to the floor decides whether the goal is met: at most 1.1 times the median ratio of five
runs. The design's own figure stands beside it. Peers run in the same run, in turns.
[Performance](performance.md) explains the figures.
"""


def page(lines: list[dict[str, Any]]) -> str:
    """Return the page of the recorded ``lines``, in the order of their names."""
    parts = [_INTRODUCTION]
    recorded = {line["name"]: line for line in lines}
    missing = [name for name in names() if name not in recorded]
    if missing:
        parts.append(f"Not recorded yet: {', '.join(f'`{name}`' for name in missing)}.\n")
    parts += [_section(recorded[name]) for name in sorted(recorded)]
    return "\n".join(parts)


def _section(line: dict[str, Any]) -> str:
    figures, goals, floors = line["figures"], line["goals"], line["floors"]
    rows = []
    for figure, goal in goals.items():
        floor = floors.get(figure, "")
        ratio = f"{figures[f'{figure}_to_floor']}" if floor else ""
        met = "**missed**" if figure in line["missed"] else "met"
        rows.append(
            f"| `{figure}` | {figures[figure]} | {figures[floor] if floor else ''} | {ratio} "
            f"| {goal} | {met} |"
        )
    judged = goals.keys() | set(floors.values()) | {f"{figure}_to_floor" for figure in goals}
    others = [
        f"| `{figure}` | {value} | {_reason(figure, line['reasons'])} |"
        for figure, value in figures.items()
        if figure not in judged
    ]
    text = [
        f"## {line['name']}",
        "",
        _description(line["name"]),
        "",
        "| figure | value | floor | ratio | goal | |",
        "|---|---|---|---|---|---|",
        *rows,
    ]
    if others:
        text += ["", "| without a goal | value | reason |", "|---|---|---|", *others]
    return "\n".join(text) + "\n"


def _reason(figure: str, reasons: dict[str, str]) -> str:
    return next(text for pattern, text in reasons.items() if fnmatchcase(figure, pattern))


def _description(name: str) -> str:
    """Return the docstring of a benchmark, read without an import of what it measures."""
    source = (Path(__file__).parent / f"{name}.py").read_text()
    return ast.get_docstring(ast.parse(source)) or ""


def run(arguments: list[str] | None = None) -> int:
    """Write the page, or compare it with ``--check``; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; compare")
    options = parser.parse_args(arguments)
    text = page([json.loads(line) for line in RECORDED.read_text().splitlines()])
    if PAGE.is_file() and PAGE.read_text() == text:
        return 0
    if options.check:
        print(f"{PAGE}: differs; run make generate")
        return 1
    PAGE.write_text(text)
    print(f"{PAGE}: written")
    return 0


if __name__ == "__main__":
    sys.exit(run())
