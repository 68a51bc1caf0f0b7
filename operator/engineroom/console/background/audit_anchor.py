"""The replica's own anchor of the audit log: deleting the log, or setting it back, is noticed.

Redis cannot reveal the restoration of an older log. Each replica therefore remembers the last head
that it has seen, and compares the log with it. The head's number is a metric too, so Prometheus
keeps an anchor outside of Redis and of all replicas.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engineroom.auth.audit.log import AuditEntry, AuditHead, AuditOutcome
from engineroom.console.background.periodic import repeat
from engineroom.core.logging import get_logger

if TYPE_CHECKING:
    import asyncio

    from engineroom.auth.audit.log import AuditLog
    from engineroom.console.metrics import ApiMetrics

log = get_logger(__name__)

#: Seconds between two comparisons.
INTERVAL = 10.0
WHO = "(redis)"
ACTION = "audit-log.set-back"


class AuditAnchor:
    """Compares the audit log with the last head that this replica has seen."""

    def __init__(self, audit: AuditLog, metrics: ApiMetrics) -> None:
        self._audit = audit
        self._metrics = metrics
        #: The last head that this replica has seen.
        self.head = AuditHead(0, "")

    async def check(self) -> str:
        """Compare once; return the problem, or "". Raises AuthStoreError.

        A problem is reported in the process log, in a metric and in the audit log, once: the log as
        it is now becomes the anchor.
        """
        before = max(self.head, self._audit.written, key=lambda head: head.sequence)
        self.head, problem = await self._audit.compare(before)
        if not problem:
            return ""
        log.error("the audit log was changed in Redis", problem=problem, anchor=before.sequence)
        self._metrics.record_tampering("audit-log")
        entry = AuditEntry(
            who=WHO,
            action=ACTION,
            target="audit-log",
            outcome=AuditOutcome.DENIED,
            reason=problem,
            details={"anchor": before.sequence, "mac": before.mac},
        )
        record = await self._audit.write(entry)
        self.head = AuditHead(record.sequence, record.mac)
        return problem

    async def run(self, stopping: asyncio.Event) -> None:
        """Compare until ``stopping`` is set."""
        await repeat(self.check, INTERVAL, stopping, log, "the audit log is not compared")
