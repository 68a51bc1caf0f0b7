"""The time of the next reconcile of a pool without an event."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engineroom.core import reasons

if TYPE_CHECKING:
    from engineroom.core.conditions import Trouble
    from engineroom.workers.decide import SizeDecision
    from engineroom.workers.drain.plan import DrainPlan
    from engineroom.workers.observe import PoolObservation

#: Seconds between reconciles of a pool that works, whose pods leave, whose Redis does not answer.
LOOK_ACTIVE, LOOK_LEAVING, LOOK_BLIND = 1.0, 0.2, 2.0
#: Seconds between checks of idle pools against lost pushes.
RESYNC = 10.0


def next_look(
    observation: PoolObservation,
    decision: SizeDecision,
    drain: DrainPlan,
    *,
    trimming: bool,
    counting: bool,
) -> float | None:
    """Return the seconds to the next run; None if a push or a change of pods wakes the pool.

    ``trimming``: failed jobs remain to be dropped. ``counting``: jobs ended in the last minute, so
    that ``jobsPerMinute`` still has to fall to zero.
    """
    facts = observation.facts
    if observation.refused:
        return RESYNC
    if facts is None:
        return LOOK_BLIND
    waits: list[float] = []
    if trimming or drain.in_progress:
        waits.append(LOOK_LEAVING)
    elif observation.pods or facts.workers or facts.backlog or facts.running:
        waits.append(LOOK_ACTIVE)
    if counting:
        waits.append(RESYNC)
    if decision.again_in is not None:
        waits.append(max(0.05, decision.again_in))
    due = [queue.next_due for queue in facts.queues if queue.next_due is not None]
    if due:
        waits.append(max(0.02, min(due) - facts.at))
    return min(waits, default=None)


def after_refusal(refusal: Trouble | None) -> float | None:
    """Return the seconds to the next try of a write that was refused; None without a refusal."""
    if refusal is None:
        return None
    return LOOK_ACTIVE if refusal[0] == reasons.AWAITING_DELETION else RESYNC
