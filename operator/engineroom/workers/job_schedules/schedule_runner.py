"""A loop for the schedules of each Redis that pools name, in every replica of the operator.

Not in the leader alone: a lease is taken over in a quarter of a minute, and a tick is due within a
second. Each tick is enqueued once however many loops there are, since Redis decides; those that do
not lead hold back for a moment, so that they find nothing to do as long as the leader is well.
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
from engineroom.redis.address import Address, open_client

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from engineroom.kube.runtime.controller import Context, Record
    from engineroom.workers.job_schedules.declarations import ScheduleStore, Ticking
    from engineroom.workers.redis_connections import Secrets

log = structlog.get_logger(__name__)

#: How long who does not lead leaves a tick to the leader (seconds).
STAND_BY = 0.3
#: Addresses that could not be had are asked for again (seconds).
AGAIN = 15.0
#: Schedules whose pools are gone are looked for so often (seconds).
SWEEP = 300.0
#: Specs read before others get their turn.
TURN = 20


@dataclass(frozen=True, slots=True)
class Wish:
    """What a pool's spec says of its Redis; Secrets as (name, key)."""

    namespace: str = ""
    secret: tuple[str, str] | None = None
    ca: tuple[str, str] | None = None
    insecure: bool = False


@dataclass(frozen=True, slots=True)
class _Known:
    uid: str
    generation: int
    wish: Wish
    #: Whether it declares schedules.
    declares: bool


@dataclass(slots=True)
class _Host:
    redis: Redis
    ticking: Ticking
    task: asyncio.Task[None]
    #: When it was last looked through for what pools left (monotonic seconds).
    swept: float = float("-inf")


class ScheduleHost:
    """Runs the loops, and takes away what pools left that nobody saw go."""

    def __init__(
        self, context: Context, store: ScheduleStore, secrets: Secrets, redis_url: str
    ) -> None:
        self._context = context
        self._store = store
        self._secrets = secrets
        self._redis_url = redis_url
        self._news: dict[str, Record | None] = {}
        self._pools: dict[str, _Known] = {}
        self._addresses: dict[Wish, Address | None] = {}
        self._hosts: dict[Address, _Host] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; returns at once."""
        self._task = asyncio.create_task(self._run(), name="schedules")

    def changed(self, key: str, record: Record | None) -> None:
        """The pool is new, different or gone (None)."""
        known = self._pools.get(key)
        seen = known and (known.uid, known.generation)
        if record is not None and seen == (record.uid, record.generation):
            self._news.pop(key, None)
            return
        self._news[key] = record
        self._wake.set()

    @property
    def fired(self) -> int:
        """Jobs that these loops made."""
        return sum(host.ticking.fired for host in self._hosts.values())

    @property
    def late(self) -> float:
        """How late the latest job of the latest Redis was (seconds)."""
        return max((host.ticking.late for host in self._hosts.values()), default=0.0)

    @property
    def blind(self) -> int:
        """How many Redis servers do not answer."""
        return sum(bool(host.ticking.trouble) for host in self._hosts.values())

    async def stop(self) -> None:
        """End all loops."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=1.0)
        for address in tuple(self._hosts):
            await self._end(address)

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self._read_news()
                await self._find_addresses()
                await self._settle()
                await self._sweep()
            except EngineroomError as error:
                log.warning("schedules not hosted yet", error=str(error))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AGAIN):
                    await self._wake.wait()
            # News come in crowds.
            await asyncio.sleep(0.05)

    async def _read_news(self) -> None:
        while self._news:
            for key in tuple(self._news)[:TURN]:
                record = self._news.pop(key)
                if record is None:
                    self._pools.pop(key, None)
                    continue
                spec = record.load().get("spec") or {}
                self._pools[key] = _Known(
                    record.uid, record.generation, _wish(record.namespace, spec),
                    bool(spec.get("schedules")),
                )  # fmt: skip
            await asyncio.sleep(0)

    async def _find_addresses(self) -> None:
        wishes = {known.wish for known in self._pools.values()}
        addresses: dict[Wish, Address | None] = {}
        for wish in wishes:
            address = self._addresses.get(wish)
            host = self._hosts.get(address) if address is not None else None
            if address is None or (host is not None and host.ticking.trouble):
                address = await self._address(wish) or address
            addresses[wish] = address
        self._addresses = addresses

    async def _address(self, wish: Wish) -> Address | None:
        if wish.secret is None:
            return Address(self._redis_url) if self._redis_url else None
        try:
            self._secrets.doubt(wish.namespace, wish.secret[0])
            url = await self._secrets.value(wish.namespace, *wish.secret)
            ca = await self._secrets.value(wish.namespace, *wish.ca) if wish.ca else ""
        except EngineroomError as error:
            # The pool's own conditions say so to its users.
            log.debug("no address for schedules", namespace=wish.namespace, error=str(error))
            return None
        return Address(url, ca, wish.insecure)

    async def _settle(self) -> None:
        """Loops for the addresses that there are, and for no other."""
        wanted = {address for address in self._addresses.values() if address is not None}
        for address in self._hosts.keys() - wanted:
            await self._end(address)
        for address in wanted - self._hosts.keys():
            try:
                redis = open_client(address)
            except (EngineroomError, ValueError, OSError) as error:
                log.debug("no client for schedules", error=type(error).__name__)
                continue
            ticking = self._store.ticking(redis, self._behind)
            task = asyncio.create_task(self._tick(ticking), name="ticking")
            self._hosts[address] = _Host(redis, ticking, task)

    async def _tick(self, ticking: Ticking) -> None:
        while True:
            try:
                await ticking.run()
            except Exception:
                # One Redis with something unforeseen in it must not end the operator.
                log.exception("schedules failed in a way they should not")
                await asyncio.sleep(5.0)

    async def _end(self, address: Address) -> None:
        host = self._hosts.pop(address)
        host.task.cancel()
        await asyncio.wait([host.task], timeout=5.0)
        await host.redis.aclose()

    def _behind(self) -> float:
        return 0.0 if self._context.is_leader() else STAND_BY

    async def _sweep(self) -> None:
        """Take away the schedules of pools that were deleted, or moved, while nobody looked."""
        now = self._context.clock.monotonic()
        if not self._context.is_leader():
            return
        for address, host in tuple(self._hosts.items()):
            if now - host.swept < SWEEP:
                continue
            try:
                for owner, installation in (await self._store.owners(host.redis)).items():
                    if await self._orphaned(owner, installation, address):
                        log.info("schedules of a pool that is gone are removed", pool=owner)
                        await self._store.declare(host.redis, owner, "", ())
            except EngineroomError as error:
                log.warning("schedules not swept", error=str(error))
                continue
            if not self._news:
                # Else somebody's spec was not read yet, and the next turn looks once more.
                host.swept = now

    async def _orphaned(self, owner: str, installation: str, address: Address) -> bool:
        known = self._pools.get(owner)
        if owner in self._news:
            return False
        if known is not None:
            return not known.declares or self._addresses.get(known.wish) not in (None, address)
        namespace, _, name = owner.partition("/")
        # Another installation, of this cluster or of another, may have a pool of that name.
        if installation != self._context.installation() or not name:
            return False
        if self._context.namespaces and namespace not in self._context.namespaces:
            return False
        try:
            await self._context.client.get(WORKERPOOLS, namespace, name)
        except NotFound:
            return True
        return False


def _wish(namespace: str, spec: dict[str, Any]) -> Wish:
    redis = spec.get("redis")
    try:
        if not redis:
            return Wish()
        tls = redis.get("tls") or {}
        reference, ca = redis["urlSecretRef"], tls.get("caSecretRef")
        return Wish(
            namespace,
            (reference["name"], reference["key"]),
            (ca["name"], ca["key"]) if ca else None,
            bool(tls.get("insecureSkipVerify")),
        )
    except (KeyError, TypeError, AttributeError):
        return Wish()  # told of by the pool's own validation
