"""Objects from a spec: what the user wrote stays, what the guarantees need is added."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engineroom.workers.objects import (
    RuntimeImage,
    deployment,
    inputs_hash,
    redis_secret,
    redis_secret_name,
    service_account,
)
from tests.unit.workers.builders import pool

RUNTIME = RuntimeImage("engineroom/worker-runtime:1")
SECRET = ("mail-redis-0a", "url")


def build(container: dict[str, Any] | None = None, pod: dict[str, Any] | None = None, **spec: Any):
    template = {"spec": {"containers": [{"name": "app", "image": "shop:1", **(container or {})}]}}
    template["spec"].update(pod or {})
    made = deployment(
        pool(template=template, **spec),
        "uid",
        replicas=3,
        runtime=RUNTIME,
        redis_secret=SECRET,
        inputs="abc",
    )
    return made, made["spec"]["template"]["spec"]


def env(container: dict[str, Any]) -> dict[str, Any]:
    return {e["name"]: e.get("value", e.get("valueFrom")) for e in container["env"]}


def test_the_runtime_comes_by_an_init_container_into_an_unchanged_image():
    _, pod = build()
    init, worker = pod["initContainers"][0], pod["containers"][0]
    assert init["image"] == "engineroom/worker-runtime:1"
    assert worker["image"] == "shop:1"
    assert worker["command"] == ["/engineroom/start", "python3", "-m", "engineroom_worker"]
    assert env(worker)["PYTHONPATH"] == "/engineroom"
    assert {"name": "engineroom-runtime", "mountPath": "/engineroom", "readOnly": True} in (
        worker["volumeMounts"]
    )


def test_a_command_is_the_interpreter():
    _, pod = build({"command": ["tini", "--", "/venv/bin/python"]})
    assert pod["containers"][0]["command"] == [
        "/engineroom/start", "tini", "--", "/venv/bin/python", "-m", "engineroom_worker",
    ]  # fmt: skip


def test_the_user_s_environment_and_path_stay():
    users = [{"name": "PYTHONPATH", "value": "/app"}, {"name": "MODE", "value": "x"}]
    _, pod = build({"env": users})
    worker = pod["containers"][0]
    assert env(worker)["PYTHONPATH"] == "/engineroom:/app"
    assert env(worker)["MODE"] == "x"
    assert len(worker["env"]) == len({e["name"] for e in worker["env"]})


def test_the_url_never_stands_in_the_template():
    made, pod = build()
    assert env(pod["containers"][0])["ENGINEROOM_REDIS_URL"] == {
        "secretKeyRef": {"name": "mail-redis-0a", "key": "url"}
    }
    url = "redis://:hunter2@redis:6379/0"
    secret = redis_secret(pool(), "uid", url)
    assert "hunter2" not in json.dumps(made)
    assert "hunter2" not in secret["metadata"]["name"]
    assert redis_secret_name("mail", url) != redis_secret_name("mail", url + "1")


def test_restricted_pod_security_where_nothing_else_is_said():
    _, pod = build()
    assert pod["securityContext"]["runAsNonRoot"] is True
    for container in [*pod["initContainers"], *pod["containers"]]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert {"name": "engineroom-tmp", "mountPath": "/tmp"} in pod["containers"][0]["volumeMounts"]


@pytest.mark.parametrize(
    ("given", "account"),
    [
        ({}, "mail-worker"),
        ({"serviceAccountName": ""}, "mail-worker"),
        ({"serviceAccountName": None}, "mail-worker"),
        ({"serviceAccountName": "reports"}, "reports"),
        ({"serviceAccount": "reports"}, "reports"),
        ({"serviceAccountName": "reports", "serviceAccount": "other"}, "reports"),
    ],
)
def test_pods_run_as_the_named_account_or_the_pool_s_own(given, account):
    _, pod = build(pod=given)
    assert pod["serviceAccountName"] == account
    assert "serviceAccount" not in pod


@pytest.mark.parametrize(
    ("given", "mounted"),
    [({}, False), ({"automountServiceAccountToken": None}, False),
     ({"automountServiceAccountToken": False}, False),
     ({"automountServiceAccountToken": True}, True),
     ({"serviceAccountName": "reports"}, False)],
)  # fmt: skip
def test_pods_get_a_token_only_if_the_template_asks_for_one(given, mounted):
    _, pod = build(pod=given)
    assert pod["automountServiceAccountToken"] is mounted
    assert service_account(pool(), "uid")["automountServiceAccountToken"] is False


@pytest.mark.parametrize(
    "security", [{"privileged": True}, {"capabilities": {"add": ["CAP_SYS_ADMIN"]}}]
)
def test_what_needs_privilege_escalation_gets_no_false(security):
    _, pod = build({"securityContext": security})
    assert "allowPrivilegeEscalation" not in pod["containers"][0]["securityContext"]
    assert pod["initContainers"][0]["securityContext"]["allowPrivilegeEscalation"] is False


def test_the_secret_s_name_differs_between_pools_of_one_name():
    url = "redis://redis:6379/0"
    assert redis_secret_name("mail", "uid-1", url) != redis_secret_name("mail", "uid-2", url)
    assert redis_secret(pool(), "uid-1", url)["metadata"]["name"] == redis_secret_name(
        "mail", "uid-1", url
    )


def test_what_the_user_says_about_security_wins():
    _, pod = build(
        {"securityContext": {"readOnlyRootFilesystem": False}},
        {"securityContext": {"runAsUser": 1000}},
    )
    assert pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is False
    assert pod["securityContext"]["runAsUser"] == 1000


def test_the_grace_period_covers_the_longest_job():
    _, pod = build(drain={"maxJobDuration": "2h"})
    assert pod["terminationGracePeriodSeconds"] == 7230


def test_the_worker_container_may_be_named():
    template = {
        "spec": {"containers": [{"name": "proxy", "image": "p"}, {"name": "worker", "image": "w"}]}
    }
    _, pod = build(pod=template["spec"])
    assert "command" not in pod["containers"][0]
    assert pod["containers"][1]["command"][-1] == "engineroom_worker"


def test_the_user_s_spec_is_not_changed():
    made = pool(template={"spec": {"containers": [{"name": "app", "image": "shop:1"}]}})
    before = json.dumps(made.spec.template)
    deployment(made, "uid", replicas=0, runtime=RUNTIME, redis_secret=SECRET, inputs="")
    assert json.dumps(made.spec.template) == before


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"autoscaling": {"maxReplicas": 99}}, False),
        ({"suspend": True}, False),
        ({"replicas": 4}, False),
        ({"queues": [{"name": "other"}]}, True),
        ({"workersPerPod": 2}, True),
        ({"template": {}}, True),
        ({"drain": {"maxJobDuration": "5m"}}, True),
    ],
)
def test_only_what_is_in_the_objects_makes_them_anew(change, differs):
    spec = {"queues": [{"name": "mail"}], "template": {"spec": {}}}
    before = inputs_hash(spec, RUNTIME, SECRET)
    assert (inputs_hash({**spec, **change}, RUNTIME, SECRET) != before) is differs


def test_the_kubelet_waits_until_a_signal_would_be_heard_unless_the_user_has_a_hook():
    _, pod = build()
    hook = {"preStop": {"exec": {"command": ["/engineroom/heard"]}}}
    assert pod["containers"][0]["lifecycle"] == hook
    own = {"preStop": {"sleep": {"seconds": 1}}}
    _, pod = build(container={"lifecycle": own})
    assert pod["containers"][0]["lifecycle"] == own
