"""What status says is so: who can enforce a policy, who has vanished, whose document it is, and
whether Redis decides."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
import redis.asyncio

from engineroom.kube.resources import SECRETS, SERVICES
from engineroom.ratelimit import channel
from engineroom.ratelimit.channel import keys_of
from engineroom.ratelimit.follow import AsyncFollower
from tests.integration.pools import OperatorProcess
from tests.integration.ratelimit.policies import Policies, condition, until
from tests.limiter import get, limiter_process
from tests.support import RedisServer, redis_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from engineroom.kube.client import Client
    from tests.cluster.api import Cluster

pytestmark = pytest.mark.timeout(120)
TARGET = [{"kind": "Service", "name": "one"}]


@pytest_asyncio.fixture
async def operator(
    control_plane: Cluster, server: RedisServer, namespace: str
) -> AsyncIterator[OperatorProcess]:
    process = OperatorProcess(control_plane.kubeconfig, server.url, namespace)
    await process.start()
    yield process
    await process.stop()


@pytest.fixture
def policies(client: Client, namespace: str) -> Policies:
    return Policies(client, namespace)


@pytest_asyncio.fixture
async def store_async(server: RedisServer) -> AsyncIterator[redis.asyncio.Redis]:
    async with redis.asyncio.Redis(port=server.port, decode_responses=True) as made:
        yield made


async def service(policies: Policies, name: str = "one") -> None:
    made = {
        "metadata": {"namespace": policies.namespace, "name": name},
        "spec": {"ports": [{"name": "http", "port": 80}]},
    }
    await policies.client.create(SERVICES, made)


async def test_only_who_can_enforce_a_policy_counts(
    operator: OperatorProcess, policies: Policies, store_async: redis.asyncio.Redis
) -> None:
    await service(policies)
    await policies.create("front", targetRefs=TARGET)
    await policies.create("app", selector={"matchLabels": {"app": "shop"}})
    await asyncio.sleep(1.1)  # creationTimestamp counts seconds
    await policies.create("younger", selector={"matchLabels": {"tier": "web"}})
    where = policies.namespace
    labels = {"app": "shop", "tier": "web"}
    async with AsyncFollower(store_async, where, labels=labels):
        await policies.until("app", "Enforced", "True")
        front = await policies.until("front", "Enforced", "False", "NoEnforcers")
        assert "no decision service follows this namespace" in message(front, "Enforced")
        assert condition(front, "Ready") == ("False", "NoEnforcers")
        # Both selectors match that application, and it enforces the older policy.
        younger = await policies.until("younger", "Enforced", "False", "NoEnforcers")
        assert "the older policy app" in message(younger, "Enforced")
    async with AsyncFollower(store_async, where, role=channel.LIMITER):
        await policies.until("front", "Ready", "True")
        alone = await policies.until("app", "Enforced", "False", "NoEnforcers")
        assert "no application" in message(alone, "Enforced")
        async with AsyncFollower(store_async, where, labels={"tier": "web"}):
            await policies.until("younger", "Enforced", "True")
            assert condition(await policies.get("app"), "Enforced")[0] == "False"


def message(obj: dict[str, Any], kind: str) -> str:
    (found,) = (each for each in obj["status"]["conditions"] if each["type"] == kind)
    return str(found["message"])


async def test_status_says_since_when_an_edit_is_enforced(
    operator: OperatorProcess, policies: Policies, store_async: redis.asyncio.Redis
) -> None:
    await policies.create("api")
    async with AsyncFollower(store_async, policies.namespace, labels={"app": "api"}):
        first = (await policies.until("api", "Enforced", "True"))["status"]
        await asyncio.sleep(1.1)
        await policies.edit("api", {"failure": {"mode": "Closed"}})
        second = (await policies.until("api", "Enforced", "True"))["status"]
    assert first["enforcers"]["configHash"] != second["enforcers"]["configHash"]
    assert first["enforcers"]["since"] < second["enforcers"]["since"]


async def test_two_spellings_of_one_redis_are_one_document(
    operator: OperatorProcess, policies: Policies, server: RedisServer,
    store_async: redis.asyncio.Redis,
) -> None:  # fmt: skip
    secret = {
        "metadata": {"namespace": policies.namespace, "name": "counters"},
        "stringData": {"url": f"redis://localhost:{server.port}"},
    }
    await policies.client.create(SECRETS, secret)
    reference = {"urlSecretRef": {"name": "counters", "key": "url"}}
    await policies.create("api")
    await policies.create("other", redis=reference)
    document = keys_of(policies.namespace).document

    async def names() -> list[str]:
        whole = json.loads(await store_async.get(document) or '{"policies": []}')
        return sorted(each["name"] for each in whole["policies"])

    await until(names, lambda found: found == ["api", "other"])
    for name in ("api", "other"):
        await policies.until(name, "Programmed", "True")
    revision = json.loads(await store_async.get(document))["revision"]
    await asyncio.sleep(4)
    assert json.loads(await store_async.get(document))["revision"] == revision
    # One of the two comes to be spelt as the other is: what they share is not taken for left.
    await policies.edit("other", {"redis": None})
    await policies.until("other", "Programmed", "True")
    await asyncio.sleep(1)
    assert json.loads(await store_async.get(document))["revision"] == revision


async def test_a_section_that_is_not_there_is_no_target(
    operator: OperatorProcess, policies: Policies
) -> None:
    await service(policies)
    await policies.create("front", targetRefs=[{**TARGET[0], "sectionName": "metrics"}])
    await policies.until("front", "Accepted", "False", "TargetNotFound")
    await policies.client.request(
        "PATCH",
        SERVICES.path(policies.namespace, "one"),
        body={"spec": {"ports": [{"name": "http", "port": 80}, {"name": "metrics", "port": 9090}]}},
        content_type="application/merge-patch+json",
    )
    await policies.until("front", "Accepted", "True", "Accepted")


async def test_a_limiter_that_starts_after_a_flush_refuses_until_the_policies_are_back(
    control_plane: Cluster, policies: Policies, namespace: str, tmp_path: Path
) -> None:
    await service(policies)
    limit = {"name": "all", "rate": {"requests": 1, "period": "1h"}}
    await policies.create("front", targetRefs=TARGET, limits=[limit])
    with redis_server() as server, redis.Redis(port=server.port) as store:
        operator = OperatorProcess(control_plane.kubeconfig, server.url, namespace)
        await operator.start()
        await policies.until("front", "Programmed", "True")
        await operator.stop()
        store.flushall()
        with limiter_process(server.url, tmp_path) as limiter:
            url = f"{limiter.url}/v1/forward/{namespace}/Service:one"
            assert (await asyncio.to_thread(get, url))[0] == 503
            other = f"{limiter.url}/v1/forward/{namespace}/Service:other"
            assert (await asyncio.to_thread(get, other))[0] == 503
            await operator.start()

            async def ask() -> int:
                return (await asyncio.to_thread(get, url))[0]

            assert await until(ask, lambda status: status != 503) == 200
            assert await ask() == 429, "and never was it admitted past the limit"
            assert (await asyncio.to_thread(get, other))[0] == 200, "nothing is attached there"
            await operator.stop()
