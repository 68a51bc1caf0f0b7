"""Records that somebody else wrote into the API's Redis: refused where they are read, told of here.

Once for each record, in the log, in a metric and in the audit log, so that who looks finds it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from engineroom.auth.audit.log import Entry, Outcome
from engineroom.core.errors import EngineroomError
from engineroom.core.logging import get_logger
from engineroom.core.sealing import log_broken

if TYPE_CHECKING:
    from engineroom.auth.audit.log import AuditLog
    from engineroom.console.metrics import ApiMetrics

log = get_logger(__name__)

#: Records that wait for the audit log; of more at once only the log and the metric tell.
WAITING = 100
#: Seconds between two of them: who forges by the thousand does not push all else out of the log.
PAUSE = 1.0
WHO = "(redis)"
ACTION = "record.refuse"


class Forgeries:
    """Hears of broken seals; ``run`` writes them to the audit log."""

    def __init__(self, audit: AuditLog, metrics: ApiMetrics) -> None:
        self._audit = audit
        self._metrics = metrics
        self._waiting: asyncio.Queue[tuple[str, str]] = asyncio.Queue(WAITING)

    def __call__(self, kind: str, name: str) -> None:
        """A record of that kind is not as it was sealed; ``name`` is its key in Redis."""
        log_broken(kind, name)
        self._metrics.forged(kind)
        if not self._waiting.full():
            self._waiting.put_nowait((kind, name))

    async def run(self) -> None:
        """Write until cancelled."""
        task = asyncio.current_task()
        # A client may take a cancellation for a failed call and swallow it: ours counts it.
        while task is None or not task.cancelling():
            kind, name = await self._waiting.get()
            entry = Entry(
                who=WHO,
                action=ACTION,
                target=f"{kind}/{name}"[:1000],
                outcome=Outcome.DENIED,
                reason="is not as it was sealed: somebody else wrote it, or the secret was another",
            )
            try:
                await self._audit.write(entry)
            except EngineroomError as error:
                log.warning("a refused record is not in the audit log", code=error.code)
            await asyncio.sleep(PAUSE)
