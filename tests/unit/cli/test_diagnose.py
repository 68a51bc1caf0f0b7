"""What is wrong with a pool, and the fix."""

from __future__ import annotations

from typing import Any

import pytest

from engineroom.cli.connections.parsing import parse_pod, parse_pool
from engineroom.cli.views.diagnose import PoolFinding, pool_findings, pool_state
from engineroom.core import reasons

from .samples import NOW, READY, ago, condition, pod, pool

AUTO: dict[str, Any] = {"minReplicas": 0, "maxReplicas": 10}


def findings(document: dict[str, Any], *pods: dict[str, Any]) -> tuple[PoolFinding, ...]:
    return pool_findings(parse_pool(document), [parse_pod(pod) for pod in pods], NOW, "engineroom")


def broken(kind: str, status: str, reason: str, **more: Any) -> dict[str, Any]:
    return pool(
        autoscaling=AUTO, status={"conditions": [condition(kind, status, reason, "text")]}, **more
    )


@pytest.mark.parametrize(
    ("document", "state"),
    [
        (pool(), "Unseen"),
        (pool(status={}), "Ready"),
        (pool(status={"conditions": []}), "NotReady"),
        (pool(status={}, suspend=True), "Draining"),
        (pool(status={"busyWorkers": 0}, suspend=True), "Suspended"),
        (pool(status={}, autoscaling=AUTO | {"pause": "All"}), "Paused"),
        (pool(status={}, metadata={"generation": 9}), "Updating"),
        (pool(status={}, metadata={"deletionTimestamp": "now"}), "Deleting"),
        (broken("Stalled", "True", "InvalidSpec"), "Stalled"),
        (broken("RedisReachable", "False", "RedisUnreachable"), "RedisUnreachable"),
    ],
)
def test_state_is_one_word(document: dict[str, Any], state: str) -> None:
    assert pool_state(parse_pool(document)) == state


def test_a_pool_that_is_well_has_no_findings() -> None:
    assert findings(pool(autoscaling=AUTO, status={}), pod()) == ()


def test_a_pool_no_operator_has_seen_is_a_problem_only_after_a_while() -> None:
    young = pool(metadata={"creationTimestamp": ago(seconds=5)})
    assert findings(young) == ()
    (finding,) = findings(pool())
    assert (finding.severity, finding.what) == ("problem", "no operator has reconciled this pool")


@pytest.mark.parametrize(
    ("reason", "fix"),
    [
        (reasons.INVALID_SPEC, "`kubectl edit workerpool mail -n default`"),
        (reasons.NAME_TAKEN, "rename the pool"),
        (reasons.SECRET_NOT_FOUND, "create the Secret"),
        (reasons.NO_RQ_IN_IMAGE, "add rq to the image"),
        (reasons.QUOTA_EXCEEDED, "`engineroom scale mail -n default --max N`"),
        ("SomethingNew", "`engineroom explain mail -n default`"),
    ],
)
def test_each_reason_has_its_fix(reason: str, fix: str) -> None:
    for document in (broken("Stalled", "True", reason), broken("Ready", "False", reason)):
        (finding,) = findings(document)
        assert finding.severity == "problem"
        assert finding.why == "text"
        assert fix in finding.fix


def test_a_pool_on_its_way_is_a_warning() -> None:
    moving = pool(
        status={
            "conditions": [
                condition("Ready", "False", "Scaling", "5 of 7 pods ready"),
                condition("Reconciling", "True", "Scaling", ""),
            ]
        }
    )
    (finding,) = findings(moving)
    assert finding.severity == "warning"


def test_a_pool_without_redis_names_the_secret_or_the_chart() -> None:
    (own,) = findings(
        broken(
            "RedisReachable",
            "False",
            "RedisAuthFailed",
            redis={"urlSecretRef": {"name": "redis", "key": "url"}},
        )
    )
    assert "key url of Secret redis in namespace default" in own.fix
    (bundled,) = findings(broken("RedisReachable", "False", "RedisUnreachable"))
    assert "the chart's own Redis" in bundled.fix


def test_a_pool_at_its_maximum_is_told_how_to_grow() -> None:
    limited = condition("ScalingLimited", "True", "AtMaxReplicas", "14 pods wanted")
    (finding,) = findings(
        pool(autoscaling=AUTO, status={"desiredReplicas": 10, "conditions": [READY, limited]})
    )
    assert (finding.severity, finding.why) == ("warning", "14 pods wanted")
    assert "--max N" in finding.fix


def test_pods_with_the_same_trouble_are_one_finding() -> None:
    bad = {"state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}}
    pods = [pod(f"mail-{n}", ready=False, container=bad) for n in range(3)]
    (finding,) = findings(pool(status={}), *pods, pod("mail-9"))
    assert finding.what == "3 pods of 4: CrashLoopBackOff"
    assert finding.fix.startswith("`kubectl logs mail-0 -n default --previous`")


def test_a_queue_that_waits_too_long_is_a_warning_unless_suspended() -> None:
    late = {"queues": [{"name": "default", "depth": 3, "oldestJobAge": "2m"}]}
    (finding,) = findings(pool(autoscaling=AUTO, status=late))
    assert finding.why == "the oldest waits 2m, the target is 30s; 3 jobs waiting"
    assert findings(pool(autoscaling=AUTO, status=late, suspend=True)) == ()


def test_problems_come_before_warnings() -> None:
    late = {
        "queues": [{"name": "default", "depth": 3, "oldestJobAge": "2m"}],
        "conditions": [condition("Ready", "False", "PodsNotReady", "")],
    }
    severities = [finding.severity for finding in findings(pool(autoscaling=AUTO, status=late))]
    assert severities == ["problem", "warning"]


def test_a_pool_that_goes_is_left_in_peace() -> None:
    assert findings(pool(metadata={"deletionTimestamp": "now"})) == ()
