"""The check of idle pools: which of their queues have something in them after all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engineroom.core.errors import MeasurementError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engineroom.workers.redis_connections import SharedConnection


async def not_quiet(
    pools: Iterable[tuple[str, tuple[str, ...], SharedConnection]],
) -> list[str]:
    """Return the keys of the pools that have a queue with jobs, or whose Redis does not answer.

    Each item is a pool's key, its queues and its connection. Redis answers a hundred quiet queues
    with one EXISTS.
    """
    by_connection: dict[int, tuple[SharedConnection, list[tuple[str, tuple[str, ...]]]]] = {}
    for key, queues, connection in pools:
        by_connection.setdefault(id(connection), (connection, []))[1].append((key, queues))
    keys: list[str] = []
    for connection, idle in by_connection.values():
        names = [name for _, queues in idle for name in queues]
        try:
            quiet = await connection.observer.quiet(names)
        except MeasurementError:
            quiet = set()
        keys += [key for key, queues in idle if not quiet.issuperset(queues)]
    return keys
