"""What the relay's probes say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engineroom.core.clock import FakeClock
from engineroom.relay import UNREADY, RelayRunner

if TYPE_CHECKING:
    import pytest


def test_a_relay_that_works_stays_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    runner = RelayRunner("postgresql://unused", "redis://unused", poll=0.01, clock=clock)

    def turn() -> int:
        """Succeed, long after the start."""
        clock.advance(UNREADY + 1)
        runner.stop()
        return 0

    monkeypatch.setattr(runner, "_turn", turn)
    assert runner.readiness() == "not connected yet"
    runner.run()
    assert runner.readiness() == ""
    clock.advance(UNREADY + 1)
    assert runner.readiness().startswith("nothing was looked at")
