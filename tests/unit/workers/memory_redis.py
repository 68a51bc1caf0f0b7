"""Redis as the pool controller sees it, in memory: facts that tests set, commands they read."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

from engineroom.core.errors import MeasurementError
from engineroom.queue import keys
from engineroom.queue.observe import PoolFacts, QueueFacts
from engineroom.queue.ownership import QueueOwner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from redis.asyncio import Redis

    from engineroom.core.clock import Clock
    from engineroom.queue.ownership import QueueClaim
    from engineroom.redis.address import Address
    from engineroom.workers.job_plans import JobPlan
    from engineroom.workers.job_schedules.declarations import ScheduleFacts, ScheduleLoop


class MemoryRedis:
    """Keys that commands set, and pipelines over them."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self._results: list[Any] = []

    def pipeline(self, *, transaction: bool = True) -> Self:
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    def eval(self, _script: str, _count: int, key: str, *arguments: str) -> None:
        """Run one of the two scripts on drain keys: a request, or its cancellation."""
        if not self.values.get(key, "").startswith("retire:"):
            self.values.pop(key, None)
            if arguments:
                self.values[key] = arguments[0]
        self._results.append(1)

    def set(self, key: str, value: str) -> None:
        self.values[key] = value
        self._results.append(True)

    def delete(self, key: str) -> None:
        self.values.pop(key, None)
        self._results.append(1)

    def publish(self, _channel: str, _message: str) -> None:
        self._results.append(1)

    def smembers(self, _key: str) -> None:
        self._results.append(set())

    async def execute(self) -> list[Any]:
        results, self._results = self._results, []
        return results

    def drain_request(self, worker: str) -> str:
        """Return what the worker is asked: ``drain:...``, ``retire:...`` or ""."""
        return self.values.get(keys.drain(worker), "")


class MemoryObserver:
    """Returns the facts that the test set; ``outage`` makes it fail instead."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.queue: dict[str, Any] = {}
        self.workers: tuple[Any, ...] = ()
        self.suspended = False
        self.outage = ""
        self.looks = 0

    async def observe(self, _pool: str, queues: tuple[str, ...]) -> PoolFacts:
        self.looks += 1
        if self.outage:
            raise MeasurementError(self.outage)
        rows = tuple(QueueFacts(name=name, **self.queue) for name in queues)
        at = self._clock.now().timestamp()
        return PoolFacts(at=at, queues=rows, workers=self.workers, suspended=self.suspended)

    async def quiet(self, names: Iterable[str]) -> set[str]:
        return set() if self.queue else set(names)


class MemoryOwners:
    """The twin of ``QueueOwners``: the first namespace that claims a queue owns it."""

    redis_id = "one"

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.namespaces: dict[str, str] = {}

    async def claim(self, claims: Sequence[QueueClaim]) -> list[QueueOwner]:
        now = int(self._clock.now().timestamp())
        return [
            QueueOwner(
                claim.queue,
                self.namespaces.setdefault(claim.queue, claim.namespace),
                claim.since or now,
                self.redis_id,
            )
            for claim in claims
        ]


class MemoryConnection:
    """The twin of ``SharedConnection``."""

    def __init__(self, clock: Clock) -> None:
        self.redis = MemoryRedis()
        self.observer = MemoryObserver(clock)
        self.owners = MemoryOwners(clock)
        self.up = True
        self.pools: set[str] = set()


class MemoryConnections:
    """The twin of ``SharedConnections``: one connection, whatever the address."""

    def __init__(
        self,
        clock: Clock,
        *,
        on_queue: Callable[[str], None],
        on_state: Callable[[Any], None],
    ) -> None:
        self.connection = MemoryConnection(clock)
        self.push = on_queue
        self.on_state = on_state
        self.addresses: list[Address] = []

    def join(self, address: Address, pool: str, _queues: tuple[str, ...]) -> MemoryConnection:
        self.addresses.append(address)
        self.connection.pools.add(pool)
        return self.connection

    def leave(self, connection: MemoryConnection, pool: str, _queues: tuple[str, ...]) -> None:
        connection.pools.discard(pool)

    async def close(self) -> None:
        return None


class IdleLoop:
    """A loop that never has a tick."""

    fired = 0
    late = 0.0
    trouble = ""

    async def run(self) -> None:
        await asyncio.Event().wait()


class MemorySchedules:
    """A ``ScheduleStore`` without schedules."""

    async def declare(
        self, _redis: Redis, _owner: str, _installation: str, _jobs: Sequence[JobPlan]
    ) -> dict[str, str]:
        return {}

    async def read(self, _redis: Redis, _owner: str) -> list[ScheduleFacts]:
        return []

    async def owners(self, _redis: Redis) -> dict[str, str]:
        return {}

    def ticking(self, _redis: Redis, _behind: Callable[[], float]) -> ScheduleLoop:
        return IdleLoop()
