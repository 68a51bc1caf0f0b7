"""Records in the API's Redis whose seal is broken.

The reader refuses such a record. This module reports each one in the process log, in a metric and
in the audit log.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from engineroom.auth.audit.log import AuditEntry, AuditOutcome
from engineroom.core.errors import EngineroomError
from engineroom.core.logging import get_logger
from engineroom.core.sealing import log_broken

if TYPE_CHECKING:
    from engineroom.auth.audit.log import AuditLog
    from engineroom.console.metrics import ApiMetrics

log = get_logger(__name__)

#: Records that wait for the audit log; further ones appear in the log and the metric only.
QUEUE_SIZE = 100
#: Seconds between two audit records, so that many forged records cannot flood the audit log.
INTERVAL = 1.0
WHO = "(redis)"
ACTION = "record.refuse"


class TamperingReports:
    """Callback for broken seals; ``run`` writes them to the audit log."""

    def __init__(self, audit: AuditLog, metrics: ApiMetrics) -> None:
        self._audit = audit
        self._metrics = metrics
        self._queue: asyncio.Queue[tuple[str, str]] = asyncio.Queue(QUEUE_SIZE)

    def __call__(self, kind: str, name: str) -> None:
        """Report a record of that kind; ``name`` is its key in Redis."""
        log_broken(kind, name)
        self._metrics.record_tampering(kind)
        if not self._queue.full():
            self._queue.put_nowait((kind, name))

    async def run(self) -> None:
        """Write until cancelled."""
        task = asyncio.current_task()
        # A client may swallow a cancellation as a failed call; ``cancelling`` still counts it.
        while task is None or not task.cancelling():
            kind, name = await self._queue.get()
            entry = AuditEntry(
                who=WHO,
                action=ACTION,
                target=f"{kind}/{name}"[:1000],
                outcome=AuditOutcome.DENIED,
                reason="its seal is broken: it was changed in Redis, or the API's secret was",
            )
            try:
                await self._audit.write(entry)
            except EngineroomError as error:
                log.warning("a refused record is not in the audit log", code=error.code)
            await asyncio.sleep(INTERVAL)
