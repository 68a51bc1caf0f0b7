"""The verdict of a benchmark: its figures, its goals, and one JSON object as the last line."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Figure = float | int | str | bool | None

#: Set by ``--record``: the file of JSON lines that the closing line goes into.
RECORD_VARIABLE = "ENGINEROOM_BENCH_RECORD"
#: The ratios that decide: benchmark, figure, largest allowed cost in floors.
RATIOS = Path(__file__).parent / "ratios.json"
#: The allowed cost, as a multiple of the median ratio of five runs.
ALLOWANCE = 1.1


@dataclass(frozen=True)
class Goal:
    """A bound for one figure: at most, or at least, ``bound``.

    A figure that depends on the machine's speed names its ``floor``: the machine's own cost of the
    same work, measured in the same run, alternating. Then the ``ratio`` in ratios.json decides: how
    many floors the figure may cost. ``bound`` stays as the design's figure and is printed beside.
    """

    figure: str
    bound: float
    at_least: bool = False
    floor: str = ""
    #: The largest allowed cost in floors; None before runs that met the bound were settled.
    ratio: float | None = None

    @property
    def ratio_figure(self) -> str:
        """The name of the figure that holds the ratio to the floor."""
        return f"{self.figure}_to_floor"

    def to_floor(self, figures: Mapping[str, Figure]) -> float:
        """Return how many floors the figure costs; NaN where one of the two is missing or zero."""
        value, floor = _number(figures, self.figure), _number(figures, self.floor)
        above, below = (floor, value) if self.at_least else (value, floor)
        return above / below if below else math.nan

    def within_bound(self, figures: Mapping[str, Figure]) -> bool:
        """Return whether the figure itself meets the design's bound."""
        value = _number(figures, self.figure)
        return value >= self.bound if self.at_least else value <= self.bound

    def met(self, figures: Mapping[str, Figure]) -> bool:
        """Return whether the goal is met: by the ratio where the goal has a floor."""
        if not self.floor:
            return self.within_bound(figures)
        return self.ratio is not None and self.to_floor(figures) <= self.ratio

    def __str__(self) -> str:
        text = f"{'>=' if self.at_least else '<='} {self.bound:g}"
        if not self.floor:
            return text
        ratio = "no ratio recorded" if self.ratio is None else f"<= {self.ratio:g} floors"
        return f"{ratio}; by design {text}"


def outcome(
    name: str,
    figures: Mapping[str, Figure],
    goals: Sequence[Goal],
    reasons: Mapping[str, str] | None = None,
) -> int:
    """Print the goals and the closing line; return 0 where every goal is met, else 1.

    ``reasons`` says why a figure has no goal, by the figure's name or by a pattern of names. Raises
    ValueError for a figure without goal, floor or reason.
    """
    reasons = reasons or {}
    settled = ratios_of(name)
    goals = [
        replace(goal, ratio=settled[goal.figure]) if goal.figure in settled else goal
        for goal in goals
    ]
    ratios = {goal.ratio_figure: round(goal.to_floor(figures), 3) for goal in goals if goal.floor}
    complete: dict[str, Figure] = {**figures, **ratios}
    explained = {goal.figure for goal in goals} | {goal.floor for goal in goals} | ratios.keys()
    unexplained = [
        figure
        for figure in complete
        if figure not in explained and not any(fnmatchcase(figure, pattern) for pattern in reasons)
    ]
    if unexplained:
        raise ValueError(f"{name}: figures without goal or reason: {', '.join(unexplained)}")
    met = all(goal.met(complete) for goal in goals)
    for goal in goals:
        mark = "met   " if goal.met(complete) else "MISSED"
        beside = f", {complete[goal.ratio_figure]} floors" if goal.floor else ""
        print(f"{mark} {goal.figure} {complete.get(goal.figure)}{beside} (goal {goal})")
    line = json.dumps(
        {
            "name": name,
            "figures": complete,
            "goals": {goal.figure: str(goal) for goal in goals},
            "met": met,
            "missed": [goal.figure for goal in goals if not goal.met(complete)],
            "floors": {goal.figure: goal.floor for goal in goals if goal.floor},
            "reasons": dict(reasons),
        }
    )
    if os.environ.get(RECORD_VARIABLE):
        record(Path(os.environ[RECORD_VARIABLE]), name, line)
    print(line, flush=True)
    return 0 if met else 1


def record(path: Path, name: str, line: str) -> None:
    """Write ``line`` into the file of JSON lines; it replaces the benchmark's older line."""
    lines = path.read_text().splitlines() if path.exists() else []
    older = [text for text in lines if json.loads(text)["name"] != name]
    ordered = sorted([*older, line], key=lambda text: str(json.loads(text)["name"]))
    path.write_text("\n".join(ordered) + "\n")


def ratios_of(name: str, path: Path = RATIOS) -> dict[str, float]:
    """Return the settled ratios of a benchmark, by figure."""
    return _settled(path).get(name, {})


def settle(name: str, medians: Mapping[str, float], path: Path = RATIOS) -> dict[str, float]:
    """Write ALLOWANCE times each median ratio into the file; returns the benchmark's ratios.

    A ratio that is settled already can fall and never rises.
    """
    document = _settled(path)
    ratios = document.setdefault(name, {})
    for figure, median in medians.items():
        ratios[figure] = min(round(ALLOWANCE * median, 3), ratios.get(figure, math.inf))
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
    return ratios


def _settled(path: Path) -> dict[str, dict[str, float]]:
    return json.loads(path.read_text()) if path.exists() else {}


def percentile(values: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile; ``share`` in 0..1. NaN for no values."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _number(figures: Mapping[str, Figure], name: str) -> float:
    value = figures.get(name)
    return float(value) if isinstance(value, (int, float)) else math.nan
