"""Levels of Pod Security from labels, rules by version, and refusals."""

from __future__ import annotations

from typing import Any

import pytest

from engineroom.api.validation import ValidationContext, problems
from engineroom.api.validation.pod_security import (
    LABEL,
    LATEST,
    VERSION_LABEL,
    PodSecurityLevel,
    template_escalations,
)
from tests.unit.api.specs import pool

POD = "spec.template.spec"
CONTAINER = f"{POD}.containers[0]"
SECCOMP = "seccomp.security.alpha.kubernetes.io/"


@pytest.mark.parametrize(
    ("labels", "level"),
    [
        (None, "restricted"),
        ("restricted", "restricted"),
        ({}, "restricted"),
        ({LABEL: None}, "restricted"),
        ({LABEL: ""}, "restricted"),
        ({LABEL: "Privileged"}, "restricted"),
        ({LABEL: 1}, "restricted"),
        ({LABEL: ["privileged"]}, "restricted"),
        ({LABEL: "restricted"}, "restricted"),
        ({LABEL: "baseline"}, "baseline"),
        ({LABEL: "privileged"}, "privileged"),
        # A version without a level: Kubernetes enforces nothing, Engineroom the latest rules.
        ({VERSION_LABEL: "v1.20"}, "restricted"),
        ({LABEL: "baseline", VERSION_LABEL: "latest"}, "baseline"),
        ({LABEL: "baseline", VERSION_LABEL: "v1.34"}, "baseline of v1.34"),
        ({LABEL: "baseline", VERSION_LABEL: "v1.0"}, "baseline of v1.0"),
        ({LABEL: "whatever", VERSION_LABEL: "v1.34"}, "restricted of v1.34"),
        *(
            ({LABEL: "baseline", VERSION_LABEL: wrong}, "baseline")
            for wrong in (
                "", "1.34", "v1.034", "v2.0", "v1.34 ", "v1.-1", "v1.٣", "v1.99", 34, None,
                "v1." + "9" * 5000,
            )
        ),
    ],
)  # fmt: skip
def test_level_of_a_namespace_s_labels(labels: Any, level: str) -> None:
    assert str(PodSecurityLevel.of(labels)) == level


def test_equal_labels_give_one_object() -> None:
    labels = {LABEL: "baseline", VERSION_LABEL: "v1.30"}
    assert PodSecurityLevel.of(labels) is PodSecurityLevel.of(dict(labels))
    assert PodSecurityLevel.of({LABEL: "baseline"}) is PodSecurityLevel.BASELINE


def versions_that_forbid(template: dict[str, Any], word: str = "restricted") -> list[int]:
    """Return the first and the last version that forbids the template."""
    found = [
        version
        for version in range(LATEST + 1)
        if any(
            escalation.exceeds(PodSecurityLevel(word, version))
            for escalation in template_escalations(template, "template")
        )
    ]
    return [found[0], found[-1]] if found else []


def pod(**spec: Any) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": "a"}], **spec}}


def container(**fields: Any) -> dict[str, Any]:
    return pod(containers=[{"name": "a", **fields}])


@pytest.mark.parametrize(
    ("template", "versions"),
    [
        (pod(hostNetwork=True), [0, LATEST]),
        (pod(securityContext={"sysctls": [{"name": "net.ipv4.tcp_rmem"}]}), [0, 31]),
        (pod(securityContext={"seLinuxOptions": {"type": "container_engine_t"}}), [0, 30]),
        (pod(securityContext={"runAsUser": 0}), [23, LATEST]),
        (pod(securityContext={"runAsUser": 0}, hostUsers=False), [23, 34]),
        (pod(securityContext={"runAsNonRoot": False}, hostUsers=False), [0, 34]),
        (pod(securityContext={"seccompProfile": {"type": "Unconfined"}}), [19, LATEST]),
        (pod(ephemeralContainers=[{"securityContext": {"privileged": True}}]), [0, LATEST]),
        (container(securityContext={"allowPrivilegeEscalation": True}), [8, LATEST]),
        (container(securityContext={"capabilities": {"add": ["CHOWN"]}}), [22, LATEST]),
        (container(readinessProbe={"tcpSocket": {"port": 1, "host": "a"}}), [34, LATEST]),
        (container(readinessProbe={"tcpSocket": {"port": 1, "host": ""}}), []),
        ({"metadata": {"annotations": {f"container.{SECCOMP}a": "unconfined"}}, **pod()}, [0, 18]),
        ({"metadata": {"annotations": {f"container.{SECCOMP}b": "unconfined"}}, **pod()}, []),
    ],
)  # fmt: skip
def test_rules_change_with_the_version(template: dict[str, Any], versions: list[int]) -> None:
    assert versions_that_forbid(template) == versions


def test_in_a_user_namespace_proc_is_a_matter_of_restricted_alone() -> None:
    template = container(securityContext={"procMount": "Unmasked"})
    assert versions_that_forbid(template, "baseline") == [0, LATEST]
    template["spec"]["hostUsers"] = False
    assert versions_that_forbid(template, "baseline") == [0, 34]
    assert versions_that_forbid(template, "restricted") == [0, LATEST]


def test_a_refusal_names_the_pinned_version() -> None:
    level = PodSecurityLevel.of({LABEL: "baseline", VERSION_LABEL: "v1.31"})
    sysctl = {"sysctls": [{"name": "net.ipv4.tcp_rmem", "value": "1"}]}
    found = problems(pool({f"{POD}.securityContext": sysctl}), ValidationContext(level))
    assert [str(problem) for problem in found] == [
        (
            'spec.template.spec.securityContext.sysctls[0].name: sets "net.ipv4.tcp_rmem", which '
            "Pod Security level baseline of v1.31 forbids; remove it, or label the namespace "
            "pod-security.kubernetes.io/enforce=privileged"
        )
    ]


def test_many_allowed_fields_do_not_hide_a_forbidden_one() -> None:
    document = pool(
        {
            f"{POD}.initContainers": [
                {
                    "name": "init",
                    "image": "i:1",
                    "securityContext": {"capabilities": {"add": ["CHOWN"] * 50}},
                }
            ],
            f"{CONTAINER}.securityContext": {"privileged": True},
        }
    )
    found = problems(document, ValidationContext(PodSecurityLevel.BASELINE))
    assert [problem.field for problem in found] == [f"{CONTAINER}.securityContext.privileged"]


@pytest.mark.parametrize(
    "template",
    [None, [], "a", {"metadata": [], "spec": 1}, {"metadata": {"annotations": {1: 2, "a": 3}}}],
)
def test_any_json_is_accepted(template: Any) -> None:
    assert list(template_escalations(template, "template")) == []
