"""The size of a pool and the arithmetic behind it; the time is part of the input."""

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
    from engineroom.workers.demand import DemandHistory, QueueRates
    from engineroom.workers.plan import Plan

#: However long a job has waited, at least this share of its target is left.
LEAST_SHARE_OF_TARGET = 0.25


@dataclass(frozen=True, slots=True)
class SizeInputs:
    """The state to size by; ``facts`` is None while Redis cannot be measured (``outage``)."""

    at: float
    facts: PoolFacts | None
    #: Size that the Deployment asks for; None before the first one.
    current: int | None
    #: Pods that hold a job and are not leaving.
    busy_pods: int = 0
    outage: str = ""
    #: Whether the pool may not use its Redis, or one of its queues.
    refused: bool = False


@dataclass(frozen=True, slots=True)
class SizeDecision:
    """The size in pods, and one sentence of arithmetic."""

    replicas: int
    sentence: str
    #: What the work alone asks for, before minimum, maximum and pauses.
    wanted: int
    #: "" within range, else AtMaxReplicas, AtMinReplicas, Paused or RateLimited.
    limited: str = ""
    #: Seconds until time alone changes the decision; None: never.
    again_in: float | None = None


def decide_size(plan: Plan, inputs: SizeInputs, history: DemandHistory) -> SizeDecision:
    """Return the size of the pool. ``history`` already contains the facts of ``inputs``."""
    if inputs.refused:
        return SizeDecision(0, f"{_pods(0)}: {inputs.outage}", 0)
    if not plan.autoscaled:
        return _by_hand(plan)
    if plan.suspend:
        size = plan.min_replicas if inputs.current is None else inputs.current
        return SizeDecision(size, f"{_pods(size)}: kept while spec.suspend is true", size)
    if inputs.facts is None:
        return _blind(plan, inputs)
    return _by_work(plan, inputs, inputs.facts, history)


def _by_hand(plan: Plan) -> SizeDecision:
    size = plan.manual_replicas
    return SizeDecision(size, f"{_pods(size)}: set by hand in spec.replicas", size)


def _blind(plan: Plan, inputs: SizeInputs) -> SizeDecision:
    """Size a pool whose Redis cannot be measured: as it is, or by the declared fallback."""
    why = inputs.outage or "Redis cannot be measured"
    if plan.fallback_replicas is not None and plan.pause is Pause.NONE:
        size = min(max(plan.fallback_replicas, plan.min_replicas), plan.max_replicas)
        return SizeDecision(size, f"{_pods(size)}: metricOutage.replicas while blind ({why})", size)
    size = plan.min_replicas if inputs.current is None else inputs.current
    return SizeDecision(size, f"{_pods(size)}: kept while blind ({why})", size)


def _by_work(
    plan: Plan, inputs: SizeInputs, facts: PoolFacts, history: DemandHistory
) -> SizeDecision:
    at = inputs.at
    current = inputs.current or 0
    workers, sentence = _workers_wanted(plan, facts, history)
    wanted = math.ceil(workers / plan.workers_per_pod)
    if wanted < inputs.busy_pods:
        wanted = inputs.busy_pods
        sentence = f"{_count(wanted, 'pod')} busy"

    floor, floor_name = plan.min_replicas, "minReplicas"
    peak = scaling_windows.active(plan.windows, at)
    if peak is not None and peak.min_replicas > floor:
        floor, floor_name = peak.min_replicas, f"schedule {peak.name}"

    # Without a history the present size counts as wanted, unless the floor alone explains it.
    before = current if current > floor else wanted
    stabilized = history.stabilized(wanted, before, plan.stabilization, at)
    again = history.next_change(plan.stabilization, at)
    size = max(wanted, min(current, stabilized))
    if size > wanted:
        sentence += f"; {size} kept, {_seconds(plan.stabilization)} window"
    idle = at - history.last_busy if history.last_busy is not None else 0.0
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
        left = history.removals_left(plan.max_pods_per_minute, at)
        if left is not None and current - size > left:
            size, limited, again = current - left, reasons.RATE_LIMITED, 5.0
            sentence += f"; at most {plan.max_pods_per_minute} pods leave a minute"

    if _paused(plan.pause, size, current):
        sentence += f"; kept at {current} by pause {plan.pause.value}"
        size, limited = current, reasons.PAUSED
    change = scaling_windows.next_change(plan.windows, at)
    moments = [m for m in (again, change) if m is not None]
    return SizeDecision(
        size, f"{_pods(size)}: {sentence}", wanted, limited, min(moments) if moments else None
    )


def _paused(pause: Pause, size: int, current: int) -> bool:
    return (
        (pause is Pause.ALL and size != current)
        or (pause is Pause.SCALE_IN and size < current)
        or (pause is Pause.SCALE_OUT and size > current)
    )


def _workers_wanted(plan: Plan, facts: PoolFacts, history: DemandHistory) -> tuple[float, str]:
    """Return the workers that keep every queue's target together, and the arithmetic."""
    total = 0.0
    demand = sum(queue.demand for queue in facts.queues)
    parts: list[str] = []
    for queue, latency in zip(facts.queues, plan.latencies, strict=True):
        if plan.backlog_per_worker is not None:
            workers = queue.demand / plan.backlog_per_worker
            part = f"{queue.demand} waiting or running / {plan.backlog_per_worker} a worker"
        else:
            workers, part = _by_latency(queue, latency, history.rates.get(queue.name), facts.at)
        workers, part = _within_limit(queue, history.rates.get(queue.name), workers, part)
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
    """Cap the workers by the queue's own limit, but never below those that work now."""
    most = most_by_limit(queue, rates.duration if rates else None)
    if most is None or not queue.demand:
        return workers, part
    part += f", limited to {most[1]}"
    return min(workers, float(max(most[0], queue.running))), part


def _by_latency(
    queue: QueueFacts, latency: float, rates: QueueRates | None, at: float
) -> tuple[float, str]:
    """Return the workers that start the backlog within the latency and keep up with arrivals.

    Little's law gives the steady part (arrivals x duration are busy at any time); to it comes what
    drains the backlog within the rest of the target. Never more workers than jobs at hand.
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
    # A worker that runs a job is needed until the job ends, whatever the average says.
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
