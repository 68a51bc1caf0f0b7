"""Status from what was seen: reasons in words, and nothing new at the fixed point."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from engineroom.core.errors import InvalidSpecError, Problem
from engineroom.workers.decide import Decision
from engineroom.workers.projections import DeploymentView
from engineroom.workers.status import Seen, invalid_status, pool_status
from tests.unit.workers.builders import facts, plan, pod

NOW = datetime(2026, 11, 23, tzinfo=UTC)


def deployed(replicas: int = 2, ready: int = 2, **fields: Any) -> DeploymentView:
    values: dict[str, Any] = {
        "name": "mail", "uid": "u", "resource_version": "5", "generation": 1,
        "observed_generation": 1, "replicas": replicas, "status_replicas": replicas,
        "ready": ready, "updated": replicas, "unavailable": 0, "inputs_hash": "x", **fields,
    }  # fmt: skip
    return DeploymentView(**values)


def seen(now: datetime = NOW, **fields: Any) -> Seen:
    values: dict[str, Any] = {
        "generation": 3, "now": now, "deployment": deployed(), "pods": [],
        "facts": facts(waiting=4), "decision": Decision(2, "2 pods: because", 2), **fields,
    }  # fmt: skip
    return Seen(**values)


def condition(status: dict[str, Any], kind: str) -> tuple[str, str]:
    found = next(c for c in status["conditions"] if c["type"] == kind)
    return found["status"], found["reason"]


def test_the_same_sight_later_is_the_same_status():
    first = pool_status("mail", plan(), {}, seen())
    assert pool_status("mail", plan(), first, seen(NOW + timedelta(hours=1))) == first


def test_at_work():
    status = pool_status("mail", plan(), {}, seen())
    assert condition(status, "Ready") == ("True", "Reconciled")
    assert condition(status, "Stalled")[0] == "False"
    assert status["decision"] == "2 pods: because"
    assert status["queues"] == [
        {"name": "mail", "depth": 4, "running": 0, "scheduled": 0, "failed": 0}
    ]


def test_redis_away_keeps_the_last_figures_and_says_why():
    before = pool_status("mail", plan(), {}, seen())
    blind = seen(facts=None, redis_trouble=("RedisUnreachable", "no answer"))
    status = pool_status("mail", plan(), before, blind)
    assert status["queues"] == before["queues"]
    assert condition(status, "RedisReachable") == ("False", "RedisUnreachable")
    assert condition(status, "ScalingActive") == ("False", "MetricOutage")
    assert condition(status, "Ready") == ("False", "RedisUnreachable")


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        (("ImagePullBackOff", "not there"), "ImagePullFailed"),
        (("CrashLoopBackOff", "RQ is not installed in this image; add rq"), "NoRqInImage"),
        (("CreateContainerConfigError", 'secret "redis" not found'), "SecretNotFound"),
        (("StartError", 'exec: "python3": not found'), "PodsNotReady"),
    ],
)
def test_what_keeps_a_pod_from_running(trouble, reason):
    status = pool_status("mail", plan(), {}, seen(pods=[pod("a", ready=False, trouble=trouble)]))
    assert condition(status, "Ready") == ("False", reason)


def test_pods_that_are_starting_are_no_trouble():
    status = pool_status("mail", plan(), {}, seen(deployment=deployed(ready=0)))
    assert condition(status, "Ready") == ("True", "Reconciled")
    assert condition(status, "Reconciling") == ("True", "Scaling")


def test_quota():
    failure = ("FailedCreate", 'pods "a" is forbidden: exceeded quota: small')
    status = pool_status("mail", plan(), {}, seen(deployment=deployed(replica_failure=failure)))
    assert condition(status, "Ready") == ("False", "QuotaExceeded")


def test_a_wrong_spec_stalls_and_keeps_the_rest():
    before = pool_status("mail", plan(), {}, seen())
    error = InvalidSpecError([Problem("spec.queues[0].name", "is empty", "name the queue")])
    status = invalid_status(before, error, 4, NOW)
    assert condition(status, "Stalled") == ("True", "InvalidSpec")
    assert condition(status, "Ready") == ("False", "InvalidSpec")
    assert status["decision"] == before["decision"]
    assert status["observedGeneration"] == 4
    assert invalid_status(status, error, 4, NOW + timedelta(hours=1)) == status
