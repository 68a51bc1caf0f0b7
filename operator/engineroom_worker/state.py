"""The state that the parts of a worker share."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from engineroom_worker.drain import ControlRequests

if TYPE_CHECKING:
    from datetime import datetime

    from rq.queue import Queue

    from engineroom_worker.config import Settings
    from engineroom_worker.dequeue.dequeuer import Dequeuer
    from engineroom_worker.observability.metrics import SlotMetrics
    from engineroom_worker.transactions import RedisRetry
    from engineroom_worker.wakeup import WakeupPipe


@dataclass
class CurrentJob:
    """The job that the worker took last; ``execution`` is None before its start and after it."""

    queue: Queue
    #: Whether the job has a priority.
    has_priority: bool = False
    #: The key of its concurrency limit, or "".
    limit: str = ""
    started_at: datetime | None = None
    #: Time between enqueueing and start.
    waited: timedelta = timedelta(0)
    execution: Any = None


@dataclass
class WorkerState:
    """The dependencies and the state that the worker's parts share; times are monotonic."""

    settings: Settings
    metrics: SlotMetrics
    wakeup: WakeupPipe
    retry: RedisRetry
    dequeuer: Dequeuer
    controls: ControlRequests = field(default_factory=ControlRequests)
    current: CurrentJob | None = None
    #: Time of the first request to stop.
    stopping_since: float | None = None
    #: Time at which the operator retired the worker.
    retired_since: float | None = None
    #: End of the grace period in which maintenance declares no worker dead.
    quiet_until: float = 0.0
