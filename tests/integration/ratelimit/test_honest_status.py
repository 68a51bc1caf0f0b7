"""What status says is so: who can enforce a policy, who has vanished, whose document it is, and
whether Redis decides."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
import redis.asyncio

from engineroom.kube.client.resources import LEASES, SECRETS, SERVICES
from engineroom.ratelimit.distribution import redis_schema
from engineroom.ratelimit.distribution.document import part_hash, render_document
from engineroom.ratelimit.distribution.policy_follower import AsyncFollower
from engineroom.ratelimit.distribution.policy_limiters import AsyncLimiters
from engineroom.ratelimit.distribution.publish import replace_document
from engineroom.ratelimit.distribution.redis_schema import keys_of
from engineroom.ratelimit.limits.decision import DecisionReason
from tests.integration.pools import OperatorProcess
from tests.integration.ratelimit.policies import Policies, condition, until
from tests.integration.ratelimit.relay import Relay
from tests.limiter import get, limiter_process
from tests.support import RedisServer, free_port, redis_server

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cluster.api import Cluster

pytestmark = pytest.mark.timeout(120)
TARGET = [{"kind": "Service", "name": "one"}]


async def service(policies: Policies, name: str = "one") -> None:
    built = {
        "metadata": {"namespace": policies.namespace, "name": name},
        "spec": {"ports": [{"name": "http", "port": 80}]},
    }
    await policies.client.create(SERVICES, built)


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
        assert condition(front, "Enforced") == ("False", "NoEnforcers")
        # Both selectors match that application, and it enforces the older policy.
        younger = await policies.until("younger", "Enforced", "False", "NoEnforcers")
        assert "the older policy app" in message(younger, "Enforced")
    async with AsyncFollower(store_async, where, role=redis_schema.LIMITER):
        await policies.until("front", "Enforced", "True")
        alone = await policies.until("app", "Enforced", "False", "NoEnforcers")
        assert "no application" in message(alone, "Enforced")
        async with AsyncFollower(store_async, where, labels={"tier": "web"}):
            await policies.until("younger", "Enforced", "True")
            assert condition(await policies.get("app"), "Enforced")[0] == "False"


def message(obj: dict[str, Any], kind: str) -> str:
    (actual,) = (
        condition for condition in obj["status"]["conditions"] if condition["type"] == kind
    )
    return str(actual["message"])


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
        return sorted(policy["name"] for policy in whole["policies"])

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
    # Closed, and patient: on a busy machine the local fallback would admit a second request.
    failure = {"mode": "Closed", "timeout": "5s"}
    await policies.create("front", targetRefs=TARGET, limits=[limit], failure=failure)
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


async def test_another_installations_policies_are_left_alone(
    control_plane: Cluster, policies: Policies, server: RedisServer,
    store_async: redis.asyncio.Redis,
) -> None:  # fmt: skip
    where, rest, left = (f"{policies.namespace}{end}" for end in ("", "-others", "-left"))
    part = {"name": "theirs", "policy": {}}
    texts: dict[str, str] = {}
    for namespace, lineage in ((where, "a@other"), (rest, "a@other"), (left, "a")):
        text = render_document(
            namespace, [(part, part_hash(part))], revision=1, lineage=lineage, before={}
        )
        await replace_document(store_async, namespace, "", text)
        texts[namespace] = text.text
    await policies.create("api")
    namespaces = f"{where},{rest},{left}"
    operator = OperatorProcess(control_plane.kubeconfig, server.url, namespaces)
    await operator.start()
    try:
        taken = await policies.until("api", "Programmed", "False", "Conflicted")
        assert "another installation (other)" in message(taken, "Programmed")
        assert condition(taken, "Ready") == ("False", "Conflicted")
        assert condition(taken, "Stalled") == ("True", "Conflicted")

        async def swept() -> str:
            return await store_async.get(keys_of(left).document) or ""

        # Documents without an owner are swept; those of other installations are not.
        await until(swept, lambda text: '"policies":[]' in text)
        assert await store_async.get(keys_of(rest).document) == texts[rest]
        assert await store_async.get(keys_of(where).document) == texts[where]
    finally:
        await operator.stop()


async def test_a_document_says_which_installation_wrote_it(
    control_plane: Cluster, policies: Policies, server: RedisServer,
    store_async: redis.asyncio.Redis,
) -> None:  # fmt: skip
    await policies.create("api")
    operator = OperatorProcess(
        control_plane.kubeconfig, server.url, policies.namespace,
        leader_election=True, lease_namespace=policies.namespace,
    )  # fmt: skip
    await operator.start()
    try:
        await policies.until("api", "Programmed", "True")
        head = await store_async.get(keys_of(policies.namespace).head)
        leases, _ = await policies.client.list(LEASES, policies.namespace)
        assert redis_schema.owner_of(head) == leases[0]["metadata"]["uid"]
    finally:
        await operator.stop()


async def test_who_is_cut_off_is_lost_unless_it_had_the_policy(
    operator: OperatorProcess, policies: Policies, server: RedisServer,
    store_async: redis.asyncio.Redis,
) -> None:  # fmt: skip
    where = policies.namespace
    await policies.create("api")
    with Relay(server.port) as relay:
        async with (
            redis.asyncio.Redis.from_url(relay.url) as far,
            AsyncFollower(store_async, where, labels={"app": "api"}),
            AsyncFollower(far, where, identity="far", labels={"app": "api"}),
        ):
            await policies.until("api", "Enforced", "True")
            relay.target = free_port()
            relay.cut()
            await until(
                lambda: policies.get("api"), lambda obj: obj["status"]["enforcers"]["total"] == 1
            )
            # It has what is in force, and goes on with it.
            assert condition(await policies.get("api"), "Enforced")[0] == "True"
            await policies.edit("api", {"failure": {"mode": "Closed"}})
            lost = await policies.until("api", "Enforced", "Unknown", "EnforcerLost")
            assert "far vanished without signing off" in message(lost, "Enforced")
            relay.target = server.port
            relay.cut()
            await policies.until("api", "Enforced", "True")


async def test_status_says_that_redis_does_not_decide_and_not_at_every_heartbeat(
    operator: OperatorProcess, policies: Policies, server: RedisServer,
    store_async: redis.asyncio.Redis,
) -> None:  # fmt: skip
    where = policies.namespace
    await policies.create("api", failure={"mode": "Open", "timeout": "50ms"})
    with Relay(server.port) as relay:
        async with (
            redis.asyncio.Redis.from_url(relay.url) as far,
            AsyncFollower(far, where, labels={"app": "api"}) as follower,
        ):
            fine = await policies.until("api", "Enforced", "True")
            assert condition(fine, "Degraded") == ("False", "RedisDecides")
            assert "withoutRedis" not in fine["status"]["enforcers"]
            limiters, ended = AsyncLimiters(follower, far), asyncio.Event()
            relay.delay = 0.2  # the operator's own calls and the heartbeats bear with that

            async def load() -> int:
                admitted = 0
                while not ended.is_set():
                    actual = follower.current.get("api")
                    assert actual is not None
                    admitted += (
                        await limiters.of(actual).hit("u")
                    ).reason is DecisionReason.FAILED_OPEN
                    await asyncio.sleep(0.05)
                return admitted

            loading = asyncio.create_task(load())
            slow = await policies.until("api", "Degraded", "True", "FailingOpen")
            assert condition(slow, "Enforced")[0] == "True", "it is acknowledged all the same"
            assert slow["status"]["enforcers"]["withoutRedis"] > 0
            before = await policies.versions()
            await asyncio.sleep(5.0)
            assert await policies.versions() == before, "five heartbeats said more of it"
            ended.set()
            admitted = await loading
            relay.delay = 0.0
            without = keys_of(where).fallbacks

            async def told() -> int:
                return int(await store_async.hget(without, "api") or 0)

            await until(told, lambda many: many >= admitted)
            # As if half a minute had passed.
            at = int(await store_async.hget(without, "api/at") or 0)
            await store_async.hset(without, "api/at", str(at - 30_000_000))
            healed = await policies.until("api", "Degraded", "False", "RedisDecides")
            assert healed["status"]["enforcers"]["withoutRedis"] == await told() == admitted
            await limiters.close()
