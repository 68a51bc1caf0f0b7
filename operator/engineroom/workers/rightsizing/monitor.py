"""The resource monitor: what workers use, what that suggests, and pods resized accordingly.

One list of pod metrics per round for all pools, and none while no pool has a pod. Between two
rounds the workers' own reports are noted at each look: they show peaks that the metrics miss, and
all that is known where there is no metrics API.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import structlog

from engineroom.api import FIELD_MANAGER, LABEL_POOL
from engineroom.api.quantity import QuantityError, parse_quantity
from engineroom.api.v1alpha1.workerpool import RightSizingMode
from engineroom.core import reasons
from engineroom.core.conditions import timestamp
from engineroom.core.errors import ConflictError, DependencyError, EngineroomError
from engineroom.kube.client.errors import Forbidden, NotFound
from engineroom.kube.client.resources import POD_METRICS, PODS
from engineroom.workers.rightsizing import resizing
from engineroom.workers.rightsizing.recommendation import (
    AMOUNTS,
    HEADROOM,
    Amounts,
    Recommender,
    differ,
    quantity,
)
from engineroom.workers.rightsizing.usage import Sample

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from engineroom.core.clock import Clock
    from engineroom.kube.client.client import Client
    from engineroom.kube.runtime.events import Recorder
    from engineroom.kube.runtime.informer import Informer
    from engineroom.queue.observe import PoolFacts
    from engineroom.workers.projections import PodView
    from engineroom.workers.rightsizing.recommendation import SizingPlan
    from engineroom.workers.state import Pool

log = structlog.get_logger(__name__)

#: A metrics API that failed is asked again after so long (seconds).
METRICS_RETRY: Final = 120.0
#: What the API server said of its version holds for so long (seconds).
VERSION_TTL: Final = 3600.0
#: Pods of one pool that are resized at one look.
RESIZES_AT_ONCE: Final = 10
#: A resize that the API server refused is tried again after so long, or when another is due.
REFUSED_RETRY: Final = 600.0
#: The cache tells of our own resize within so long (seconds).
ECHO: Final = 10.0
#: Kills within so long are one: two workers of a pod report the same one (seconds).
SAME_KILL: Final = 5.0

Verdict = tuple[str, str, str]

_OUTCOMES: Final = (
    (resizing.INFEASIBLE, reasons.RESIZE_INFEASIBLE, "cannot be resized on its node"),
    (resizing.ERROR, reasons.RESIZE_FAILED, "is not resized yet, the kubelet tries on"),
    (resizing.DEFERRED, reasons.RESIZE_DEFERRED, "waits for room on its node"),
)


@dataclass(frozen=True, slots=True)
class Usage:
    """What the metrics API says of one container: cores and bytes, at a time in its own words."""

    stamp: str
    cpu: float
    memory: float


@dataclass(frozen=True, slots=True)
class Sized:
    """What the status is to say."""

    recommended: dict[str, Any] | None
    #: (status, reason, message) of the condition RightSized.
    verdict: Verdict
    last_kill: str | None = None


@dataclass(slots=True)
class Noted:
    """One pod since the last round."""

    #: Stamp of the metrics that were counted last.
    stamp: str = ""
    #: Bytes in use at the last round or look, and the most since the last round.
    memory: float | None = None
    peak: float = 0.0
    busy: bool = False
    #: Cores that the workers reported while they held a job: sum and number of the looks.
    cpu: float = 0.0
    looks: int = 0


@dataclass(frozen=True, slots=True)
class Asked:
    """A resize that was asked for, not to be asked for again before ``until`` (monotonic)."""

    target: Amounts
    until: float
    #: Why the API server did not take it; "" when it did.
    refused: str = ""


@dataclass(slots=True)
class Sizing:
    """What is remembered of one pool that has had pods; may be lost at any time."""

    recommender: Recommender
    recommended: Amounts = field(default_factory=Amounts)
    noted: dict[str, Noted] = field(default_factory=dict)
    asked: dict[str, Asked] = field(default_factory=dict)
    #: When a process was last killed for memory (Unix seconds).
    last_kill: float = 0.0
    #: What the recommendation was made from: (version of the profile, plan).
    made: tuple[int, SizingPlan | None] = (-1, None)
    folded: float | None = None


class Monitor:
    """Watches the use of all pools. ``interval`` is seconds between rounds; ``patience`` seconds of
    use that must have been watched before anything is recommended below what there is.
    """

    def __init__(
        self,
        client: Client,
        recorder: Recorder,
        clock: Clock,
        pods: Informer[PodView],
        *,
        interval: float,
        patience: float,
        namespaces: Sequence[str] = (),
    ) -> None:
        self._client = client
        self._recorder = recorder
        self._clock = clock
        self._pods = pods
        self._interval = interval
        self._patience = patience
        self._namespaces: tuple[str | None, ...] = tuple(namespaces) or (None,)
        #: Why there are no metrics; "" when there are.
        self._blind = ""
        #: Whether that was ever found out; before, nothing is said that would be taken back.
        self._asked = False
        self._metrics_due = float("-inf")
        self._version: tuple[float, bool] = (float("-inf"), False)

    # -- observe ---------------------------------------------------------------------------------

    async def round(self, pools: Iterable[Pool]) -> float:
        """Count what all pools' workers use now; returns seconds until the next round."""
        watched = [
            (pool, pool.sizing, pods)
            for pool in pools
            if pool.sizing is not None and (pods := self._pods.by_index(pool.key))
        ]
        if watched or not self._asked:
            usage = await self._usage()
            self._asked = True
            at, now = self._clock.now().timestamp(), self._clock.monotonic()
            for pool, sizing, pods in watched:
                self._fold(pool, sizing, pods, usage, at, now)
        return self._interval

    async def _usage(self) -> dict[tuple[str, str], dict[str, Usage]]:
        """Usage by (namespace, pod) and container; empty while there is no metrics API."""
        now = self._clock.monotonic()
        if now < self._metrics_due:
            return {}
        found: dict[tuple[str, str], dict[str, Usage]] = {}
        try:
            for namespace in self._namespaces:
                items, _ = await self._client.list(POD_METRICS, namespace, LABEL_POOL)
                for item in items:
                    metadata = item["metadata"]
                    found[metadata["namespace"], metadata["name"]] = _containers(item)
        except (NotFound, Forbidden, DependencyError) as error:
            self._metrics_due = now + METRICS_RETRY
            why = _why_blind(error)
            if why != self._blind:
                log.warning("no pod metrics", problem=why, error=str(error))
            self._blind = why
            return {}
        self._blind = ""
        return found

    def _fold(
        self,
        pool: Pool,
        sizing: Sizing,
        pods: Sequence[PodView],
        usage: Mapping[tuple[str, str], Mapping[str, Usage]],
        at: float,
        now: float,
    ) -> None:
        samples = []
        for pod in pods:
            if pod.worker is None or pod.phase != "Running":
                continue
            noted = sizing.noted.setdefault(pod.uid, Noted())
            told = usage.get((pool.namespace, pod.name), {}).get(pod.worker.name)
            cpu = None
            if told is not None:
                if told.stamp == noted.stamp:
                    continue  # the same measurement again
                noted.stamp, noted.memory = told.stamp, told.memory
                # What waiting costs says nothing of what a job needs.
                cpu = told.cpu if noted.busy else None
            elif self._blind:
                noted.stamp = ""  # from now on the workers' own reports have to do
                cpu = noted.cpu / noted.looks if noted.looks else None
            known = told is not None or bool(self._blind)
            samples.append(Sample(cpu, noted.memory if known else None, noted.peak or None))
            noted.peak, noted.busy, noted.cpu, noted.looks = 0.0, False, 0.0, 0
        elapsed = self._interval if sizing.folded is None else now - sizing.folded
        sizing.folded = now
        # After a pause nobody watched; of a long one only the usual time counts.
        sizing.recommender.profile.fold(samples, at, min(elapsed, 2 * self._interval))
        present = {pod.uid for pod in pods}
        for uid in sizing.noted.keys() - present:
            del sizing.noted[uid]

    def note(self, sizing: Sizing, facts: PoolFacts) -> None:
        """What the workers themselves report, at each look."""
        memory: dict[str, float] = {}
        cpu: dict[str, float] = {}
        for worker in facts.workers:
            if worker.state == "expired" or not worker.pod_uid:
                continue
            memory[worker.pod_uid] = memory.get(worker.pod_uid, 0.0) + worker.memory
            noted = sizing.noted.setdefault(worker.pod_uid, Noted())
            noted.busy = noted.busy or worker.busy
            if worker.busy and worker.cpu is not None:
                cpu[worker.pod_uid] = cpu.get(worker.pod_uid, 0.0) + worker.cpu
        for uid, cores in cpu.items():
            sizing.noted[uid].cpu += cores
            sizing.noted[uid].looks += 1
        for uid, total in memory.items():
            noted = sizing.noted[uid]
            # Memory that a work horse shares with its worker counts twice here: good enough for a
            # peak, which must not be too low, and for the rest only where nothing better is known.
            noted.peak = max(noted.peak, total)
            if not noted.stamp:
                noted.memory = total or None

    # -- decide and act --------------------------------------------------------------------------

    async def settle(
        self,
        pool: Pool,
        plan: SizingPlan,
        old: Mapping[str, Any],
        pods: Sequence[PodView],
        facts: PoolFacts | None,
    ) -> Sized | None:
        """One look at one pool; None when there is nothing new to say about it.

        In mode InPlace its pods are resized. Raises what the client raises when the API server
        cannot be reached.
        """
        if plan.mode is RightSizingMode.OFF:
            pool.sizing = None
            return None
        now = self._clock.now()
        if pool.sizing is None:
            if not pods:
                return None
            pool.sizing = _begin(plan, old, now.timestamp())
        sizing = pool.sizing
        if not pods:
            sizing.noted.clear()
        elif facts is not None:
            self.note(sizing, facts)
        if not self._asked:
            return None
        kills = self._kills(sizing, pods, facts)
        made = (sizing.recommender.profile.version, plan)
        if made != sizing.made:
            sizing.recommended = sizing.recommender.step(plan, now.timestamp(), self._patience)
            sizing.made = made
        for told in kills:
            limit = sizing.recommended.memory_limit
            asked = f"; recommended is {quantity('memory', limit)} now" if limit else ""
            self._recorder.record(
                pool.reference, "Warning", reasons.WORKER_OUT_OF_MEMORY, f"{told}{asked}"
            )
        if plan.mode is RightSizingMode.IN_PLACE:
            verdict = await self._resize(pool, sizing, pods)
        else:
            verdict = self._compare(plan, sizing)
        return Sized(
            sizing.recommended.resources() or None,
            verdict,
            timestamp(datetime.fromtimestamp(sizing.last_kill, UTC)) if sizing.last_kill else None,
        )

    def _kills(self, sizing: Sizing, pods: Sequence[PodView], facts: PoolFacts | None) -> list[str]:
        """Who was killed for memory since the last look; each counts as a peak beyond its limit."""
        found: list[tuple[float, str, float | None]] = []
        by_uid = {pod.uid: pod for pod in pods}
        for pod in pods:
            if pod.worker is not None and pod.worker.killed is not None:
                limit = pod.worker.given.memory_limit or pod.worker.wish.memory_limit
                who = f"container {pod.worker.name} of pod {pod.name}"
                found.append((pod.worker.killed, who, limit))
        for worker in facts.workers if facts is not None else ():
            owner = by_uid.get(worker.pod_uid)
            if worker.killed_at is not None and owner is not None:
                who = f"a process in pod {owner.name}"
                found.append((worker.killed_at, who, float(worker.killed_limit) or None))
        told = []
        for when, who, limit in sorted(found, key=lambda kill: kill[0]):
            if when <= sizing.last_kill + (SAME_KILL if sizing.last_kill else 0.0):
                continue
            sizing.last_kill = when
            if limit is not None:
                sizing.recommender.profile.killed(limit, when, HEADROOM)
                told.append(f"{who} was killed for memory at its limit of {_bytes(limit)}")
            else:
                told.append(f"{who} was killed for memory, without a limit of its own")
        return told

    def _unknown(self) -> Verdict:
        if self._blind:
            return "Unknown", reasons.METRICS_UNAVAILABLE, self._blind
        return (
            "Unknown",
            reasons.MEASURING_USE,
            f"less than the template has is recommended after {self._patience / 60:g} min of use",
        )

    def _compare(self, plan: SizingPlan, sizing: Sizing) -> Verdict:
        """Mode Recommend: whether the template is about what use suggests."""
        if not sizing.recommended:
            return self._unknown()
        other = [
            name
            for name in AMOUNTS
            if getattr(sizing.recommended, name) is not None
            and differ(getattr(plan.template, name), getattr(sizing.recommended, name))
        ]
        if other:
            words = ", ".join(_amount(name, plan.template, sizing.recommended) for name in other)
            return (
                "False",
                reasons.RESOURCES_DIFFER,
                f"use suggests other resources than the template's: {words}{self._without()}",
            )
        return (
            "True",
            reasons.RESOURCES_FIT,
            f"the template's resources are what use suggests{self._without()}",
        )

    def _without(self) -> str:
        return f"; {self._blind}" if self._blind else ""

    async def _resize(self, pool: Pool, sizing: Sizing, pods: Sequence[PodView]) -> Verdict:
        """Mode InPlace: ask for what differs, and say what became of what was asked for."""
        if not sizing.recommended:
            return self._unknown()
        if not await self._resizes():
            return (
                "False",
                reasons.RESIZE_UNSUPPORTED,
                "this Kubernetes does not resize pods in place; it needs 1.35 or newer",
            )
        now = self._clock.monotonic()
        running = [
            (pod, pod.worker)
            for pod in pods
            if pod.worker is not None and pod.worker.running and not pod.deleting
        ]
        wanted = []
        for pod, container in running:
            noted = sizing.noted.get(pod.uid)
            use = None if noted is None else max(noted.peak, noted.memory or 0.0) or None
            target = resizing.plan_resize(container, sizing.recommended, use)
            if target is None:
                sizing.asked.pop(pod.uid, None)
                continue
            asked = sizing.asked.get(pod.uid)
            if asked is None or asked.target != target or now >= asked.until:
                wanted.append((pod, container, target))
        for uid in sizing.asked.keys() - {pod.uid for pod, _ in running}:
            del sizing.asked[uid]
        resized = [
            pod.name
            for pod, container, target in wanted[:RESIZES_AT_ONCE]
            if await self._ask(pool, sizing, pod, container, target)
        ]
        if resized:
            words = _resources(sizing.recommended)
            pods_are = "pod is" if len(resized) == 1 else "pods are"
            self._recorder.record(
                pool.reference,
                "Normal",
                reasons.RESIZED,
                f"{len(resized)} {pods_are} being resized in place to {words}",
            )
        return self._told(sizing, running)

    async def _ask(
        self,
        pool: Pool,
        sizing: Sizing,
        pod: PodView,
        container: resizing.Container,
        target: Amounts,
    ) -> bool:
        """Ask for one resize; whether it was taken."""
        try:
            await self._client.request(
                "PATCH",
                PODS.path(pool.namespace, pod.name, "resize"),
                params={"fieldManager": FIELD_MANAGER},
                body=resizing.resize_patch(container, pod.uid, target),
                content_type="application/strategic-merge-patch+json",
            )
        except (NotFound, ConflictError):
            log.debug("pod went before it was resized", pool=pool.key, pod=pod.name)
            return False
        except DependencyError:
            raise
        except EngineroomError as error:
            # A quota, a LimitRange, admission, or a right that the chart did not give.
            until = self._clock.monotonic() + REFUSED_RETRY
            sizing.asked[pod.uid] = Asked(target, until, f"pod {pod.name}: {error}"[:512])
            return False
        sizing.asked[pod.uid] = Asked(target, self._clock.monotonic() + ECHO)
        log.info("resized in place", pool=pool.key, pod=pod.name, to=target.resources())
        return True

    def _told(
        self, sizing: Sizing, running: Sequence[tuple[PodView, resizing.Container]]
    ) -> Verdict:
        """What became of the resizes, the worst first."""
        refused = next((asked.refused for asked in sizing.asked.values() if asked.refused), None)
        if refused is not None:
            return "False", reasons.RESIZE_REFUSED, refused
        for word, reason, says in _OUTCOMES:
            for pod, container in running:
                if container.resize == word:
                    return "False", reason, f"pod {pod.name} {says}: {container.resize_message}"
        if sizing.asked or any(c.resize == resizing.UNDER_WAY for _, c in running):
            return "False", reasons.RESIZING, "pods are being resized in place"
        for _, container in running:
            left = resizing.left_alone(container, sizing.recommended)
            if left:
                words = (
                    f"{' and '.join(left)} of container {container.name} would restart it "
                    "(resizePolicy) and end its jobs; set it in spec.template instead"
                )
                return "False", reasons.RESIZE_NEEDS_RESTART, words
        words = f"the pods' resources are what use suggests{self._without()}"
        return "True", reasons.RESOURCES_FIT, words

    async def _resizes(self) -> bool:
        """Whether the API server is new enough; asked once an hour."""
        now = self._clock.monotonic()
        if now >= self._version[0]:
            try:
                version = await self._client.request("GET", "/version")
            except Forbidden:
                version = {}
            self._version = (now + VERSION_TTL, resizing.supported(version))
        return self._version[1]


def _begin(plan: SizingPlan, old: Mapping[str, Any], at: float) -> Sizing:
    """Go on from what the status says."""
    published = Amounts.of(old.get("recommendedResources"))
    sizing = Sizing(Recommender.begin(plan, published, at))
    last = old.get("lastOutOfMemoryTime")
    if last:
        sizing.last_kill = datetime.fromisoformat(last).timestamp()
    return sizing


def _containers(item: Mapping[str, Any]) -> dict[str, Usage]:
    found = {}
    for container in item.get("containers") or ():
        usage = container.get("usage") or {}
        try:
            cpu, memory = parse_quantity(usage["cpu"]), parse_quantity(usage["memory"])
        except (KeyError, QuantityError):
            continue
        found[container["name"]] = Usage(str(item.get("timestamp")), float(cpu), float(memory))
    return found


def _why_blind(error: EngineroomError) -> str:
    if isinstance(error, NotFound):
        return "there is no metrics API: only the workers report use; see metrics-server"
    if isinstance(error, Forbidden):
        return "the operator may not list pods of metrics.k8s.io: only the workers report use"
    return "the metrics API does not answer: only the workers report use"


def _bytes(value: float) -> str:
    return quantity("memory", value)


def _amount(name: str, present: Amounts, recommended: Amounts) -> str:
    resource, kind = name.split("_")
    before, after = getattr(present, name), getattr(recommended, name)
    was = "none" if before is None else quantity(resource, before)
    return f"{kind}s.{resource} {quantity(resource, after)} instead of {was}"


def _resources(amounts: Amounts) -> str:
    return ", ".join(
        f"{kind}.{resource} {value}"
        for kind, values in amounts.resources().items()
        for resource, value in values.items()
    )
