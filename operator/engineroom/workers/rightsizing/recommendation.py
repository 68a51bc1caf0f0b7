"""Recommended requests and limits: pure arithmetic on a profile of the workers' use.

A request is the 90th percentile of the samples plus 15%, as the Vertical Pod Autoscaler computes it
(kubernetes/autoscaler, ``pkg/recommender/logic/recommender.go``). A limit is the peak of the last
eight days plus 20%. Values rise at once and fall slowly: see ``PatientValue``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from engineroom.api.quantity import parse_quantity
from engineroom.api.v1alpha1.workerpool import RightSizingMode
from engineroom.workers.resources import NO_RESOURCES, RESOURCE_NAMES, ResourceAmounts, shared
from engineroom.workers.rightsizing.usage import UsageProfile

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engineroom.api.v1alpha1.workerpool import RightSizing

#: Requests: the percentile of all use, and the margin above it.
PERCENTILE: Final = 0.9
MARGIN: Final = 1.15
#: Limits: the margin above the peak.
HEADROOM: Final = 1.2
#: A relative difference below this does not change a value.
THRESHOLD: Final = 0.1
#: Fewer samples give no percentile.
LEAST_SAMPLES: Final = 5
#: The least that is recommended: below, the kernel cannot enforce it or Python cannot start.
LEAST_CPU: Final = 0.01
LEAST_MEMORY: Final = 16.0 * 2**20

_MEBI = 2**20


@dataclass(frozen=True, slots=True)
class SizingPlan:
    """``spec.rightSizing`` in numbers, and the resources of the template."""

    mode: RightSizingMode = RightSizingMode.RECOMMEND
    template: ResourceAmounts = NO_RESOURCES
    least_cpu: float = LEAST_CPU
    least_memory: float = LEAST_MEMORY
    most_cpu: float = math.inf
    most_memory: float = math.inf

    def bounded(self, name: str, value: float) -> float:
        """Return the value within the bounds; the maximum wins over our own minimum."""
        if name.startswith("cpu"):
            return min(max(value, self.least_cpu), self.most_cpu)
        return min(max(value, self.least_memory), self.most_memory)


def sizing_plan(spec: RightSizing, resources: Mapping[str, Any] | None) -> SizingPlan:
    """Return the plan of a valid spec and the worker container's resources."""
    least, most = spec.min_allowed or {}, spec.max_allowed or {}

    def amount(bounds: Mapping[str, str | int], name: str, otherwise: float) -> float:
        return float(parse_quantity(bounds[name])) if name in bounds else otherwise

    return shared(
        SizingPlan(
            mode=spec.mode,
            template=ResourceAmounts.of(resources),
            least_cpu=max(LEAST_CPU, amount(least, "cpu", LEAST_CPU)),
            least_memory=max(LEAST_MEMORY, amount(least, "memory", LEAST_MEMORY)),
            most_cpu=amount(most, "cpu", math.inf),
            most_memory=amount(most, "memory", math.inf),
        )
    )


@dataclass(slots=True)
class PatientValue:
    """A published value that rises at once and falls slowly.

    It rises as soon as the wanted value exceeds it by more than the threshold. It falls after
    ``patience`` seconds of watching in which less was wanted all the time, to the largest value
    wanted in them. So it falls at most once in that time, and recurring work does not move it.
    """

    value: float | None = None
    below: float = 0.0
    since: float | None = None

    def step(self, wanted: float | None, watched: float, patience: float) -> None:
        """Take the wanted value into account, after ``watched`` seconds of watching in all."""
        if wanted is None:
            return
        if self.value is not None and wanted > self.value * (1 + THRESHOLD):
            self.value, self.since = wanted, None
            return
        if self.value is not None and wanted >= self.value * (1 - THRESHOLD):
            self.since = None
            return
        if self.since is None:
            self.since, self.below = watched, wanted
        self.below = max(self.below, wanted)
        if watched - self.since >= patience:
            self.value, self.since = self.below, None


@dataclass(slots=True)
class Recommender:
    """The recommendation for one pool and its history; safe to lose, see ``begin``."""

    profile: UsageProfile = field(default_factory=UsageProfile)
    template: ResourceAmounts = NO_RESOURCES
    values: dict[str, PatientValue] = field(default_factory=dict)
    raised: bool = False

    @classmethod
    def begin(cls, plan: SizingPlan, published: ResourceAmounts, at: float) -> Recommender:
        """Start from what an earlier process ``published``, else from the template.

        A published value does not fall before a whole patience has been watched, and its memory
        limit counts as a peak for a day.
        """
        recommender = cls(template=plan.template, raised=bool(published))
        if published.memory_limit is not None:
            recommender.profile.inherit(published.memory_limit / HEADROOM, at)
        for name in RESOURCE_NAMES:
            value = getattr(published, name)
            recommender.values[name] = PatientValue(
                getattr(plan.template, name) if value is None else value
            )
        return recommender

    def step(self, plan: SizingPlan, at: float, patience: float) -> ResourceAmounts:
        """Return the recommendation now; empty before enough use has been watched."""
        if plan.template != self.template:
            self._reconsider(plan.template)
        wanted = wants(self.profile, plan, at)
        for name, patient in self.values.items():
            before = patient.value
            patient.step(getattr(wanted, name), self.profile.watched, patience)
            self.raised = self.raised or patient.value != before
        if not self.raised and (not wanted or self.profile.watched < patience):
            return NO_RESOURCES
        return consistent(
            plan,
            ResourceAmounts(
                **{
                    name: plan.bounded(name, rounded(name, patient.value))
                    for name, patient in self.values.items()
                    if patient.value is not None
                }
            ),
        )

    def _reconsider(self, template: ResourceAmounts) -> None:
        """Start again from the resources that the author of the template changed."""
        for name, patient in self.values.items():
            value = getattr(template, name)
            if value != getattr(self.template, name) and value is not None:
                patient.value, patient.since = max(value, patient.value or 0.0), None
        self.template = template


def wants(profile: UsageProfile, plan: SizingPlan, at: float) -> ResourceAmounts:
    """Return what the use alone suggests, within the bounds; None where samples are too few.

    A CPU limit is suggested only where the template has one, because it can only slow jobs down.
    """
    cpu = memory = None
    if profile.cpu_samples >= LEAST_SAMPLES:
        cpu = profile.cpu.percentile(PERCENTILE)
    if profile.memory_samples >= LEAST_SAMPLES:
        memory = profile.memory.percentile(PERCENTILE)
    cpu_peak = profile.cpu_peak.value(at) if plan.template.cpu_limit is not None else None
    memory_peak = profile.memory_peak.value(at)

    def suggested(name: str, value: float | None, room: float) -> float | None:
        return None if value is None else plan.bounded(name, value * room)

    return ResourceAmounts(
        cpu_request=suggested("cpu_request", cpu, MARGIN),
        memory_request=suggested("memory_request", memory, MARGIN),
        cpu_limit=suggested("cpu_limit", cpu_peak, HEADROOM),
        memory_limit=suggested("memory_limit", memory_peak, HEADROOM),
    )


def consistent(plan: SizingPlan, amounts: ResourceAmounts) -> ResourceAmounts:
    """Raise limits to their requests, and keep both equal where the template has them equal."""
    for resource in ("cpu", "memory"):
        request, limit = f"{resource}_request", f"{resource}_limit"
        low, high = getattr(amounts, request), getattr(amounts, limit)
        if low is None or high is None:
            continue
        first = getattr(plan.template, request)
        if high < low or (first is not None and first == getattr(plan.template, limit)):
            most = max(low, high)
            amounts = replace(amounts, **{request: most, limit: most})
    return amounts


def differ(present: float | None, other: float | None) -> bool:
    """Return whether the second value differs from the first by more than the threshold."""
    if present is None or other is None:
        return present is not other
    return abs(other - present) > THRESHOLD * present


def rounded(name: str, value: float) -> float:
    """Round up to a readable value: two digits of millicores, or a 16th of a power of 2 of MiB.

    Adds at most 10% for CPU and 6.25% for memory; below 16 MiB, less than 1 MiB.
    """
    if name.startswith("cpu"):
        thousandths = math.ceil(value * 1000 - 1e-6)
        digit: int = 10 ** max(0, len(str(thousandths)) - 2)
        return math.ceil(thousandths / digit) * digit / 1000
    mebibytes = max(1, math.ceil(value / _MEBI))
    step = 1 << max(0, mebibytes.bit_length() - 5)
    return float(math.ceil(mebibytes / step) * step * _MEBI)
