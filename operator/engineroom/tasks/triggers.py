"""The triggers of ``engineroom.core.triggers``, with errors of tasks: they raise InvalidTaskError.

``Trigger`` is any of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from engineroom.core.triggers import triggers
from engineroom.core.triggers.missed import Missed
from engineroom.tasks.errors import InvalidTaskError

if TYPE_CHECKING:
    from engineroom.core.errors import Problem

__all__ = ["Cron", "Every", "Missed", "Once", "Trigger"]


@dataclass(frozen=True, slots=True)
class Cron(triggers.Cron):
    """Ticks of a cron line of five fields in a time zone, each up to ``jitter`` seconds later.

    The delay depends on the schedule's name and the slot alone, and ends before the next slot.
    Raises InvalidTaskError.
    """

    def __post_init__(self) -> None:
        _check(self.problem())


@dataclass(frozen=True, slots=True)
class Every(triggers.Every):
    """Ticks each ``seconds`` from ``start`` (Unix seconds) on, each up to ``jitter`` s later.

    The delay depends on the schedule's name and the tick's number alone, so all processes compute
    the same one. Raises InvalidTaskError.
    """

    def __post_init__(self) -> None:
        _check(self.problem())


@dataclass(frozen=True, slots=True)
class Once(triggers.Once):
    """A single tick at a time in Unix seconds. Raises InvalidTaskError."""

    def __post_init__(self) -> None:
        _check(self.problem())


Trigger: TypeAlias = Cron | Every | Once


def _check(problem: Problem | None) -> None:
    if problem is not None:
        raise InvalidTaskError(problem.field, problem.problem, problem.fix)
