"""The chart's decision service."""

from __future__ import annotations

import json
import re

import pytest

from engineroom.ratelimit.service.main import Service
from engineroom.ratelimit.service.metrics import Exposition
from engineroom.ratelimit.service.settings import Settings
from tests.unit.chart.rendering import (
    CHART,
    Object,
    containers,
    environment,
    matches,
    named,
    of,
    refusal,
    render,
    run,
)

ON: Object = {"limiter": {"enabled": True}}
NAME = "engineroom-limiter"


def test_it_is_off_unless_asked_for() -> None:
    assert [each for each in render() if "limiter" in each["metadata"]["name"]] == []


def test_it_has_no_token_and_no_rights() -> None:
    objects = render(ON)
    pod = named(objects, "Deployment", NAME)["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["serviceAccountName"] == NAME
    assert named(objects, "ServiceAccount", NAME)["automountServiceAccountToken"] is False
    bound = [
        subject["name"]
        for binding in of(objects, "RoleBinding", "ClusterRoleBinding")
        for subject in binding["subjects"]
    ]
    assert NAME not in bound


def test_proxies_reach_it_by_http_and_grpc_and_it_is_never_without_a_pod() -> None:
    objects = render(ON)
    deployment = named(objects, "Deployment", NAME)
    assert deployment["spec"]["replicas"] == 2
    assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert named(objects, "PodDisruptionBudget", NAME)["spec"]["maxUnavailable"] == 1
    ports = {
        each["name"]: each["port"] for each in named(objects, "Service", NAME)["spec"]["ports"]
    }
    assert ports == {"http": 8080, "grpc": 8081}
    pod = deployment["spec"]["template"]["spec"]
    delay = int(environment(pod["containers"][0])["ENGINEROOM_LIMITER_DRAIN_DELAY"]["value"])
    assert 0 < delay < pod["terminationGracePeriodSeconds"] - 10


def test_only_named_clients_ask_it_and_it_reaches_redis_only() -> None:
    clients = [{"podSelector": {"matchLabels": {"app": "nginx"}}}]
    objects = render({**ON, "networkPolicy": {"limiterClients": clients}})
    policy = named(objects, "NetworkPolicy", NAME)["spec"]
    asked, measured = policy["ingress"]
    assert [each["port"] for each in asked["ports"]] == ["http", "grpc"]
    assert asked["from"] == clients
    assert [each["port"] for each in measured["ports"]] == ["metrics"]
    ports = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
    assert ports == {53, 6379, 6380}
    labels = named(objects, "Deployment", NAME)["spec"]["template"]["metadata"]["labels"]
    (rule,) = named(objects, "NetworkPolicy", "engineroom-redis")["spec"]["ingress"]
    assert any(
        matches(peer["podSelector"], labels)
        for peer in rule["from"]
        if "matchLabels" in peer.get("podSelector", {})
    )


@pytest.mark.parametrize(
    ("peers", "expected"),
    [
        ([], [{"podSelector": {}}]),
        (
            ["shop"],
            [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "shop"}}}],
        ),
        (
            [{"ipBlock": {"cidr": "198.51.100.1/32"}}, "shop"],
            [
                {"ipBlock": {"cidr": "198.51.100.1/32"}},
                {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "shop"}}},
            ],
        ),
    ],
)
def test_namespaces_that_are_not_listed_reach_neither_the_limiter_nor_metrics(
    peers: list[object], expected: list[Object]
) -> None:
    listed = {"limiterClients": peers, "metricsFrom": peers}
    objects = render({**ON, "networkPolicy": listed})
    asked = named(objects, "NetworkPolicy", NAME)["spec"]["ingress"][0]
    assert asked["from"] == expected
    for component in ("operator", "webhooks", "api", "limiter"):
        rules = named(objects, "NetworkPolicy", f"engineroom-{component}")["spec"]["ingress"]
        (measured,) = [
            rule for rule in rules if {"port": "metrics", "protocol": "TCP"} in rule["ports"]
        ]
        assert measured["from"] == expected, component


def test_the_notes_name_the_lists_of_namespaces() -> None:
    values = {**ON, "networkPolicy": {"metricsFrom": ["monitoring"]}}
    notes = run("install", "x", str(CHART), "--dry-run=client", values=values).stdout
    assert 'networkPolicy.metricsFrom: ["monitoring"]' in notes
    assert "networkPolicy.limiterClients: empty, so only Pods in default" in notes
    without = run("install", "x", str(CHART), "--dry-run=client").stdout
    assert "networkPolicy.metricsFrom: empty" in without
    assert "limiterClients" not in without.split("NOTES:")[1]


def test_namespaces_bound_what_it_follows() -> None:
    def follows(values: Object) -> tuple[object, object]:
        (container,) = containers(named(render(values), "Deployment", NAME)["spec"]["template"])
        told = environment(container)
        return (
            told["ENGINEROOM_LIMITER_NAMESPACES"].get("value", ""),
            told["ENGINEROOM_LIMITER_ONLY_NAMESPACES"]["value"],
        )

    assert follows(ON) == ("", "false")
    assert follows({"limiter": {"enabled": True, "namespaces": ["shop"]}}) == ("shop", "false")
    assert follows({**ON, "watchNamespaces": ["shop", "blog"]}) == ("shop,blog", "true")


def test_without_redis_it_is_refused() -> None:
    assert "limiter.enabled" in refusal(
        {**ON, "redis": {"enabled": False}, "api": {"enabled": False}}
    )


def test_the_dashboard_is_where_grafana_looks_if_it_is_asked_for() -> None:
    assert "engineroom-dashboards" not in json.dumps(render(ON))
    objects = render({**ON, "metrics": {"dashboards": {"enabled": True}}})
    folder = named(objects, "ConfigMap", "engineroom-dashboards")
    assert folder["metadata"]["labels"]["grafana_dashboard"] == "1"
    # What its queries name is compared with what is told in tests/integration.
    assert json.loads(folder["data"]["engineroom-limiter.json"])["panels"]


async def test_the_dashboard_leaves_out_none_of_the_services_metrics() -> None:
    objects = render({**ON, "metrics": {"dashboards": {"enabled": True}}})
    text = named(objects, "ConfigMap", "engineroom-dashboards")["data"]["engineroom-limiter.json"]
    told = Exposition(Service(Settings(_cli_parse_args=False)).counts).text().decode()
    exposed = set(re.findall(r"^# HELP (engineroom_\w+)", told, re.MULTILINE))
    shown = {re.sub("_bucket$", "", name) for name in re.findall(r"engineroom_\w+", text)}
    # What every process has is shown with all of them.
    everywhere = {"engineroom_errors_total", "engineroom_breaker_state"}
    assert exposed - everywhere <= shown
    assert everywhere < exposed
