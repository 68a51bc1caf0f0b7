"""The status of every kind in every phase, judged by kstatus of cli-utils, as Flux and Argo CD do.

Each test records every version of an object that the API server stores and judges them all: a wait
of a GitOps engine may fall on any of them.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
import redis.asyncio

from engineroom.core import conditions
from engineroom.core.errors import EngineroomError
from engineroom.kube.client.resources import (
    RATELIMITPOLICIES,
    SECRETS,
    WORKERPOOLS,
)
from engineroom.ratelimit.distribution.policy_follower import AsyncFollower
from tests import toy_kind
from tests.integration.hollow import HollowKubelet
from tests.integration.pools import OperatorProcess, Stage, eventually, pool
from tests.integration.ratelimit.policies import policy
from tests.integration.toys import TOYS, a_toy, toys_served
from tests.kstatus import judge
from tests.support import ROOT, RedisServer, extra_kinds, redis_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from engineroom.kube.client.client import Client
    from engineroom.kube.client.resources import Resource
    from tests.cluster.api import Cluster

pytestmark = pytest.mark.timeout(180)

KINDS = (WORKERPOOLS, RATELIMITPOLICIES, TOYS)


class Versions:
    """Every version of one object, and the verdicts on them."""

    def __init__(self, client: Client, kind: Resource, namespace: str, name: str) -> None:
        self.client, self.kind, self.namespace, self.name = client, kind, namespace, name
        self._objects: list[dict[str, Any]] = []
        self._judged = 0

    async def record(self, created: dict[str, Any]) -> None:
        """Record until cancelled."""
        self._objects.append(created)
        version = created["metadata"]["resourceVersion"]
        while True:
            changes = self.client.watch(self.kind, self.namespace, version)
            with contextlib.suppress(EngineroomError):
                async for change, obj in changes:
                    version = obj["metadata"]["resourceVersion"]
                    if change == "MODIFIED" and obj["metadata"]["name"] == self.name:
                        self._objects.append(obj)

    async def current(self) -> str:
        """Return the verdict on the object as it is now."""
        return self._verdicts([await self.client.get(self.kind, self.namespace, self.name)])[0]

    async def until(self, status: str, within: float = 60.0) -> None:
        """Wait until the API server holds a version with this verdict."""

        async def reached() -> bool:
            return await self.current() == status

        await eventually(f"{self.name} is {status}", reached, within, every=0.2)

    async def since_last(self) -> list[str]:
        """Return the verdicts on the versions since the last call, repetitions left out."""
        stored = await self.client.get(self.kind, self.namespace, self.name)
        version = stored["metadata"]["resourceVersion"]

        def recorded() -> bool:
            return any(obj["metadata"]["resourceVersion"] == version for obj in self._objects)

        await eventually(f"version {version} is recorded", recorded)
        objects, self._judged = self._objects[self._judged :], len(self._objects)
        return [status for status, _ in itertools.groupby(self._verdicts(objects))]

    def _verdicts(self, objects: list[dict[str, Any]]) -> list[str]:
        verdicts = [verdict.status for verdict in judge(objects)]
        for obj, status in zip(objects, verdicts, strict=True):
            # The command line and the console read the same from an object.
            if "deletionTimestamp" not in obj["metadata"]:
                assert conditions.progress(obj) == status, obj.get("status")
        return verdicts


@pytest.fixture(scope="module")
def toys_declared() -> Iterator[None]:
    """The registry with the toy kind, here and in the operator."""
    with extra_kinds(toy_kind.__name__):
        yield


@pytest_asyncio.fixture
async def served(client: Client, toys_declared: None) -> AsyncIterator[Client]:
    """An API server that serves all three kinds."""
    async with toys_served(client) as serving:
        yield serving


@pytest.fixture
def store() -> Iterator[RedisServer]:
    with redis_server(durable=True) as running:
        yield running


@pytest.fixture
def operator(
    control_plane: Cluster, store: RedisServer, namespace: str, toys_declared: None
) -> OperatorProcess:
    """The operator with the toy kind; a test starts it."""
    path = f"{ROOT / 'operator'}:{ROOT}"
    return OperatorProcess(control_plane.kubeconfig, store.url, namespace, pythonpath=path)


@contextlib.asynccontextmanager
async def recorded(client: Client, kind: Resource, obj: dict[str, Any]) -> AsyncIterator[Versions]:
    """Create an object and record its versions."""
    created = await client.create(kind, obj)
    metadata = created["metadata"]
    versions = Versions(client, kind, metadata["namespace"], metadata["name"])
    recording = asyncio.create_task(versions.record(created))
    try:
        yield versions
    finally:
        recording.cancel()
        await asyncio.gather(recording, return_exceptions=True)


async def edit(versions: Versions, spec: dict[str, Any]) -> None:
    await versions.client.merge_patch(
        versions.kind, versions.namespace, versions.name, {"spec": spec}
    )


BUILDERS = {WORKERPOOLS: pool, RATELIMITPOLICIES: policy, TOYS: a_toy}
#: A spec that passes the API server's own rules and no admission server would admit.
INVALID = {
    WORKERPOOLS: {"template": {"spec": {"containers": [{"name": "app", "image": ""}]}}},
    RATELIMITPOLICIES: {"failure": {"timeout": "11s"}},
    TOYS: {"count": 13},
}
#: A valid edit.
EDIT = {
    WORKERPOOLS: {"autoscaling": {"idleTimeout": "2s"}},
    RATELIMITPOLICIES: {"failure": {"mode": "Closed"}},
    TOYS: {"count": 2},
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
async def test_a_spec_from_its_creation_to_the_deletion(
    served: Client, namespace: str, operator: OperatorProcess, kind: Resource
) -> None:
    async with recorded(served, kind, BUILDERS[kind](namespace)) as versions:
        assert await versions.current() == "InProgress", "no operator has seen it"
        await operator.start()
        try:
            await versions.until("Current")
            assert await versions.since_last() == ["InProgress", "Current"]

            await edit(versions, EDIT[kind])
            await versions.until("Current")
            assert set(await versions.since_last()) <= {"InProgress", "Current"}

            before = (await served.get(kind, namespace, versions.name))["spec"]
            await edit(versions, INVALID[kind])
            await versions.until("Failed")
            assert await versions.since_last() == ["InProgress", "Failed"]

            changed = {name: before.get(name) for name in INVALID[kind]}
            await edit(versions, changed)
            await versions.until("Current")
            assert await versions.since_last() == ["InProgress", "Current"]
        finally:
            await operator.stop()

        finalizers = {"metadata": {"finalizers": ["example.com/held"]}}
        await served.merge_patch(kind, namespace, versions.name, finalizers)
        await served.delete(kind, namespace, versions.name)
        assert await versions.current() == "Terminating"
        await served.merge_patch(kind, namespace, versions.name, {"metadata": {"finalizers": None}})


async def test_a_pool_at_work_is_current_in_every_version(
    served: Client, namespace: str, store: RedisServer, operator: OperatorProcess
) -> None:
    stage = Stage(served, namespace, store)
    async with (
        HollowKubelet(served, namespace) as kubelet,
        recorded(served, WORKERPOOLS, pool(namespace)) as versions,
    ):
        await operator.start()
        try:
            await versions.until("Current")
            await versions.since_last()
            for count in (6, 1, 4):
                stage.enqueue(count, 0.3)
                await eventually("the jobs are done", lambda: stage.ledger().lost == 0, 60)
            await eventually("the pool is at zero", lambda: stage.at_rest(), 60)
            assert await versions.since_last() == ["Current"], "scaling, at work, draining, at zero"

            await edit(versions, {"autoscaling": {"minReplicas": 2}})
            await eventually("two pods run", lambda: len(kubelet.pods()) == 2)
            await versions.until("Current")
            await versions.since_last()
            env = [{"name": "RELEASE", "value": "2"}]
            container = {"name": "app", "image": "none", "env": env}
            await edit(versions, {"template": {"spec": {"containers": [container]}}})
            await versions.until("Current")
            assert await versions.since_last() == ["InProgress", "Current"], "rolled out"
            await edit(versions, {"suspend": True})
            await versions.until("Current")
        finally:
            await operator.stop()


async def test_what_can_heal_is_in_progress_and_never_failed(
    served: Client, namespace: str, store: RedisServer, operator: OperatorProcess
) -> None:
    reference = {"urlSecretRef": {"name": "address", "key": "url"}}
    toys = a_toy(namespace, bells=[{"url": "http://bell", "tokenSecretRef": _key("address")}])
    async with (
        recorded(served, WORKERPOOLS, pool(namespace, redis=reference)) as pools,
        recorded(served, TOYS, toys) as bells,
        recorded(served, RATELIMITPOLICIES, policy(namespace)) as policies,
    ):
        await operator.start()
        try:
            await policies.until("Current")
            await eventually("Secret missing", lambda: _reason(pools, "SecretNotFound"))
            await eventually("Secret missing", lambda: _reason(bells, "SecretNotFound"))
            data = {"url": base64.b64encode(store.url.encode()).decode()}
            metadata = {"namespace": namespace, "name": "address"}
            await served.create(SECRETS, {"metadata": metadata, "data": data})
            await pools.until("Current")
            await bells.until("Current")
            store.stop()
            await pools.until("InProgress")
            await policies.until("InProgress")
            store.start()
            await pools.until("Current")
            await policies.until("Current")
        finally:
            await operator.stop()
        for versions in (pools, bells, policies):
            assert set(await versions.since_last()) == {"InProgress", "Current"}


async def test_an_enforced_policy_is_current_with_and_without_enforcers(
    served: Client, namespace: str, store: RedisServer, operator: OperatorProcess
) -> None:
    async with recorded(served, RATELIMITPOLICIES, policy(namespace)) as versions:
        await operator.start()
        try:
            await versions.until("Current")
            await versions.since_last()
            async with (
                redis.asyncio.Redis(port=store.port, decode_responses=True) as connection,
                AsyncFollower(connection, namespace, labels={"app": "api"}),
            ):
                await eventually("enforced", lambda: _enforced(versions, "True"))
            await eventually("no enforcer is left", lambda: _enforced(versions, "False"))
            assert await versions.since_last() == ["Current"]
        finally:
            await operator.stop()


def _key(name: str) -> dict[str, str]:
    return {"name": name, "key": "url"}


async def _reason(versions: Versions, reason: str) -> bool:
    obj = await versions.client.get(versions.kind, versions.namespace, versions.name)
    reported = (obj.get("status") or {}).get("conditions") or ()
    reconciling = conditions.find(reported, conditions.RECONCILING)
    return reconciling is not None and reconciling["reason"] == reason


async def _enforced(versions: Versions, status: str) -> bool:
    obj = await versions.client.get(versions.kind, versions.namespace, versions.name)
    enforced = conditions.find(obj["status"]["conditions"], "Enforced")
    return enforced is not None and enforced["status"] == status
