"""Which resources use suggests: from percentiles and peaks, up at once, down after long thought."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engineroom.api.quantity import parse_quantity
from engineroom.api.v1alpha1.workerpool import RightSizing, RightSizingMode
from engineroom.workers.plan import plan_of
from engineroom.workers.resources import NO_RESOURCES, RESOURCE_NAMES, ResourceAmounts
from engineroom.workers.rightsizing.recommendation import (
    HEADROOM,
    LEAST_SAMPLES,
    MARGIN,
    THRESHOLD,
    PatientValue,
    Recommender,
    SizingPlan,
    rounded,
    sizing_plan,
    wants,
)
from engineroom.workers.rightsizing.usage import DAY, UsageSample
from tests.unit.workers import builders

MEBI = 2.0**20
PATIENCE = 3600.0
ROUND = 30.0
TEMPLATE = {
    "requests": {"cpu": "100m", "memory": "128Mi"},
    "limits": {"memory": "256Mi"},
}


def plan(resources: object = TEMPLATE, **spec: object) -> SizingPlan:
    return sizing_plan(RightSizing.model_validate(spec), resources)  # type: ignore[arg-type]


class Watch:
    """A recommender and its time."""

    def __init__(
        self, sizing: SizingPlan, published: ResourceAmounts = NO_RESOURCES, at: float = 0.0
    ) -> None:
        self.plan, self.at = sizing, at
        self.recommender = Recommender.begin(sizing, published, at)

    def round(self, *samples: UsageSample) -> ResourceAmounts:
        self.at += ROUND
        self.recommender.profile.fold(list(samples), self.at, ROUND)
        return self.look()

    def look(self) -> ResourceAmounts:
        return self.recommender.step(self.plan, self.at, PATIENCE)

    def rounds(self, seconds: float, *samples: UsageSample) -> ResourceAmounts:
        found = ResourceAmounts()
        for _ in range(int(seconds / ROUND)):
            found = self.round(*samples)
        return found


def test_little_known_recommends_nothing():
    watch = Watch(plan())
    assert not watch.rounds(PATIENCE - 2 * ROUND, UsageSample(0.05, 60 * MEBI))


def test_after_its_patience_it_recommends_what_is_used_and_some_room():
    found = Watch(plan()).rounds(PATIENCE + 10 * ROUND, UsageSample(0.05, 60 * MEBI))
    assert found.cpu_request == pytest.approx(0.05 * MARGIN, rel=0.16)
    assert found.memory_request == pytest.approx(60 * MEBI * MARGIN, rel=0.12)
    assert found.memory_limit == pytest.approx(60 * MEBI * HEADROOM, rel=0.12)
    assert found.cpu_limit is None


def test_a_peak_raises_the_limit_at_once_and_nothing_else():
    watch = Watch(plan())
    watch.rounds(300, UsageSample(0.05, 60 * MEBI))
    found = watch.round(UsageSample(0.05, 60 * MEBI, 300 * MEBI))
    assert found.memory_limit >= 300 * MEBI * HEADROOM
    assert found.memory_request == 128 * MEBI
    assert found.cpu_request == pytest.approx(0.1)


def test_a_handful_of_samples_raises_no_request():
    watch = Watch(plan())
    for _ in range(LEAST_SAMPLES - 1):
        assert not watch.round(UsageSample(0.9, 60 * MEBI))
    assert watch.round(UsageSample(0.9, 60 * MEBI)).cpu_request >= 0.9


def test_nine_of_ten_count_for_requests_and_all_for_limits():
    watch, found = Watch(plan()), ResourceAmounts()
    for turn in range(400):
        rare = turn % 20 == 0
        found = watch.round(UsageSample(2.0 if rare else 0.2, (200 if rare else 100) * MEBI))
    assert found.cpu_request < 0.3
    assert found.memory_request < 140 * MEBI
    assert found.memory_limit >= 200 * MEBI * HEADROOM


def test_a_kill_raises_the_limit_beyond_what_it_was():
    watch = Watch(plan())
    watch.recommender.profile.killed(256 * MEBI, 0.0, HEADROOM)
    found = watch.look()
    assert found.memory_limit >= 256 * MEBI + 100e6
    again = watch.look()
    assert again == found


def test_bounds_hold_at_once_whatever_was_used():
    narrow = plan(minAllowed={"cpu": "200m", "memory": "64Mi"}, maxAllowed={"memory": "100M"})
    watch = Watch(narrow)
    found = watch.rounds(PATIENCE + 300, UsageSample(0.01, 500 * MEBI))
    assert found.memory_limit == found.memory_request == 100e6
    assert found.resources()["limits"]["memory"] == "100000000"
    assert found.cpu_request == pytest.approx(0.2)


def test_a_cpu_limit_is_recommended_only_where_there_is_one():
    limited = plan({"requests": {"cpu": "100m"}, "limits": {"cpu": "200m"}})
    found = Watch(limited).rounds(120, UsageSample(0.2, 60 * MEBI), UsageSample(0.2, 60 * MEBI))
    assert found.cpu_limit == pytest.approx(0.24, rel=0.1)


def test_requests_that_are_limits_stay_so():
    same = plan({"requests": {"memory": "128Mi"}, "limits": {"memory": "128Mi"}})
    found = Watch(same).round(UsageSample(0.1, 60 * MEBI, 300 * MEBI))
    assert found.memory_request == found.memory_limit >= 300 * MEBI * HEADROOM


def test_a_successor_goes_on_from_what_was_published():
    before = Watch(plan()).rounds(PATIENCE + 300, UsageSample(0.05, 60 * MEBI))
    after = Watch(plan(), ResourceAmounts.of(before.resources()), at=2 * PATIENCE)
    assert after.look() == before
    assert after.rounds(1800, UsageSample(0.05, 60 * MEBI)) == before


def test_a_limit_that_is_new_in_the_template_is_where_a_successor_begins():
    published = ResourceAmounts.of({"requests": {"cpu": "100m", "memory": "128Mi"}})
    limited = plan({**TEMPLATE, "limits": {"cpu": "200m", "memory": "256Mi"}})
    found = Watch(limited, published).round(UsageSample(0.4, 60 * MEBI))
    assert found.cpu_limit >= 0.4
    assert found.memory_limit == 256 * MEBI


def test_a_published_peak_is_not_forgotten_by_a_restart_before_a_day():
    published = ResourceAmounts.of({"limits": {"memory": "2Gi"}, "requests": {"memory": "128Mi"}})
    watch = Watch(plan(), published)
    assert watch.rounds(DAY - 3600, UsageSample(None, 60 * MEBI)).memory_limit == 2048 * MEBI
    assert watch.rounds(7200 + PATIENCE, UsageSample(None, 60 * MEBI)).memory_limit < 128 * MEBI


def test_resources_that_somebody_raised_are_not_lowered_at_once():
    watch = Watch(plan())
    low = watch.rounds(PATIENCE + 300, UsageSample(0.05, 60 * MEBI))
    watch.plan = plan({"requests": {"cpu": "1", "memory": "128Mi"}, "limits": {"memory": "1Gi"}})
    raised = watch.look()
    assert raised.memory_limit == 1024 * MEBI
    assert raised.cpu_request == 1.0
    assert raised.memory_request == low.memory_request


loads = st.lists(
    st.tuples(
        st.floats(min_value=0.001, max_value=8.0),
        st.floats(min_value=20 * MEBI, max_value=4096 * MEBI),
        st.integers(min_value=1, max_value=80),
    ),
    min_size=1,
    max_size=12,
)


@given(loads)
@settings(deadline=None, max_examples=60)
def test_it_never_starves_never_hurries_down_and_keeps_its_bounds(load):
    sizing = plan(minAllowed={"cpu": "50m"}, maxAllowed={"cpu": "4", "memory": "2Gi"})
    watch, lowered = Watch(sizing), dict.fromkeys(RESOURCE_NAMES, float("-inf"))
    before: dict[str, float | None] = {}
    for cpu, memory, rounds in load:
        for _ in range(rounds):
            found = watch.round(UsageSample(cpu, memory))
            held = {name: each.value for name, each in watch.recommender.values.items()}
            watched = watch.recommender.profile.watched
            for name, value in held.items():
                was = before.get(name)
                if value is not None and was is not None and value < was:
                    assert watched - lowered[name] >= PATIENCE
                    lowered[name] = watched
            before = held
            if not found:
                continue
            wanted = wants(watch.recommender.profile, sizing, watch.at)
            for name in RESOURCE_NAMES:
                now, want = getattr(found, name), getattr(wanted, name)
                if now is not None:
                    assert now == sizing.bounded(name, now)
                    assert want is None or now >= want / (1 + THRESHOLD) - 1e-9
            assert found.cpu_limit is None
            assert found.memory_limit is None or found.memory_request <= found.memory_limit


@given(
    st.floats(min_value=0.02, max_value=4.0),
    st.floats(min_value=32 * MEBI, max_value=2048 * MEBI),
    st.integers(min_value=0, max_value=2**16),
)
@settings(deadline=None, max_examples=15)
@example(cpu=1.984375, memory=33554432.0, seed=997)
def test_steady_use_with_noise_comes_to_rest(cpu, memory, seed):
    chance = random.Random(seed)
    watch, seen = Watch(plan()), []
    for _ in range(1200):
        noise = chance.uniform(0.9, 1.1)
        seen.append(watch.round(UsageSample(cpu * noise, memory * noise)))
    settled = seen[int(2 * PATIENCE / ROUND) :]
    for name in RESOURCE_NAMES:
        values = [getattr(found, name) or 0.0 for found in settled]
        # A percentile near a bucket's edge may still move it up once, and never back.
        assert values == sorted(values)
        assert len(set(values)) <= 2


def test_work_that_comes_and_goes_does_not_make_it_flap():
    watch, changes, before = Watch(plan()), 0, ResourceAmounts()
    for turn in range(3 * 2880):
        busy = turn // 20 % 10 == 0  # a tenth of the time, which is where the percentile lies
        found = watch.round(UsageSample(1.0 if busy else 0.05, (400 if busy else 60) * MEBI))
        if turn > 2880 and found != before:
            changes += 1
        before = found
    assert changes <= 2


@given(st.floats(min_value=0.001, max_value=64), st.floats(min_value=MEBI, max_value=2.0**38))
def test_what_is_written_is_not_less_and_hardly_more(cpu, memory):
    assert cpu <= rounded("cpu_request", cpu) + 1e-6
    assert rounded("cpu_request", cpu) <= max(cpu + 0.001, cpu * 1.1) + 0.001
    assert memory <= rounded("memory_limit", memory)
    assert rounded("memory_limit", memory) <= memory * 1.0625 + MEBI * 1.0625
    for name, value in (("cpu_request", cpu), ("memory_limit", memory)):
        assert rounded(name, rounded(name, value)) == rounded(name, value)
    said = ResourceAmounts(cpu_request=rounded("cpu_request", cpu)).resources()["requests"]["cpu"]
    assert float(parse_quantity(said)) == pytest.approx(rounded("cpu_request", cpu))


def test_held_falls_to_the_most_that_was_wanted_meanwhile():
    held = PatientValue(10.0)
    for watched, wanted in ((0, 2.0), (50, 5.0), (99, 3.0)):
        held.step(wanted, watched, 100.0)
        assert held.value == 10.0
    held.step(1.0, 100, 100.0)
    assert held.value == 5.0


def test_a_spec_without_resources_is_off_or_begins_from_nothing():
    made = plan_of(builders.pool(rightSizing={"mode": "Off"})).right_sizing
    assert (made.mode, made.template) == (RightSizingMode.OFF, ResourceAmounts())
    watch = Watch(plan(None))
    assert not watch.rounds(PATIENCE - 60, UsageSample(0.05, 60 * MEBI))
    assert watch.rounds(120, UsageSample(0.05, 60 * MEBI)).memory_limit is not None
