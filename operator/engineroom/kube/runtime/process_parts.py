"""The parts of a process that all of its kinds share."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from engineroom import __version__
from engineroom.kube.client.client import Client
from engineroom.kube.runtime.events import EventRecorder
from engineroom.kube.runtime.health import LoopLag
from engineroom.kube.runtime.kopf_watch import KopfWatcher
from engineroom.kube.runtime.lease import Elector
from engineroom.kube.runtime.status_pacing import StatusPacer
from engineroom.metrics import Metrics

if TYPE_CHECKING:
    from engineroom.core.clock import Clock
    from engineroom.kube.client.config import ApiConfig
    from engineroom.kube.runtime.controller import RecordStore
    from engineroom.kube.runtime.informer import Informer
    from engineroom.settings import Settings


class ProcessParts:
    """Client, clock, lease, metrics, events and watches of a process; needs a running loop."""

    def __init__(self, settings: Settings, config: ApiConfig, clock: Clock) -> None:
        self.settings = settings
        self.clock = clock
        self.metrics = Metrics()
        self.client = Client(
            config,
            timeout=settings.api_timeout,
            user_agent=f"engineroom/{__version__}",
            clock=self.clock,
            observer=self.metrics.request,
        )
        #: The namespace of Engineroom's own processes.
        self.system_namespace = settings.lease_namespace or config.namespace
        self.recorder = EventRecorder(self.client, self.clock, instance=settings.who)
        self.lag = LoopLag(self.clock)
        self.pacer = StatusPacer()
        self.elector: Elector | None = None
        if settings.leader_election:
            self.elector = Elector(
                self.client,
                self.system_namespace,
                settings.lease_name,
                settings.who,
                self.clock,
            )
        #: Set once the caches of all kinds that the API server serves are filled.
        self.synced = asyncio.Event()
        self.stopping = asyncio.Event()
        self.leading = asyncio.Event()
        self.watcher = KopfWatcher(
            config, asyncio.get_running_loop(), self.clock, namespaces=settings.namespaces
        )

    @property
    def is_leader(self) -> bool:
        """Whether this process may write now."""
        return self.elector is None or self.elector.is_leader

    def measure_cache(self, plural: str, cache: RecordStore | Informer[Any]) -> None:
        """Register the metrics of a cache."""
        gauge, labels = self.metrics.gauge, {"kind": plural}
        gauge("engineroom_watch_age_seconds", "Since its last event or list.", cache.age, labels)
        gauge("engineroom_cache_objects", "Objects cached.", lambda: float(len(cache)), labels)
        gauge(
            "engineroom_cache_repairs",
            "Objects that a comparison had to put right.",
            lambda: float(cache.repaired),
            labels,
        )
