"""Rate limits: beside `limits` in the application and envoyproxy/ratelimit in front of it.

Everything in turns, on one Redis and one machine, with the processor time of each. Ratios are of
the same turn, and their median is told. Then whether limits are exact, also while clocks jump and
Redis is restarted.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.performance.outcome import Figure, Goal, outcome
from tests.performance.rates import application, exactness, services

REASONS = {
    "*_ratio_async_*": "the promise is beside the quickest of the peers",
    "leased_ratio_*": "keys that do not come again gain nothing from a lease; the goal is one key",
    "*_1": "decisions a second; the ratios of the same run decide",
    "*_1000": "decisions a second; the ratios of the same run decide",
    "*_100000": "decisions a second; the ratios of the same run decide",
    "*_zipf": "decisions a second; the ratios of the same run decide",
    "http_*": "the parts of the goals' ratios, and the processor time of each",
    "grpc_*": "the parts of the goals' ratios, and the processor time of each",
    "processes": "a setting",
    "exactness_*": "a count that the worst window is made from",
}

PARTS = ("application", "services", "exactness")


def main() -> int:
    """Run the benchmark and print its line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to run")
    parser.add_argument("--turns", type=int, default=3, help="measurements of each kind")
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="length of one, whole for services"
    )
    chosen = parser.parse_args()
    figures: dict[str, Figure] = {}
    goals: list[Goal] = []
    if "application" in chosen.parts:
        figures |= application.measure(chosen.seconds * 0.4, chosen.turns)
        goals += application.goals()
    if "services" in chosen.parts:
        with tempfile.TemporaryDirectory() as name:
            figures |= services.measure(Path(name), chosen.seconds, chosen.turns)
        goals += services.goals()
    if "exactness" in chosen.parts:
        figures |= exactness.measure()
        goals += exactness.goals()
    return outcome("ratelimit", figures, goals, REASONS)


if __name__ == "__main__":
    sys.exit(main())
