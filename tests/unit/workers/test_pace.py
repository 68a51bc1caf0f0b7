"""Figures in status: not too often for one pool, nor for all of them together."""

from engineroom.workers.status_pacing import Pace


def test_one_alone_waits_for_its_own_time_only() -> None:
    pace = Pace(0.1)
    assert pace.slot(now=50.0, earliest=20.0) == 50.0
    assert pace.slot(now=50.5, earliest=52.0) == 52.0
    assert pace.slot(now=52.5, earliest=54.0) == 54.0


def test_many_at_once_get_moments_one_after_the_other() -> None:
    pace = Pace(0.5)
    assert [pace.slot(10.0, 10.0) for _ in range(4)] == [10.0, 10.5, 11.0, 11.5]


def test_who_has_to_wait_keeps_nobody_back() -> None:
    pace = Pace(0.5)
    assert pace.slot(10.0, earliest=60.0) == 60.0
    assert pace.slot(10.0, earliest=10.0) == 10.5


def test_an_unused_past_is_not_made_up_for() -> None:
    pace = Pace(0.5)
    pace.slot(10.0, 10.0)
    assert [pace.slot(100.0, 0.0) for _ in range(2)] == [100.0, 100.5]
