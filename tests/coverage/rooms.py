"""Branch coverage by room, from the JSON report of coverage.py: pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

#: The least coverage in percent: of everything, and of each room.
LEAST_TOTAL, LEAST_ROOM = 90.0, 80.0

_PACKAGES = ("engineroom_worker", "engineroom_webhooks", "engineroom")


@dataclass
class Room:
    """A room: its statements and branches, how many of them ran, and the functions with gaps."""

    name: str
    parts: int = 0
    covered: int = 0
    #: Function names with the number of their statements and branches that never ran.
    gaps: dict[str, int] = field(default_factory=dict)

    @property
    def percent(self) -> float:
        """The share of statements and branches that ran, in percent; 100 for an empty room."""
        return 100.0 * self.covered / self.parts if self.parts else 100.0

    def add(self, summary: dict[str, Any]) -> None:
        """Add the numbers of a file."""
        self.parts += summary["num_statements"] + summary["num_branches"]
        self.covered += summary["covered_lines"] + summary["covered_branches"]


def room_of(path: str) -> str:
    """Return the room of a file: the package and its first folder, such as ``engineroom.tasks``."""
    parts = path.removesuffix(".py").split("/")
    start = next(position for position, part in enumerate(parts) if part in _PACKAGES)
    folders = parts[start:-1]
    return ".".join(folders[:2])


def rooms(report: dict[str, Any]) -> list[Room]:
    """Return the rooms of a report, by name."""
    found: dict[str, Room] = {}
    for path, file in report["files"].items():
        name = room_of(path)
        room = found.setdefault(name, Room(name))
        room.add(file["summary"])
        for function, part in file.get("functions", {}).items():
            summary = part["summary"]
            missing = summary["missing_lines"] + summary["missing_branches"]
            if missing and function:
                inside = path.partition(name.replace(".", "/") + "/")[2]
                room.gaps[f"{inside}:{function}"] = missing
    return sorted(found.values(), key=lambda room: room.name)


def total(measured: list[Room]) -> Room:
    """Return all rooms as one."""
    return Room(
        "total", sum(room.parts for room in measured), sum(room.covered for room in measured)
    )


def problems(measured: list[Room]) -> list[str]:
    """Return a line for each limit that is missed."""
    lines = []
    whole = total(measured)
    if whole.percent < LEAST_TOTAL:
        lines.append(f"total: {whole.percent:.1f}% is below {LEAST_TOTAL:g}%")
    lines += [
        f"{room.name}: {room.percent:.1f}% is below {LEAST_ROOM:g}%"
        for room in measured
        if room.percent < LEAST_ROOM
    ]
    return lines


def page(measured: list[Room], gaps: int = 5) -> str:
    """Return the page of the documentation: a table by room with the largest ``gaps`` of each."""
    whole = total(measured)
    rows = [
        f"| `{room.name}` | {room.parts} | {room.percent:.1f} | {_largest(room, gaps)} |"
        for room in measured
    ]
    return "\n".join(
        [
            "# Coverage",
            "",
            "<!-- Written by `make coverage`. -->",
            "",
            "Statements and branches that run in the unit, integration and security tests, and in",
            f"processes they start. Limits: {LEAST_TOTAL:g}% in total, {LEAST_ROOM:g}% a room.",
            "",
            "| room | statements and branches | covered, % | largest gaps (parts that never run) |",
            "|---|---|---|---|",
            *rows,
            f"| total | {whole.parts} | {whole.percent:.1f} | |",
            "",
        ]
    )


def _largest(room: Room, count: int) -> str:
    ordered = sorted(room.gaps.items(), key=lambda gap: (-gap[1], gap[0]))
    return ", ".join(f"`{function}` ({missing})" for function, missing in ordered[:count])
