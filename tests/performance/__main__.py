"""Run one benchmark by its name: once, or several times for the median of its ratios."""

from __future__ import annotations

import importlib
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from tests.performance.outcome import RECORD_VARIABLE, settle
from tests.support import ROOT

_HERE = Path(__file__).parent
#: The recorded closing lines, which docs/benchmarks.md is made from.
RECORDED = ROOT / "docs" / "benchmarks.jsonl"
_USAGE = """usage: python -m tests.performance NAME [--record] [--runs N [--settle]] [OPTIONS]
  --record  write the closing line into docs/benchmarks.jsonl (then: make generate)
  --runs N  run it N times; print the median of each ratio to a floor
  --settle  write 1.1 times each median into tests/performance/ratios.json; a ratio that is there
            can fall and never rises"""


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
    settles = "--settle" in sys.argv
    if settles:
        sys.argv.remove("--settle")
    if "--runs" in sys.argv:
        position = sys.argv.index("--runs")
        runs = int(sys.argv[position + 1])
        arguments = sys.argv[1:position] + sys.argv[position + 2 :]
        return _repeat(name, runs, arguments, settles=settles)
    if "--record" in sys.argv:
        sys.argv.remove("--record")
        os.environ[RECORD_VARIABLE] = str(RECORDED)
    sys.argv[0] = f"python -m tests.performance {name}"
    result = importlib.import_module(f"tests.performance.{name}").main()
    return int(result or 0)


def _repeat(name: str, runs: int, arguments: list[str], *, settles: bool) -> int:
    """Run the benchmark ``runs`` times in processes of their own; print medians of its ratios."""
    documents = []
    command = [sys.executable, "-m", "tests.performance", name, *arguments]
    for run in range(runs):
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        line = done.stdout.splitlines()[-1] if done.stdout else ""
        print(f"run {run + 1} of {runs}: {line}", flush=True)
        documents.append(json.loads(line))
    medians = {}
    for figure in documents[0]["floors"]:
        ratios = [document["figures"][f"{figure}_to_floor"] for document in documents]
        medians[figure] = statistics.median(ratios)
        print(f"{figure}: median {medians[figure]:.3f} floors of {ratios}")
    if settles:
        for figure, ratio in settle(name, medians).items():
            print(f"{figure}: at most {ratio} floors from now on")
    return 0


if __name__ == "__main__":
    sys.exit(main())
