"""The resource monitor: what workers use, what that suggests, and pods resized accordingly.

Each round lists pod metrics once for all pools, and not at all while no pool has a pod. Between two
rounds the workers' own reports count at each look: they show peaks that the metrics miss, and
replace the metrics where there is no metrics API.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import structlog

from engineroom.api import LABEL_POOL
from engineroom.api.quantity import QuantityError, parse_quantity
from engineroom.api.v1alpha1.workerpool import RightSizingMode
from engineroom.core import reasons
from engineroom.core.conditions import timestamp
from engineroom.core.errors import DependencyError, EngineroomError
from engineroom.kube.client.errors import Forbidden, NotFound
from engineroom.kube.client.resources import POD_METRICS
from engineroom.workers.resources import RESOURCE_NAMES, ResourceAmounts, quantity
from engineroom.workers.rightsizing.pool_usage import ContainerUsage, OutOfMemoryKill, PoolUsage
from engineroom.workers.rightsizing.recommendation import differ
from engineroom.workers.rightsizing.resizer import ConditionValue, PodResizer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from engineroom.kube.client.resources import ObjectRef
    from engineroom.kube.runtime.controller import Context
    from engineroom.kube.runtime.informer import Informer
    from engineroom.queue.observe import PoolFacts
    from engineroom.workers.projections import PodView
    from engineroom.workers.rightsizing.recommendation import SizingPlan

log = structlog.get_logger(__name__)

#: A metrics API that failed is called again after this time (seconds).
METRICS_RETRY: Final = 120.0

__all__ = ["PoolUsage", "ResourceMonitor", "SizingStatus"]


@dataclass(frozen=True, slots=True)
class SizingStatus:
    """The part of the status about resources."""

    recommended: dict[str, Any] | None
    #: (status, reason, message) of the condition RightSized.
    condition: ConditionValue
    last_kill: str | None = None


class ResourceMonitor:
    """Watches the use of all pools.

    ``interval`` is seconds between rounds; ``patience`` is seconds of use that must have been
    watched before less than the present resources is recommended.
    """

    def __init__(
        self,
        context: Context,
        pods: Informer[PodView],
        *,
        interval: float,
        patience: float,
    ) -> None:
        self._client = context.client
        self._recorder = context.recorder
        self._clock = context.clock
        self._pods = pods
        self._interval = interval
        self._patience = patience
        self._namespaces: tuple[str | None, ...] = tuple(context.namespaces) or (None,)
        self._resizer = PodResizer(context.client, context.recorder, context.clock)
        #: Why there are no metrics; "" when there are.
        self._outage = ""
        #: Whether the metrics API was ever called; before, nothing can be said about it.
        self._called = False
        self._metrics_due = float("-inf")

    # -- rounds ----------------------------------------------------------------------------------

    async def round(self, pools: Iterable[tuple[ObjectRef, PoolUsage]]) -> float:
        """Count what all pools' workers use now; returns the seconds until the next round."""
        watched = [
            (pool, usage, pods) for pool, usage in pools if (pods := self._pods.by_index(pool.key))
        ]
        if watched or not self._called:
            metrics = await self._metrics()
            self._called = True
            at, now = self._clock.now().timestamp(), self._clock.monotonic()
            for pool, usage, pods in watched:
                samples = usage.count_metrics(
                    pods, metrics.get(pool.namespace, {}), without_metrics=bool(self._outage)
                )
                elapsed = self._interval if usage.counted is None else now - usage.counted
                usage.counted = now
                # During a long pause nothing was watched: only the usual time counts.
                elapsed = min(elapsed, 2 * self._interval)
                usage.recommender.profile.fold(samples, at, elapsed)
        return self._interval

    async def _metrics(self) -> dict[str, dict[str, dict[str, ContainerUsage]]]:
        """Return usage by namespace, pod and container; empty without a metrics API."""
        now = self._clock.monotonic()
        if now < self._metrics_due:
            return {}
        metrics: dict[str, dict[str, dict[str, ContainerUsage]]] = {}
        try:
            for namespace in self._namespaces:
                items, _ = await self._client.list(POD_METRICS, namespace, LABEL_POOL)
                for item in items:
                    metadata = item["metadata"]
                    pods = metrics.setdefault(metadata["namespace"], {})
                    pods[metadata["name"]] = _containers(item)
        except (NotFound, Forbidden, DependencyError) as error:
            self._metrics_due = now + METRICS_RETRY
            outage = _outage(error)
            if outage != self._outage:
                log.warning("no pod metrics", problem=outage, error=str(error))
            self._outage = outage
            return {}
        self._outage = ""
        return metrics

    # -- looks -----------------------------------------------------------------------------------

    async def settle(
        self,
        pool: ObjectRef,
        usage: PoolUsage | None,
        plan: SizingPlan,
        old: Mapping[str, Any],
        pods: Sequence[PodView],
        facts: PoolFacts | None,
    ) -> tuple[PoolUsage | None, SizingStatus | None]:
        """Process one observation of a pool; returns its usage and its report for the status.

        None as the second value keeps the status as it is. In mode InPlace pods are resized.
        """
        if plan.mode is RightSizingMode.OFF:
            return None, None
        now = self._clock.now()
        if usage is None:
            if not pods:
                return None, None
            usage = PoolUsage.begin(plan, old, now.timestamp())
        if not pods:
            usage.pods.clear()
        elif facts is not None:
            usage.count_reports(facts)
        if not self._called:
            return usage, None
        kills = usage.new_kills(pods, facts)
        usage.recommend(plan, now.timestamp(), self._patience)
        for kill in kills:
            self._record_kill(pool, kill, usage.recommended.memory_limit)
        if plan.mode is RightSizingMode.IN_PLACE:
            condition = await self._resize(pool, usage, pods)
        else:
            condition = self._compare(plan, usage)
        last_kill = None
        if usage.last_kill:
            last_kill = timestamp(datetime.fromtimestamp(usage.last_kill, UTC))
        return usage, SizingStatus(usage.recommended.resources() or None, condition, last_kill)

    def _record_kill(
        self, pool: ObjectRef, kill: OutOfMemoryKill, recommended: float | None
    ) -> None:
        if kill.limit is None:
            message = f"{kill.subject} was killed for memory, without a limit of its own"
        else:
            limit = quantity("memory", kill.limit)
            message = f"{kill.subject} was killed for memory at its limit of {limit}"
        if recommended:
            message += f"; recommended is {quantity('memory', recommended)} now"
        self._recorder.record(pool, "Warning", reasons.WORKER_OUT_OF_MEMORY, message)

    def _undecided_condition(self) -> ConditionValue:
        if self._outage:
            return "Unknown", reasons.METRICS_UNAVAILABLE, self._outage
        return (
            "Unknown",
            reasons.MEASURING_USE,
            f"less than the template has is recommended after {self._patience / 60:g} min of use",
        )

    def _compare(self, plan: SizingPlan, usage: PoolUsage) -> ConditionValue:
        """Mode Recommend: return whether the template is about what the use suggests."""
        if not usage.recommended:
            return self._undecided_condition()
        differences = [
            _difference(name, plan.template, usage.recommended)
            for name in RESOURCE_NAMES
            if getattr(usage.recommended, name) is not None
            and differ(getattr(plan.template, name), getattr(usage.recommended, name))
        ]
        if differences:
            words = ", ".join(differences)
            return (
                "False",
                reasons.RESOURCES_DIFFER,
                f"use suggests other resources than the template's: {words}{self._outage_note()}",
            )
        return (
            "True",
            reasons.RESOURCES_FIT,
            f"the template's resources are what use suggests{self._outage_note()}",
        )

    async def _resize(
        self, pool: ObjectRef, usage: PoolUsage, pods: Sequence[PodView]
    ) -> ConditionValue:
        """Mode InPlace: resize pods; returns what became of it."""
        if not usage.recommended:
            return self._undecided_condition()
        if not await self._resizer.supported():
            return (
                "False",
                reasons.RESIZE_UNSUPPORTED,
                "this Kubernetes does not resize pods in place; it needs 1.35 or newer",
            )
        problem = await self._resizer.resize(pool, usage, pods)
        if problem is not None:
            return problem
        message = f"the pods' resources are what use suggests{self._outage_note()}"
        return "True", reasons.RESOURCES_FIT, message

    def _outage_note(self) -> str:
        return f"; {self._outage}" if self._outage else ""


def _containers(item: Mapping[str, Any]) -> dict[str, ContainerUsage]:
    containers = {}
    for container in item.get("containers") or ():
        usage = container.get("usage") or {}
        try:
            cpu, memory = parse_quantity(usage["cpu"]), parse_quantity(usage["memory"])
        except (KeyError, QuantityError):
            continue
        containers[container["name"]] = ContainerUsage(
            str(item.get("timestamp")), float(cpu), float(memory)
        )
    return containers


def _outage(error: EngineroomError) -> str:
    if isinstance(error, NotFound):
        return "there is no metrics API: only the workers report use; see metrics-server"
    if isinstance(error, Forbidden):
        return "the operator may not list pods of metrics.k8s.io: only the workers report use"
    return "the metrics API does not answer: only the workers report use"


def _difference(name: str, present: ResourceAmounts, recommended: ResourceAmounts) -> str:
    resource, kind = name.split("_")
    before, after = getattr(present, name), getattr(recommended, name)
    text = "none" if before is None else quantity(resource, before)
    return f"{kind}s.{resource} {quantity(resource, after)} instead of {text}"
