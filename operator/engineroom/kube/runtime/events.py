"""Kubernetes Events on objects: rate limited, aggregated, and written in the background.

``record`` puts an event into a bounded queue and returns; one task writes the queue. Repeats of an
event become a series of the first one, and a rate limit per object keeps a failing object from
flooding etcd.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from engineroom.api import FIELD_MANAGER
from engineroom.core.errors import DependencyError, EngineroomError
from engineroom.core.logging import get_logger, redact_text
from engineroom.kube.client.errors import NotFound
from engineroom.kube.client.resources import EVENTS
from engineroom.kube.runtime.queue import TokenBucket

if TYPE_CHECKING:
    from datetime import datetime

    from engineroom.core.clock import Clock
    from engineroom.kube.client.client import Client
    from engineroom.kube.client.resources import ObjectRef

log = get_logger(__name__)

EventType = Literal["Normal", "Warning"]

#: The API's limit of the ``note`` field, in bytes.
NOTE_BYTES = 1024


class Recorder(Protocol):
    """Records events about objects for controllers."""

    def record(
        self, ref: ObjectRef, severity: EventType, reason: str, message: str, action: str = ""
    ) -> None:
        """Record an event on ``ref``; returns at once, the event may be dropped."""
        ...


class NullRecorder:
    """Discards events."""

    def record(
        self, ref: ObjectRef, severity: EventType, reason: str, message: str, action: str = ""
    ) -> None:
        """Ignore."""


class MemoryRecorder:
    """Stores events in memory, for tests: (ref, type, reason, message)."""

    def __init__(self) -> None:
        self.events: list[tuple[ObjectRef, str, str, str]] = []

    def record(
        self, ref: ObjectRef, severity: EventType, reason: str, message: str, action: str = ""
    ) -> None:
        """Store the event."""
        self.events.append((ref, severity, reason, message))


@dataclass(slots=True)
class _Series:
    """An event that was written already; repeats only raise its count."""

    name: str
    count: int
    written_at: float  # monotonic


@dataclass(frozen=True, slots=True)
class _QueuedEvent:
    ref: ObjectRef
    type: EventType
    reason: str
    message: str
    action: str
    at: datetime


class EventRecorder:
    """Writes events.k8s.io/v1 objects while its ``run`` runs.

    An object gets ``burst`` events at once and then one every ``interval`` seconds. A repeat is
    written at most once every ``series_interval`` seconds, with the count. At most ``capacity``
    events wait; the oldest are dropped first. Series and rate limits are kept for the latest
    ``objects`` of them.
    """

    def __init__(
        self,
        client: Client,
        clock: Clock,
        *,
        instance: str,
        controller: str = f"{FIELD_MANAGER}.dev/operator",
        burst: int = 5,
        interval: float = 15.0,
        series_interval: float = 60.0,
        capacity: int = 1000,
        objects: int = 4096,
    ) -> None:
        self._client = client
        self._clock = clock
        self._instance = instance[:128]
        self._controller = controller
        self._burst = burst
        self._interval = interval
        self._series_interval = series_interval
        self._objects = objects
        self._pending: deque[_QueuedEvent] = deque(maxlen=capacity)
        self._wake = asyncio.Event()
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()
        self._series: OrderedDict[tuple[str, str, str, str], _Series] = OrderedDict()
        self.dropped = 0
        self.written = 0

    def record(
        self, ref: ObjectRef, severity: EventType, reason: str, message: str, action: str = ""
    ) -> None:
        """Queue a Normal or Warning event; ``reason`` is a constant of ``core.reasons``."""
        if len(self._pending) == self._pending.maxlen:
            self.dropped += 1
        note = redact_text(message)
        self._pending.append(
            _QueuedEvent(ref, severity, reason, note, action or reason, self._clock.now())
        )
        self._wake.set()

    async def run(self) -> None:
        """Write queued events until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self.flush()

    async def flush(self) -> None:
        """Write all queued events now."""
        while self._pending:
            event = self._pending.popleft()
            try:
                await self._write(event)
            except DependencyError as error:
                log.warning("event not written", reason=event.reason, error=str(error))
                self.dropped += 1
            except EngineroomError as error:
                # A namespace that is being deleted refuses events.
                log.debug("event refused", reason=event.reason, error=str(error))
                self.dropped += 1

    async def _write(self, event: _QueuedEvent) -> None:
        ref = event.ref
        identity = ref.uid or f"{ref.kind}/{ref.namespace}/{ref.name}"
        key = (identity, event.type, event.reason, event.message)
        now = self._clock.monotonic()
        series = self._series.get(key)
        if series is not None:
            self._series.move_to_end(key)
            series.count += 1
            if now - series.written_at < self._series_interval:
                return  # the next repeat after the interval carries the count
            series.written_at = now
            try:
                await self._client.merge_patch(
                    EVENTS,
                    ref.namespace,
                    series.name,
                    {"series": {"count": series.count, "lastObservedTime": _micro_time(event.at)}},
                )
            except NotFound:
                del self._series[key]  # the API server deletes events after an hour
            else:
                self.written += 1
                return
        if not self._allowed(identity, now):
            self.dropped += 1
            return
        name = f"{ref.name[:220]}.{secrets.token_hex(8)}"
        await self._client.create(EVENTS, self._manifest(event, name), namespace=ref.namespace)
        self.written += 1
        self._series[key] = _Series(name, 1, now)
        while len(self._series) > self._objects:
            self._series.popitem(last=False)

    def _allowed(self, identity: str, now: float) -> bool:
        bucket = self._buckets.get(identity)
        if bucket is None:
            bucket = self._buckets[identity] = TokenBucket(1 / self._interval, self._burst)
            while len(self._buckets) > self._objects:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(identity)
        return bucket.take(now)

    def _manifest(self, event: _QueuedEvent, name: str) -> dict[str, Any]:
        ref = event.ref
        return {
            "metadata": {"name": name, "namespace": ref.namespace},
            "eventTime": _micro_time(event.at),
            "reportingController": self._controller,
            "reportingInstance": self._instance,
            "action": event.action[:128],
            "reason": event.reason[:128],
            "type": event.type,
            "note": _shorten(event.message),
            "regarding": {
                "apiVersion": ref.api_version,
                "kind": ref.kind,
                "namespace": ref.namespace,
                "name": ref.name,
                **({"uid": ref.uid} if ref.uid else {}),
            },
        }


def _micro_time(at: datetime) -> str:
    """Return a time in the format of the API's MicroTime."""
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _shorten(text: str) -> str:
    raw = text.encode()
    if len(raw) <= NOTE_BYTES:
        return text
    return raw[: NOTE_BYTES - 3].decode(errors="ignore") + "..."
