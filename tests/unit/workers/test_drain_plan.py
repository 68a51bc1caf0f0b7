"""Who leaves, and in which steps; including what a crash between two steps leaves behind."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engineroom.workers.drain.plan import (
    DrainPlan,
    busy_pods,
    plan_drain,
    pods_to_drain,
    pods_to_protect,
    retired_pods,
    unaccounted,
    with_requested,
)
from tests.unit.workers.builders import NOW, pod, worker


def by_pod(*workers):
    found: dict[str, list] = {}
    for one in workers:
        found.setdefault(one.pod, []).append(one)
    return found


def busy(name, **fields):
    return worker(name, job=f"job-{name}", state="busy", **{"job_started": NOW - 10, **fields})


def test_nobody_leaves_when_the_size_is_right():
    leave = plan_drain([pod("a")], by_pod(worker("a")), replicas=1, target=1)
    assert leave == type(leave)()


def test_the_idle_go_before_the_busy():
    pods = [pod("a"), pod("b"), pod("c")]
    workers = by_pod(busy("a"), worker("b"), busy("c"))
    leave = plan_drain(pods, workers, replicas=3, target=2)
    assert [name for name, _ in leave.drain] == ["b.0.0a1b2c3d"]


def test_then_the_unready_and_the_youngest_job():
    pods = [pod("old"), pod("young"), pod("starting", ready=False, phase="Pending")]
    workers = by_pod(busy("old", job_started=NOW - 500), busy("young", job_started=NOW - 1))
    first = plan_drain(pods, workers, replicas=3, target=2)
    assert [p.name for p in first.mark] == ["starting"]
    second = plan_drain(pods, workers, replicas=3, target=1)
    assert [name for name, _ in second.drain] == ["young.0.0a1b2c3d"]


def test_each_step_waits_for_the_answer_to_the_one_before():
    pods = [pod("a")]

    def step(**fields):
        return plan_drain(pods, by_pod(worker("a", **fields)), replicas=1, target=0)

    assert step().drain
    assert step(drain="draining", job="j").drain
    assert not step(drain="draining", job="j").retire
    drained = step(drain="drained")
    assert (drained.drain, len(drained.retire), drained.mark) == ((), 1, ())
    retired = step(drain="retired")
    assert (retired.retire, [p.name for p in retired.mark], retired.shrink_by) == ((), ["a"], 0)


def test_the_deployment_shrinks_by_the_marked_only():
    pods = [pod("a", deletion_cost=-1000), pod("b"), pod("c")]
    workers = by_pod(worker("a", drain="retired"), worker("b", drain="draining"), busy("c"))
    assert plan_drain(pods, workers, replicas=3, target=1).shrink_by == 1


def test_a_shrink_under_way_is_not_counted_again():
    pods = [pod("a", deletion_cost=-1000), pod("b")]
    workers = by_pod(worker("a", drain="retired"), busy("b"))
    assert plan_drain(pods, workers, replicas=1, target=1).shrink_by == 0


def test_demand_is_back_and_the_drained_are_called_back():
    pods = [pod("a"), pod("b")]
    workers = by_pod(worker("a", drain="drained"), busy("b"))
    leave = plan_drain(pods, workers, replicas=2, target=2)
    assert leave.cancel == ("a.0.0a1b2c3d",)
    assert not leave.retire


def test_the_retired_go_even_when_demand_is_back():
    pods = [pod("a"), pod("b")]
    workers = by_pod(worker("a", drain="retired"), busy("b"))
    leave = plan_drain(pods, workers, replicas=2, target=2)
    assert [p.name for p in leave.mark] == ["a"]
    assert retired_pods(pods, workers) == [pods[0]]


def test_all_workers_of_a_pod_must_have_retired():
    pods = [pod("a")]
    two = by_pod(worker("a", drain="retired"), busy("a", slot=1, drain="draining"))
    leave = plan_drain(pods, two, replicas=1, target=0)
    assert (leave.mark, leave.shrink_by) == ((), 0)
    assert [name for name, _ in leave.drain] == ["a.1.0a1b2c3d"]


def test_a_pod_that_somebody_asked_to_drain_leaves_whatever_the_size():
    pods = [pod("a", drain_requested=True), pod("b")]
    leave = plan_drain(pods, by_pod(worker("a"), worker("b")), replicas=2, target=2)
    assert [name for name, _ in leave.drain] == ["a.0.0a1b2c3d"]


def test_leaving_pods_are_not_busy_pods():
    pods = [pod("a"), pod("b"), pod("c", deleting=True)]
    workers = by_pod(busy("a"), busy("b", drain="draining"), busy("c"))
    assert busy_pods(pods, workers) == 1


STATES = st.sampled_from(["", "draining", "drained", "retired"])


@given(
    crew=st.lists(st.tuples(STATES, st.booleans(), st.booleans()), max_size=8),
    target=st.integers(0, 8),
    replicas=st.integers(0, 8),
)
def test_who_holds_a_job_is_neither_retired_nor_counted_out(crew, target, replicas):
    """Whatever the state of things: no step forward for a worker that holds a job."""
    pods, everyone = [], []
    for index, (drain, is_busy, marked) in enumerate(crew):
        name = f"p{index}"
        if drain in ("drained", "retired"):
            is_busy = False  # what a worker says only with empty hands
        cost = -1000 if marked and drain == "retired" else 0
        pods.append(pod(name, deletion_cost=cost))
        everyone.append(busy(name, drain=drain) if is_busy else worker(name, drain=drain))
    leave = plan_drain(pods, by_pod(*everyone), replicas=replicas, target=target)
    holding = {w.name for w in everyone if w.busy}
    holding_pods = {w.pod for w in everyone if w.busy}
    assert not holding & {name for name, _ in leave.retire}
    assert not holding_pods & {p.name for p in leave.mark}
    marked_pods = sum(p.deletion_cost == -1000 for p in pods)
    assert leave.shrink_by <= marked_pods
    assert replicas - leave.shrink_by >= 0 or marked_pods > replicas


def test_pods_that_the_replicaset_was_told_to_delete_are_not_counted_again():
    # Right after the size was lowered from 3 to 1 all three are still seen.
    pods = [pod("a", deletion_cost=-1000), pod("b", deletion_cost=-1000), pod("c")]
    workers = by_pod(worker("a", drain="retired"), worker("b", drain="retired"), worker("c"))
    retired = retired_pods(pods, workers)
    assert unaccounted(retired, pods, 3) == 2
    assert unaccounted(retired, pods, 2) == 1
    assert unaccounted(retired, pods, 1) == 0
    assert plan_drain(pods, workers, replicas=1, target=1).shrink_by == 0


def test_workers_of_a_deleted_pod_take_no_more_jobs_even_if_the_signal_was_lost():
    pods = [pod("a", deleting=True), pod("b")]
    leave = plan_drain(pods, by_pod(busy("a"), busy("b")), replicas=1, target=1)
    assert leave.drain == (("a.0.0a1b2c3d", "uid-a"),)
    assert not leave.mark
    assert leave.shrink_by == 0


def test_only_long_jobs_protect_their_pod_and_only_idleness_ends_it():
    pods = [pod("short"), pod("long"), pod("kept", protected=True), pod("idle", protected=True)]
    workers = by_pod(
        busy("short", job_started=NOW - 2),
        busy("long", job_started=NOW - 30),
        busy("kept", job_started=NOW - 1),
        worker("idle"),
    )
    changes = {p.name: protect for p, protect in pods_to_protect(pods, workers, NOW)}
    assert changes == {"long": True, "idle": False}


def test_nobody_is_sent_away_while_a_new_template_rolls_out():
    # Three for two: the third is the new template's first, not one too many.
    pods = [pod("old-1"), pod("old-2"), pod("new-1")]
    workers = by_pod(*(worker(each.name) for each in pods))
    assert plan_drain(pods, workers, replicas=2, target=2, rolling=True) == DrainPlan()
    assert plan_drain(pods, workers, replicas=2, target=1, rolling=True) == DrainPlan()
    # A mark from before the roll-out: which pods a smaller size took would be anybody's guess.
    pods[0] = pod("old-1", deletion_cost=-1000)
    assert plan_drain(pods, workers, replicas=3, target=2, rolling=True).shrink_by == 0


def test_a_pool_that_goes_to_zero_does_not_wait_for_a_rollout():
    pods = [pod("old-1"), pod("new-1")]
    leave = plan_drain(
        pods, by_pod(worker("old-1"), worker("new-1")), replicas=1, target=0, rolling=True
    )
    assert len(leave.drain) == 2
    marked = [pod(name, deletion_cost=-1000) for name in ("old-1", "new-1")]
    assert plan_drain(marked, {}, replicas=1, target=0, rolling=True).shrink_by == 1


def test_the_deployment_shrinks_only_when_kubernetes_would_take_the_marked():
    marked, ready = pod("marked", deletion_cost=-1000), pod("ready")
    replacement = pod("new", phase="Pending", ready=False)
    workers = by_pod(worker("marked", drain="retired"), worker("ready"))
    # The replacement is not ready: it would go instead, and a new one come, for ever.
    assert plan_drain([marked, ready, replacement], workers, replicas=3, target=2).shrink_by == 0
    up = pod("new")
    assert plan_drain([marked, ready, up], workers, replicas=3, target=2).shrink_by == 1


def test_marked_pods_that_never_ran_go_before_those_that_do():
    pods = [
        pod("marked", deletion_cost=-1000),
        pod("unscheduled", deletion_cost=-1000, phase="Pending", ready=False, scheduled=False),
        pod("starting", phase="Pending", ready=False),
    ]
    workers = by_pod(worker("marked", drain="retired"))
    assert plan_drain(pods, workers, replicas=3, target=1).shrink_by == 1


def test_a_pod_that_its_pool_names_leaves_like_one_that_was_asked_itself():
    pods = [pod("a"), pod("b")]
    workers = by_pod(worker("a"), worker("b"))
    named = pods_to_drain({"engineroom.dev/drain-pods": "b, gone,"})
    assert named == {"b", "gone"}
    leave = plan_drain(with_requested(pods, named), workers, replicas=2, target=2)
    assert [name for name, _ in leave.drain] == ["b.0.0a1b2c3d"]
    assert (
        plan_drain(with_requested(pods, pods_to_drain(None)), workers, replicas=2, target=2)
        == DrainPlan()
    )
