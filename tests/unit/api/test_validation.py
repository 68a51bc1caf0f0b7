"""Validation as a whole: what is valid, what is bounded, and that it never falls over."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from engineroom.api.quantity import QuantityError, parse_quantity
from engineroom.api.v1alpha1.workerpool import WorkerPool
from engineroom.api.validation import ValidationContext, escalations, parse, problems, warnings
from engineroom.api.validation.pod_security import PodSecurityLevel
from engineroom.core.errors import InvalidSpecError
from tests.unit.api.specs import pool, put

POD = "spec.template.spec"
CONTAINER = f"{POD}.containers[0]"

VALID: dict[str, dict[str, Any]] = {
    "least": {},
    "by-hand": {"spec.replicas": 3},
    "to-zero": {"spec.replicas": 0},
    "autoscaled": {"spec.autoscaling": {}},
    "empty-blocks": {"spec.drain": {}, "spec.recovery": {}, "spec.deadLetter": {}},
    "nulls-are-absent": {"spec.autoscaling": None, "spec.drain": None, f"{POD}.volumes": None},
    "by-backlog": {"spec.autoscaling": {"targetBacklogPerWorker": 20, "targetLatency": "30s"}},
    "at-the-limits": {"spec.autoscaling": {"minReplicas": 10, "maxReplicas": 10}},
    "several-queues": {
        "spec.queues": [
            {"name": "high:eu", "priority": 10, "targetLatency": "250ms"},
            {"name": "low", "priority": -1000},
        ],
        "spec.autoscaling": {},
    },
    "schedules": {
        "spec.autoscaling": {
            "schedules": [
                {"name": "a", "cron": "*/15 8-18 * JAN-DEC mon-fri", "minReplicas": 2},
                {
                    "name": "b",
                    "cron": "0 0 29 2 *",
                    "timeZone": "America/Argentina/Buenos_Aires",
                    "duration": "1h30m",
                    "minReplicas": 10,
                },
                {"name": "c", "cron": "0 0 30 2 1", "minReplicas": 0},
            ]
        }
    },
    "zero-where-it-has-a-sense": {
        "spec.autoscaling": {"idleTimeout": "0s", "scaleDown": {"stabilizationWindow": "0s"}}
    },
    "fallback": {
        "spec.autoscaling": {"maxReplicas": 5},
        "spec.metricOutage": {"mode": "Fallback", "replicas": 5},
    },
    "sizing": {
        "spec.rightSizing": {
            "mode": "Off",
            "minAllowed": {"cpu": 1, "memory": "256Mi"},
            "maxAllowed": {"cpu": "1500m", "memory": "1e9"},
        }
    },
    "redis": {
        "spec.redis": {
            "urlSecretRef": {"name": "redis.eu", "key": "URL"},
            "tls": {"caSecretRef": {"name": "ca", "key": "ca.crt"}},
        }
    },
    "from-the-api-server": {
        "metadata": {
            "name": "mail",
            "namespace": "shop",
            "uid": "1",
            "generation": 4,
            "managedFields": [{"manager": "kubectl"}],
            "ownerReferences": [{"kind": "A"}],
        },
        "status": {"replicas": 1, "conditions": []},
    },
    "generated-name": {"metadata": {"generateName": "mail-"}},
    "longest-name": {"metadata.name": "m" * 52},
    "full-container": {
        CONTAINER: {
            "name": "worker",
            "image": "registry.example:5000/shop/app@sha256:0000",
            "command": ["tini", "--", "python3"],
            "env": [
                {"name": "A", "value": ""},
                {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
                {"name": "PYTHONPATH", "value": "/app"},
            ],
            "envFrom": [{"configMapRef": {"name": "c"}}],
            "ports": [{"containerPort": 9477, "name": "metrics"}],
            "resources": {"requests": {"cpu": "100m"}, "limits": {"memory": "1Gi", "cpu": 1}},
            "volumeMounts": [{"name": "data", "mountPath": "/engine", "readOnly": True}],
            "startupProbe": {"httpGet": {"port": "metrics", "path": "/"}},
            "securityContext": {
                "runAsUser": 1000,
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": False,
                "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
            },
        },
        f"{POD}.volumes": [{"name": "data", "emptyDir": {"sizeLimit": "1Gi"}}],
    },
    "full-pod": {
        "spec.template.metadata": {
            "labels": {"team": "a", "example.com/part": ""},
            "annotations": {"note": "any text, at all"},
            "creationTimestamp": None,
        },
        POD: {
            "serviceAccountName": "shop",
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 3600,
            "nodeSelector": {"disk": "ssd"},
            "tolerations": [{"key": "a", "operator": "Exists", "effect": "NoSchedule"}],
            "affinity": {
                "nodeAffinity": {
                    "preferredDuringSchedulingIgnoredDuringExecution": [
                        {
                            "weight": 1,
                            "preference": {
                                "matchExpressions": [
                                    {"key": "a", "operator": "In", "values": ["b"]}
                                ]
                            },
                        }
                    ]
                }
            },
            "topologySpreadConstraints": [
                {
                    "maxSkew": 1,
                    "topologyKey": "zone",
                    "whenUnsatisfiable": "ScheduleAnyway",
                    "labelSelector": {"matchLabels": {"a": "b"}},
                }
            ],
            "securityContext": {
                "fsGroup": 1000,
                "sysctls": [{"name": "net.ipv4.tcp_syncookies", "value": "1"}],
            },
            "initContainers": [
                {"name": "warm", "image": "shop:1", "restartPolicy": "Always", "args": ["warm"]}
            ],
            "containers": [
                {"name": "proxy", "image": "proxy:1", "args": ["serve"]},
                {"name": "worker", "image": "shop:1"},
            ],
            "imagePullSecrets": [{"name": "registry"}],
        },
    },
}


@pytest.mark.parametrize("name", VALID)
def test_valid_spec_has_no_problem_and_parses(name: str) -> None:
    spec = pool(VALID[name])

    assert [str(problem) for problem in problems(spec)] == []
    if "name" in spec["metadata"]:
        assert parse(WorkerPool, spec).name == spec["metadata"]["name"]


def test_parsing_drops_nulls_from_the_template_too() -> None:
    parsed = parse(WorkerPool, pool({f"{POD}.volumes": None, f"{CONTAINER}.securityContext": None}))

    assert parsed.spec.template == pool()["spec"]["template"]


def test_validation_does_not_change_what_it_reads() -> None:
    spec = pool(VALID["nulls-are-absent"])
    before = copy.deepcopy(spec)

    problems(spec)
    parse(WorkerPool, spec)
    warnings(spec)

    assert spec == before


def test_without_replicas_and_autoscaling_the_size_is_one() -> None:
    assert parse(WorkerPool, pool()).fixed_replicas == 1
    assert parse(WorkerPool, pool({"spec.replicas": 0})).fixed_replicas == 0
    assert parse(WorkerPool, pool({"spec.autoscaling": {}})).fixed_replicas is None


# -- bounds -------------------------------------------------------------------------------------


def nested(depth: int) -> Any:
    made: Any = []
    for _ in range(depth):
        made = [made]
    return made


@pytest.mark.parametrize(
    "make", [nested, lambda depth: json.loads('{"a":' * depth + "1" + "}" * depth)]
)
def test_deep_document_is_refused_before_anything_walks_it(make: Any) -> None:
    found = problems(put(pool(), "spec.template", make(900)))

    assert [str(one) for one in found] == ["spec: is nested deeper than 40 levels; flatten it"]


def test_document_of_very_many_values_is_refused() -> None:
    found = problems(pool({f"{CONTAINER}.command": ["x"] * 30_000}))

    assert [str(one) for one in found] == ["spec: has more than 20000 values; make it smaller"]


def test_number_of_problems_is_bounded() -> None:
    assert len(problems(pool({f"spec.a{index}": 1 for index in range(500)}))) == 40


def test_long_values_are_cut_in_messages() -> None:
    found = problems(pool({"spec.dequeueStrategy": "x" * 5000}))

    assert len(str(found[0])) < 300


def test_messages_are_of_one_line() -> None:
    found = problems(pool({"spec.dequeueStrategy": "a\nb\x1b[31m", "spec.x\ny": 1}))

    assert all("\n" not in str(one) and "\x1b" not in str(one) for one in found)


SECRET = "hunter2-hunter2"


@pytest.mark.parametrize(
    "changes",
    [
        {f"{CONTAINER}.env": {"PASSWORD": SECRET}},
        {f"{CONTAINER}.env": [f"PASSWORD={SECRET}"]},
        {f"{CONTAINER}.env": SECRET},
        {f"{CONTAINER}.env": [{"name": "PASSWORD", "value": {"a": SECRET}}]},
        {f"{CONTAINER}.env": [{"name": "PASSWORD", "value": [SECRET]}]},
        {f"{CONTAINER}.env": [{"name": "A B\t", "value": SECRET}]},
    ],
)
def test_values_of_variables_are_never_shown(changes: dict[str, Any]) -> None:
    spec = pool(changes)

    assert problems(spec)
    assert not any(SECRET in str(one) for one in problems(spec))


# -- properties ---------------------------------------------------------------------------------

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.just("30s")
)
documents = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=12), inner, max_size=4)
    ),
    max_leaves=20,
)


def places(value: Any, path: str = "") -> list[str]:
    """Every path in a document, as ``specs.pool`` takes them."""
    found = []
    if isinstance(value, dict):
        for key, inner in value.items():
            if "." in key or "/" in key:
                continue
            place = f"{path}.{key}" if path else key
            found += [place, *places(inner, place)]
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            place = f"{path}[{index}]"
            found += [place, *places(inner, place)]
    return found


RICH = {
    **VALID["full-pod"],
    **VALID["schedules"],
    **VALID["sizing"],
    **VALID["redis"],
    "spec.metricOutage": {"mode": "Fallback", "replicas": 10},
    "spec.drain": {"maxJobDuration": "1m", "onDeadline": "Fail"},
    "spec.recovery": {"poisonThreshold": 3},
    "spec.deadLetter": {"ttl": "1d"},
    "spec.template.spec.containers[0].securityContext": {"capabilities": {"add": ["A"]}},
    "spec.template.spec.containers[0].env": [{"name": "A", "value": "1"}],
    "spec.template.spec.volumes": [{"name": "a", "emptyDir": {}}],
}
PLACES = places(pool(RICH))


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(documents)
def test_any_json_gets_an_answer(document: Any) -> None:
    assert problems(document)
    warnings(document)
    escalations(document)


@settings(max_examples=250, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.sampled_from(PLACES), documents)
@example("spec.template.spec.restartPolicy", [])
@example("spec.template.spec.restartPolicy", {})
def test_any_json_at_any_place_gets_an_answer(place: str, value: Any) -> None:
    spec = put(pool(RICH), place, value)

    found = problems(spec)
    warnings(spec)
    escalations(spec)

    for problem in found:
        assert problem.field
        assert problem.problem
        assert problem.fix
    if not found:
        parse(WorkerPool, spec)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.sampled_from([place for place in PLACES if "template" not in place]), scalars)
def test_what_the_model_refuses_validation_refuses(place: str, value: Any) -> None:
    if value is None:
        return
    spec = put(pool(RICH), place, value)
    kept = {key: spec.get(key) for key in ("apiVersion", "kind", "metadata", "spec")}
    try:
        text = json.dumps(kept)
        WorkerPool.model_validate_json(text, strict=True, by_alias=True, by_name=False)
    except ValidationError:
        assert problems(spec, ValidationContext(pod_security=PodSecurityLevel.PRIVILEGED))
        with pytest.raises(InvalidSpecError):
            parse(WorkerPool, spec)


# -- warnings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        (
            {"spec.redis": {"urlSecretRef": {"name": "a", "key": "b"}, "tls": {}}},
            [
                (
                    "spec.redis.tls: says nothing; a URL that begins with rediss:// turns TLS on, "
                    "checked by the system's certificates"
                )
            ],
        ),
        (
            {
                "spec.redis": {
                    "urlSecretRef": {"name": "a", "key": "b"},
                    "tls": {"insecureSkipVerify": True},
                }
            },
            ["spec.redis.tls.insecureSkipVerify: anybody on the way can pose as Redis"],
        ),
        (
            {f"{CONTAINER}.image": "shop"},
            [
                (
                    'spec.template.spec.containers[0].image: "shop" names no fixed version, so '
                    "pods of one pool may run different code; write a tag or a digest"
                )
            ],
        ),
        (
            {"spec.queues[0].targetLatency": "5s"},
            ["spec.queues[0].targetLatency: has no effect without spec.autoscaling"],
        ),
        (
            {"spec.queues[0].priority": 5, "spec.dequeueStrategy": "Random"},
            ["spec.queues[0].priority: has no effect unless dequeueStrategy is Priority"],
        ),
        (
            {
                "spec.rightSizing": {"mode": "InPlace"},
                f"{CONTAINER}.resizePolicy": [
                    {"resourceName": "memory", "restartPolicy": "RestartContainer"}
                ],
            },
            [
                (
                    "spec.rightSizing.mode: memory is left as it is, because the container's "
                    "resizePolicy would restart it, and its jobs with it"
                )
            ],
        ),
        (
            {f"{CONTAINER}.livenessProbe": {"exec": {"command": ["true"]}}},
            [
                (
                    "spec.template.spec.containers[0].livenessProbe: restarts the container with "
                    "its job when it fails; the runtime watches over its workers itself"
                )
            ],
        ),
        (
            {"spec.template.metadata": {"labels": {"app.kubernetes.io/managed-by": "Helm"}}},
            [
                (
                    'spec.template.metadata.labels["app.kubernetes.io/managed-by"]: Engineroom '
                    "writes its own value there"
                )
            ],
        ),
    ],
)
def test_warnings(changes: dict[str, Any], expected: list[str]) -> None:
    assert problems(pool(changes)) == []
    assert warnings(pool(changes)) == expected


# -- quantities ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("500m", 0.5), ("1Ki", 1024), (".5", 0.5), ("1e3", 1000), ("2.5G", 2.5e9), (3, 3)],
)
def test_quantity(text: str | int, value: float) -> None:
    assert float(parse_quantity(text)) == value


@pytest.mark.parametrize("text", ["", "1GB", "Mi", "1 Gi", "0x10", "1e", "nan", "--1", "1" * 100])
def test_no_quantity(text: str) -> None:
    with pytest.raises(QuantityError):
        parse_quantity(text)
