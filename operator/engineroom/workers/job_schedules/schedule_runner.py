"""Runs a loop for the schedules of each Redis that pools name, in every replica of the operator.

Not in the leader alone: a lease is taken over in a quarter of a minute, and a tick is due within a
second. Redis decides, so each tick is enqueued once however many loops there are; replicas that do
not lead wait a moment, and find nothing to do while the leader is well.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from engineroom.core.errors import EngineroomError
from engineroom.kube.client.errors import NotFound
from engineroom.kube.client.resources import WORKERPOOLS
from engineroom.kube.runtime.redis_addresses import RedisReference
from engineroom.redis.address import Address, open_client

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio import Redis

    from engineroom.kube.runtime.controller import Context, Record
    from engineroom.kube.runtime.redis_addresses import RedisAddresses
    from engineroom.workers.job_schedules.declarations import ScheduleLoop, ScheduleStore

log = structlog.get_logger(__name__)

#: How long a replica that does not lead leaves a tick to the leader (seconds).
STANDBY_DELAY = 0.3
#: Addresses that could not be resolved are tried again after this time (seconds).
RETRY_INTERVAL = 15.0
#: Seconds between searches for schedules whose pools no longer exist.
SWEEP_INTERVAL = 300.0
#: Specs read before other tasks get their turn.
BATCH = 20


#: A reference to a Redis from a namespace; ("", None) is the installation's own.
Source = tuple[str, RedisReference | None]


@dataclass(frozen=True, slots=True)
class _PoolSchedules:
    uid: str
    generation: int
    source: Source
    #: Whether the spec has schedules.
    declares: bool


@dataclass(slots=True)
class _Runner:
    redis: Redis
    loop: ScheduleLoop
    task: asyncio.Task[None]
    #: When schedules of deleted pools were last removed (monotonic seconds).
    swept: float = float("-inf")


class ScheduleRunner:
    """Runs the loops, and removes schedules of pools whose deletion no replica saw."""

    def __init__(self, context: Context, store: ScheduleStore, addresses: RedisAddresses) -> None:
        self._context = context
        self._store = store
        self._resolver = addresses
        self._unread: dict[str, Record | None] = {}
        self._pools: dict[str, _PoolSchedules] = {}
        self._addresses: dict[Source, Address | None] = {}
        self._runners: dict[Address, _Runner] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start in the background."""
        self._task = asyncio.create_task(self._run(), name="schedules")

    def changed(self, key: str, record: Record | None) -> None:
        """Read the spec of a pool that is new or changed, and forget a deleted one (None)."""
        pool = self._pools.get(key)
        version = pool and (pool.uid, pool.generation)
        if record is not None and version == (record.uid, record.generation):
            self._unread.pop(key, None)
            return
        self._unread[key] = record
        self._wake.set()

    def register_gauges(self, gauge: Callable[..., None]) -> None:
        """Register the metrics of all loops."""
        runners = self._runners
        gauge(
            "engineroom_schedule_jobs",
            "Jobs that schedules made.",
            lambda: float(sum(runner.loop.fired for runner in runners.values())),
        )
        gauge(
            "engineroom_schedule_late_seconds",
            "From the latest tick to its job.",
            lambda: max((runner.loop.late for runner in runners.values()), default=0.0),
        )
        gauge(
            "engineroom_schedule_blind",
            "Redis servers whose schedules cannot be read.",
            lambda: float(sum(bool(runner.loop.trouble) for runner in runners.values())),
        )

    async def stop(self) -> None:
        """Stop all loops."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=1.0)
        for address in tuple(self._runners):
            await self._stop_runner(address)

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self._read_specs()
                await self._resolve_addresses()
                await self._start_and_stop()
                await self._sweep()
            except EngineroomError as error:
                log.warning("schedules do not run yet", error=str(error))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETRY_INTERVAL):
                    await self._wake.wait()
            # Changes come many at once.
            await asyncio.sleep(0.05)

    async def _read_specs(self) -> None:
        while self._unread:
            for key in tuple(self._unread)[:BATCH]:
                record = self._unread.pop(key)
                if record is None:
                    self._pools.pop(key, None)
                    continue
                spec = record.load().get("spec") or {}
                self._pools[key] = _PoolSchedules(
                    record.uid, record.generation, _source(record.namespace, spec),
                    bool(spec.get("schedules")),
                )  # fmt: skip
            await asyncio.sleep(0)

    async def _resolve_addresses(self) -> None:
        addresses: dict[Source, Address | None] = {}
        for source in {pool.source for pool in self._pools.values()}:
            address = self._addresses.get(source)
            runner = self._runners.get(address) if address is not None else None
            if address is None or (runner is not None and runner.loop.trouble):
                address = await self._address(source) or address
            addresses[source] = address
        self._addresses = addresses

    async def _address(self, source: Source) -> Address | None:
        namespace, reference = source
        try:
            self._resolver.doubt(namespace, reference)
            return await self._resolver.resolve(namespace, reference)
        except EngineroomError as error:
            # The pool's own conditions tell its users.
            log.debug("no address for schedules", namespace=namespace, error=str(error))
            return None

    async def _start_and_stop(self) -> None:
        """Run a loop for each address, and none for any other."""
        wanted = {address for address in self._addresses.values() if address is not None}
        for address in self._runners.keys() - wanted:
            await self._stop_runner(address)
        for address in wanted - self._runners.keys():
            try:
                redis = open_client(address)
            except (EngineroomError, ValueError, OSError) as error:
                log.debug("no client for schedules", error=type(error).__name__)
                continue
            loop = self._store.ticking(redis, self._delay)
            task = asyncio.create_task(self._run_loop(loop), name="schedule loop")
            self._runners[address] = _Runner(redis, loop, task)

    async def _run_loop(self, loop: ScheduleLoop) -> None:
        while True:
            try:
                await loop.run()
            except Exception:
                # Unforeseen data in one Redis must not end the operator.
                log.exception("schedules failed unexpectedly")
                await asyncio.sleep(5.0)

    async def _stop_runner(self, address: Address) -> None:
        runner = self._runners.pop(address)
        runner.task.cancel()
        await asyncio.wait([runner.task], timeout=5.0)
        await runner.redis.aclose()

    def _delay(self) -> float:
        return 0.0 if self._context.is_leader() else STANDBY_DELAY

    async def _sweep(self) -> None:
        """Remove the schedules of pools that were deleted or moved while no operator ran."""
        now = self._context.clock.monotonic()
        if not self._context.is_leader():
            return
        for address, runner in tuple(self._runners.items()):
            if now - runner.swept < SWEEP_INTERVAL:
                continue
            try:
                for owner, installation in (await self._store.owners(runner.redis)).items():
                    if await self._is_orphaned(owner, installation, address):
                        log.info("schedules of a deleted pool are removed", pool=owner)
                        await self._store.declare(runner.redis, owner, "", ())
            except EngineroomError as error:
                log.warning("schedules not swept", error=str(error))
                continue
            if not self._unread:
                # Otherwise a spec was not read yet, and the next turn looks once more.
                runner.swept = now

    async def _is_orphaned(self, owner: str, installation: str, address: Address) -> bool:
        if owner in self._unread:
            return False
        pool = self._pools.get(owner)
        if pool is not None:
            return not pool.declares or self._addresses.get(pool.source) not in (None, address)
        namespace, _, name = owner.partition("/")
        # Another installation, of this cluster or another, may have a pool of that name.
        if installation != self._context.installation() or not name:
            return False
        if self._context.namespaces and namespace not in self._context.namespaces:
            return False
        try:
            await self._context.client.get(WORKERPOOLS, namespace, name)
        except NotFound:
            return True
        return False


def _source(namespace: str, spec: dict[str, Any]) -> Source:
    """Return the Redis of an unvalidated spec; an invalid one counts as the installation's own."""
    redis = spec.get("redis")
    try:
        if not redis:
            return "", None
        tls = redis.get("tls") or {}
        url, ca = redis["urlSecretRef"], tls.get("caSecretRef")
        reference = RedisReference(
            url=(url["name"], url["key"]),
            ca=(ca["name"], ca["key"]) if ca else None,
            insecure=bool(tls.get("insecureSkipVerify")),
        )
    except (KeyError, TypeError, AttributeError):
        return "", None
    return namespace, reference
