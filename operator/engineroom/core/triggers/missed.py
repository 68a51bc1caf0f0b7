"""Which due ticks of a trigger run now; a pure function of the time."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engineroom.core.triggers.triggers import Trigger

#: Ticks that one plan runs at most; the next plan runs the rest.
MAX_TICKS = 100


class Missed(StrEnum):
    """The policy for ticks that no process ran in time."""

    SKIP = "skip"
    RUN_ONCE = "run_once"
    RUN_ALL = "run_all"


@dataclass(frozen=True, slots=True)
class TickPlan:
    """Ticks to run now, and the next tick to wait for (None: there is none).

    ``dropped`` counts the ticks that the policy does not run, up to the plan's limit.
    """

    run: tuple[float, ...]
    next: float | None
    dropped: int = 0


def plan_ticks(
    trigger: Trigger,
    name: str,
    due: float,
    now: float,
    missed: Missed,
    grace: float,
    limit: int = MAX_TICKS,
) -> TickPlan:
    """Plan at ``now`` the ticks of the schedule ``name`` from ``due`` on (Unix seconds).

    A tick is missed when it is late by more than ``grace`` seconds. SKIP runs no missed tick,
    RUN_ONCE runs only the latest due tick, and RUN_ALL runs all due ticks, oldest first and at most
    ``limit`` in one plan.
    """
    if due > now:
        return TickPlan((), due)
    if missed is Missed.RUN_ALL:
        ticks, following = _ticks_until(trigger, name, due, now, limit)
        return TickPlan(ticks, following)
    if missed is Missed.RUN_ONCE:
        latest = _latest(trigger, name, due, now)
        dropped = _count(trigger, name, due, latest, limit)
        return TickPlan((latest,), trigger.after(now, name), dropped)
    punctual = due
    if due < now - grace:
        # Ticks are whole milliseconds: a tick that is late by exactly the grace is in time.
        candidate = trigger.after(now - grace - 0.0005, name)
        if candidate is None or candidate > now:
            dropped = _count(trigger, name, due, now + 0.001, limit)
            return TickPlan((), trigger.after(now, name), dropped)
        punctual = candidate
    ticks, following = _ticks_until(trigger, name, punctual, now, limit)
    return TickPlan(ticks, following, _count(trigger, name, due, punctual, limit))


def _ticks_until(
    trigger: Trigger, name: str, first: float, now: float, limit: int
) -> tuple[tuple[float, ...], float | None]:
    """Return at most ``limit`` ticks from ``first`` to ``now``, and the tick that follows them."""
    ticks = [first]
    following = trigger.after(first, name)
    while following is not None and following <= now and len(ticks) < limit:
        ticks.append(following)
        following = trigger.after(following, name)
    return tuple(ticks), following


def _count(trigger: Trigger, name: str, first: float, end: float, limit: int) -> int:
    """Count the ticks from the tick ``first`` to before ``end``, up to ``limit``."""
    count, tick = 0, first
    while tick < end and count < limit:
        count += 1
        following = trigger.after(tick, name)
        if following is None:
            break
        tick = following
    return count


def _latest(trigger: Trigger, name: str, due: float, now: float) -> float:
    """Return the last tick from ``due`` to ``now``.

    The search looks back from ``now`` in doubling steps, so its cost does not grow with the span.
    """
    back = 1.0
    latest = due
    while now - back > due:
        tick = trigger.after(now - back, name)
        if tick is not None and tick <= now:
            latest = tick
            break
        back *= 2
    following = trigger.after(latest, name)
    while following is not None and following <= now:
        latest, following = following, trigger.after(following, name)
    return latest
