"""Probes and metrics over HTTP, and how late the event loop is."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import orjson

from engineroom.core.serving.get_server import JSON, GetServer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from engineroom.core.clock import Clock
    from engineroom.core.serving.get_server import Handler


@dataclass(slots=True)
class ProbeResult:
    """The answer of a probe: facts, and the problems among them."""

    facts: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def status(self) -> int:
        """200, or 503 when anything is wrong."""
        return 503 if self.problems else 200

    def body(self) -> bytes:
        """JSON for people and for scripts."""
        state = "failing" if self.problems else "ok"
        return orjson.dumps(
            {"status": state, "problems": self.problems, **self.facts},
            option=orjson.OPT_APPEND_NEWLINE,
        )


class HttpServer:
    """A few GET routes on one port; port 0 takes a free one, None serves nothing."""

    def __init__(
        self,
        port: int | None,
        routes: Mapping[str, Handler],
        host: str = "0.0.0.0",  # noqa: S104 # nosec B104 - the kubelet asks from outside the pod
    ) -> None:
        self.port = port
        self._host = host
        self._server = GetServer(routes)

    async def __aenter__(self) -> Self:
        if self.port is not None:
            self.port = await self._server.listen(self._host, self.port)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.close()


def probe(report: Callable[[], ProbeResult]) -> Handler:
    """A route that answers with a report."""

    async def answer(_parameters: Mapping[str, str]) -> tuple[int, str, bytes]:
        result = report()
        return result.status, JSON, result.body()

    return answer


class LoopLag:
    """The worst delay of the event loop during the last half to full minute."""

    def __init__(self, clock: Clock, period: float = 0.25, window: float = 30.0) -> None:
        self._clock = clock
        self._period = period
        self._window = window
        self._worst = self._before = 0.0
        self._since = clock.monotonic()

    def seconds(self) -> float:
        """The worst delay lately."""
        return max(self._worst, self._before)

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            asleep = self._clock.monotonic()
            await asyncio.sleep(self._period)
            self.note(self._clock.monotonic() - asleep - self._period)

    def note(self, late: float) -> None:
        """One measurement, in seconds."""
        now = self._clock.monotonic()
        if now - self._since > self._window:
            self._before, self._worst, self._since = self._worst, 0.0, now
        self._worst = max(self._worst, late)
