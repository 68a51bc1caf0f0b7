"""What a pool's workers use, over time: percentiles, decay, peaks, and how little room it takes."""

from __future__ import annotations

import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engineroom.workers.rightsizing.usage import (
    BUCKETS,
    CPU,
    DAY,
    HALF_LIFE,
    MEMORY,
    PEAK_WINDOW,
    RATIO,
    Histogram,
    Peak,
    UsageProfile,
    UsageSample,
)

MEBI = 2.0**20
memories = st.floats(min_value=8 * MEBI, max_value=2.0**40)


@given(memories)
def test_a_bucket_s_bound_is_never_below_the_value_and_at_most_5_percent_above(value):
    bound = MEMORY.bound(MEMORY.bucket(value))
    assert value <= bound * (1 + 1e-9)
    assert bound <= value * RATIO * (1 + 1e-9)


def test_bounds_are_their_own_buckets():
    assert [CPU.bucket(CPU.bound(place)) for place in range(BUCKETS)] == list(range(BUCKETS))


@given(st.lists(memories, min_size=1, max_size=60), st.floats(min_value=0.01, max_value=1))
def test_a_percentile_is_the_one_of_the_sorted_samples_to_a_bucket(values, share):
    histogram = Histogram(MEMORY)
    for value in values:
        histogram.add(value, 0.0)
    exact = sorted(values)[math.ceil(share * len(values) - 1e-6) - 1]
    found = histogram.percentile(share)
    assert found is not None
    assert exact / 1.001 <= found <= exact * RATIO * 1.001


def test_nothing_is_known_of_no_samples():
    assert Histogram(CPU).percentile(0.9) is None
    assert Peak(CPU).value(0.0) is None


def test_a_sample_loses_half_its_weight_in_a_day():
    histogram = Histogram(CPU)
    for _ in range(30):
        histogram.add(1.0, 0.0)
    for _ in range(14):
        histogram.add(2.0, HALF_LIFE)
    assert histogram.percentile(0.5) == pytest.approx(1.0, rel=0.06)
    for _ in range(2):
        histogram.add(2.0, HALF_LIFE)
    assert histogram.percentile(0.5) == pytest.approx(2.0, rel=0.06)


def test_what_is_months_old_is_gone_and_takes_no_room():
    histogram = Histogram(MEMORY)
    histogram.add(2.0**40, 0.0)
    for day in range(120):
        histogram.add(64 * MEBI, day * DAY)
    assert histogram.percentile(1.0) == pytest.approx(64 * MEBI, rel=0.06)
    assert len(histogram) == 1


@given(
    st.lists(
        st.tuples(memories, st.floats(min_value=-DAY, max_value=30 * DAY)), min_size=1, max_size=40
    )
)
def test_clocks_that_jump_never_break_a_histogram(steps):
    histogram, at = Histogram(MEMORY), 1.8e9
    for value, step in steps:
        at += step
        histogram.add(value, at)
    found = histogram.percentile(0.9)
    assert found is not None
    assert math.isfinite(found)
    assert min(value for value, _ in steps) <= found * 1.001
    assert len(histogram) <= BUCKETS


@given(
    st.lists(
        st.tuples(memories, st.floats(min_value=0, max_value=3 * DAY)), min_size=1, max_size=60
    )
)
def test_the_peak_is_the_largest_of_the_window(steps):
    peak, at, seen = Peak(MEMORY), 0.0, []
    for value, step in steps:
        at += step
        peak.add(value, at)
        seen.append((at, value))
    exact = max(value for when, value in seen if when >= at - PEAK_WINDOW)
    found = peak.value(at)
    assert found is not None
    assert exact / 1.001 <= found <= exact * RATIO * 1.001
    assert len(peak) <= BUCKETS


def test_peaks_are_forgotten_after_eight_days():
    peak = Peak(MEMORY)
    peak.add(2.0**30, 0.0)
    peak.add(64 * MEBI, 7 * DAY)
    assert peak.value(8 * DAY) == pytest.approx(2.0**30, rel=0.06)
    assert peak.value(8 * DAY + 1) == pytest.approx(64 * MEBI, rel=0.06)


def test_a_kill_counts_as_more_than_the_limit():
    profile = UsageProfile()
    profile.killed(64 * MEBI, 0.0, 1.0)
    assert profile.memory_peak.value(0.0) >= 64 * MEBI + 100e6
    profile.killed(4096 * MEBI, 0.0, 1.0)
    assert profile.memory_peak.value(0.0) >= 4096 * MEBI * 1.2


def test_only_rounds_that_told_something_count_as_watched():
    profile = UsageProfile()
    profile.fold([], 0.0, 30.0)
    profile.fold([UsageSample()], 30.0, 30.0)
    assert (profile.watched, profile.version) == (0.0, 0)
    profile.fold([UsageSample(memory=64 * MEBI)], 60.0, 30.0)
    assert (profile.watched, profile.version, profile.memory_samples) == (30.0, 1, 1)


def test_a_profile_stays_small_whatever_it_sees():
    profile = UsageProfile()
    for place in range(10_000):
        use = 0.01 * 1.002 ** (place % 5_000)
        profile.fold([UsageSample(use, use * 2.0**30, use * 2.0**30)], place * 60.0, 60.0)
    for histogram in (profile.cpu, profile.memory):
        assert len(histogram) <= BUCKETS
    for peak in (profile.cpu_peak, profile.memory_peak):
        assert len(peak) <= BUCKETS
    weights = sys.getsizeof(profile.cpu._weights) + sys.getsizeof(profile.memory._weights)
    assert weights < 2_500
