"""Schedules that pools declare: kept in Redis as their specs say, beside those made at run time.

Redis decides whose a name is; here is only what a pool wants, and what it has to be told. What
keeps schedules is another room's: see the protocols, which the entry point connects.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from engineroom.core import reasons
from engineroom.core.errors import EngineroomError, SecretError
from engineroom.redis.address import open_client

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from redis.asyncio import Redis

    from engineroom.api.v1alpha1.jobschedule import JobSchedule
    from engineroom.api.v1alpha1.workerpool import WorkerPoolSpec
    from engineroom.kube.runtime.controller import Context
    from engineroom.workers.plan import Plan
    from engineroom.workers.redis_connections import Address, Link
    from engineroom.workers.state import Pool

log = structlog.get_logger(__name__)

#: A refused name is tried again after so long: who has it may go (seconds).
TRY_AGAIN = 30.0
#: What a pool left in a Redis that does not answer is tried so often; after that it is found when
#: a pool names that Redis again.
MOST_TRIES = 20
#: A tick is told of so long after it was due, when it has surely been made (seconds).
AFTER_TICK = 0.7
#: A pool with schedules is looked at no later than this (seconds).
LOOK_AT_LEAST = 600.0
#: How the runtime is told of another serializer than RQ's own.
SERIALIZER = "ENGINEROOM_SERIALIZER"


@dataclass(frozen=True, slots=True)
class JobPlan:
    """One declared schedule; durations are seconds, ``at`` is Unix seconds."""

    name: str
    cron: str
    every: float
    at: float | None
    time_zone: str
    jitter: float
    missed: str
    suspend: bool
    queue: str
    function: str
    #: Positional and named arguments, as one JSON list of both.
    arguments: str
    timeout: int
    result_ttl: int | None
    #: Tries after the first, and the waits before them; None without.
    retry: tuple[int, tuple[int, ...]] | None
    #: Whether the workers read JSON instead of pickle.
    json: bool


@dataclass(frozen=True, slots=True)
class ScheduleFacts:
    """A schedule in Redis; times are Unix seconds."""

    name: str
    next: float | None
    last: float | None
    last_job: str
    missed: int
    version: int


class Ticking(Protocol):
    """A loop that enqueues what is due on one Redis."""

    fired: int
    late: float
    trouble: str

    async def run(self) -> None:
        """Until cancelled."""
        ...


class ScheduleStore(Protocol):
    """Where schedules are kept. All methods raise EngineroomError when Redis does not answer."""

    async def declare(
        self, redis: Redis, owner: str, installation: str, jobs: Sequence[JobPlan]
    ) -> dict[str, str]:
        """Make the owner's schedules exactly these, writing nothing where they are.

        Returns who has the name instead, by the names that somebody else has ("": made at run
        time).
        """
        ...

    async def look(self, redis: Redis, owner: str) -> list[ScheduleFacts]:
        """The owner's schedules by the names of the spec."""
        ...

    async def owners(self, redis: Redis) -> dict[str, str]:
        """Whoever has schedules here, and the installation that looks after each."""
        ...

    def ticking(self, redis: Redis, behind: Callable[[], float]) -> Ticking:
        """A loop for this Redis that leaves what is due to others for ``behind()`` seconds."""
        ...


def job_plans(spec: WorkerPoolSpec) -> tuple[JobPlan, ...]:
    """What the spec declares, defaults resolved."""
    if not spec.schedules:
        return ()
    as_json = "json" in _serializer(spec.template).lower()
    return tuple(_job_plan(job, spec.queues[0].name, as_json) for job in spec.schedules)


def _job_plan(job: JobSchedule, queue: str, as_json: bool) -> JobPlan:
    retry = job.retry
    waits = tuple(int(wait.seconds) for wait in retry.intervals) if retry else ()
    return JobPlan(
        name=job.name,
        cron=job.cron or "",
        every=job.every.seconds if job.every else 0.0,
        at=datetime.fromisoformat(job.at).timestamp() if job.at else None,
        time_zone=job.time_zone or "UTC",
        jitter=job.jitter.seconds if job.jitter else 0.0,
        missed=job.missed.value,
        suspend=job.suspend,
        queue=job.queue or queue,
        function=job.function,
        arguments=json.dumps([job.args, job.kwargs]),
        timeout=int(job.timeout.seconds),
        result_ttl=None if job.result_ttl is None else int(job.result_ttl.seconds),
        retry=(retry.max, waits or (0,)) if retry else None,
        json=as_json,
    )


def _serializer(template: Mapping[str, Any]) -> str:
    """What the worker's container says of its serializer; "" where it says nothing."""
    containers = (template.get("spec") or {}).get("containers") or ()
    named = [each for each in containers if each.get("name") == "worker"] or containers
    for variable in (named[0].get("env") or ()) if named else ():
        if variable.get("name") == SERIALIZER:
            return str(variable.get("value") or "")
    return ""


@dataclass(slots=True)
class Declaration:
    """What stands in Redis for a pool, as this process last made sure."""

    address: Address
    generation: int
    versions: dict[str, int] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    #: Monotonic seconds of the last try.
    tried: float = 0.0


@dataclass(slots=True)
class _Debt:
    """Schedules that are still to be taken away; ``due`` is monotonic seconds."""

    tries: int = 0
    due: float = float("-inf")


class Declarations:
    """Keeps the schedules of all pools; the leader's."""

    def __init__(self, context: Context, store: ScheduleStore) -> None:
        self._context = context
        self._store = store
        #: Where pools that are gone, or that moved to another Redis, left theirs.
        self._left: dict[str, dict[Address, _Debt]] = {}

    async def look(self, pool: Pool, plan: Plan, link: Link) -> tuple[ScheduleFacts, ...] | None:
        """Make sure of the pool's schedules; what they are, or None when Redis does not say."""
        self.leave(pool, unless=pool.address if plan.jobs else None)
        await self.clear(pool.key)
        if not plan.jobs or pool.address is None:
            return ()
        try:
            facts = await self._store.look(link.redis, pool.key)
            if self._stands(pool, facts):
                return tuple(facts)
            await self._declare(pool, plan, link, pool.address)
            facts = await self._store.look(link.redis, pool.key)
        except EngineroomError as error:
            log.warning("schedules not looked at", pool=pool.key, error=str(error))
            return None
        assert pool.declared is not None  # noqa: S101 # nosec B101 - _declare set it
        pool.declared.versions = {each.name: each.version for each in facts}
        return tuple(facts)

    def _stands(self, pool: Pool, facts: Sequence[ScheduleFacts]) -> bool:
        known = pool.declared
        if known is None or known.generation != pool.generation:
            return False
        if known.refused and self._context.clock.monotonic() - known.tried > TRY_AGAIN:
            return False
        return known.versions == {each.name: each.version for each in facts}

    async def _declare(self, pool: Pool, plan: Plan, link: Link, address: Address) -> None:
        refused = await self._store.declare(
            link.redis, pool.key, self._context.installation(), plan.jobs
        )
        before = pool.declared.refused if pool.declared else {}
        now = self._context.clock.monotonic()
        pool.declared = Declaration(address, pool.generation, refused=refused, tried=now)
        for name, holder in refused.items():
            if before.get(name) != holder:
                self._context.recorder.record(
                    pool.reference, "Warning", reasons.SCHEDULE_NAME_TAKEN, taken(name, holder)
                )

    def leave(self, pool: Pool, unless: Address | None = None) -> None:
        """The pool is gone, is to have no schedules, or has them elsewhere: at ``unless``."""
        if pool.declared is not None and pool.declared.address != unless:
            self._left.setdefault(pool.key, {})[pool.declared.address] = _Debt()
            pool.declared = None

    def owes(self, key: str) -> bool:
        """Whether something of the pool's is still to be taken away."""
        return key in self._left

    async def clear(self, key: str) -> float | None:
        """Take away what the pool left; the seconds until to try again, or None when all is gone.

        A Redis that does not answer any more must not keep a pool from its schedules elsewhere.
        """
        debts = self._left.get(key)
        if not debts:
            return None
        now = self._context.clock.monotonic()
        for address, debt in tuple(debts.items()):
            if debt.due > now:
                continue
            try:
                client = open_client(address)
            except (SecretError, ValueError):
                del debts[address]
                continue
            try:
                await self._store.declare(client, key, "", ())
            except EngineroomError as error:
                log.warning("schedules not taken away yet", pool=key, error=str(error))
                debt.tries, debt.due = debt.tries + 1, now + TRY_AGAIN
            else:
                del debts[address]
            finally:
                await client.aclose()
            if debt.tries >= MOST_TRIES:
                del debts[address]
        if debts:
            return max(0.1, min(debt.due for debt in debts.values()) - now)
        del self._left[key]
        return None


def next_look(facts: Sequence[ScheduleFacts] | None, plan: Plan, now: float) -> float | None:
    """Seconds until the schedules will have something new to tell; None without any."""
    if not plan.jobs:
        return None
    moments = [each.next - now + AFTER_TICK for each in facts or () if each.next is not None]
    return max(0.5, min([*moments, LOOK_AT_LEAST]))


def rows(
    old: Mapping[str, Any], plan: Plan, facts: Sequence[ScheduleFacts] | None
) -> list[dict[str, Any]]:
    """``status.schedules``, in the spec's order; while blind what was seen last stays."""
    if not plan.jobs:
        return []
    if facts is None:
        return list(old.get("schedules") or ())
    known = {each.name: each for each in facts}
    made = []
    for job in plan.jobs:
        row: dict[str, Any] = {"name": job.name}
        found = known.get(job.name)
        if found is not None:
            if found.last is not None:
                row["lastTime"] = _time(found.last)
            if found.last_job:
                row["lastJobID"] = found.last_job
            if found.next is not None:
                row["nextTime"] = _time(found.next)
            row["missed"] = found.missed
        made.append(row)
    return made


def newly_missed(
    old: Mapping[str, Any], facts: Sequence[ScheduleFacts] | None
) -> list[tuple[str, int]]:
    """(name, ticks) of schedules whose count of missed ticks grew since ``old`` was told."""
    before = {row.get("name"): row.get("missed", 0) for row in old.get("schedules") or ()}
    return [
        (each.name, each.missed - before[each.name])
        for each in facts or ()
        if each.name in before and each.missed > before[each.name]
    ]


def verdict(
    plan: Plan, facts: Sequence[ScheduleFacts] | None, refused: Mapping[str, str]
) -> tuple[str, str, str]:
    """The condition SchedulesActive: status, reason, message."""
    if refused:
        name, holder = min(refused.items())
        return "False", reasons.SCHEDULE_NAME_TAKEN, taken(name, holder)
    if facts is None:
        return "Unknown", reasons.REDIS_UNREACHABLE, "the schedules cannot be looked at"
    suspended = sum(job.suspend for job in plan.jobs)
    if suspended == len(plan.jobs):
        return "False", reasons.SUSPENDED, "every schedule says suspend: true"
    count = len(plan.jobs) - suspended
    return "True", reasons.RECONCILED, f"{count} of {len(plan.jobs)} schedules tick"


def taken(name: str, holder: str) -> str:
    """What is told of a schedule whose name somebody else has."""
    whose = f"belongs to WorkerPool {holder}" if holder else "was made at run time"
    return (
        f"schedule {name}: one of its name {whose} and was left alone; remove that one, or give "
        "this one another name"
    )


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
