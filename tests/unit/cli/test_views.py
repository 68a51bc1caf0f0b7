"""Exact output, at a width of 100, without colour."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import yaml

from engineroom.api.kinds import WORKER_POOL
from engineroom.cli.connections.model import (
    Installation,
    KindDefinition,
    ResourceUsage,
    WebhookRegistration,
)
from engineroom.cli.connections.parsing import parse_component, parse_event, parse_pod, parse_pool
from engineroom.cli.views.explain import Explanation, explain_document, explain_text
from engineroom.cli.views.output_formats import difference, dump
from engineroom.cli.views.pools import pools_table
from engineroom.cli.views.status import InstallationOverview, status_document, status_text
from engineroom.cli.views.text import clip, cpu, memory, span
from engineroom.cli.views.top import top_pools, top_workers

from .memory import text_of
from .samples import BUSY, NOW, condition, deployment, event, pod, pool

AUTO = {"minReplicas": 0, "maxReplicas": 10, "targetLatency": "30s"}


def test_pools_are_one_line_each_and_unknown_is_a_dash() -> None:
    pools = [
        pool("mail", autoscaling=AUTO, status={}),
        pool("new", replicas=2),
        pool("odd", suspend=True, status={"busyWorkers": 0, "queues": []}),
    ]
    assert (
        text_of(pools_table(WORKER_POOL, pools, NOW, namespaces=False))
        == """\
NAME   STATE       PODS   BUSY   WAITING   OLDEST   JOBS/MIN   SIZE   AGE
mail   Ready       7/7    3/7        840   12s           120   0-10   2d
new    Unseen      -      -            -   -               -   =2     2d
odd    Suspended   7/7    0/7          -   -             120   =1     2d
"""
    )


def test_wide_adds_queues_image_and_decision() -> None:
    text = text_of(
        pools_table(
            WORKER_POOL,
            [pool(autoscaling=AUTO, status={"decision": "why"})],
            NOW,
            namespaces=True,
            wide=True,
        )
    )
    header, line = text.splitlines()[:2]
    assert header.split()[-3:] == ["QUEUES", "IMAGE", "DECISION"]
    assert line.split()[0] == "default"
    assert line.split()[-3:] == ["urgent,default", "example/app:1.2", "why"]


def explanation() -> Explanation:
    pods = [
        parse_pod(pod("mail-1", annotations=BUSY)),
        parse_pod(pod("mail-2", ready=False, container={"state": {"waiting": {
            "reason": "ImagePullBackOff", "message": "no such image"}}})),
    ]  # fmt: skip
    measured = replace(pods[0], usage=ResourceUsage(memory=100 * 2**20, cpu=250))
    return Explanation(
        pool=parse_pool(pool(autoscaling=AUTO, status={})),
        pods=(measured, pods[1]),
        events=(parse_event(event("ScaledUp", "from 0 to 7 pods", 4)),),
        now=NOW,
        program="engineroom",
    )


def test_explain_answers_why_first_and_then_shows_everything_behind_it() -> None:
    assert (
        text_of(explain_text(explanation()))
        == """\
default/mail: 7 pods, 7 ready, 7 wanted; 3 of 7 workers busy
state: Ready

Why this size
  7 pods: 840 waiting x 0.25 s each within 30 s, 3 running

Arithmetic
  work seen       840 waiting + 3 running; 2 scheduled for later
  target          a job waits at most 30s
  range           0 to 10 pods
  workers a pod   1
  pods            7 wanted, 7 there, 7 ready
  speed           120 jobs finished in the last minute
  last scaled     4m ago (2026-11-23 11:56:00 UTC)

What would change it
  It grows when, at the measured pace, jobs would wait longer than 30s.
  It shrinks to what the work needs when less has been needed for 2m; the last pod goes when idle
  for 1m. A pod that holds a job stays until the job is done.

Findings
  problem: 1 pod of 2: ImagePullBackOff
    why: no such image
    fix: check the image's name and tag, and imagePullSecrets in spec.template

Queues
  QUEUE     PRIORITY   WAITING   RUNNING   SCHEDULED   FAILED   OLDEST   TARGET
  urgent          10        10         1           2        0   1s       30s
  default          0       830         2           0        4   12s      30s

Conditions
  CONDITION   STATUS   REASON       SINCE   MESSAGE
  Ready       True     Reconciled   5m      Everything is as the spec says.

Pods
  POD      STATE              WORKERS   RESTARTS   MEMORY    CPU   AGE   NODE
  mail-1   busy                     1          1    100Mi   250m   1h    node-a
  mail-2   ImagePullBackOff         1          1        -      -   1h    node-a

Events
  LAST   TYPE     REASON     COUNT   MESSAGE
  4m     Normal   ScaledUp       2   from 0 to 7 pods
"""
    )


def test_explain_for_programs_is_json_with_null_for_the_unknown() -> None:
    document = explain_document(explanation())
    assert document["decision"].startswith("7 pods")
    assert document["pods"][1]["usage"] is None
    assert [queue["depth"] for queue in document["queues"]] == [10, 830]
    assert document["findings"][0]["fix"].startswith("check the image")
    unseen = replace(explanation(), pool=parse_pool(pool()))
    assert explain_document(unseen)["busyWorkers"] is None
    assert explain_document(unseen)["waiting"] is None
    for shape, load in (("json", json.loads), ("yaml", yaml.safe_load)):
        assert load(dump(document, shape).plain) == document


@pytest.mark.parametrize(
    ("spec", "status", "expected"),
    [
        ({"suspend": True}, {}, "Suspended: its workers take no job until"),
        ({"replicas": 3}, {}, "Sized by hand: only `engineroom scale mail -n default N`"),
        ({"autoscaling": AUTO | {"pause": "All"}}, {}, "The size is held (pause All) until"),
        ({"autoscaling": AUTO | {"pause": "ScaleIn"}}, {}, "It grows but does not shrink"),
        ({"autoscaling": AUTO | {"pause": "ScaleOut"}}, {}, "It shrinks but does not grow"),
        ({"autoscaling": AUTO}, {"desiredReplicas": 10}, "It is at maxReplicas (10)"),
        ({"autoscaling": AUTO}, {"desiredReplicas": 0}, "It is at zero: the first job wakes it."),
        (
            {"autoscaling": AUTO | {"minReplicas": 2}},
            {"desiredReplicas": 2},
            "It is at minReplicas (2) and shrinks no further.",
        ),
        (
            {"autoscaling": AUTO | {"targetBacklogPerWorker": 5}, "workersPerPod": 2},
            {},
            "It grows when more than 70 jobs wait or run.",
        ),
        (
            {"autoscaling": AUTO | {"targetBacklogPerWorker": 500}},
            {},
            "It shrinks to 2 pods when less has been needed for 2m",
        ),
        (
            {"autoscaling": AUTO | {"scaleDown": {"maxPodsPerMinute": 1}}},
            {},
            "by at most 1 pod a minute",
        ),
    ],
)
def test_explain_names_what_would_change_the_size(
    spec: dict[str, object], status: dict[str, object], expected: str
) -> None:
    document = pool(status=status, **spec)  # type: ignore[arg-type]
    text = text_of(explain_text(Explanation(parse_pool(document), (), (), NOW, "engineroom")))
    assert expected in " ".join(text.split())


def test_explain_says_that_the_status_is_of_an_older_spec() -> None:
    document = pool(autoscaling=AUTO, status={}, metadata={"generation": 4})
    text = text_of(explain_text(Explanation(parse_pool(document), (), (), NOW, "engineroom")))
    assert "of generation 3; the spec is at 4" in text
    assert "state: Updating" in text


def installation(**changes: object) -> Installation:
    parts = Installation(
        server="https://192.0.2.10:6443",
        server_version="v1.37.2",
        definition=KindDefinition(("v1alpha1",), release="0.1.0"),
        components=(
            parse_component("Deployment", deployment("operator")),
            parse_component("Deployment", deployment("webhooks")),
            parse_component("StatefulSet", deployment("redis", wanted=1, ready=1)),
        ),
        admission=WebhookRegistration("engineroom-webhooks", 1, 1),
        leader="engineroom-operator-abc",
        namespaces=("engineroom-system",),
    )
    return replace(parts, **changes)  # type: ignore[arg-type]


def overview(*pools: dict[str, object], **changes: object) -> InstallationOverview:
    return InstallationOverview(
        installation(**changes), tuple(map(parse_pool, pools)), (), None, NOW, "engineroom"
    )


def test_status_is_one_line_a_part_when_all_is_well() -> None:
    seen = overview(pool(autoscaling=AUTO, status={}))
    assert seen.healthy
    assert (
        text_of(status_text(seen))
        == """\
Engineroom on https://192.0.2.10:6443 (Kubernetes v1.37.2)

ok   CRD        workerpools v1alpha1 served, from release 0.1.0
ok   operator   engineroom-system/engineroom-operator 2/2 ready, 0.1.0, leader
                engineroom-operator-abc
ok   webhooks   engineroom-system/engineroom-webhooks 2/2 ready, 0.1.0, registered as
                engineroom-webhooks
ok   Redis      engineroom-system/engineroom-redis 1/1 ready, 0.1.0, reached for 1 of 1 pool
ok   pools      1 pool: 3 of 7 workers busy, 840 jobs waiting, 120 finished in the last minute
"""
    )


def test_status_gives_each_problem_with_its_fix() -> None:
    unreachable = condition("RedisReachable", "False", "RedisAuthFailed", "WRONGPASS")
    broken = pool(
        autoscaling=AUTO,
        status={"conditions": [unreachable]},
        redis={"urlSecretRef": {"name": "redis", "key": "url"}},
    )
    seen = overview(
        broken, components=(parse_component("Deployment", deployment("operator", ready=0)),)
    )
    assert not seen.healthy
    assert (
        text_of(status_text(seen))
        == """\
Engineroom on https://192.0.2.10:6443 (Kubernetes v1.37.2)

ok        CRD        workerpools v1alpha1 served, from release 0.1.0
problem   operator   engineroom-system/engineroom-operator 0/2 ready, 0.1.0, leader
                     engineroom-operator-abc
warning   webhooks   not installed
problem   Redis      your own, reached for 0 of 1 pool
problem   pools      1 pool: 3 of 7 workers busy, 840 jobs waiting, 120 finished in the last minute;
                     1 with problems

fix operator: kubectl describe -n engineroom-system deployment/engineroom-operator; kubectl logs -n
engineroom-system deployment/engineroom-operator
fix webhooks: helm upgrade with webhooks.enabled=true, so that wrong specs are refused at once
fix Redis: see the pools below

default/mail  RedisUnreachable
  problem: Redis cannot be measured: RedisAuthFailed
    why: WRONGPASS
    fix: check key url of Secret redis in namespace default (URL, password, TLS) and that a
  NetworkPolicy lets the operator through
"""
    )


def test_status_does_not_call_missing_what_it_may_not_see() -> None:
    seen = overview(components=(), denied=("Deployments",))
    assert seen.healthy
    text = text_of(status_text(seen))
    assert "warning   operator   unknown: you may not list Deployments" in text
    assert "not looked at, you may not list: Deployments" in text


@pytest.mark.parametrize(
    ("denied", "healthy", "cause"),
    [
        (("webhook configurations",), True, "you may not list the webhook configurations"),
        ((), False, "no webhook configuration names the installation's namespace"),
    ],
)
def test_status_of_an_unknown_namespace_names_the_option(
    denied: tuple[str, ...], healthy: bool, cause: str
) -> None:
    seen = overview(components=(), namespaces=(), admission=None, denied=denied)
    assert seen.healthy is healthy
    operator, webhooks = status_document(seen)["checks"][1:3]
    for check in (operator, webhooks):
        assert cause in check["summary"]
        assert "--system-namespace" in check["fix"]


def test_status_without_the_kind_is_a_problem_with_the_command_that_installs_it() -> None:
    seen = overview(definition=None)
    assert not seen.healthy
    assert status_document(seen)["checks"][0] == {
        "part": "CRD",
        "state": "problem",
        "summary": "the kind WorkerPool is not installed",
        "fix": "helm install engineroom charts/engineroom -n engineroom-system --create-namespace",
    }


def test_status_sees_a_webhook_that_is_not_registered_or_has_no_certificate() -> None:
    assert "not registered" in text_of(status_text(overview(admission=None)))
    seen = overview(admission=WebhookRegistration("engineroom", 1, 0))
    assert "without a CA certificate" in text_of(status_text(seen))
    assert not seen.healthy


def test_top_puts_the_busiest_first_and_sums_up() -> None:
    pools = [
        parse_pool(pool("calm", status={"busyWorkers": 0, "queues": []})),
        parse_pool(pool("mail", autoscaling=AUTO, status={})),
    ]
    pods = [replace(parse_pod(pod(f"mail-{n}")), usage=ResourceUsage(2**30, 100)) for n in range(2)]
    assert (
        text_of(top_pools(pools, pods, namespaces=False))
        == """\
NAME   STATE   PODS   BUSY   JOBS/MIN   WAITING   RUNNING   OLDEST   MEMORY    CPU
mail   Ready   7/7    3/7         120       840         3   12s      2048Mi   200m
calm   Ready   7/7    0/7         120         -         -   -             -      -

2 pools: 3 of 14 workers busy, 840 jobs waiting, 240 finished in the last minute
"""
    )


def test_top_workers_shows_trouble_before_busy_before_idle() -> None:
    pods = [
        parse_pod(pod("a", annotations=dict.fromkeys(BUSY, "true"))),
        parse_pod(pod("b", annotations=BUSY)),
        parse_pod(pod("c", annotations={"engineroom.dev/drain": "true"})),
        parse_pod(pod("d", annotations={"controller.kubernetes.io/pod-deletion-cost": "-1000"})),
        parse_pod(pod("e", deletionTimestamp="2026-11-23T12:00:00Z")),
        parse_pod(pod("f", ready=False)),
        parse_pod(
            pod("g", ready=False, container={"state": {"waiting": {"reason": "CrashLoopBackOff"}}})
        ),
    ]
    text = text_of(top_workers(pods, {("default", "mail"): 4}, NOW, namespaces=False))
    lines = [line.split() for line in text.splitlines()]
    assert [(line[0], line[2], line[3]) for line in lines[1:]] == [
        ("g", "CrashLoopBackOff", "4"),
        ("b", "busy", "4"),
        ("c", "draining", "4"),
        ("d", "drained", "4"),
        ("e", "leaving", "4"),
        ("a", "idle", "4"),
        ("f", "starting", "4"),
    ]


def test_messages_are_never_taken_for_markup() -> None:
    document = pool(autoscaling=AUTO, status={"decision": "[red]7 pods[/red] [1, 2]"})
    text = text_of(explain_text(Explanation(parse_pool(document), (), (), NOW, "engineroom")))
    assert "[red]7 pods[/red] [1, 2]" in text


def test_difference_is_a_unified_diff() -> None:
    before, after = {"spec": {"suspend": False, "a": 1}}, {"spec": {"suspend": True, "a": 1}}
    assert difference(before, after, "x").plain == (
        "--- x (now)\n+++ x (then)\n@@ -1,3 +1,3 @@\n spec:\n"
        "-  suspend: false\n+  suspend: true\n   a: 1"
    )
    assert difference(before, before, "x").plain == ""


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0s"),
        (-5, "0s"),
        (59, "59s"),
        (61, "1m1s"),
        (600, "10m"),
        (7265, "2h1m"),
        (90061, "1d1h"),
    ],
)
def test_spans_have_the_two_units_that_matter(seconds: float, expected: str) -> None:
    assert span(seconds) == expected


def test_amounts() -> None:
    assert (memory(None), memory(5 * 2**20), memory(20 * 2**30)) == ("-", "5Mi", "20.0Gi")
    assert (cpu(None), cpu(0), cpu(1500)) == ("-", "0m", "1500m")
    assert (clip("abc", 3), clip("abcd", 3)) == ("abc", "ab…")
