"""The connections of one protocol: their number, their timeouts, and their drain."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import structlog

if TYPE_CHECKING:
    from engineroom.core.serving.connection_budget import ConnectionBudget
    from engineroom.ratelimit.service.engine import DecisionEngine
    from engineroom.ratelimit.service.metrics import ServiceCounts

log = structlog.get_logger(__name__)

#: Seconds between two checks of all connections for timeouts.
SWEEP_SECONDS = 1.0
#: Seconds in which a request arrives, from the opening of a connection or its own first byte.
REQUEST_TIMEOUT = 10.0
#: Timeouts in seconds of an idle connection: while there is room for others, and while there is
#: little.
IDLE_TIMEOUT, SHORT_IDLE_TIMEOUT = 75.0, 5.0
#: Bytes that each connection may hold without being counted in the budget.
FREE_BYTES = 4096
#: Most bytes that are parsed at once; more follow when their requests are answered.
SLICE = 4096


class ServerConnection(Protocol):
    """One connection."""

    def drain(self) -> None:
        """Accept no new requests; close after the last response."""
        ...

    def abort(self) -> None:
        """Close now."""
        ...

    def sweep(self, now: float) -> None:
        """Close the connection if it exceeded a timeout, at ``now`` (monotonic seconds)."""
        ...


_C = TypeVar("_C", bound=ServerConnection)


class ProtocolServer(Generic[_C]):
    """The connections of one protocol on one event loop."""

    def __init__(
        self,
        engine: DecisionEngine,
        counts: ServiceCounts,
        budget: ConnectionBudget,
        request_timeout: float = REQUEST_TIMEOUT,
    ) -> None:
        self.engine = engine
        self.counts = counts
        self.budget = budget
        self.request_timeout = request_timeout
        self.connections: set[_C] = set()
        self.draining = False
        self._empty = asyncio.Event()
        self._sweeper: asyncio.Task[None] | None = None

    @property
    def idle_timeout(self) -> float:
        """Seconds after which an idle connection closes."""
        return SHORT_IDLE_TIMEOUT if self.budget.is_short else IDLE_TIMEOUT

    def remove(self, connection: _C) -> None:
        """Remove a closed connection."""
        self.budget.release(connection)
        self.connections.discard(connection)
        if self.draining and not self.connections:
            self._empty.set()

    def start(self) -> None:
        """Begin to enforce timeouts."""
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep())

    async def drain(self, seconds: float) -> None:
        """Close every connection after its last response, at the latest after ``seconds``."""
        self.draining = True
        for connection in list(self.connections):
            connection.drain()
        try:
            async with asyncio.timeout(seconds):
                if self.connections:
                    await self._empty.wait()
        except TimeoutError:
            for connection in list(self.connections):
                connection.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = loop.time()
            for connection in list(self.connections):
                try:
                    connection.sweep(now)
                except Exception:
                    # The timeouts of all other connections must go on.
                    log.exception("a connection could not be checked")
                    connection.abort()
