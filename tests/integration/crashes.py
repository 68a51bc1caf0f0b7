"""One life of a pool, up, through a rollout and down, the operator killed at a chosen write."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engineroom.kube.client.client import Client
from engineroom.kube.client.errors import NotFound
from engineroom.kube.client.resources import (
    DEPLOYMENTS,
    NAMESPACES,
    PDBS,
    SERVICE_ACCOUNTS,
    WORKERPOOLS,
    Resource,
)
from tests.integration.faultproxy import Drop, FaultProxy, Request
from tests.integration.hollow import HollowKubelet
from tests.integration.pools import OperatorProcess, Stage, eventually, pool
from tests.support import shared_namespace

if TYPE_CHECKING:
    from engineroom.kube.client.config import ApiConfig
    from tests.support import RedisServer

REPLICA_SETS = Resource("apps", "v1", "replicasets", "ReplicaSet")
#: Where a size is written.
SIZED = ("/deployments/mail", "/deployments/mail/scale")


@dataclass(frozen=True)
class Crash:
    """Kill the operator at its ``number``-th write (from 0), before or after it is done."""

    number: int
    after: bool

    def __str__(self) -> str:
        return f"{'after' if self.after else 'before'} write {self.number}"


@dataclass(frozen=True)
class Life:
    """What a life left behind; equal for all lives, however often the operator died."""

    lost: int
    doubled: int
    size: int
    pods: int
    deployments: int
    accounts: tuple[str, ...]
    budgets: tuple[str, ...]
    answered: bool
    sizes_within_bounds: bool


@dataclass(frozen=True)
class Record:
    """A life, what was written in it, and whether the crash happened."""

    life: Life
    writes: tuple[tuple[str, str], ...]
    crashed: bool


def kind_of(request: Request) -> tuple[str, str]:
    """(method, kind of object) of a write."""
    parts = request.path.split("/namespaces/")[-1].split("/")[1:]
    return request.method, "/".join([parts[0], *parts[2:]])


def counts(request: Request) -> bool:
    """Whether it is one of the writes that a pool's state consists of."""
    return request.write and not request.lease and "/events" not in request.path


async def live(config: ApiConfig, redis: RedisServer, crash: Crash | None) -> Record:
    """Play the life once, in a namespace of its own."""
    name = f"crash-{secrets.token_hex(4)}"
    async with Client(config) as client, FaultProxy(config) as proxy:
        await client.create(NAMESPACES, shared_namespace(name))
        try:
            with tempfile.TemporaryDirectory() as folder:
                kubeconfig = proxy.kubeconfig(Path(folder))
                operator = OperatorProcess(kubeconfig, redis.url, name)
                async with HollowKubelet(client, name) as kubelet:
                    return await _play(Stage(client, name, redis), kubelet, proxy, operator, crash)
        finally:
            with contextlib.suppress(NotFound):
                await client.delete(NAMESPACES, None, name)


async def _play(
    stage: Stage,
    kubelet: HollowKubelet,
    proxy: FaultProxy,
    operator: OperatorProcess,
    crash: Crash | None,
) -> Record:
    seen: list[tuple[str, str]] = []
    crashed = asyncio.Event()
    sizes: list[int] = []

    def before(request: Request) -> Drop | None:
        if not counts(request):
            return None
        seen.append(kind_of(request))
        if b'"replicas":' in request.body and request.path.endswith(SIZED):
            sizes.append(int(request.body.split(b'"replicas":')[1].split(b"}")[0].split(b",")[0]))
        if crash is not None and not crash.after and len(seen) == crash.number + 1:
            operator.kill()
            crashed.set()
            return Drop()
        return None

    def after(request: Request) -> Drop | None:
        hit = crash is not None and crash.after and len(seen) >= crash.number + 1
        if hit and counts(request) and not crashed.is_set():
            operator.kill()
            crashed.set()
            return Drop()
        return None

    proxy.before(before)
    proxy.after(after)

    async def resurrect() -> None:
        await crashed.wait()
        await operator.gone()
        await operator.start()

    await operator.start()
    phoenix = asyncio.create_task(resurrect())
    try:
        await stage.client.create(WORKERPOOLS, pool(stage.namespace))
        stage.enqueue(4, 0.5)
        await eventually("pods run", kubelet.pods, 60)
        template = {
            "spec": {"containers": [{"name": "app", "image": "none"}]},
            "metadata": {"annotations": {"rolled": "out"}},
        }
        await stage.client.merge_patch(
            WORKERPOOLS, stage.namespace, "mail", {"spec": {"template": template}}
        )
        stage.enqueue(3, 0.5)
        await eventually("all jobs are done", lambda: stage.ledger().lost == 0, 90)
        await eventually("the pool is at rest", lambda: _at_rest(stage), 90)
        return Record(await _life(stage, sizes), tuple(seen), crashed.is_set())
    finally:
        phoenix.cancel()
        await asyncio.gather(phoenix, return_exceptions=True)
        await operator.stop()


async def _at_rest(stage: Stage) -> bool:
    found = await stage.pool()
    status = found.get("status") or {}
    states = {c["type"]: c["status"] for c in status.get("conditions") or ()}
    return (
        await stage.at_rest()
        and status.get("observedGeneration") == found["metadata"]["generation"]
        and status.get("desiredReplicas") == status.get("replicas") == 0
        and states.get("Reconciling") == "False"
        and states.get("Ready") == "True"
    )


async def _life(stage: Stage, sizes: list[int]) -> Life:
    ledger = stage.ledger()
    deployments, _ = await stage.client.list(DEPLOYMENTS, stage.namespace)
    accounts, _ = await stage.client.list(SERVICE_ACCOUNTS, stage.namespace)
    budgets, _ = await stage.client.list(PDBS, stage.namespace)
    names = [a["metadata"]["name"] for a in accounts if a["metadata"]["name"] != "default"]
    rolled = deployments[0]["spec"]["template"]["metadata"]["annotations"].get("rolled")
    return Life(
        lost=ledger.lost,
        doubled=ledger.doubled,
        size=await stage.size(),
        pods=len(await stage.pods()),
        deployments=len(deployments),
        accounts=tuple(sorted(names)),
        budgets=tuple(sorted(b["metadata"]["name"] for b in budgets)),
        answered=rolled == "out",
        sizes_within_bounds=all(0 <= size <= 3 + 3 for size in sizes),
    )
