"""Known peaks, with time zones and the changes of the clock."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from engineroom.workers.plan import ScalingWindow
from engineroom.workers.scaling_windows import active, next_change


def peak(cron: str = "0 9 * * 1-5", zone: str = "Europe/Berlin", hours: float = 8, least: int = 5):
    return ScalingWindow("office", cron, zone, hours * 3600, least)


def at(text: str, zone: str = "Europe/Berlin") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


@pytest.mark.parametrize(
    ("moment", "holds"),
    [
        ("2026-11-23T08:59:59", False),
        ("2026-11-23T09:00:00", True),
        ("2026-11-23T16:59:59", True),
        ("2026-11-23T17:00:00", False),
        ("2026-11-22T10:00:00", False),
    ],
)
def test_from_the_tick_for_the_duration(moment, holds):
    assert (active((peak(),), at(moment)) is not None) is holds


@pytest.mark.parametrize("day", ["2026-03-27", "2026-03-30", "2026-10-23", "2026-10-26"])
def test_nine_o_clock_is_nine_o_clock_before_and_after_the_clock_changes(day):
    assert active((peak(),), at(f"{day}T08:59:59")) is None
    assert active((peak(),), at(f"{day}T09:00:00")) is not None


def test_the_largest_minimum_wins():
    both = (peak(least=5), ScalingWindow("noon", "0 12 * * *", "Europe/Berlin", 3600, 20))
    chosen = active(both, at("2026-11-23T12:30:00"))
    assert chosen is not None
    assert chosen.min_replicas == 20


def test_when_it_changes_next():
    assert next_change((), 0.0) is None
    assert next_change((peak(),), at("2026-11-23T08:00:30")) == pytest.approx(3570)
    assert next_change((peak(),), at("2026-11-23T16:00:00")) == pytest.approx(3600)
