"""Status from what was seen: reasons in words, and nothing new at the fixed point."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from engineroom.workers.decide import SizeDecision
from engineroom.workers.projections import DeploymentView
from engineroom.workers.status import StatusInputs, pool_status
from tests.unit.workers.builders import facts, plan, pod

NOW = datetime(2026, 11, 23, tzinfo=UTC)


def deployed(replicas: int = 2, ready: int = 2, **fields: Any) -> DeploymentView:
    values: dict[str, Any] = {
        "name": "mail", "uid": "u", "resource_version": "5", "generation": 1,
        "observed_generation": 1, "replicas": replicas, "status_replicas": replicas,
        "ready": ready, "updated": replicas, "unavailable": 0, "inputs_hash": "x", **fields,
    }  # fmt: skip
    return DeploymentView(**values)


def seen(now: datetime = NOW, **fields: Any) -> StatusInputs:
    values: dict[str, Any] = {
        "generation": 3, "now": now, "deployment": deployed(), "pods": [],
        "facts": facts(waiting=4), "decision": SizeDecision(2, "2 pods: because", 2), **fields,
    }  # fmt: skip
    return StatusInputs(**values)


def condition(status: dict[str, Any], kind: str) -> tuple[str, str]:
    found = next(c for c in status["conditions"] if c["type"] == kind)
    return found["status"], found["reason"]


def text(status: dict[str, Any], kind: str) -> str:
    return str(next(c for c in status["conditions"] if c["type"] == kind)["message"])


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
    assert condition(status, "Reconciling") == ("True", "RollingOut")


def test_quota():
    failure = ("FailedCreate", 'pods "a" is forbidden: exceeded quota: small')
    status = pool_status("mail", plan(), {}, seen(deployment=deployed(replica_failure=failure)))
    assert condition(status, "Ready") == ("False", "QuotaExceeded")


def rolled_out_status(**fields: Any) -> dict[str, Any]:
    status = pool_status("mail", plan(), {}, seen(**fields))
    assert condition(status, "Reconciling") == ("False", "Reconciled")
    return status


@pytest.mark.parametrize(
    "deployment",
    [
        deployed(replicas=6, ready=2),
        deployed(replicas=6, status_replicas=2, updated=2, ready=2),
        deployed(replicas=6, ready=2, generation=2, observed_generation=1),
        deployed(replicas=0, status_replicas=2, updated=2, ready=2),
        deployed(replicas=2, ready=0),
    ],
)
def test_load_and_failing_pods_do_not_roll_the_spec_out_again(deployment):
    before = rolled_out_status()
    status = pool_status("mail", plan(), before, seen(deployment=deployment, leaving=1))
    assert condition(status, "Reconciling") == ("False", "Reconciled")
    assert condition(status, "Ready") == ("True", "Reconciled")
    assert condition(status, "Draining") == ("True", "Draining")


@pytest.mark.parametrize(
    ("deployment", "message"),
    [
        (None, "the Deployment is being created"),
        (deployed(generation=2), "the Deployment is being rolled out"),
        (deployed(replicas=6, ready=7, updated=4), "4 of 6 pods have the new template"),
        (deployed(replicas=6, ready=0), "0 of 6 pods are ready"),
    ],
)
def test_a_new_spec_is_reconciling_until_its_pods_are_there(deployment, message):
    before = rolled_out_status()
    status = pool_status("mail", plan(), before, seen(deployment=deployment, generation=4))
    assert condition(status, "Reconciling") == ("True", "RollingOut")
    assert text(status, "Reconciling").startswith(message)
    done = pool_status("mail", plan(), status, seen(generation=4))
    assert condition(done, "Reconciling") == ("False", "Reconciled")


def test_a_new_runtime_image_is_a_rollout_too():
    before = rolled_out_status(inputs_hash="x")
    status = pool_status("mail", plan(), before, seen(inputs_hash="y"))
    assert condition(status, "Reconciling") == ("True", "RollingOut")


def test_a_pool_without_work_is_rolled_out_without_objects():
    status = rolled_out_status(deployment=None, decision=SizeDecision(0, "0 pods", 0))
    assert condition(status, "Ready") == ("True", "Reconciled")


TROUBLES = [
    ({"redis_trouble": ("SecretNotFound", "Secret redis does not exist")}, "SecretNotFound"),
    ({"refusal": ("QuotaExceeded", "exceeded quota: small")}, "QuotaExceeded"),
    (
        {"deployment": deployed(ready=0, replica_failure=("FailedCreate", "no ServiceAccount x"))},
        "PodsNotReady",
    ),
    (
        {
            "deployment": deployed(ready=0),
            "pods": [
                pod("a", ready=False, trouble=("CreateContainerConfigError", "configmap x gone"))
            ],
        },
        "PodsNotReady",
    ),
]


@pytest.mark.parametrize(("trouble", "reason"), TROUBLES)
def test_what_is_missing_is_named_and_stalls_after_ten_minutes(trouble, reason):
    status = pool_status("mail", plan(), {}, seen(**trouble))
    for kind, value in (("Reconciling", "True"), ("Stalled", "False"), ("Ready", "False")):
        assert condition(status, kind)[0] == value
    assert condition(status, "Reconciling")[1] == condition(status, "Ready")[1] == reason
    assert text(status, "Reconciling") == text(status, "Ready")

    almost = pool_status("mail", plan(), status, seen(NOW + timedelta(seconds=599), **trouble))
    assert almost == status
    late = pool_status("mail", plan(), status, seen(NOW + timedelta(seconds=600), **trouble))
    assert condition(late, "Stalled") == ("True", "ProgressDeadlineExceeded")
    assert text(status, "Ready") in text(late, "Stalled")
    assert condition(late, "Reconciling")[0] == "False"
    assert condition(late, "Ready") == ("False", reason)
    still = pool_status("mail", plan(), late, seen(NOW + timedelta(hours=1), **trouble))
    assert still == late
    healed = pool_status("mail", plan(), late, seen(NOW + timedelta(hours=2)))
    assert condition(healed, "Stalled")[0] == condition(healed, "Reconciling")[0] == "False"
    assert condition(healed, "Ready") == ("True", "Reconciled")


@pytest.mark.parametrize(("trouble", "reason"), TROUBLES)
def test_a_pool_that_grew_from_zero_into_something_missing_stalls_too(trouble, reason):
    idle = rolled_out_status(deployment=None, decision=SizeDecision(0, "0 pods", 0))
    status = pool_status("mail", plan(), idle, seen(**{"deployment": deployed(ready=0), **trouble}))
    assert condition(status, "Reconciling") == ("True", reason)


def test_a_new_spec_gets_its_own_ten_minutes():
    trouble = TROUBLES[0][0]
    first = pool_status("mail", plan(), {}, seen(**trouble))
    at = NOW + timedelta(minutes=9)
    second = seen(at, generation=4, spec_seen=at.timestamp(), **trouble)
    status = pool_status("mail", plan(), first, second)
    at += timedelta(minutes=9)
    later = seen(at, generation=4, spec_seen=second.spec_seen, **trouble)
    assert condition(pool_status("mail", plan(), status, later), "Stalled")[0] == "False"


@pytest.mark.parametrize("reason", ["RedisUnreachable", "RedisAuthFailed"])
def test_an_absent_redis_is_never_stalled(reason):
    outage = {"facts": None, "redis_trouble": (reason, "no answer")}
    status = pool_status("mail", plan(), {}, seen(**outage))
    status = pool_status("mail", plan(), status, seen(NOW + timedelta(hours=9), **outage))
    assert condition(status, "Stalled")[0] == "False"
    assert condition(status, "Ready") == ("False", reason)


def test_a_spec_that_the_api_server_refuses_is_stalled_at_once():
    status = pool_status("mail", plan(), {}, seen(refusal=("ApplyRefused", "bad field")))
    assert condition(status, "Stalled") == ("True", "ApplyRefused")
    assert condition(status, "Ready") == ("False", "ApplyRefused")
    assert condition(status, "Reconciling")[0] == "False"
