"""The whole process, as a process: start, react, stand by, take over, suffer, end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, Self

import aiohttp
import pytest
import yaml

from engineroom.core.errors import ConflictError
from engineroom.kube.client.errors import NotFound
from engineroom.kube.client.resources import CRDS, EVENTS, LEASES, RATELIMITPOLICIES, WORKERPOOLS
from tests.integration.faultproxy import Answer, Drop, Expired, FaultProxy, Request, Verdict
from tests.support import ROOT, pool_document

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from engineroom.kube.client.client import Client

pytestmark = pytest.mark.timeout(120)


class Operator:
    """One operator process; ended by force if a test leaves it running."""

    def __init__(self, kubeconfig: Path, namespace: str, identity: str, **env: str) -> None:
        self.said: list[dict[str, Any]] = []
        self.probes = self.metrics = 0
        self._env = {
            **os.environ,
            "KUBECONFIG": str(kubeconfig),
            "ENGINEROOM_NAMESPACES": namespace,
            "ENGINEROOM_LEASE_NAMESPACE": namespace,
            "ENGINEROOM_IDENTITY": identity,
            "ENGINEROOM_HOST": "127.0.0.1",
            "ENGINEROOM_PROBE_PORT": "0",
            "ENGINEROOM_METRICS_PORT": "0",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            **env,
        }

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.integration.standin",
            env=self._env,
            stdout=asyncio.subprocess.PIPE,
        )
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        await self._reader

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            word = json.loads(line)
            self.said.append(word)
            if word["did"] == "synced":
                self.probes, self.metrics = word["probes"], word["metrics"]

    def did(self, what: str, **words: Any) -> list[dict[str, Any]]:
        return [
            word
            for word in self.said
            if word["did"] == what and all(word.get(k) == v for k, v in words.items())
        ]

    async def until(self, what: str, within: float = 30.0, **words: Any) -> None:
        await until(lambda: bool(self.did(what, **words)), within)

    async def ready(self) -> Self:
        await self.until("synced")
        return self

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def exit_code(self, within: float = 30.0) -> int:
        async with asyncio.timeout(within):
            return await self._process.wait()

    async def get(self, port: int, path: str) -> tuple[int, str]:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{port}{path}") as answer,
        ):
            return answer.status, await answer.text()


async def until(condition: Callable[[], bool], within: float = 30.0) -> None:
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.fixture
def kubeconfig(proxy: FaultProxy, tmp_path: Path) -> Path:
    return proxy.kubeconfig(tmp_path)


async def holder(client: Client, namespace: str) -> str:
    lease = await client.get(LEASES, namespace, "engineroom-operator")
    return str(lease["spec"].get("holderIdentity", ""))


async def test_it_reacts_to_what_is_there_made_changed_and_deleted(
    kubeconfig: Path, proxy: FaultProxy, client: Client, namespace: str
) -> None:
    await client.apply(WORKERPOOLS, pool_document(namespace, "there"))
    key = f"{namespace}/mail"
    async with Operator(kubeconfig, namespace, "one") as operator:
        await operator.until("reconciled", key=f"{namespace}/there", generation=1)
        await client.apply(WORKERPOOLS, pool_document(namespace))
        await operator.until("reconciled", key=key, generation=1)
        await client.apply(WORKERPOOLS, pool_document(namespace, suspend=True))
        await operator.until("reconciled", key=key, generation=2)
        await client.delete(WORKERPOOLS, namespace, "mail")
        await operator.until("gone", key=key)

        # Nothing was written but the three statuses: no annotations, finalizers, events of Kopf's.
        assert [r.path.rsplit("/", 1)[1] for r in proxy.writes()] == ["status"] * 3
        there = await client.get(WORKERPOOLS, namespace, "there")
        assert there["status"] == {"observedGeneration": 1}
        assert "annotations" not in there["metadata"]
        assert "finalizers" not in there["metadata"]
        assert (await client.list(EVENTS, namespace))[0] == []


async def test_probes_and_metrics_tell_what_it_does(
    kubeconfig: Path, client: Client, namespace: str
) -> None:
    await client.apply(WORKERPOOLS, pool_document(namespace))
    async with Operator(kubeconfig, namespace, "one") as operator:
        await operator.until("reconciled", generation=1)
        status, body = await operator.get(operator.probes, "/healthz")
        health = json.loads(body)
        assert status == 200
        assert health["leader"] is True
        assert health["holder"] == health["identity"] == "one"
        assert set(health["watches"]) == {"workerpools", "pods"}
        assert health["queue"] == {"depth": 0, "running": 0, "oldestRun": 0.0}
        status, body = await operator.get(operator.probes, "/readyz")
        assert (status, json.loads(body)["status"]) == (200, "ok")
        _, text = await operator.get(operator.metrics, "/metrics")
        for line in (
            "engineroom_leader 1.0",
            'engineroom_cache_objects{kind="workerpools"} 1.0',
            'engineroom_reconcile_seconds_count{outcome="ok",queue="workerpools"}',
            'engineroom_queue_depth{queue="workerpools"} 0.0',
            'engineroom_api_request_seconds_count{code="200",verb="PATCH"} 1.0',
        ):
            assert line in text


async def test_sigterm_finishes_what_runs_releases_the_lease_and_exits_0(
    kubeconfig: Path, client: Client, namespace: str
) -> None:
    async with Operator(kubeconfig, namespace, "one", STANDIN_SECONDS="1") as operator:
        await client.apply(WORKERPOOLS, pool_document(namespace))
        await operator.until("begun")
        operator.send(signal.SIGTERM)
        assert await operator.exit_code() == 0
        await operator._reader
        assert [word["did"] for word in operator.said[-2:]] == ["reconciled", "stopped"]
    assert await holder(client, namespace) == ""


async def test_what_does_not_finish_within_the_grace_is_cancelled(
    kubeconfig: Path, client: Client, namespace: str
) -> None:
    operator = Operator(
        kubeconfig, namespace, "one", STANDIN_SECONDS="60", ENGINEROOM_SHUTDOWN_GRACE="0.5"
    )
    async with operator:
        await client.apply(WORKERPOOLS, pool_document(namespace))
        await operator.until("begun")
        operator.send(signal.SIGTERM)
        assert await operator.exit_code(within=15) == 0
        assert not operator.did("reconciled")


async def test_killed_and_started_again_it_looks_at_all_and_writes_nothing(
    kubeconfig: Path, proxy: FaultProxy, client: Client, namespace: str
) -> None:
    for number in range(20):
        await client.apply(WORKERPOOLS, pool_document(namespace, f"p{number}"))
    async with Operator(kubeconfig, namespace, "same-pod") as operator:
        await until(lambda: len(operator.did("reconciled")) >= 20)
        operator.send(signal.SIGKILL)
        await operator.exit_code()
    before = len(proxy.writes())
    assert before == 20
    async with Operator(kubeconfig, namespace, "same-pod") as operator:
        # Under its old name it need not wait for its own lease to run out.
        await until(lambda: len(operator.did("reconciled")) >= 20, within=14)
        assert len(proxy.writes()) == before


async def test_a_standby_is_ready_writes_nothing_and_takes_over(
    kubeconfig: Path, proxy: FaultProxy, client: Client, namespace: str
) -> None:
    async with (
        Operator(kubeconfig, namespace, "first") as first,
        Operator(kubeconfig, namespace, "second") as second,
    ):
        await first.ready()
        await second.ready()
        await until(lambda: any(r.lease and r.write for r in proxy.requests))
        await client.apply(WORKERPOOLS, pool_document(namespace))
        await until(lambda: bool(first.did("reconciled") or second.did("reconciled")))
        leader, standby = (first, second) if first.did("reconciled") else (second, first)
        await standby.until("changed")
        assert not standby.did("reconciled")
        status, body = await standby.get(standby.probes, "/readyz")
        assert status == 200
        assert json.loads(body)["leader"] is False
        leader.send(signal.SIGTERM)
        assert await leader.exit_code() == 0
        # The lease was released: within its retry period, not its duration.
        await standby.until("reconciled", within=8)
        await client.apply(WORKERPOOLS, pool_document(namespace, suspend=True))
        await standby.until("reconciled", generation=2)


async def test_a_leader_that_loses_the_lease_exits(
    kubeconfig: Path, proxy: FaultProxy, client: Client, namespace: str
) -> None:
    await client.apply(WORKERPOOLS, pool_document(namespace))
    async with Operator(kubeconfig, namespace, "one") as operator:
        await operator.until("reconciled")
        proxy.before(lambda r: Drop() if r.lease else None)
        assert await operator.exit_code(within=25) == 1


async def watching(proxy: FaultProxy) -> None:
    """Until Kopf has opened its watch."""
    await until(
        lambda: any(r.watch and r.status and "workerpools" in r.path for r in proxy.requests)
    )


async def test_broken_watches_are_opened_again(
    kubeconfig: Path, proxy: FaultProxy, client: Client, namespace: str
) -> None:
    async with Operator(kubeconfig, namespace, "one") as operator:
        await operator.ready()
        for number in range(4):
            await watching(proxy)
            await proxy.cut_watches()
            await client.apply(WORKERPOOLS, pool_document(namespace, f"p{number}"))
            await operator.until("reconciled", key=f"{namespace}/p{number}")


async def test_a_deletion_during_a_410_is_found_by_comparing(
    kubeconfig: Path, proxy: FaultProxy, client: Client, namespace: str
) -> None:
    """Kopf lists again and tells nothing of what went meanwhile."""
    await client.apply(WORKERPOOLS, pool_document(namespace))
    async with Operator(kubeconfig, namespace, "one", ENGINEROOM_RESYNC_SECONDS="3") as operator:
        await operator.until("reconciled")
        await watching(proxy)
        blocked = proxy.before(lambda r: Drop() if r.watch else None)
        await proxy.cut_watches()
        await client.delete(WORKERPOOLS, namespace, "mail")
        blocked()
        once = [Expired()]
        proxy.before(lambda r: once.pop() if r.watch and "workerpools" in r.path and once else None)
        await operator.until("gone", key=f"{namespace}/mail")
        await client.apply(WORKERPOOLS, pool_document(namespace))
        await operator.until("changed", key=f"{namespace}/mail", generation=1)


@pytest.mark.parametrize("error", [Expired(500, "InternalError"), Answer(404), Answer(403)])
async def test_errors_that_end_kopf_do_not_end_the_process(
    kubeconfig: Path,
    proxy: FaultProxy,
    client: Client,
    namespace: str,
    error: Expired | Answer,
) -> None:
    async with Operator(kubeconfig, namespace, "one") as operator:
        await operator.ready()
        await watching(proxy)
        left = [error] * 2

        def fail(request: Request) -> Any:
            return left.pop() if request.watch and "workerpools" in request.path and left else None

        proxy.before(fail)
        await proxy.cut_watches()
        await until(lambda: not left)
        await client.apply(WORKERPOOLS, pool_document(namespace))
        await operator.until("reconciled", key=f"{namespace}/mail")


async def test_an_api_server_that_is_away_for_a_while(
    kubeconfig: Path, proxy: FaultProxy, client: Client, namespace: str
) -> None:
    async with Operator(kubeconfig, namespace, "one") as operator:
        await operator.ready()
        await watching(proxy)
        gone = proxy.before(lambda _: Drop())
        await proxy.cut_watches()
        await client.apply(WORKERPOOLS, pool_document(namespace))
        await asyncio.sleep(5)  # shorter than the lease's renew deadline
        status, _ = await operator.get(operator.probes, "/healthz")
        assert status == 200
        gone()
        await operator.until("reconciled", key=f"{namespace}/mail")


async def test_writes_that_fail_or_whose_answers_are_lost_are_made_good(
    kubeconfig: Path, proxy: FaultProxy, client: Client, namespace: str
) -> None:
    before: list[Verdict] = [
        Answer(500),
        Answer(409, "Conflict"),
        Answer(429, retry_after=1),
        Drop(),
    ]
    proxy.before(
        lambda r: before.pop() if r.write and not r.lease and before else None,
    )
    lost = [Drop()]
    proxy.after(lambda r: lost.pop() if r.write and not r.lease and lost else None)
    async with Operator(kubeconfig, namespace, "one") as operator:
        await client.apply(WORKERPOOLS, pool_document(namespace))
        await operator.until("reconciled", key=f"{namespace}/mail")
    made = await client.get(WORKERPOOLS, namespace, "mail")
    assert made["status"] == {"observedGeneration": 1}


async def test_it_waits_for_the_crd(
    kubeconfig: Path, proxy: FaultProxy, client: Client, namespace: str
) -> None:
    await client.apply(WORKERPOOLS, pool_document(namespace))
    absent = proxy.before(
        lambda r: Answer(404, "NotFound") if "/apis/engineroom.dev" in r.path else None
    )
    async with Operator(kubeconfig, namespace, "one") as operator:
        await until(lambda: len(proxy.requests) >= 3)
        assert not operator.did("synced")
        absent()
        await operator.until("reconciled")


def policy(namespace: str, name: str) -> dict[str, Any]:
    limit = {"name": "all", "rate": {"requests": 5, "period": "1m"}}
    selector = {"matchLabels": {"app": "shop"}}
    return {
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"selector": selector, "limits": [limit]},
    }


async def test_a_deleted_kind_stops_no_other_and_returns_with_its_crd(
    kubeconfig: Path, client: Client, namespace: str
) -> None:
    """One CRD is deleted while pools change all the time."""
    crd = yaml.safe_load((ROOT / "crds" / "ratelimitpolicies.engineroom.dev.yaml").read_text())
    name = crd["metadata"]["name"]
    async with Operator(kubeconfig, namespace, "one", STANDIN_POLICIES="1") as operator:
        await client.apply(RATELIMITPOLICIES, policy(namespace, "first"))
        await operator.until("reconciled", key=f"{namespace}/first")
        generation = 0

        async def change_pools(times: int) -> None:
            nonlocal generation
            for _ in range(times):
                generation += 1
                await client.apply(WORKERPOOLS, pool_document(namespace, replicas=generation))
                await operator.until(
                    "reconciled", within=10, key=f"{namespace}/mail", generation=generation
                )

        try:
            await change_pools(3)
            await client.delete(CRDS, None, name)
            await change_pools(20)
            await operator.until("gone", key=f"{namespace}/first")
            status, _ = await operator.get(operator.probes, "/healthz")
            assert status == 200
        finally:
            await eventually_applied(client, crd)
        await change_pools(3)
        await applied(client, policy(namespace, "second"))
        await operator.until("reconciled", key=f"{namespace}/second")
        await change_pools(3)
        changes = len(operator.did("changed", key=f"{namespace}/second"))
        await client.delete(RATELIMITPOLICIES, namespace, "second")
        await until(lambda: len(operator.did("changed", key=f"{namespace}/second")) > changes)


async def test_a_kind_whose_children_are_forbidden_stops_no_other(
    kubeconfig: Path, proxy: FaultProxy, client: Client, namespace: str
) -> None:
    await client.apply(WORKERPOOLS, pool_document(namespace))
    await client.apply(RATELIMITPOLICIES, policy(namespace, "first"))
    allow = proxy.before(lambda r: Answer(403, "Forbidden") if r.path.endswith("/pods") else None)
    async with Operator(kubeconfig, namespace, "one", STANDIN_POLICIES="1") as operator:
        await operator.until("reconciled", key=f"{namespace}/first")
        assert not operator.did("reconciled", key=f"{namespace}/mail")
        status, _ = await operator.get(operator.probes, "/readyz")
        assert status == 200
        allow()
        await operator.until("reconciled", within=40, key=f"{namespace}/mail")


async def eventually_applied(client: Client, crd: dict[str, Any]) -> None:
    """Create the CRD again, once its predecessor is really gone."""
    name = crd["metadata"]["name"]
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(NotFound):
                found = await client.get(CRDS, None, name)
                if "deletionTimestamp" not in found["metadata"]:
                    return
                await asyncio.sleep(0.1)
                continue
            with contextlib.suppress(ConflictError):
                await client.create(CRDS, crd)


async def applied(client: Client, obj: dict[str, Any]) -> None:
    """Apply a policy, once the API server serves its kind again."""
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(NotFound):
                await client.apply(RATELIMITPOLICIES, obj)
                return
            await asyncio.sleep(0.1)


async def test_at_rest_nothing_is_written_and_little_is_asked(
    kubeconfig: Path, proxy: FaultProxy, client: Client, namespace: str
) -> None:
    await client.apply(WORKERPOOLS, pool_document(namespace))
    async with Operator(kubeconfig, namespace, "one") as operator:
        await operator.until("reconciled")
        await watching(proxy)
        await asyncio.sleep(1)
        settled = len(proxy.requests)
        await asyncio.sleep(10)
        assert all(request.lease for request in proxy.requests[settled:])
        assert len(operator.did("reconciled")) == 1
