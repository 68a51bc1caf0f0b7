"""How large the pool should be, and why: arithmetic only, the time is in the observation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engineroom.api.v1alpha1.workerpool import Pause
from engineroom.core import reasons
from engineroom.workers import scaling_windows
from engineroom.workers.demand import most_by_limit

if TYPE_CHECKING:
    from engineroom.queue.observe import PoolFacts, QueueFacts
    from engineroom.workers.demand import Memory, QueueRates
    from engineroom.workers.plan import Plan

#: However long a job has waited already, its target never counts as shorter than this share.
LEAST_SHARE_OF_TARGET = 0.25


@dataclass(frozen=True, slots=True)
class Observation:
    """What is there: ``facts`` is None when Redis could not be measured (``outage`` says why)."""

    at: float
    facts: PoolFacts | None
    #: Size that the Deployment asks for; None before the first one.
    current: int | None
    #: Pods that hold a job right now and are not leaving.
    busy_pods: int = 0
    outage: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """The size, in pods, and one sentence of arithmetic."""

    replicas: int
    sentence: str
    #: What the work alone would ask for, before minimum, maximum and pauses.
    wanted: int
    #: "" when within range, else one of AtMaxReplicas, AtMinReplicas, Paused, RateLimited.
    limited: str = ""
    #: Seconds until the same observation would lead to another decision; None: never by time.
    again_in: float | None = None


def decide(plan: Plan, observation: Observation, memory: Memory) -> Decision:
    """Size the pool. ``memory`` already contains this observation's facts."""
    if not plan.autoscaled:
        return _by_hand(plan)
    if plan.suspend:
        size = plan.min_replicas if observation.current is None else observation.current
        return Decision(size, f"{_pods(size)}: kept while spec.suspend is true", size)
    if observation.facts is None:
        return _blind(plan, observation)
    return _by_work(plan, observation, observation.facts, memory)


def _by_hand(plan: Plan) -> Decision:
    size = plan.manual_replicas
    return Decision(size, f"{_pods(size)}: set by hand in spec.replicas", size)


def _blind(plan: Plan, observation: Observation) -> Decision:
    """A failed measurement is never a zero: the size stays, or goes to the declared fallback."""
    why = observation.outage or "Redis cannot be measured"
    if plan.fallback_replicas is not None and plan.pause is Pause.NONE:
        size = min(max(plan.fallback_replicas, plan.min_replicas), plan.max_replicas)
        return Decision(size, f"{_pods(size)}: metricOutage.replicas while blind ({why})", size)
    size = plan.min_replicas if observation.current is None else observation.current
    return Decision(size, f"{_pods(size)}: kept while blind ({why})", size)


def _by_work(plan: Plan, observation: Observation, facts: PoolFacts, memory: Memory) -> Decision:
    at = observation.at
    current = observation.current or 0
    workers, sentence = _workers_wanted(plan, facts, memory)
    wanted = math.ceil(workers / plan.workers_per_pod)
    if wanted < observation.busy_pods:
        wanted = observation.busy_pods
        sentence = f"{_count(wanted, 'pod')} busy"

    floor, floor_name = plan.min_replicas, "minReplicas"
    peak = scaling_windows.active(plan.schedules, at)
    if peak is not None and peak.min_replicas > floor:
        floor, floor_name = peak.min_replicas, f"schedule {peak.name}"

    # Without a past the present size counts as wanted, unless the floor alone explains it.
    past = current if current > floor else wanted
    held = memory.stabilized(wanted, past, plan.stabilization, at)
    again = memory.next_change(plan.stabilization, at)
    size = max(wanted, min(current, held))
    if size > wanted:
        sentence += f"; {size} kept, {_seconds(plan.stabilization)} window"
    idle = at - memory.last_busy if memory.last_busy is not None else 0.0
    if size == 0 and current > 0 and floor == 0 and idle < plan.idle_timeout:
        size = 1
        again = plan.idle_timeout - idle
        sentence += f"; last pod kept until idle for {_seconds(plan.idle_timeout)}"

    limited = ""
    if size < floor:
        size, limited = floor, reasons.AT_MIN_REPLICAS
        sentence += f"; at least {floor} by {floor_name}"
    if size > plan.max_replicas:
        size, limited = plan.max_replicas, reasons.AT_MAX_REPLICAS
        sentence += f"; at most {plan.max_replicas} by maxReplicas"
    if size < current:
        left = memory.removals_left(plan.max_pods_per_minute, at)
        if left is not None and current - size > left:
            size, limited, again = current - left, reasons.RATE_LIMITED, 5.0
            sentence += f"; at most {plan.max_pods_per_minute} pods leave a minute"

    if _paused(plan.pause, size, current):
        sentence += f"; kept at {current} by pause {plan.pause.value}"
        size, limited = current, reasons.PAUSED
    change = scaling_windows.next_change(plan.schedules, at)
    moments = [m for m in (again, change) if m is not None]
    return Decision(
        size, f"{_pods(size)}: {sentence}", wanted, limited, min(moments) if moments else None
    )


def _paused(pause: Pause, size: int, current: int) -> bool:
    return (
        (pause is Pause.ALL and size != current)
        or (pause is Pause.SCALE_IN and size < current)
        or (pause is Pause.SCALE_OUT and size > current)
    )


def _workers_wanted(plan: Plan, facts: PoolFacts, memory: Memory) -> tuple[float, str]:
    """Workers that keep every queue's promise together, and the arithmetic behind it."""
    total = 0.0
    demand = sum(queue.demand for queue in facts.queues)
    parts: list[str] = []
    for queue, latency in zip(facts.queues, plan.latencies, strict=True):
        if plan.backlog_per_worker is not None:
            workers = queue.demand / plan.backlog_per_worker
            part = f"{queue.demand} waiting or running / {plan.backlog_per_worker} a worker"
        else:
            workers, part = _by_latency(queue, latency, memory.rates.get(queue.name), facts.at)
        workers, part = _within_limit(queue, memory.rates.get(queue.name), workers, part)
        total += workers
        if queue.demand or workers >= 0.05:
            parts.append(part if len(facts.queues) == 1 else f"{queue.name}: {part}")
    wanted = math.ceil(round(total, 6))
    if demand and not wanted:
        wanted = 1
    if not parts:
        return wanted, "nothing waits"
    return wanted, "; ".join(parts)


def _within_limit(
    queue: QueueFacts, rates: QueueRates | None, workers: float, part: str
) -> tuple[float, str]:
    """No more workers than the queue's own limit lets work, and never fewer than work now."""
    most = most_by_limit(queue, rates.duration if rates else None)
    if most is None or not queue.demand:
        return workers, part
    part += f", limited to {most[1]}"
    return min(workers, float(max(most[0], queue.running))), part


def _by_latency(
    queue: QueueFacts, latency: float, rates: QueueRates | None, at: float
) -> tuple[float, str]:
    """Workers so that the backlog starts within the latency and arrivals are kept up with.

    Little's law for the steady part (arrivals x duration are busy at any time) plus what drains
    the backlog within what is left of the target. Never more workers than jobs at hand.
    """
    duration = rates.duration if rates else None
    if queue.demand and duration is None:
        return queue.demand, f"{_count(queue.demand, 'job')}, duration not known yet: a worker each"
    if duration is None or rates is None:
        return 0.0, "nothing waits"
    waited = max(0.0, at - queue.oldest_enqueued) if queue.oldest_enqueued is not None else 0.0
    left = max(latency * LEAST_SHARE_OF_TARGET, latency - waited)
    steady = min(rates.arrivals * duration, queue.demand) if queue.demand else 0.0
    workers = min(float(queue.demand), queue.backlog * duration / left + max(steady, 0.0))
    # Who runs a job now is needed until it ends, whatever the average says.
    workers = max(workers, min(queue.running, queue.demand) if queue.backlog == 0 else workers)
    part = f"{queue.backlog} waiting x {_number(duration)} s each within {_seconds(left)}"
    if queue.running:
        part += f", {queue.running} running"
    if steady >= 0.05:
        part += f", {_number(rates.arrivals)} arriving a second"
    return workers, part


def _pods(count: int) -> str:
    return _count(count, "pod")


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _number(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value < 120 or value % 60 else f"{value / 60:g} min"
