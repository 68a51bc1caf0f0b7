"""Who is dead: never by heartbeat alone, never by pod alone."""

from __future__ import annotations

import pytest

from engineroom.queue.observe import PoolFacts
from engineroom.workers.recovering import find_dead
from tests.unit.workers.builders import NOW, pod, worker


def dead(workers, pods):
    found = find_dead(PoolFacts(at=NOW, queues=(), workers=tuple(workers)), pods)
    return [(one.worker.pod, one.why) for one in found]


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
