"""Leader election on a Lease, with client-go's semantics and times.

One process holds the lease and renews it every ``retry_period``. Another process takes the lease
when it has observed no renewal for the lease's duration. Each process measures that time on its own
monotonic clock from the last *observed change*, so wall clocks need not agree. A lease is no fence:
a process that was paused may still act as leader. Therefore every write is idempotent or has a
precondition, and writes to Redis carry the ``epoch``.
"""

from __future__ import annotations

import asyncio
import inspect
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engineroom.core.errors import EngineroomError
from engineroom.core.logging import get_logger
from engineroom.kube.client.errors import Conflict, NotFound
from engineroom.kube.client.resources import LEASES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from engineroom.core.clock import Clock
    from engineroom.kube.client.client import Client

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LeaseTimes:
    """Times of a lease in seconds: ``duration > renew_deadline > retry_period``."""

    duration: float = 15.0
    renew_deadline: float = 10.0
    retry_period: float = 2.0

    def __post_init__(self) -> None:
        if not self.duration > self.renew_deadline > self.retry_period > 0:
            raise ValueError("a lease needs duration > renew deadline > retry period > 0")


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """The content of the Lease; ``version`` is its resourceVersion."""

    holder: str
    duration: float
    transitions: int
    acquired: str = ""
    renewed: str = ""
    version: str = ""
    #: The uid of the Lease object, which differs between installations; only of records read.
    uid: str = ""


def parse(lease: dict[str, Any]) -> LeaseRecord:
    """Return the record of a Lease object; absent fields are empty or 0."""
    spec = lease.get("spec") or {}
    return LeaseRecord(
        holder=spec.get("holderIdentity") or "",
        duration=float(spec.get("leaseDurationSeconds") or 0),
        transitions=int(spec.get("leaseTransitions") or 0),
        acquired=spec.get("acquireTime") or "",
        renewed=spec.get("renewTime") or "",
        version=(lease.get("metadata") or {}).get("resourceVersion") or "",
        uid=(lease.get("metadata") or {}).get("uid") or "",
    )


def decide(
    record: LeaseRecord | None,
    observed_at: float,
    monotonic: float,
    identity: str,
    now: datetime,
    times: LeaseTimes,
    *,
    held: bool,
) -> LeaseRecord | None:
    """Return the record to write, or None while another process holds the lease.

    ``observed_at`` is the time at which this process first read ``record``, on its monotonic clock;
    ``held`` says whether this process is the leader already. A new process with an old identity (a
    container restarted in its pod) need not wait, but it counts as a transition: the last writes of
    the old process may still arrive, so the epoch must grow.
    """
    stamp = _stamp(now)
    if record is None:
        return LeaseRecord(identity, times.duration, 0, acquired=stamp, renewed=stamp)
    if record.holder == identity and held:
        return LeaseRecord(
            identity,
            times.duration,
            record.transitions,
            acquired=record.acquired or stamp,
            renewed=stamp,
            version=record.version,
        )
    if record.holder not in ("", identity) and monotonic < observed_at + record.duration:
        return None
    return LeaseRecord(
        identity,
        times.duration,
        record.transitions + 1,
        acquired=stamp,
        renewed=stamp,
        version=record.version,
    )


def _stamp(now: datetime) -> str:
    return now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Elector:
    """A candidate for one lease.

    ``run`` returns when the lease is lost or ``stop`` was called. A process that lost the lease
    should exit, which ends the work that it still does.
    """

    def __init__(
        self,
        client: Client,
        namespace: str,
        name: str,
        identity: str,
        clock: Clock,
        *,
        times: LeaseTimes | None = None,
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._name = name
        self.identity = identity
        self._clock = clock
        self._times = times or LeaseTimes()
        self._record: LeaseRecord | None = None
        self._observed_at = 0.0
        self._renewed_at: float | None = None  # when the last successful renewal was sent
        self._epoch = 0
        self.uid = ""
        self._stop = asyncio.Event()

    @property
    def is_leader(self) -> bool:
        """True while this process holds the lease by its own clock.

        False as soon as the lease has expired, even before ``run`` notices it (after a pause of the
        whole process).
        """
        return (
            self._renewed_at is not None
            and self._clock.monotonic() < self._renewed_at + self._times.duration
        )

    @property
    def epoch(self) -> int:
        """The lease's transitions when this process took it; grows with every new leader."""
        return self._epoch

    @property
    def holder(self) -> str:
        """The holder of the lease when it was last read; "" if there was none."""
        return self._record.holder if self._record else ""

    async def run(
        self,
        on_started: Callable[[], Awaitable[None] | None],
        on_lost: Callable[[], Awaitable[None] | None],
    ) -> None:
        """Wait for the lease, call ``on_started``, renew it, and call ``on_lost`` if it is lost.

        ``on_started`` must return quickly, because no renewal happens while it runs.
        """
        if not await self._acquire():
            return
        log.info("lease acquired", lease=self._name, identity=self.identity, epoch=self._epoch)
        await _call(on_started)
        try:
            still_held = await self._renew()
        finally:
            if self._stop.is_set():
                await self.release()
        if not still_held:
            self._renewed_at = None
            log.error("lease lost", lease=self._name, identity=self.identity, holder=self.holder)
            await _call(on_lost)

    def stop(self) -> None:
        """End ``run`` and release the lease if held, so that a standby takes over at once."""
        self._stop.set()

    async def release(self) -> None:
        """Release the lease if this process holds it; never raises for an API server failure."""
        record, self._renewed_at, self._record = self._record, None, None
        if record is None or record.holder != self.identity:
            return
        stamp = _stamp(self._clock.now())
        released = LeaseRecord(
            "", 1.0, record.transitions, acquired=stamp, renewed=stamp, version=record.version
        )
        try:
            await self._write(released)
        except EngineroomError as error:
            log.warning("lease not released", lease=self._name, error=str(error))
        else:
            log.info("lease released", lease=self._name, identity=self.identity)

    async def _acquire(self) -> bool:
        while not self._stop.is_set():
            try:
                if await self._try():
                    return True
            except EngineroomError as error:
                log.warning("lease not reached", lease=self._name, error=str(error))
            await self._pause(self._times.retry_period * (1 + random.uniform(0, 0.2)))  # noqa: S311 # nosec B311
        return False

    async def _renew(self) -> bool:
        """Renew until ``stop`` (returns True), or until the lease is lost (returns False)."""
        while not self._stop.is_set():
            assert self._renewed_at is not None  # noqa: S101 # nosec B101 - set by acquiring
            deadline = self._renewed_at + self._times.renew_deadline
            left = deadline - self._clock.monotonic()
            if left <= 0:
                return False
            try:
                async with asyncio.timeout(left):
                    if not await self._try():
                        return False
            except TimeoutError:
                return False
            except EngineroomError as error:
                log.warning("lease not renewed", lease=self._name, error=str(error))
            await self._pause(self._times.retry_period)
        return True

    async def _try(self) -> bool:
        """Try once to take or renew the lease; returns False while another process holds it."""
        sent = self._clock.monotonic()
        if self._renewed_at is None:
            await self._read()
        desired = self._decide()
        if desired is None:
            return False
        try:
            self._observe(await self._write(desired))
        except (Conflict, NotFound):
            # Our own write whose response was lost, an edit, or another holder: read and decide
            # once more.
            await self._read()
            desired = self._decide()
            if desired is None:
                return False
            try:
                self._observe(await self._write(desired))
            except Conflict:
                return False if self._renewed_at is None else await self._still_holds()
        self._renewed_at = sent
        self._epoch = self._record.transitions if self._record else 0
        return True

    def _decide(self) -> LeaseRecord | None:
        return decide(
            self._record,
            self._observed_at,
            self._clock.monotonic(),
            self.identity,
            self._clock.now(),
            self._times,
            held=self._renewed_at is not None,
        )

    async def _still_holds(self) -> bool:
        await self._read()
        return self._record is not None and self._record.holder == self.identity

    async def _read(self) -> None:
        try:
            lease = await self._client.get(
                LEASES, self._namespace, self._name, timeout=self._times.renew_deadline / 2
            )
        except NotFound:
            self._record = None
        else:
            self._observe(parse(lease))

    def _observe(self, record: LeaseRecord) -> None:
        self.uid = record.uid or self.uid
        if self._record != record:
            self._record = record
            self._observed_at = self._clock.monotonic()

    async def _write(self, record: LeaseRecord) -> LeaseRecord:
        metadata: dict[str, Any] = {"namespace": self._namespace, "name": self._name}
        spec = {
            "holderIdentity": record.holder,
            "leaseDurationSeconds": max(1, int(record.duration)),
            "acquireTime": record.acquired or record.renewed,
            "renewTime": record.renewed,
            "leaseTransitions": record.transitions,
        }
        timeout = self._times.renew_deadline / 2
        if record.version:
            metadata["resourceVersion"] = record.version
            written = await self._client.replace(
                LEASES, {"metadata": metadata, "spec": spec}, timeout=timeout
            )
        else:
            written = await self._client.create(
                LEASES, {"metadata": metadata, "spec": spec}, timeout=timeout
            )
        return parse(written)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        except TimeoutError:
            return


async def _call(callback: Callable[[], Awaitable[None] | None]) -> None:
    result = callback()
    if inspect.isawaitable(result):
        await result
