"""A round of status writes: many at once, for a limited time, until a policy changes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from engineroom.kube.runtime.reconciler import earliest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from engineroom.core.clock import Clock

#: Seconds of status writes before other changes are considered, and writes at the same time.
STATUS_SECONDS, STATUSES_AT_ONCE = 5.0, 16
#: Seconds until the next round if a round did not write all statuses.
NEXT_ROUND_SECONDS = 0.1

Item = TypeVar("Item")


async def write_statuses(
    due: Sequence[Item],
    write: Callable[[Item], Awaitable[float | None]],
    interrupted: Callable[[], bool],
    clock: Clock,
) -> float | None:
    """Write statuses until all are written, time is up or ``interrupted`` returns True.

    ``write`` returns the seconds until a held-back status is due. Returns the seconds until the
    next round, None if there is nothing left to write. Raises the first error of a write, after the
    writes that began with it.
    """
    waits: list[float | None] = []
    end = clock.monotonic() + STATUS_SECONDS
    while due and not interrupted() and clock.monotonic() < end:
        chunk, due = due[:STATUSES_AT_ONCE], due[STATUSES_AT_ONCE:]
        written = await asyncio.gather(*(write(item) for item in chunk), return_exceptions=True)
        for outcome in written:
            if isinstance(outcome, BaseException):
                raise outcome
            waits.append(outcome)
    return earliest(*waits, NEXT_ROUND_SECONDS if due else None)
