"""Sizing: from a spec and an observation to a number and a sentence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engineroom.workers.decide import SizeDecision, SizeInputs, decide_size
from engineroom.workers.demand import DemandHistory, QueueRates
from engineroom.workers.plan import plan_of
from tests.unit.workers.builders import NOW, facts, plan, pool


def memory(duration: float | None = None, **queue: float) -> DemandHistory:
    kept = DemandHistory()
    if duration is not None:
        kept.rates["mail"] = QueueRates(duration=duration, **queue)
    return kept


def size(
    spec: dict[str, object],
    seen: dict[str, object],
    *,
    duration: float | None = None,
    current: int | None = 0,
    busy_pods: int = 0,
    kept: DemandHistory | None = None,
) -> SizeDecision:
    observation = SizeInputs(at=NOW, facts=facts(**seen), current=current, busy_pods=busy_pods)
    return decide_size(plan(**spec), observation, kept or memory(duration))


def test_an_empty_queue_wants_nobody():
    assert size({}, {}).replicas == 0


def test_a_hundred_jobs_of_unknown_length_get_a_hundred_workers_in_one_step():
    decision = size({"maxReplicas": 200}, {"waiting": 100})
    assert decision.replicas == 100
    assert decision.sentence == "100 pods: 100 jobs, duration not known yet: a worker each"


def test_the_design_s_own_example():
    decision = size({"maxReplicas": 20}, {"waiting": 840}, duration=0.25)
    assert decision.replicas == 7
    assert decision.sentence == "7 pods: 840 waiting x 0.25 s each within 30 s"


def test_long_jobs_get_a_worker_each_and_never_more():
    assert size({"maxReplicas": 50}, {"waiting": 12}, duration=600).replicas == 12


def test_what_has_waited_long_counts_as_more_urgent():
    calm = size({"maxReplicas": 50}, {"waiting": 100}, duration=3)
    late = size({"maxReplicas": 50}, {"waiting": 100, "oldest_enqueued": NOW - 20}, duration=3)
    assert (calm.replicas, late.replicas) == (10, 30)


def test_running_jobs_keep_their_workers():
    assert size({}, {"running": 3}, duration=0.01, current=3).replicas == 3


def test_never_below_the_busy_pods():
    decision = size(
        {"scaleDown": {"stabilizationWindow": "0s"}}, {}, current=5, busy_pods=4, kept=settled()
    )
    assert decision.replicas == 4
    assert "4 pods busy" in decision.sentence


def test_no_more_workers_than_a_limit_of_the_queue_lets_work():
    wide = {"maxReplicas": 200}
    decision = size(wide, {"waiting": 1000, "concurrency": 2, "running": 1})
    assert decision.replicas == 2
    assert decision.sentence.endswith(", limited to 2 at once")
    rate = {"waiting": 1000, "rate": 10.0, "burst": 10}
    assert size(wide, rate, duration=0.5).replicas == 5
    assert size(wide, rate).replicas == 10
    assert size(wide, {**rate, "running": 7}, duration=0.5).replicas == 7
    assert "limited to 10 a second" in size(wide, rate, duration=0.5).sentence
    assert size({**wide, "targetBacklogPerWorker": 1}, rate, duration=0.5).replicas == 5
    assert size(wide, {"concurrency": 2, "rate": 1.0, "burst": 1}).sentence == (
        "0 pods: nothing waits"
    )


def test_several_workers_share_a_pod():
    wide = plan_of(pool(workersPerPod=4, autoscaling={}))
    decision = decide_size(
        wide, SizeInputs(at=NOW, facts=facts(waiting=9), current=0), DemandHistory()
    )
    assert decision.replicas == 3


def test_backlog_per_worker_instead_of_latency():
    decision = size({"targetBacklogPerWorker": 20}, {"waiting": 90, "running": 10}, duration=9)
    assert decision.replicas == 5
    assert "100 waiting or running / 20 a worker" in decision.sentence


@pytest.mark.parametrize(
    ("spec", "seen", "replicas", "limited"),
    [
        ({"maxReplicas": 3}, {"waiting": 50}, 3, "AtMaxReplicas"),
        ({"minReplicas": 2}, {}, 2, "AtMinReplicas"),
        ({"maxReplicas": 60}, {"waiting": 50}, 50, ""),
    ],
)
def test_limits_say_so(spec, seen, replicas, limited):
    decision = size(spec, seen, current=2, kept=settled())
    assert (decision.replicas, decision.limited) == (replicas, limited)


@pytest.mark.parametrize(
    ("pause", "up", "down"),
    [("None", 9, 0), ("All", 4, 4), ("ScaleIn", 9, 4), ("ScaleOut", 4, 0)],
)
def test_pause_holds_the_direction_it_names(pause, up, down):
    spec = {
        "pause": pause,
        "idleTimeout": "0s",
        "scaleDown": {"stabilizationWindow": "0s"},
    }
    assert size(spec, {"waiting": 9}, current=4).replicas == up
    assert size(spec, {}, current=4, kept=settled()).replicas == down


def settled() -> DemandHistory:
    kept = DemandHistory()
    kept.wanted.append((NOW - 1000, 0))
    kept.last_busy = NOW - 1000
    return kept


def test_shrinking_waits_for_the_window_and_then_for_the_idle_timeout():
    spec = {"scaleDown": {"stabilizationWindow": "60s"}, "idleTimeout": "100s"}
    kept = DemandHistory(last_busy=NOW)
    sizes = {}
    for after in (0, 30, 59, 61, 99, 101):
        seen = SizeInputs(at=NOW + after, facts=facts(at=NOW + after), current=5)
        sizes[after] = decide_size(plan(**spec), seen, kept).replicas
    assert sizes == {0: 5, 30: 5, 59: 5, 61: 1, 99: 1, 101: 0}


def test_a_restarted_operator_does_not_shrink_at_first_sight():
    decision = size({}, {}, current=8, kept=DemandHistory())
    assert decision.replicas == 8
    assert "8 kept" in decision.sentence


def test_a_restarted_operator_says_of_a_pool_at_its_floor_what_it_said_before():
    spec = {"minReplicas": 2}
    before = size(spec, {}, current=2, kept=settled())
    assert size(spec, {}, current=2, kept=DemandHistory()) == before


def test_a_minute_lets_only_so_many_go():
    spec = {"scaleDown": {"stabilizationWindow": "0s", "maxPodsPerMinute": 3}}
    kept = settled()
    kept.removals.extend([NOW - 70, NOW - 10])
    decision = size(spec, {}, current=10, kept=kept)
    assert (decision.replicas, decision.limited) == (8, "RateLimited")


def test_redis_away_keeps_the_size():
    seen = SizeInputs(at=NOW, facts=None, current=6, outage="no answer")
    decision = decide_size(plan(minReplicas=1), seen, DemandHistory())
    assert decision.replicas == 6
    assert decision.sentence == "6 pods: kept while blind (no answer)"


def test_redis_away_with_a_declared_fallback():
    spec = pool(autoscaling={}, metricOutage={"mode": "Fallback", "replicas": 4})
    seen = SizeInputs(at=NOW, facts=None, current=1)
    assert decide_size(plan_of(spec), seen, DemandHistory()).replicas == 4


def test_suspended_pools_do_not_grow_on_the_backlog_they_hold_back():
    spec = pool(suspend=True, autoscaling={})
    seen = SizeInputs(at=NOW, facts=facts(waiting=500), current=2)
    assert decide_size(plan_of(spec), seen, DemandHistory()).replicas == 2


def test_by_hand():
    seen = SizeInputs(at=NOW, facts=facts(waiting=500), current=1)
    decision = decide_size(plan_of(pool(replicas=3)), seen, DemandHistory())
    assert (decision.replicas, decision.sentence) == (3, "3 pods: set by hand in spec.replicas")


@given(
    waiting=st.integers(0, 10**6),
    running=st.integers(0, 500),
    duration=st.one_of(st.none(), st.floats(0.001, 10_000)),
    current=st.one_of(st.none(), st.integers(0, 300)),
    least=st.integers(0, 20),
    more=st.integers(0, 200),
    waited=st.floats(-100, 10**6),
)
def test_always_within_min_and_max(waiting, running, duration, current, least, more, waited):
    spec = {"minReplicas": least, "maxReplicas": max(1, least + more)}
    decision = size(
        spec,
        {"waiting": waiting, "running": running, "oldest_enqueued": NOW - waited},
        duration=duration,
        current=current,
    )
    assert spec["minReplicas"] <= decision.replicas <= spec["maxReplicas"]
    if waiting and decision.limited == "":
        assert decision.replicas >= 1
