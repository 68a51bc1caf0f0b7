"""Which requests and limits the workers' use suggests: pure arithmetic on a profile of that use.

Requests are what nine of ten samples stay below, and 15% more, as the Vertical Pod Autoscaler has
it (kubernetes/autoscaler, ``pkg/recommender/logic/recommender.go``). Limits are the peak of the
last eight days and 20% more. Up goes at once, down goes slowly: see ``Held``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeVar

from engineroom.api.quantity import QuantityError, parse_quantity
from engineroom.api.v1alpha1.workerpool import RightSizingMode
from engineroom.workers.rightsizing.usage import Profile

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engineroom.api.v1alpha1.workerpool import RightSizing

#: Requests: so much of all use lies below, and so much room above it.
PERCENTILE: Final = 0.9
MARGIN: Final = 1.15
#: Limits: room above the peak.
HEADROOM: Final = 1.2
#: A value that differs by less from the present one is no news.
THRESHOLD: Final = 0.1
#: Fewer samples say nothing about a percentile.
LEAST_SAMPLES: Final = 5
#: Never recommended less: below, the kernel cannot keep to it or Python cannot start.
LEAST_CPU: Final = 0.01
LEAST_MEMORY: Final = 16.0 * 2**20

_MEBI = 2**20

Frozen = TypeVar("Frozen")


@dataclass(frozen=True, slots=True)
class Amounts:
    """Requests and limits of a container: cores and bytes. None: not set, or not known."""

    cpu_request: float | None = None
    memory_request: float | None = None
    cpu_limit: float | None = None
    memory_limit: float | None = None

    def __bool__(self) -> bool:
        """Whether anything is set."""
        return any(getattr(self, name) is not None for name in AMOUNTS)

    def resources(self) -> dict[str, dict[str, str]]:
        """As a container's ``resources``; cores in thousandths, bytes in MiB where they are."""
        found: dict[str, dict[str, str]] = {}
        for name in AMOUNTS:
            value = getattr(self, name)
            if value is not None:
                resource, kind = name.split("_")
                found.setdefault(f"{kind}s", {})[resource] = quantity(resource, value)
        return found

    @classmethod
    def of(cls, resources: Mapping[str, Any] | None) -> Amounts:
        """Those of a container's ``resources``; what is no quantity counts as not set."""
        found: dict[str, float] = {}
        for name in AMOUNTS:
            resource, kind = name.split("_")
            value = ((resources or {}).get(f"{kind}s") or {}).get(resource)
            if value is None:
                continue
            try:
                found[name] = float(parse_quantity(value))
            except QuantityError:
                continue
        return shared(cls(**found))


AMOUNTS: Final = tuple(part.name for part in fields(Amounts))
NOTHING: Final = Amounts()


@dataclass(frozen=True, slots=True)
class SizingPlan:
    """``spec.rightSizing`` in numbers, and what the template says."""

    mode: RightSizingMode = RightSizingMode.RECOMMEND
    template: Amounts = NOTHING
    least_cpu: float = LEAST_CPU
    least_memory: float = LEAST_MEMORY
    most_cpu: float = math.inf
    most_memory: float = math.inf

    def bounded(self, name: str, value: float) -> float:
        """The value within what is allowed; the most wins over the least of ours."""
        if name.startswith("cpu"):
            return min(max(value, self.least_cpu), self.most_cpu)
        return min(max(value, self.least_memory), self.most_memory)


def sizing_plan(spec: RightSizing, resources: Mapping[str, Any] | None) -> SizingPlan:
    """The plan of a valid spec and the worker container's resources."""
    least, most = spec.min_allowed or {}, spec.max_allowed or {}

    def amount(bounds: Mapping[str, str | int], name: str, otherwise: float) -> float:
        return float(parse_quantity(bounds[name])) if name in bounds else otherwise

    return shared(
        SizingPlan(
            mode=spec.mode,
            template=Amounts.of(resources),
            least_cpu=max(LEAST_CPU, amount(least, "cpu", LEAST_CPU)),
            least_memory=max(LEAST_MEMORY, amount(least, "memory", LEAST_MEMORY)),
            most_cpu=amount(most, "cpu", math.inf),
            most_memory=amount(most, "memory", math.inf),
        )
    )


def shared(value: Frozen) -> Frozen:
    """The first of all equal values: pools and pods have many of few kinds."""
    first: Frozen = _first(value)
    return first


@lru_cache(maxsize=4096)
def _first(value: Any) -> Any:
    return value


@dataclass(slots=True)
class Held:
    """A published value that rises when it must and falls only after long thought.

    It rises at once when more is wanted than the threshold lets pass. It falls when less was wanted
    all the time for ``patience`` seconds of watching, and then to the most that was wanted in them.
    So it falls at most once in that time, and work that comes and goes moves nothing.
    """

    value: float | None = None
    below: float = 0.0
    since: float | None = None

    def step(self, wanted: float | None, watched: float, patience: float) -> None:
        """Take in what is wanted after so many seconds of watching."""
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
    """What one pool's profile has led to so far. All of it may be lost: see ``begin``."""

    profile: Profile = field(default_factory=Profile)
    template: Amounts = NOTHING
    held: dict[str, Held] = field(default_factory=dict)
    raised: bool = False

    @classmethod
    def begin(cls, plan: SizingPlan, published: Amounts, at: float) -> Recommender:
        """A new one: it goes on from what a predecessor ``published``, else from the template.

        What was published is not lowered before a whole patience has been watched, and its memory
        limit counts as a peak for a day.
        """
        made = cls(template=plan.template, raised=bool(published))
        if published.memory_limit is not None:
            made.profile.inherit(published.memory_limit / HEADROOM, at)
        for name in AMOUNTS:
            said = getattr(published, name)
            made.held[name] = Held(getattr(plan.template, name) if said is None else said)
        return made

    def step(self, plan: SizingPlan, at: float, patience: float) -> Amounts:
        """The recommendation now; empty as long as too little is known for any."""
        if plan.template != self.template:
            self._reconsider(plan.template)
        wanted = wants(self.profile, plan, at)
        for name, held in self.held.items():
            before = held.value
            held.step(getattr(wanted, name), self.profile.watched, patience)
            self.raised = self.raised or held.value != before
        if not self.raised and (not wanted or self.profile.watched < patience):
            return NOTHING
        return consistent(
            plan,
            Amounts(
                **{
                    name: plan.bounded(name, rounded(name, held.value))
                    for name, held in self.held.items()
                    if held.value is not None
                }
            ),
        )

    def _reconsider(self, template: Amounts) -> None:
        """Somebody wrote other resources: what they changed is where it goes on from."""
        for name, held in self.held.items():
            value = getattr(template, name)
            if value != getattr(self.template, name) and value is not None:
                held.value, held.since = max(value, held.value or 0.0), None
        self.template = template


def wants(profile: Profile, plan: SizingPlan, at: float) -> Amounts:
    """What the use alone suggests now, within the bounds; None where too little is known.

    A limit on CPU is suggested only where the template has one: it does nothing but slow down.
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

    return Amounts(
        cpu_request=suggested("cpu_request", cpu, MARGIN),
        memory_request=suggested("memory_request", memory, MARGIN),
        cpu_limit=suggested("cpu_limit", cpu_peak, HEADROOM),
        memory_limit=suggested("memory_limit", memory_peak, HEADROOM),
    )


def consistent(plan: SizingPlan, amounts: Amounts) -> Amounts:
    """No request above its limit, and both equal where the template has them equal."""
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


def differ(one: float | None, other: float | None) -> bool:
    """Whether the second is news to whoever has the first."""
    if one is None or other is None:
        return one is not other
    return abs(other - one) > THRESHOLD * one


def rounded(name: str, value: float) -> float:
    """Up to what a person would write: two digits of thousandths, or a sixteenth of a power of 2.

    At most 10% more for CPU and 6.25% for memory, one MiB below 16.
    """
    if name.startswith("cpu"):
        thousandths = math.ceil(value * 1000 - 1e-6)
        digit: int = 10 ** max(0, len(str(thousandths)) - 2)
        return math.ceil(thousandths / digit) * digit / 1000
    mebibytes = max(1, math.ceil(value / _MEBI))
    step = 1 << max(0, mebibytes.bit_length() - 5)
    return float(math.ceil(mebibytes / step) * step * _MEBI)


def quantity(resource: str, value: float) -> str:
    """A Kubernetes quantity: ``120m``, ``96Mi``; bytes where it is no whole number of MiB."""
    if resource == "cpu":
        return f"{max(1, round(value * 1000))}m"
    mebibytes, rest = divmod(int(value), _MEBI)
    return str(int(value)) if rest else f"{mebibytes}Mi"
