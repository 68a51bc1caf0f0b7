"""The processor's time of parsers, redactors and renderers for a KiB of the costliest input."""

from __future__ import annotations

import argparse
import time

from tests.bounds.cost import DOUBLED, MILLISECONDS_PER_KIB, kib, milliseconds
from tests.bounds.subjects import SUBJECTS
from tests.performance.outcome import Figure, Goal, outcome

#: Length of the shorter input in bytes, and runs of each, of which the fastest counts.
SIZE, RUNS = 48 * 1024, 5
#: Milliseconds below which a run is too short for a ratio.
SHORT = 2.0
GOALS = (
    Goal("worst_ms_per_kib", MILLISECONDS_PER_KIB, floor="floor_ms_per_kib"),
    Goal("worst_doubled", DOUBLED),
)
REASONS = {
    "inputs": "the number of pairs of a function and an input",
    "worst_ms_input": "the input of worst_ms_per_kib",
    "worst_doubled_input": "the input of worst_doubled",
}


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=SIZE)
    options = parser.parse_args()
    costs: list[tuple[float, str]] = []
    ratios: list[tuple[float, str]] = []
    floors: list[float] = []
    for subject in SUBJECTS:
        for name, build in subject.inputs.items():
            short, long = build(options.size), build(2 * options.size)
            subject.run(build(256))  # imports and caches
            once, twice = [], []
            for _ in range(RUNS):
                once.append(milliseconds(subject, short))
                twice.append(milliseconds(subject, long))
                floors.append(_floor(options.size))
            title = f"{subject.name}: {name}"
            costs.append((min(twice) / kib(long), title))
            if min(twice) > SHORT:
                ratios.append((min(twice) / min(once), title))
    for cost, title in sorted(costs, reverse=True)[:10]:
        print(f"{cost:8.3f} ms/KiB  {title}")
    worst, worst_input = max(costs)
    doubled, doubled_input = max(ratios)
    figures: dict[str, Figure] = {
        "inputs": len(costs),
        "worst_ms_per_kib": round(worst, 3),
        "worst_ms_input": worst_input,
        "floor_ms_per_kib": round(min(floors), 4),
        "worst_doubled": round(doubled, 2),
        "worst_doubled_input": doubled_input,
    }
    return outcome("bounds", figures, GOALS, REASONS)


def _floor(size: int) -> float:
    """Return the milliseconds in which Python visits each character of a KiB once."""
    text = "a" * size
    began = time.process_time()
    for _ in text:
        pass
    return (time.process_time() - began) * 1000 / kib(text)
