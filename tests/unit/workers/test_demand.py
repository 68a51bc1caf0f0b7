"""Rates from totals, and the memory of the window."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engineroom.queue.observe import QueueFacts
from engineroom.workers.demand import DemandHistory, QueueRates
from tests.unit.workers.builders import NOW


def totals(finished: int, busy_ms: int, **fields: int) -> QueueFacts:
    return QueueFacts(name="mail", finished_total=finished, busy_ms_total=busy_ms, **fields)


def test_the_past_tells_the_duration_at_first_sight():
    rates = QueueRates()
    rates.fold(totals(200, 50_000), NOW)
    assert rates.duration == 0.25


def test_nothing_finished_means_unknown_and_not_zero():
    rates = QueueRates()
    rates.fold(totals(0, 0, waiting=5), NOW)
    rates.fold(totals(0, 0, waiting=9), NOW + 5)
    assert rates.duration is None
    assert rates.arrivals > 0


def test_new_durations_are_learnt():
    rates = QueueRates()
    rates.fold(totals(1000, 100_000), NOW)
    rates.fold(totals(2000, 1_100_000), NOW + 10)
    assert rates.duration == pytest.approx(1.0)


def test_one_slow_job_does_not_outweigh_a_thousand_at_once():
    rates = QueueRates()
    rates.fold(totals(1000, 100_000), NOW)
    rates.fold(totals(1001, 130_000), NOW + 1)
    assert rates.duration < 2


def test_flushed_totals_start_over():
    rates = QueueRates()
    rates.fold(totals(1000, 100_000), NOW)
    rates.fold(totals(2, 4_000), NOW + 10)
    assert rates.duration == 2.0


@given(st.lists(st.tuples(st.floats(0.1, 30), st.integers(0, 50)), min_size=1, max_size=60))
def test_the_window_holds_exactly_the_largest_wish_within_it(steps):
    memory, history, at, window = DemandHistory(), [], NOW, 60.0
    for pause, wish in steps:
        at += pause
        history.append((at, wish))
        held = memory.stabilized(wish, 0, window, at)
        assert held == max(w for t, w in history if t >= at - window)


def test_a_clock_set_back_does_not_freeze_the_pool():
    memory = DemandHistory()
    memory.stabilized(50, 0, 60.0, NOW + 3600)
    assert memory.stabilized(1, 50, 60.0, NOW) == 1
