"""How a benchmark says what it found: the last line is one JSON object."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Figure = float | int | str | bool | None


@dataclass(frozen=True)
class Goal:
    """What a figure should be: at most, or at least, `bound`."""

    figure: str
    bound: float
    at_least: bool = False

    def met(self, figures: Mapping[str, Figure]) -> bool:
        """Whether the figure is there and within the bound."""
        value = figures.get(self.figure)
        if not isinstance(value, (int, float)) or math.isnan(value):
            return False
        return value >= self.bound if self.at_least else value <= self.bound

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.bound:g}"


def outcome(name: str, figures: Mapping[str, Figure], goals: Sequence[Goal]) -> int:
    """Print the closing line; 0 where every goal is met, else 1."""
    met = all(goal.met(figures) for goal in goals)
    for goal in goals:
        mark = "met   " if goal.met(figures) else "MISSED"
        print(f"{mark} {goal.figure} {figures.get(goal.figure)} (goal {goal})")
    document = {
        "name": name,
        "figures": dict(figures),
        "goals": {goal.figure: str(goal) for goal in goals},
        "met": met,
    }
    print(json.dumps(document), flush=True)
    return 0 if met else 1


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile; `share` in 0..1. NaN for no values."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
