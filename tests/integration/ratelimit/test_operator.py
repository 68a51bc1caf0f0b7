"""The operator with RateLimitPolicies: what it measures, what it waits for, and the whole way from
`kubectl apply` to an application of several processes."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import sys
import urllib.request
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import redis.asyncio

from engineroom.kube.client.resources import RATELIMITPOLICIES
from engineroom.ratelimit.distribution.policy_follower import AsyncFollower
from tests.integration.faultproxy import Answer
from tests.integration.pools import OperatorProcess
from tests.integration.ratelimit.policies import Policies, until
from tests.support import ROOT, free_port

if TYPE_CHECKING:
    from pathlib import Path

    from engineroom.kube.client.client import Client
    from tests.cluster.api import Cluster
    from tests.integration.faultproxy import FaultProxy
    from tests.support import RedisServer

pytestmark = pytest.mark.timeout(120)


async def test_it_waits_for_its_kind_and_says_so(
    proxy: FaultProxy, client: Client, server: RedisServer, namespace: str, tmp_path: Path
) -> None:
    policies = Policies(client, namespace)
    await policies.create("api")
    served = proxy.before(
        lambda request: Answer(404, "NotFound") if "engineroom.dev" in request.path else None
    )
    operator = OperatorProcess(proxy.kubeconfig(tmp_path), server.url, namespace)
    await operator.start()
    try:

        async def said() -> list[str]:
            return [str(line.get("problem")) for line in operator.log()]

        await until(said, lambda lines: "the CRD of RateLimitPolicy is not installed" in lines)
        assert (await policies.get("api"))["status"] == {"observedGeneration": -1}
        served()
        await policies.until("api", "Programmed", "True")
    finally:
        assert await operator.stop() == 0


async def test_it_counts_policies_conflicts_enforcers_and_how_quick_it_was(
    control_plane: Cluster, client: Client, server: RedisServer, namespace: str
) -> None:
    policies, port = Policies(client, namespace), free_port()
    operator = OperatorProcess(
        control_plane.kubeconfig, server.url, namespace, metrics_port=port, host="127.0.0.1"
    )
    await operator.start()

    async def metrics() -> dict[str, float]:
        return await asyncio.to_thread(exposition, port)

    def has(**expected: float) -> Any:
        wanted = {SERIES[name]: value for name, value in expected.items()}
        return lambda found: {name: found.get(name) for name in wanted} == wanted

    same = {"selector": {"matchLabels": {"app": "same"}}}
    try:
        async with (
            redis.asyncio.Redis(port=server.port) as store,
            AsyncFollower(store, namespace, labels={"app": "same"}),
        ):
            await policies.create("first", **same)
            await policies.until("first", "Enforced", "True")
            await asyncio.sleep(1.1)  # creationTimestamp counts seconds
            await policies.create("second", **same)
            await policies.until("second", "Accepted", "False", "Conflicted")
            await until(
                metrics,
                has(enforced=1, unenforced=1, conflicts=1, live=1, current=1, changes=1),
            )
            await policies.edit("first", {"failure": {"mode": "Open"}})
            actual = await until(metrics, has(enforced=1, changes=2))
            assert 0 < actual["engineroom_ratelimit_enforced_seconds_sum"] < 20
        await until(metrics, has(enforced=0, unenforced=2, live=0))
        for name in ("first", "second"):
            await client.delete(RATELIMITPOLICIES, namespace, name)
        await until(metrics, has(enforced=0, unenforced=0, conflicts=0))
    finally:
        assert await operator.stop() == 0


SERIES = {
    "enforced": 'engineroom_ratelimitpolicies{condition="Enforced",status="True"}',
    "unenforced": 'engineroom_ratelimitpolicies{condition="Enforced",status="False"}',
    "conflicts": "engineroom_ratelimitpolicy_conflicts",
    "live": 'engineroom_ratelimit_enforcers{state="live"}',
    "current": 'engineroom_ratelimit_enforcers{state="current"}',
    "changes": "engineroom_ratelimit_enforced_seconds_count",
}


def exposition(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in pairs}


async def test_three_processes_of_an_application_hold_the_bound_of_an_applied_policy(
    control_plane: Cluster, client: Client, server: RedisServer, namespace: str, tmp_path: Path
) -> None:
    port, policies = free_port(), Policies(client, namespace)
    operator = OperatorProcess(control_plane.kubeconfig, server.url, namespace)
    await operator.start()
    with (tmp_path / "log").open("wb") as log:
        shop = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "uvicorn", "--factory", "--workers", "3", "--port", str(port),
            "--log-level", "warning", "tests.integration.ratelimit.limited_app:application",
            cwd=ROOT, stdout=log, stderr=log,
            env={
                **os.environ,
                "PYTHONPATH": f"{ROOT / 'operator'}:{ROOT}",
                "SHOP_REDIS_URL": server.url,
                "SHOP_NAMESPACE": namespace,
            },
        )  # fmt: skip
    try:
        manifest = {
            "apiVersion": "engineroom.dev/v1alpha1",
            "kind": "RateLimitPolicy",
            "metadata": {"name": "shop", "namespace": namespace},
            "spec": {
                "selector": {"matchLabels": {"app": "shop"}},
                "failure": {"mode": "Closed", "timeout": "5s"},
                "limits": [
                    {
                        "name": "per-client",
                        "rate": {"requests": 20, "period": "1h"},
                        "key": [{"source": "Header", "name": "X-Client"}],
                    }
                ],
            },
        }
        await apply(control_plane, manifest)
        await until(
            lambda: policies.get("shop"),
            lambda obj: (obj.get("status") or {}).get("enforcers", {}).get("total") == 3,
        )
        await policies.until("shop", "Enforced", "True")
        answers = await asyncio.gather(*(asyncio.to_thread(ask, port, "a") for _ in range(60)))
        statuses = Counter(status for status, _ in answers)
        assert statuses == {200: 20, 429: 40}
        assert len({process for status, process in answers if status == 200}) > 1
        # Of what was consumed nothing comes back when the policy is applied anew.
        manifest["spec"]["limits"][0]["rate"]["requests"] = 25  # type: ignore[index]
        await apply(control_plane, manifest)
        await policies.until("shop", "Enforced", "True")
        answers = await asyncio.gather(*(asyncio.to_thread(ask, port, "b") for _ in range(40)))
        assert Counter(status for status, _ in answers)[200] == 25
        answers = await asyncio.gather(*(asyncio.to_thread(ask, port, "a") for _ in range(40)))
        assert Counter(status for status, _ in answers)[200] <= 9
    finally:
        shop.terminate()
        await shop.wait()
        await operator.stop()


async def apply(cluster: Cluster, manifest: dict[str, Any]) -> None:
    done = await asyncio.create_subprocess_exec(
        "kubectl", "apply", "-f", "-",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE, env=cluster.env(),
    )  # fmt: skip
    _, errors = await done.communicate(json.dumps(manifest).encode())
    assert done.returncode == 0, errors


def ask(port: int, client: str) -> tuple[int, str]:
    """On a connection of its own, so that any of the processes may take it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", "/", headers={"X-Client": client})
        answer = connection.getresponse()
        return answer.status, answer.headers.get("x-process", "")
    finally:
        connection.close()
