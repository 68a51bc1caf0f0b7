"""Measure the tests, write docs/coverage.md, and fail below the limits: ``make coverage``."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.coverage.rooms import page, problems, rooms
from tests.support import ROOT

TESTS = ("tests/integration", "tests/security", "tests/unit")
PAGE = ROOT / "docs" / "coverage.md"


def main(arguments: list[str] | None = None) -> int:
    """Run the tests under coverage.py; return 1 for a failed test or a missed limit."""
    parser = argparse.ArgumentParser(prog="python -m tests.coverage", description=__doc__)
    parser.add_argument("tests", nargs="*", default=TESTS, help="[all but e2e]")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        # Absolute: started processes have working directories of their own.
        os.environ["COVERAGE_FILE"] = str(Path(folder) / ".coverage")
        os.environ["COVERAGE_RCFILE"] = str(ROOT / "pyproject.toml")
        tests = _coverage("run", "-m", "pytest", "-q", *options.tests, check=False)
        _coverage("combine", "--quiet", folder)
        report = Path(folder) / "report.json"
        _coverage("json", "--quiet", "-o", str(report))
        measured = rooms(json.loads(report.read_text()))
    text = page(measured)
    if tuple(options.tests) == TESTS:
        PAGE.write_text(text)
    print(text)
    missed = problems(measured)
    for line in missed:
        print(line, file=sys.stderr)
    return 1 if tests or missed else 0


def _coverage(*arguments: str, check: bool = True) -> int:
    command = [sys.executable, "-m", "coverage", *arguments]
    return subprocess.run(command, cwd=ROOT, check=check).returncode


if __name__ == "__main__":
    sys.exit(main())
