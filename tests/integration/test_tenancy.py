"""Tenants of a shared Redis: the namespace's label, and the owner of each queue."""

from __future__ import annotations

import base64
import secrets
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from engineroom.kube.client.resources import DEPLOYMENTS, EVENTS, NAMESPACES, SECRETS, WORKERPOOLS
from engineroom.queue import ownership
from tests.integration.hollow import HollowKubelet
from tests.integration.pools import OperatorProcess, Stage, eventually, pool
from tests.support import shared_namespace

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engineroom.kube.client.client import Client
    from tests.cluster.api import Cluster
    from tests.support import RedisServer

DAILY = {"name": "daily", "cron": "0 3 * * *", "function": "shop.jobs.report"}


@pytest_asyncio.fixture
async def tenant(client: Client) -> AsyncIterator[str]:
    """Another namespace that shares the installation's Redis."""
    name = f"tenant-{secrets.token_hex(4)}"
    await client.create(NAMESPACES, shared_namespace(name))
    yield name
    await client.delete(NAMESPACES, None, name)


@pytest.fixture
def stage(client: Client, namespace: str, redis: RedisServer) -> Stage:
    return Stage(client, namespace, redis)


@pytest.fixture
def other(client: Client, tenant: str, redis: RedisServer) -> Stage:
    return Stage(client, tenant, redis)


@pytest_asyncio.fixture(params=["every namespace", "some namespaces"])
async def operator(
    control_plane: Cluster,
    redis: RedisServer,
    namespace: str,
    tenant: str,
    request: pytest.FixtureRequest,
) -> AsyncIterator[OperatorProcess]:
    """An operator that watches Namespaces, and one that has no right to."""
    namespaces = "" if request.param == "every namespace" else f"{namespace},{tenant}"
    process = OperatorProcess(control_plane.kubeconfig, redis.url, namespaces)
    await process.start()
    yield process
    await process.stop()


async def label(client: Client, namespace: str, value: str | None) -> None:
    labels = {"engineroom.dev/shared-redis": value}
    await client.merge_patch(NAMESPACES, None, namespace, {"metadata": {"labels": labels}})


async def has_condition(stage: Stage, kind: str, status: str, reason: str) -> bool:
    return (await stage.condition(kind))[:2] == (status, reason)


async def is_stalled(stage: Stage, reason: str) -> bool:
    return await has_condition(stage, "Stalled", "True", reason)


async def is_ready(stage: Stage) -> bool:
    return (await stage.condition("Ready"))[0] == "True"


async def owned(stage: Stage) -> list[str]:
    status: dict[str, Any] = (await stage.pool()).get("status") or {}
    return [queue["name"] for queue in status.get("ownedQueues") or ()]


async def test_a_namespace_without_the_label_gets_no_redis(
    stage: Stage, operator: OperatorProcess
) -> None:
    client, namespace = stage.client, stage.namespace
    await label(client, namespace, None)
    await client.create(WORKERPOOLS, pool(namespace, autoscaling={"minReplicas": 1}))
    await eventually("the pool is stalled", lambda: is_stalled(stage, "RedisNotShared"))
    assert "engineroom.dev/shared-redis=enabled" in (await stage.condition("Stalled"))[2]
    assert (await client.list(SECRETS, namespace))[0] == []
    assert (await client.list(DEPLOYMENTS, namespace))[0] == []
    assert await owned(stage) == []

    await label(client, namespace, "enabled")
    await eventually("the pool has a pod", lambda: _size_is(stage, 1))
    await eventually("it owns its queue", lambda: _owns(stage, namespace))


async def test_a_namespace_that_loses_the_label_ends_its_work_and_keeps_its_jobs(
    stage: Stage, operator: OperatorProcess
) -> None:
    client, namespace = stage.client, stage.namespace
    async with HollowKubelet(client, namespace):
        await client.create(WORKERPOOLS, pool(namespace, schedules=[DAILY]))
        stage.enqueue(1, 3)
        await eventually("the job runs", lambda: stage.redis.zcard(f"rq:wip:{namespace}") == 1)
        assert stage.redis.zcard("engineroom:schedules") >= 1
        await label(client, namespace, "disabled")
        await eventually("the pool is stalled", lambda: is_stalled(stage, "RedisNotShared"))
        await eventually("no pod is left", stage.at_rest)
        # The worker has ended the job that it ran.
        assert stage.ledger().finished == 1
        stage.enqueue(1)
        declared = f"{namespace}/mail/daily"
        await eventually(
            "its schedules are removed",
            lambda: declared.encode() not in stage.redis.zrange("engineroom:schedules", 0, -1),
        )
        assert stage.redis.llen(f"rq:queue:{namespace}") == 1

        await label(client, namespace, "enabled")
        await eventually("the job that waited is done", lambda: stage.ledger().finished == 2)


async def test_a_queue_has_one_owner_and_nobody_else_reads_or_steers_it(
    stage: Stage, other: Stage, operator: OperatorProcess
) -> None:
    client, queue = stage.client, stage.namespace
    await client.create(WORKERPOOLS, pool(stage.namespace))
    await eventually("the owner is recorded", lambda: owned(stage))
    failed = [
        stage.queue.enqueue("tests.integration.jobs.missing", job_id=f"{queue}-{number}")
        for number in range(3)
    ]
    for job in failed:
        stage.redis.zadd(f"rq:failed:{queue}", {job.id: 4102444800})

    theft = pool(
        other.namespace,
        queues=[{"name": other.namespace}, {"name": queue}],
        schedules=[{**DAILY, "queue": queue}],
        deadLetter={"maxJobs": 1},
        suspend=False,
        autoscaling={"minReplicas": 1},
    )
    await client.create(WORKERPOOLS, theft)
    await eventually("it is stalled", lambda: is_stalled(other, "QueueOwnedElsewhere"))
    message = (await other.condition("Stalled"))[2]
    assert message.startswith(f"queue {queue} belongs to another namespace on this Redis")
    assert "namespace " + stage.namespace not in message
    assert (await client.list(DEPLOYMENTS, other.namespace))[0] == []
    status = (await other.pool())["status"]
    assert [row["name"] for row in status.get("queues") or ()] == []
    assert stage.redis.zcard(f"rq:failed:{queue}") == 3
    names = stage.redis.zrange("engineroom:schedules", 0, -1)
    assert [name for name in names if other.namespace.encode() in name] == []
    await eventually("the owner is ready", lambda: is_ready(stage))

    events = await eventually("the owner has an event", lambda: _events(stage))
    assert f"pool {other.namespace}/mail is refused" in events[0]["note"]

    # A pool's spec that names only its own queue is served.
    own = {"spec": {"queues": [{"name": other.namespace}], "schedules": None}}
    await client.merge_patch(WORKERPOOLS, other.namespace, "mail", own)
    await eventually("its own queue is served", lambda: _size_is(other, 1))
    await eventually("it owns its queue", lambda: _owns(other, other.namespace))


async def test_another_spelling_of_the_address_is_the_same_redis(
    stage: Stage, other: Stage, operator: OperatorProcess
) -> None:
    client = stage.client
    await client.create(WORKERPOOLS, pool(stage.namespace))
    await eventually("the owner is recorded", lambda: owned(stage))
    url = stage.url.replace("127.0.0.1", "localhost")
    assert url != stage.url
    secret = {"url": base64.b64encode(url.encode()).decode()}
    metadata = {"name": "redis", "namespace": other.namespace}
    await client.create(SECRETS, {"metadata": metadata, "data": secret})
    reference = {"urlSecretRef": {"name": "redis", "key": "url"}}

    await client.create(
        WORKERPOOLS,
        pool(other.namespace, queues=[{"name": stage.namespace}], redis=reference),
    )
    await eventually("it is stalled", lambda: is_stalled(other, "QueueOwnedElsewhere"))


async def test_lost_records_return_the_queue_to_its_owner(
    stage: Stage, other: Stage, operator: OperatorProcess
) -> None:
    client, queue = stage.client, stage.namespace
    await client.create(WORKERPOOLS, pool(stage.namespace))
    await eventually("the owner is recorded", lambda: owned(stage))
    before = stage.redis.hget("engineroom:owners", queue)
    await operator.stop()
    stage.redis.delete("engineroom:owners", "engineroom:identity")
    await client.create(WORKERPOOLS, pool(other.namespace, queues=[{"name": queue}]))

    await operator.start()
    await eventually("it is stalled", lambda: is_stalled(other, "QueueOwnedElsewhere"))
    await eventually("the owner is back", lambda: stage.redis.hget("engineroom:owners", queue))
    after = stage.redis.hget("engineroom:owners", queue)
    assert after.split()[:2] == before.split()[:2]


async def test_an_empty_queue_without_pools_gets_a_new_owner_after_an_hour(
    stage: Stage, other: Stage, operator: OperatorProcess
) -> None:
    client, queue = stage.client, stage.namespace
    await client.create(WORKERPOOLS, pool(stage.namespace))
    await eventually("the owner is recorded", lambda: owned(stage))
    await client.delete(WORKERPOOLS, stage.namespace, "mail")
    await client.create(WORKERPOOLS, pool(other.namespace, queues=[{"name": queue}]))
    await eventually("it is stalled", lambda: is_stalled(other, "QueueOwnedElsewhere"))

    namespace, since, seen = stage.redis.hget("engineroom:owners", queue).decode().split()
    hour_ago = int(seen) - ownership.OWNER_LAPSE
    # The job first: the operator may look in between.
    stage.redis.rpush(f"rq:queue:{queue}", "a-job-that-waits")
    stage.redis.hset("engineroom:owners", queue, f"{namespace} {since} {hour_ago}")
    await client.merge_patch(WORKERPOOLS, other.namespace, "mail", {"spec": {"workersPerPod": 2}})
    await eventually("the spec is seen", lambda: _is_observed(other, 2))
    assert await is_stalled(other, "QueueOwnedElsewhere")

    stage.redis.delete(f"rq:queue:{queue}")
    await eventually("it owns the queue", lambda: _owns(other, queue))


async def _owns(stage: Stage, queue: str) -> bool:
    return await owned(stage) == [queue]


async def _is_observed(stage: Stage, generation: int) -> bool:
    return (await stage.pool())["status"]["observedGeneration"] == generation


async def _size_is(stage: Stage, size: int) -> bool:
    return await stage.size() == size


async def _events(stage: Stage) -> list[dict[str, Any]]:
    events, _ = await stage.client.list(EVENTS, stage.namespace)
    return [event for event in events if event["reason"] == "QueueRequestedElsewhere"]
