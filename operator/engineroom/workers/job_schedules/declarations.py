"""Schedules that pools declare: kept in Redis as their specs say, beside those made at run time.

Redis decides who owns a name. This module knows what a pool wants and what its status reports;
``engineroom.tasks`` keeps and runs schedules; the entry point joins both by the protocols below.
"""

from __future__ import annotations

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

    from engineroom.kube.client.resources import ObjectRef
    from engineroom.kube.runtime.controller import Context
    from engineroom.kube.runtime.events import Recorder
    from engineroom.redis.address import Address
    from engineroom.workers.job_plans import JobPlan

log = structlog.get_logger(__name__)

#: A refused name is tried again after this time, because its owner may give it up (seconds).
TRY_AGAIN = 30.0
#: Attempts to remove schedules from a Redis that does not answer. What remains is removed when a
#: pool names that Redis again.
MOST_TRIES = 20
#: A tick is reported this long after it was due, when it has surely been made (seconds).
AFTER_TICK = 0.7
#: A pool with schedules is looked at no later than this (seconds).
LOOK_AT_LEAST = 600.0


@dataclass(frozen=True, slots=True)
class ScheduleFacts:
    """A schedule in Redis; times are Unix seconds."""

    name: str
    next: float | None
    last: float | None
    last_job: str
    missed: int
    version: int


class ScheduleLoop(Protocol):
    """A loop that enqueues what is due on one Redis."""

    fired: int
    late: float
    trouble: str

    async def run(self) -> None:
        """Run until cancelled."""
        ...


class ScheduleStore(Protocol):
    """A store of schedules. All methods raise EngineroomError while Redis does not answer."""

    async def declare(
        self, redis: Redis, owner: str, installation: str, jobs: Sequence[JobPlan]
    ) -> dict[str, str]:
        """Make the owner's schedules exactly these; writes nothing if they are.

        Returns the names that another owner has, with that owner ("": created at run time).
        """
        ...

    async def read(self, redis: Redis, owner: str) -> list[ScheduleFacts]:
        """Return the owner's schedules, named as in the spec."""
        ...

    async def owners(self, redis: Redis) -> dict[str, str]:
        """Return the owners of schedules on this Redis, each with its installation."""
        ...

    def ticking(self, redis: Redis, behind: Callable[[], float]) -> ScheduleLoop:
        """Return a loop for this Redis that handles a tick ``behind()`` seconds after it is due."""
        ...


@dataclass(frozen=True, slots=True)
class DeclaredSchedules:
    """A pool's schedules in Redis, as this process last declared or found them."""

    address: Address
    generation: int
    versions: Mapping[str, int] = field(default_factory=dict)
    #: Names that another owner has, with that owner.
    refused: Mapping[str, str] = field(default_factory=dict)
    #: When they were last declared (monotonic seconds).
    declared_at: float = 0.0


@dataclass(slots=True)
class _Removal:
    """Schedules that remain to be removed; ``due`` is monotonic seconds."""

    tries: int = 0
    due: float = float("-inf")


class ScheduleDeclarer:
    """Keeps the schedules of all pools in Redis; used by the leader."""

    def __init__(self, context: Context, store: ScheduleStore) -> None:
        self._context = context
        self._store = store
        #: Schedules left behind by pools that are gone, or moved to another Redis, by pool.
        self._removals: dict[str, dict[Address, _Removal]] = {}

    async def settle(
        self,
        pool: ObjectRef,
        generation: int,
        jobs: Sequence[JobPlan],
        redis: Redis,
        address: Address,
        declared: DeclaredSchedules | None,
    ) -> tuple[DeclaredSchedules | None, tuple[ScheduleFacts, ...] | None]:
        """Declare the pool's schedules where they differ.

        Returns what is declared now, and the schedules; None instead of them while Redis does not
        answer.
        """
        key = pool.key
        declared = self.leave(key, declared, unless=address if jobs else None)
        await self.clear(key)
        if not jobs:
            return declared, ()
        try:
            facts = await self._store.read(redis, key)
            if declared is None or not self._holds(declared, generation, facts):
                refused = await self._store.declare(redis, key, self._context.installation(), jobs)
                self._record_refused(pool, declared, refused)
                facts = await self._store.read(redis, key)
                declared = DeclaredSchedules(
                    address,
                    generation,
                    {schedule.name: schedule.version for schedule in facts},
                    refused,
                    self._context.clock.monotonic(),
                )
        except EngineroomError as error:
            log.warning("schedules not read", pool=key, error=str(error))
            return declared, None
        return declared, tuple(facts)

    def _holds(
        self, declared: DeclaredSchedules, generation: int, facts: Sequence[ScheduleFacts]
    ) -> bool:
        if declared.generation != generation:
            return False
        age = self._context.clock.monotonic() - declared.declared_at
        if declared.refused and age > TRY_AGAIN:
            return False
        return declared.versions == {schedule.name: schedule.version for schedule in facts}

    def _record_refused(
        self, pool: ObjectRef, before: DeclaredSchedules | None, refused: Mapping[str, str]
    ) -> None:
        for name, owner in refused.items():
            if before is None or before.refused.get(name) != owner:
                message = name_taken(name, owner)
                self._context.recorder.record(pool, "Warning", reasons.SCHEDULE_NAME_TAKEN, message)

    def leave(
        self, key: str, declared: DeclaredSchedules | None, unless: Address | None = None
    ) -> DeclaredSchedules | None:
        """Remove the declared schedules later, unless they are at the address ``unless``.

        Returns what is still declared.
        """
        if declared is None or declared.address == unless:
            return declared
        self._removals.setdefault(key, {})[declared.address] = _Removal()
        return None

    def owes(self, key: str) -> bool:
        """Return whether schedules of the pool remain to be removed."""
        return key in self._removals

    async def clear(self, key: str) -> float | None:
        """Remove what the pool left behind; returns the seconds until the next try, or None.

        A Redis that does not answer does not keep a pool from its schedules elsewhere.
        """
        removals = self._removals.get(key)
        if not removals:
            return None
        now = self._context.clock.monotonic()
        for address, removal in tuple(removals.items()):
            if removal.due > now:
                continue
            try:
                client = open_client(address)
            except (SecretError, ValueError):
                del removals[address]
                continue
            try:
                await self._store.declare(client, key, "", ())
            except EngineroomError as error:
                log.warning("schedules not removed yet", pool=key, error=str(error))
                removal.tries, removal.due = removal.tries + 1, now + TRY_AGAIN
            else:
                del removals[address]
            finally:
                await client.aclose()
            if removal.tries >= MOST_TRIES:
                del removals[address]
        if removals:
            return max(0.1, min(removal.due for removal in removals.values()) - now)
        del self._removals[key]
        return None


def next_look(
    facts: Sequence[ScheduleFacts] | None, jobs: Sequence[JobPlan], now: float
) -> float | None:
    """Return the seconds until a schedule will have ticked; None without schedules."""
    if not jobs:
        return None
    ticks = [
        schedule.next - now + AFTER_TICK for schedule in facts or () if schedule.next is not None
    ]
    return max(0.5, min([*ticks, LOOK_AT_LEAST]))


def status_rows(
    old: Mapping[str, Any], jobs: Sequence[JobPlan], facts: Sequence[ScheduleFacts] | None
) -> list[dict[str, Any]]:
    """Return ``status.schedules`` in the spec's order; unchanged while Redis does not answer."""
    if not jobs:
        return []
    if facts is None:
        return list(old.get("schedules") or ())
    by_name = {schedule.name: schedule for schedule in facts}
    rows = []
    for job in jobs:
        row: dict[str, Any] = {"name": job.name}
        schedule = by_name.get(job.name)
        if schedule is not None:
            if schedule.last is not None:
                row["lastTime"] = _time(schedule.last)
            if schedule.last_job:
                row["lastJobID"] = schedule.last_job
            if schedule.next is not None:
                row["nextTime"] = _time(schedule.next)
            row["missed"] = schedule.missed
        rows.append(row)
    return rows


def newly_missed(
    old: Mapping[str, Any], facts: Sequence[ScheduleFacts] | None
) -> list[tuple[str, int]]:
    """Return (name, ticks) of the schedules that missed ticks since the status ``old``."""
    before = {row.get("name"): row.get("missed", 0) for row in old.get("schedules") or ()}
    return [
        (schedule.name, schedule.missed - before[schedule.name])
        for schedule in facts or ()
        if schedule.name in before and schedule.missed > before[schedule.name]
    ]


def record_missed(
    recorder: Recorder,
    pool: ObjectRef,
    old: Mapping[str, Any],
    facts: Sequence[ScheduleFacts] | None,
) -> None:
    """Record an event for each schedule that missed ticks since the status ``old``."""
    for name, count in newly_missed(old, facts):
        ticks = "1 tick was" if count == 1 else f"{count} ticks were"
        recorder.record(
            pool,
            "Warning",
            reasons.SCHEDULE_MISSED,
            f"schedule {name}: {ticks} missed and are not made up for, by the schedule's policy",
        )


def schedules_condition(
    jobs: Sequence[JobPlan],
    facts: Sequence[ScheduleFacts] | None,
    refused: Mapping[str, str],
) -> tuple[str, str, str]:
    """Return status, reason and message of the condition SchedulesActive."""
    if refused:
        name, owner = min(refused.items())
        return "False", reasons.SCHEDULE_NAME_TAKEN, name_taken(name, owner)
    if facts is None:
        return "Unknown", reasons.REDIS_UNREACHABLE, "the schedules cannot be read"
    suspended = sum(job.suspend for job in jobs)
    if suspended == len(jobs):
        return "False", reasons.SUSPENDED, "every schedule has suspend: true"
    return "True", reasons.RECONCILED, f"{len(jobs) - suspended} of {len(jobs)} schedules tick"


def name_taken(name: str, owner: str) -> str:
    """Return the message for a schedule whose name another owner has."""
    holder = f"belongs to WorkerPool {owner}" if owner else "was made at run time"
    return (
        f"schedule {name}: one of its name {holder} and was left alone; remove that one, or give "
        "this one another name"
    )


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
