"""What a pod's container is resized to, and when it is better left alone."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engineroom.workers.projections import ContainerView, container_view
from engineroom.workers.resources import NO_RESOURCES, ResourceAmounts
from engineroom.workers.rightsizing.resizing import (
    needing_restart,
    plan_resize,
    resize_patch,
    supported,
)

MEBI = 2.0**20
PRESENT = ResourceAmounts(0.1, 128 * MEBI, None, 256 * MEBI)


def container(desired: ResourceAmounts = PRESENT, **fields: Any) -> ContainerView:
    return ContainerView("app", **{"running": True, "desired": desired, **fields})


def test_what_differs_is_asked_for_and_nothing_else():
    found = plan_resize(container(), ResourceAmounts(0.2, 130 * MEBI, 1.0, 512 * MEBI), None)
    assert found == ResourceAmounts(0.2, 128 * MEBI, None, 512 * MEBI)
    patch = resize_patch(container(), "uid-1", found)
    assert patch == {
        "metadata": {"uid": "uid-1"},
        "spec": {
            "containers": [
                {
                    "name": "app",
                    "resources": {"requests": {"cpu": "200m"}, "limits": {"memory": "512Mi"}},
                }
            ]
        },
    }


def test_what_hardly_differs_is_left():
    assert (
        plan_resize(container(), ResourceAmounts(0.105, 130 * MEBI, None, 260 * MEBI), None) is None
    )


def test_nothing_is_asked_for_without_a_recommendation_or_of_a_container_that_does_not_run():
    assert plan_resize(container(), NO_RESOURCES, 1.0) is None
    assert plan_resize(container(running=False), ResourceAmounts(cpu_request=1.0), 1.0) is None


@pytest.mark.parametrize(
    ("use", "limit"),
    [(None, 256), (50 * MEBI, 64), (100 * MEBI, 120), (230 * MEBI, 256)],
)
def test_a_memory_limit_is_not_lowered_below_use(use, limit):
    lower = ResourceAmounts(memory_request=64 * MEBI, memory_limit=64 * MEBI)
    found = plan_resize(container(), lower, use)
    assert found is not None
    assert found.memory_request == 64 * MEBI
    assert found.memory_limit == pytest.approx(limit * MEBI)


def test_a_request_never_ends_up_above_the_limit():
    only = plan_resize(container(), ResourceAmounts(memory_request=400 * MEBI), None)
    assert only is not None
    assert only.memory_request == only.memory_limit == 256 * MEBI


def test_a_resource_that_would_restart_the_container_is_left_alone():
    picky = container(restarts_for=frozenset({"memory"}))
    wanted = ResourceAmounts(0.2, 64 * MEBI, None, 512 * MEBI)
    assert plan_resize(picky, wanted, None) == ResourceAmounts(0.2, 128 * MEBI, None, 256 * MEBI)
    assert needing_restart(picky, wanted) == ["memory"]
    assert needing_restart(picky, ResourceAmounts(cpu_request=0.2)) == []
    assert needing_restart(container(restarts_for=frozenset({"nvidia.com/gpu"})), wanted) == []


amounts = st.one_of(st.none(), st.floats(min_value=0.01, max_value=64))
bytes_ = st.one_of(st.none(), st.floats(min_value=16 * MEBI, max_value=2.0**36))
anything = st.builds(ResourceAmounts, amounts, bytes_, amounts, bytes_)


@given(anything, anything, bytes_)
def test_asking_is_safe_and_comes_to_rest(desired, recommended, use):
    if desired.memory_limit is not None and (desired.memory_request or 0) > desired.memory_limit:
        return
    if desired.cpu_limit is not None and (desired.cpu_request or 0) > desired.cpu_limit:
        return
    found = plan_resize(container(desired), recommended, use)
    if found is None:
        return
    for name in ("cpu_limit", "memory_limit"):
        assert (getattr(found, name) is None) == (getattr(desired, name) is None)
    if found.memory_limit is not None and found.memory_limit < desired.memory_limit:
        assert use is not None
        assert found.memory_limit >= use
    assert found.memory_limit is None or (found.memory_request or 0) <= found.memory_limit
    assert found.cpu_limit is None or (found.cpu_request or 0) <= found.cpu_limit
    assert plan_resize(container(found), recommended, use) is None


def pod(**status: Any) -> dict[str, Any]:
    return {
        "spec": {
            "containers": [
                {"name": "injected", "resources": {"limits": {"cpu": "9"}}},
                {
                    "name": "app",
                    "command": ["/engineroom/start", "python3", "-m", "engineroom_worker"],
                    "resources": {"requests": {"cpu": "100m"}, "limits": {"memory": "256Mi"}},
                    "resizePolicy": [
                        {"resourceName": "cpu", "restartPolicy": "NotRequired"},
                        {"resourceName": "memory", "restartPolicy": "RestartContainer"},
                    ],
                },
            ]
        },
        "status": status,
    }


def test_the_worker_container_is_known_by_what_it_runs():
    found = container_view(pod())
    assert found is not None
    assert (found.name, found.running, found.oom_killed) == ("app", False, None)
    assert found.desired == ResourceAmounts(cpu_request=0.1, memory_limit=256 * MEBI)
    assert found.restarts_for == {"memory"}
    assert container_view({"spec": {"containers": [{"name": "x"}]}}) is None
    assert container_view({}) is None


@pytest.mark.parametrize(
    ("conditions", "word"),
    [
        ([], ""),
        ([("PodResizePending", "False", "Deferred")], ""),
        ([("PodResizePending", "True", "Deferred")], "Deferred"),
        ([("PodResizePending", "True", "Infeasible")], "Infeasible"),
        ([("PodResizeInProgress", "True", "")], "InProgress"),
        ([("PodResizeInProgress", "True", "Error")], "Error"),
        (
            [("PodResizeInProgress", "True", "Error"), ("PodResizePending", "True", "Deferred")],
            "Deferred",
        ),
    ],
)
def test_what_became_of_a_resize(conditions, word):
    told = [{"type": t, "status": s, "reason": r, "message": "m"} for t, s, r in conditions]
    found = container_view(pod(conditions=told))
    assert found is not None
    assert found.resize == word
    assert found.resize_message == ("m" if word else "")


@pytest.mark.parametrize("state", ["state", "lastState"])
def test_a_kill_for_memory_is_seen_and_another_end_is_not(state):
    def told(reason: str) -> float | None:
        ended = {"reason": reason, "exitCode": 137, "finishedAt": "2026-11-23T00:00:00Z"}
        status = {
            "name": "app",
            "resources": {"limits": {"memory": "512Mi"}},
            state: {"terminated": ended},
        }
        found = container_view(pod(containerStatuses=[status]))
        assert found is not None
        assert found.actual.memory_limit == 512 * MEBI
        return found.oom_killed

    assert told("OOMKilled") == 1795392000.0
    assert told("Error") is None


@pytest.mark.parametrize(
    ("version", "works"),
    [
        ({"major": "1", "minor": "35"}, True),
        ({"major": "1", "minor": "37+"}, True),
        ({"major": "2", "minor": "0"}, True),
        ({"major": "1", "minor": "34"}, False),
        ({"major": "", "minor": ""}, False),
        ({"major": "one", "minor": "35"}, False),
        ({}, False),
    ],
)
def test_old_servers_do_not_resize(version, works):
    assert supported(version) is works
