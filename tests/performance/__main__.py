"""Run one benchmark by its name: once, or several times for the median of its ratios."""

from __future__ import annotations

import importlib
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from tests.performance.outcome import RECORD_VARIABLE
from tests.support import ROOT

_HERE = Path(__file__).parent
#: The recorded closing lines, which docs/benchmarks.md is made from.
RECORDED = ROOT / "docs" / "benchmarks.jsonl"
_USAGE = """usage: python -m tests.performance NAME [--record] [--runs N] [OPTIONS]
  --record  write the closing line into docs/benchmarks.jsonl (then: make generate)
  --runs N  run it N times; print the median of each ratio to a floor, and 1.1 times that"""


def names() -> list[str]:
    """Return the modules beside this one that have a ``main``."""
    return sorted(path.stem for path in _HERE.glob("[!_]*.py") if "\ndef main(" in path.read_text())


def main() -> int:
    """Run ``NAME``'s ``main`` with the other arguments; return its exit status."""
    benchmarks = names()
    if len(sys.argv) < 2 or sys.argv[1] not in benchmarks:
        print(f"{_USAGE}\nNAME: {', '.join(benchmarks)}")
        return 2
    name = sys.argv.pop(1)
    if "--runs" in sys.argv:
        position = sys.argv.index("--runs")
        runs = int(sys.argv[position + 1])
        return _repeat(name, runs, sys.argv[1:position] + sys.argv[position + 2 :])
    if "--record" in sys.argv:
        sys.argv.remove("--record")
        os.environ[RECORD_VARIABLE] = str(RECORDED)
    sys.argv[0] = f"python -m tests.performance {name}"
    result = importlib.import_module(f"tests.performance.{name}").main()
    return int(result or 0)


def _repeat(name: str, runs: int, arguments: list[str]) -> int:
    """Run the benchmark ``runs`` times in processes of their own; print medians of its ratios."""
    ratios: dict[str, list[float]] = {}
    command = [sys.executable, "-m", "tests.performance", name, *arguments]
    for run in range(runs):
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        line = done.stdout.splitlines()[-1] if done.stdout else ""
        print(f"run {run + 1} of {runs}: {line}", flush=True)
        document = json.loads(line)
        for figure in document["floors"]:
            ratio = document["figures"][f"{figure}_to_floor"]
            ratios.setdefault(figure, []).append(ratio)
    for figure, values in ratios.items():
        median = statistics.median(values)
        print(f"{figure}: median {median:.3f} floors of {values}; goal {1.1 * median:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
