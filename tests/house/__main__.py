"""Check operator/ and webhooks/ against the limits: ``python -m tests.house``."""

from __future__ import annotations

import sys

from tests.house.counts import LIMITS, count, problems
from tests.support import ROOT

PACKAGES = ("operator", "webhooks")


def main() -> int:
    """Print the counts; return 1 if a limit is exceeded."""
    paths = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    counts = count((str(path.relative_to(ROOT)), path.read_text()) for path in paths)
    exceeded = list(problems(counts))
    for line in exceeded:
        print(line, file=sys.stderr)
    figures = counts.figures()
    print("house: " + "; ".join(f"{name} {figures[name]:g} of {LIMITS[name]:g}" for name in LIMITS))
    return 1 if exceeded else 0


if __name__ == "__main__":
    sys.exit(main())
