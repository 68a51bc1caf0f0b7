"""``make fuzz``: parse 100,000 mutated documents and files; the last line is JSON."""

from __future__ import annotations

import argparse
import gc
import time

from tests.fuzz.run import Fuzz, Tally, memory
from tests.performance.outcome import Goal, outcome

GOALS = (
    Goal("inputs", 1, at_least=True),
    Goal("crashed", 0),
    Goal("accepted_wrongly", 0),
    Goal("memory_growth_mib", 8),
    Goal("slowest_seconds", 5),
)

REASONS = {
    "seed": "repeats the run",
    "inputs": "the size of the run",
    "taken_*": "the mix of the run; accepted_wrongly decides",
    "refused_*": "the mix of the run; accepted_wrongly decides",
    "slowest_seconds": "one of all inputs: the machine's own pauses decide it",
    "seconds": "the length of the run",
}


def main() -> int:
    """Parse the inputs and print the totals."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0, help="0 takes the time's")
    wanted = parser.parse_args()
    seed = wanted.seed or int(time.time())
    fuzz, tally, began = Fuzz(seed), Tally(), time.monotonic()
    print(f"seed {seed}", flush=True)
    # Caches fill and libraries load with the first ones; what grows after that would go on growing.
    fuzz.run(wanted.count // 4, tally)
    gc.collect()
    before = memory()
    for part in range(3):
        fuzz.run((wanted.count - tally.count()) // (3 - part), tally)
        print(f"{tally.count()} inputs, {memory() // 1024 // 1024} MiB", flush=True)
    gc.collect()
    for line in (tally.crashed + tally.wrongly)[:40]:
        print(line)
    print("slowest", tally.slow)
    return outcome(
        "fuzz",
        {
            "seed": seed,
            "inputs": tally.count(),
            **{f"taken_{kind}": number for kind, number in sorted(tally.taken.items())},
            **{f"refused_{kind}": number for kind, number in sorted(tally.refused.items())},
            "crashed": len(tally.crashed),
            "accepted_wrongly": len(tally.wrongly),
            "memory_growth_mib": round((memory() - before) / 1024 / 1024, 2),
            "slowest_seconds": round(tally.slowest, 3),
            "seconds": round(time.monotonic() - began, 1),
        },
        GOALS,
        REASONS,
    )


if __name__ == "__main__":
    raise SystemExit(main())
