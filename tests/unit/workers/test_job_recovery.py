"""Who is dead: never by heartbeat alone, never by pod alone."""

from __future__ import annotations

import pytest

from engineroom.queue.observe import PoolFacts
from engineroom.workers.job_recovery import find_dead, find_stuck
from tests.unit.workers.builders import NOW, pod, worker


def dead(workers, pods):
    found = find_dead(PoolFacts(at=NOW, queues=(), workers=tuple(workers)), pods)
    return [(one.worker.pod, one.evidence) for one in found]


def test_pod_gone_and_silent():
    assert dead([worker("a", heartbeat=NOW - 16)], []) == [("a", "its pod is gone")]


def test_pod_gone_but_still_heard():
    assert dead([worker("a", heartbeat=NOW - 3)], []) == []


def test_silent_but_the_pod_is_there():
    assert dead([worker("a", heartbeat=NOW - 600)], [pod("a")]) == []


def test_a_namesake_pod_is_another_pod():
    silent = worker("a", heartbeat=NOW - 20, pod_uid="old")
    assert dead([silent], [pod("a")]) == [("a", "its pod is gone")]


def test_a_younger_worker_in_the_same_place():
    old = worker("a", heartbeat=NOW - 20, birth=NOW - 900)
    new = worker("a", birth=NOW - 18)
    assert dead([old, new], [pod("a")]) == [("a", "its container was started anew")]


@pytest.mark.parametrize("phase", ["Failed", "Succeeded"])
def test_an_ended_pod(phase):
    silent = worker("a", heartbeat=NOW - 20)
    assert dead([silent], [pod("a", phase=phase)]) == [("a", f"its pod is {phase}")]


def test_an_unready_pod_gets_a_minute():
    unready = [pod("a", ready=False)]
    assert dead([worker("a", heartbeat=NOW - 40)], unready) == []
    assert dead([worker("a", heartbeat=NOW - 61)], unready) == [("a", "its pod is not ready")]


def stuck(workers, pods):
    found = find_stuck(PoolFacts(at=NOW, queues=(), workers=tuple(workers)), pods)
    return [one.evidence for one in found]


def test_silent_in_a_pod_that_is_ready_is_stuck():
    assert stuck([worker("a", heartbeat=NOW - 61)], [pod("a")]) == [
        "has sent no heartbeat for a minute and its pod is ready"
    ]
    assert stuck([worker("a", heartbeat=NOW - 59)], [pod("a")]) == []


def test_whoever_is_dead_is_not_stuck_too():
    silent = worker("a", heartbeat=NOW - 600)
    assert stuck([silent], []) == []
    assert stuck([silent], [pod("a", phase="Failed")]) == []
    assert stuck([silent], [pod("a", ready=False)]) == []
    assert stuck([silent], [pod("a", deleting=True)]) == []


def test_a_job_far_beyond_its_time_out_is_stuck():
    late = {"job": "j1", "job_started": NOW - 301, "job_timeout": 180.0}
    assert stuck([worker("a", **late)], [pod("a")]) == ["runs job j1 beyond its time-out"]
    assert stuck([worker("a", **{**late, "job_started": NOW - 299})], [pod("a")]) == []
    assert stuck([worker("a", **{**late, "job_timeout": None})], [pod("a")]) == []
