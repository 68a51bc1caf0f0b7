"""Notifications of changed queues, by the invalidation messages of client-side caching.

``CLIENT TRACKING ON BCAST`` (Redis 6 and newer, without a server setting) sends a message for each
change of a key with the given prefixes. A message is a hint and may be lost, so listeners read the
queue themselves, and also from time to time without a message.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

import structlog
from redis.exceptions import RedisError

from engineroom.queue import keys
from engineroom.queue.shared_calls import describe

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio import Redis
    from redis.asyncio.connection import AbstractConnection

log = structlog.get_logger(__name__)

#: Interval of a PING; without an answer within it, the connection is opened again (seconds).
PING_INTERVAL = 5.0
BACKOFF_FIRST, BACKOFF_LAST = 0.05, 5.0


class InvalidationListener:
    """Listens on its own connection and calls ``on_queue(name)`` for each changed queue.

    ``on_up`` is called after each connect, because changes before it were not notified. ``on_down``
    gets a description of the error when the connection breaks.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        on_queue: Callable[[str], None],
        on_up: Callable[[], None],
        on_down: Callable[[str], None],
    ) -> None:
        self._redis = redis
        self._on_queue = on_queue
        self._on_up = on_up
        self._on_down = on_down

    async def run(self) -> None:
        """Listen until cancelled; retry after failures without a limit, with capped back-off."""
        backoff = BACKOFF_FIRST
        while True:
            connection = self._connection()
            try:
                async with asyncio.timeout(PING_INTERVAL):
                    await connection.connect()  # type: ignore[no-untyped-call]
                    await self._track(connection)
                backoff = BACKOFF_FIRST
                self._on_up()
                await self._listen(connection)
            except (RedisError, OSError, TimeoutError) as error:
                self._on_down(describe(error))
                log.debug("queue push lost", error=describe(error), retry_seconds=backoff)
            finally:
                with contextlib.suppress(RedisError, OSError, TimeoutError):
                    await connection.disconnect(nowait=True)
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, BACKOFF_LAST)

    def _connection(self) -> AbstractConnection:
        pool = self._redis.connection_pool
        arguments = dict(pool.connection_kwargs)
        arguments.update(protocol=3, socket_timeout=None, health_check_interval=0)
        return pool.connection_class(**arguments)

    async def _track(self, connection: AbstractConnection) -> None:
        async def invalidated(message: list[Any]) -> None:
            changed = message[1] if len(message) > 1 else None
            if changed is None:  # the whole database was flushed
                self._on_up()
                return
            for key in changed:
                if (name := keys.queue_of(key)) is not None:
                    self._on_queue(name)

        # redis-py has no public API for invalidations on a dedicated connection.
        parser: Any = connection._parser
        parser.set_invalidation_push_handler(invalidated)
        prefixes = [part for prefix in keys.PUSH_PREFIXES for part in ("PREFIX", prefix)]
        await connection.send_command("CLIENT", "TRACKING", "ON", "BCAST", *prefixes)
        await connection.read_response()

    async def _listen(self, connection: AbstractConnection) -> None:
        """Read until the connection breaks, or a PING stays unanswered."""
        unanswered = False
        while True:
            started = time.monotonic()
            # A push and a timeout both return None; the elapsed time distinguishes them.
            answer = await connection.read_response(
                push_request=True, timeout=PING_INTERVAL, disconnect_on_error=False
            )
            if answer is not None or time.monotonic() - started < PING_INTERVAL * 0.9:
                unanswered = False
                continue
            if unanswered:
                raise TimeoutError
            unanswered = True
            await connection.send_command("PING")
