"""Every query of the Grafana dashboard names metrics, and labels of them, that are told."""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING, Any

import pytest
import redis
import redis.asyncio
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from engineroom.ratelimit.limits.limiter import AsyncLimiter, Limiter
from engineroom.ratelimit.limits.middleware import AsgiRateLimit, WsgiRateLimit
from engineroom.ratelimit.limits.model import Failure, Limit, Mode, Policy, Rate
from engineroom.ratelimit.limits.prometheus import PrometheusDecisions
from engineroom.ratelimit.limits.sources import Path as RequestPath
from tests.integration.pools import OperatorProcess
from tests.integration.ratelimit.policies import Policies
from tests.integration.ratelimit.test_middleware import asgi_app, ask
from tests.limiter import get, limiter_process
from tests.support import ROOT, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from engineroom.kube.client.client import Client
    from engineroom.ratelimit.limits.decision import Decision
    from tests.cluster.api import Cluster
    from tests.support import RedisServer

pytestmark = pytest.mark.timeout(120)

DASHBOARD = ROOT / "charts/engineroom/files/dashboards/limiter.json"
#: Labels that Prometheus adds where it scrapes.
SCRAPED = {"pod", "instance", "job", "namespace", "service"}
_NAMED = re.compile(r"(engineroom_\w+)(?:\{(.*?)\})?")
_MATCHED = re.compile(r'(\w+)(=~|!=|=|!~)"([^"]*)"')
_BY = re.compile(r"by \(([\w, ]+)\)")

Samples = dict[str, list[dict[str, str]]]


def queries() -> Iterator[tuple[str, str]]:
    """Panel and query; the list of policies at the top is one, too."""
    dashboard = json.loads(DASHBOARD.read_text())
    for variable in dashboard["templating"]["list"]:
        if isinstance(variable["query"], dict):
            yield variable["name"], variable["query"]["query"]
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def samples(*texts: str) -> Samples:
    """Labels of every sample, by its name."""
    actual: Samples = {}
    for text in texts:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                actual.setdefault(sample.name, []).append(dict(sample.labels))
    return actual


def complaints(query: str, told: Samples) -> list[str]:
    """What a query asks for that nobody tells."""
    actual = []
    names = _NAMED.findall(query)
    if not names:
        return ["names no metric of ours"]
    by = {name.strip() for entry in _BY.findall(query) for name in entry.split(",")}
    if labelled := re.match(r"label_values\(\w+, (\w+)\)", query):
        by.add(labelled[1])
    for name, matchers in names:
        if name not in told:
            actual.append(f"{name} is told by nobody")
            continue
        labels = set().union(*(entry.keys() for entry in told[name])) | SCRAPED
        asked = by | {label for label, _, _ in _MATCHED.findall(matchers)}
        actual += [f"{name} has no label {label}" for label in sorted(asked - labels)]
        for label, operator, value in _MATCHED.findall(matchers):
            values = {entry.get(label, "") for entry in told[name]}
            if operator == "=" and value not in values:
                actual.append(f"{name} never has {label}={value}, but {sorted(values)}")
    return actual


async def test_every_panel_shows_what_the_limiter_or_the_operator_tells(
    control_plane: Cluster,
    client: Client,
    namespace: str,
    server: RedisServer,
    store: redis.Redis,
    tmp_path: Path,
) -> None:
    metrics = free_port()
    operator = OperatorProcess(
        control_plane.kubeconfig, server.url, namespace, metrics_port=metrics
    )
    await operator.start()
    try:
        policies = Policies(client, namespace)
        policy: dict[str, Any] = {
            "limits": [
                {"name": "all", "rate": {"requests": 2, "period": "1h"}},
                {
                    "name": "tried",
                    "rate": {"requests": 1, "period": "1h"},
                    "mode": "Shadow",
                },
            ],
            "targetRefs": [{"kind": "Service", "name": "api"}],
        }
        await policies.create("api", **policy)
        await policies.until("api", "Enforced", "False", "NoEnforcers")
        unfollowed = (await asyncio.to_thread(get, f"http://127.0.0.1:{metrics}/metrics"))[1]
        assert "engineroom_ratelimit_policies_unenforced 1.0" in unfollowed
        with limiter_process(server.url, tmp_path, namespaces=namespace) as limiter:
            await policies.until("api", "Enforced", "True", "Enforced")
            for name in ("api", "api", "api", "unknown"):
                await asyncio.to_thread(get, f"{limiter.url}/v1/forward/{namespace}/{name}")
            followed = (await asyncio.to_thread(get, f"http://127.0.0.1:{metrics}/metrics"))[1]
            reported = samples((await asyncio.to_thread(limiter.admin, "/metrics"))[1], followed)
    finally:
        await operator.stop()
    assert "engineroom_ratelimit_policies_unenforced 0.0" in followed
    wrong = {f"{panel}: {query}": complaints(query, reported) for panel, query in queries()}
    assert {query: why for query, why in wrong.items() if why} == {}


async def test_panels_of_decisions_show_what_applications_tell(server: RedisServer) -> None:
    """Of requests through a middleware the same panels are filled as of those through proxies."""
    limits = (
        Limit("all", Rate(3, 3600)),
        Limit("tried", Rate(1, 3600), mode=Mode.SHADOW),
        Limit("path", Rate(1, 3600), key=(RequestPath(),)),
    )
    policy = Policy("shop/api", limits, Failure(timeout=2.0))
    registry = CollectorRegistry()
    count = PrometheusDecisions(registry)
    decisions: list[Decision] = []

    def observe(decision: Decision, seconds: float) -> None:
        decisions.append(decision)
        count(decision, seconds)

    client = redis.asyncio.Redis(port=server.port)
    async with AsyncLimiter(policy, client) as limiter:
        app = AsgiRateLimit(asgi_app, limiter, observe=observe)
        assert [(await ask(app))[0] for _ in range(2)] == [200, 429]
    with Limiter(policy, redis.Redis(port=server.port)) as sync:
        wsgi = WsgiRateLimit(_plain, sync, observe=observe)
        for path in ("/a", "/b", "/a"):
            wsgi({"PATH_INFO": path}, lambda *_: None)
    text = generate_latest(registry).decode()
    reported = samples(text)
    output = [query for _, query in queries() if "_decision" in query or "_shadowed_total" in query]
    assert len(output) >= 7
    assert [complaints(query, reported) for query in output] == [[]] * len(output)
    # The first request is within all limits, the four others are above the one in the shadow.
    assert sum(decision.shadowed == ("tried",) for decision in decisions) == 4
    assert 'shadowed_total{limit="tried",policy="shop/api"} 4.0' in text
    assert [decision.allowed for decision in decisions] == [True, False, True, True, False]
    assert "engineroom_ratelimit_decision_seconds_count 5.0" in text


def _plain(environ: Any, start: Any) -> list[bytes]:
    start("200 OK", [])
    return []


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("sum(rate(engineroom_nothing_total[1m]))", "engineroom_nothing_total is told by nobody"),
        ('sum(engineroom_a_total{limit="x"})', "engineroom_a_total has no label limit"),
        ("sum by (limit) (engineroom_a_total)", "engineroom_a_total has no label limit"),
        (
            'sum(engineroom_a_total{reason="B"})',
            "engineroom_a_total never has reason=B, but ['A']",
        ),
        ("label_values(engineroom_a_total, limit)", "engineroom_a_total has no label limit"),
        ("up", "names no metric of ours"),
    ],
)
def test_a_query_that_shows_nothing_is_found(query: str, why: str) -> None:
    assert why in complaints(query, {"engineroom_a_total": [{"reason": "A"}]})
