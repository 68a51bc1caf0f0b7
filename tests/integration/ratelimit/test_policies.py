"""RateLimitPolicies on a real API server and a real Redis: what status says, and when."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest
import redis.asyncio

from engineroom.kube.client.resources import RATELIMITPOLICIES, SECRETS, SERVICES
from engineroom.ratelimit.distribution.policy_follower import AsyncFollower
from engineroom.ratelimit.distribution.policy_limiters import AsyncLimiters
from engineroom.ratelimit.distribution.redis_schema import LIVE_SECONDS, LOST_SECONDS, keys_of
from tests.integration.pools import OperatorProcess
from tests.integration.ratelimit.policies import Enforcer, Policies, condition, until
from tests.support import RedisServer, redis_server

if TYPE_CHECKING:
    from engineroom.ratelimit.distribution.document import CompiledPolicy
    from tests.cluster.api import Cluster

pytestmark = pytest.mark.timeout(120)
#: Labels of an application that the policy ``api`` selects.
API = {"app": "api"}


async def test_the_life_of_a_policy(
    operator: OperatorProcess, policies: Policies, store_async: redis.asyncio.Redis
) -> None:
    await policies.create("api")
    alone = await policies.until("api", "Enforced", "False", "NoEnforcers")
    assert condition(alone, "Accepted") == ("True", "Accepted")
    assert condition(alone, "Programmed") == ("True", "Programmed")
    assert condition(alone, "Ready") == ("True", "Programmed")
    assert condition(alone, "Enforced") == ("False", "NoEnforcers")
    assert condition(alone, "Reconciling")[0] == "False"
    assert alone["status"]["enforcers"]["total"] == 0

    async with AsyncFollower(store_async, policies.namespace, labels=API) as follower:
        enforced = await policies.until("api", "Enforced", "True", "Enforced")
        actual = follower.current.for_labels({"app": "api"})
        assert actual is not None
        reported = enforced["status"]["enforcers"]
        assert (reported["ready"], reported["total"], reported["configHash"]) == (1, 1, actual.hash)

        # At the fixed point nothing is written, neither here nor in Redis.
        before = await policies.versions()
        document = await store_async.get(keys_of(policies.namespace).document)
        await asyncio.sleep(4.0)
        assert await policies.versions() == before
        assert await store_async.get(keys_of(policies.namespace).document) == document

        await policies.edit("api", {"failure": {"mode": "Closed"}})
        edited = await policies.until("api", "Enforced", "True")
        assert edited["status"]["enforcers"]["configHash"] != actual.hash
        assert edited["status"]["observedGeneration"] == 2

        # Past the CRD's own rules, and without the admission server: what was valid goes on.
        await policies.edit("api", {"failure": {"timeout": "11s"}})
        broken = await policies.until("api", "Accepted", "False", "InvalidSpec")
        assert condition(broken, "Programmed") == ("True", "LastValid")
        assert condition(broken, "Enforced") == ("True", "Enforced")
        assert condition(broken, "Stalled") == ("True", "InvalidSpec")
        held = follower.current.get("api")
        assert held is not None
        assert held.policy.failure.mode.value == "Closed"

        await policies.client.delete(RATELIMITPOLICIES, policies.namespace, "api")
        await until(_entries(follower), lambda entries: not entries)


def _entries(follower: AsyncFollower) -> Any:
    async def look() -> Any:
        return follower.current.entries

    return look


async def test_two_policies_of_one_target(
    operator: OperatorProcess, policies: Policies, store_async: redis.asyncio.Redis
) -> None:
    one, two = ({"kind": "Service", "name": name} for name in ("one", "two"))
    await policies.create("older", targetRefs=[one])
    lost = await policies.until("older", "Accepted", "False", "TargetNotFound")
    assert lost["status"]["ancestors"][0]["conditions"][0]["reason"] == "TargetNotFound"
    for name in ("one", "two"):
        service = {
            "metadata": {"namespace": policies.namespace, "name": name},
            "spec": {"ports": [{"port": 80}]},
        }
        await policies.client.create(SERVICES, service)
    await policies.until("older", "Accepted", "True")
    await asyncio.sleep(1.1)  # creationTimestamp counts seconds
    await policies.create("all-lost", targetRefs=[one])
    await policies.create("some-lost", targetRefs=[one, two])
    loser = await policies.until("all-lost", "Accepted", "False", "Conflicted")
    assert condition(loser, "Stalled")[0] == "True"
    assert condition(loser, "Programmed") == ("False", "NotProgrammed")
    (word,) = (c for c in loser["status"]["conditions"] if c["type"] == "Accepted")
    assert word["message"] == "Service one belongs to the older policy older"
    partly = await policies.until("some-lost", "Accepted", "True", "PartlyConflicted")
    reported = {
        ancestor["ancestorRef"]["name"]: ancestor["conditions"][0]["reason"]
        for ancestor in partly["status"]["ancestors"]
    }
    assert reported == {"one": "Conflicted", "two": "Accepted"}
    async with AsyncFollower(store_async, policies.namespace) as follower:
        await until(_entries(follower), lambda entries: len(entries) == 2)
        first, second = (follower.current.for_target("Service", name) for name in ("one", "two"))
        assert first is not None
        assert second is not None
        assert (first.name, second.name) == ("older", "some-lost")
        # The older one goes: what it had falls to the next one.
        await policies.client.delete(RATELIMITPOLICIES, policies.namespace, "older")
        await policies.until("all-lost", "Accepted", "True", "Accepted")


async def test_enforced_is_never_said_while_an_enforcer_has_not_acknowledged(
    operator: OperatorProcess,
    policies: Policies,
    server: RedisServer,
    store_async: redis.asyncio.Redis,
) -> None:
    slow = Enforcer(server.url, policies.namespace)
    await slow.start()
    try:
        await policies.create("api")
        await policies.until("api", "Enforced", "True")
        async with AsyncFollower(store_async, policies.namespace, labels=API):
            both = await until(
                lambda: policies.get("api"),
                lambda obj: obj["status"]["enforcers"]["total"] == 2,
            )
            assert both["status"]["enforcers"]["total"] == 2
            # A new one announces itself a moment before it has the document.
            await policies.until("api", "Enforced", "True")
            slow.send(signal.SIGSTOP)
            stopped = time.monotonic()
            await policies.edit("api", {"failure": {"mode": "Open"}})
            lagging = await policies.until("api", "Enforced", "False", "AwaitingEnforcers")
            assert lagging["status"]["enforcers"]["ready"] == 1
            assert condition(lagging, "Reconciling")[0] == "False"
            slow.send(signal.SIGCONT)
            await policies.until("api", "Enforced", "True")
            slow.send(signal.SIGSTOP)
            stopped = time.monotonic()
            await policies.edit("api", {"failure": {"mode": "Local"}})
            await policies.until("api", "Enforced", "False", "AwaitingEnforcers")
            slow.send(signal.SIGKILL)
            # Nobody knows that it is dead and not only slow, or cut off from Redis.
            lost = await policies.until(
                "api", "Enforced", "Unknown", "EnforcerLost", LIVE_SECONDS + 10
            )
            assert time.monotonic() - stopped > LIVE_SECONDS - 2
            assert lost["status"]["enforcers"]["total"] == 1
            assert condition(lost, "Ready")[0] == "True"
            # As if a minute had passed: what Redis says decides.
            alive = keys_of(policies.namespace).alive
            (dead, at), _ = await store_async.zrange(alive, 0, -1, withscores=True)
            await store_async.zadd(alive, {dead: at - (LOST_SECONDS - LIVE_SECONDS) * 1_000_000})
            await policies.until("api", "Enforced", "True")
    finally:
        await slow.end()


def last(follower: AsyncFollower) -> CompiledPolicy:
    """The policy `api` as it is followed now."""
    actual = follower.current.get("api")
    assert actual is not None
    return actual


async def test_an_edit_under_load_keeps_what_was_consumed(
    operator: OperatorProcess, policies: Policies, store_async: redis.asyncio.Redis
) -> None:
    limit = {"name": "all", "rate": {"requests": 100, "period": "1h"}, "burst": 100}
    # On a busy machine a decision may take long, and is not to be made without Redis here.
    failure = {"mode": "Closed", "timeout": "5s"}
    await policies.create("api", limits=[limit], failure=failure)
    admitted = 0
    async with AsyncFollower(store_async, policies.namespace, labels=API) as follower:
        await policies.until("api", "Enforced", "True")
        limiters = AsyncLimiters(follower, store_async)
        ended = asyncio.Event()

        async def load() -> None:
            nonlocal admitted
            while not ended.is_set():
                decision = await limiters.of(last(follower)).hit("u")
                admitted += decision.allowed
                await asyncio.sleep(0.002)

        async with asyncio.TaskGroup() as group:
            group.create_task(load())
            for burst in (110, 120, 130):
                await policies.edit("api", {"limits": [{**limit, "burst": burst}]})
                await policies.until("api", "Enforced", "True")
            # One refusal after the last edit: all that it admits was asked for.
            async with asyncio.timeout(60):
                while (await limiters.of(last(follower)).hit("u")).allowed:
                    admitted += 1
            ended.set()
        await limiters.close()
    assert admitted == 130


async def test_redis_away_and_back(
    control_plane: Cluster, policies: Policies, namespace: str
) -> None:
    with redis_server() as server:
        operator = OperatorProcess(control_plane.kubeconfig, server.url, namespace)
        await operator.start()
        enforcer = Enforcer(server.url, namespace)
        await enforcer.start()
        try:
            await policies.create("api")
            await policies.until("api", "Enforced", "True")
            server.stop()
            blind = await policies.until("api", "Enforced", "Unknown", "RedisUnreachable")
            assert condition(blind, "Ready")[0] == "False"
            await policies.edit("api", {"failure": {"mode": "Open"}})
            await policies.until("api", "Programmed", "Unknown", "RedisUnreachable")
            server.start()  # and empty
            healed = await policies.until("api", "Enforced", "True")
            assert healed["status"]["observedGeneration"] == 2
        finally:
            await enforcer.end()
            await operator.stop()


async def test_a_restart_writes_nothing_and_clears_what_went_meanwhile(
    control_plane: Cluster, server: RedisServer, policies: Policies, namespace: str,
    store_async: redis.asyncio.Redis,
) -> None:  # fmt: skip
    operator = OperatorProcess(control_plane.kubeconfig, server.url, namespace)
    await operator.start()
    async with (
        AsyncFollower(store_async, namespace, labels=API) as follower,
        AsyncFollower(store_async, namespace, labels={"app": "web"}),
    ):
        await policies.create("api")
        await policies.create("web")
        for name in ("api", "web"):
            await policies.until(name, "Enforced", "True")
        before, revision = await policies.versions(), follower.current.revision
        await operator.stop()
        await operator.start()
        await until(lambda: _logged(operator, "caches are filled"), lambda times: times >= 4)
        await asyncio.sleep(3)
        assert await policies.versions() == before
        assert follower.current.revision == revision
        await operator.stop()
        for name in ("api", "web"):
            await policies.client.delete(RATELIMITPOLICIES, namespace, name)
        await operator.start()
        await until(_entries(follower), lambda entries: not entries)
    await operator.stop()


async def test_killed_at_any_moment_it_ends_where_it_would_have(
    control_plane: Cluster, server: RedisServer, policies: Policies, namespace: str,
    store_async: redis.asyncio.Redis,
) -> None:  # fmt: skip
    operator = OperatorProcess(control_plane.kubeconfig, server.url, namespace)
    await operator.start()
    async with AsyncFollower(store_async, namespace, labels=API) as follower:
        await policies.create("api")
        await policies.until("api", "Enforced", "True")
        revision = follower.current.revision
        # Before the document is written, about then, and while status is.
        for number, moment in enumerate((0.005, 0.03, 0.06)):
            await policies.edit("api", {"trustedProxyHops": number + 1})
            await asyncio.sleep(moment)
            operator.kill()
            await operator.gone()
            await operator.start()
        ended = await policies.until("api", "Enforced", "True")
        assert ended["metadata"]["generation"] == 4
        actual = follower.current.get("api")
        assert actual is not None
        assert actual.policy.trusted_proxy_hops == 3
        assert ended["status"]["enforcers"]["configHash"] == actual.hash
        assert follower.current.revision > revision
    await operator.stop()


async def _logged(operator: OperatorProcess, event: str) -> int:
    return sum(line.get("event") == event for line in operator.log())


async def test_an_own_redis_by_secret(
    operator: OperatorProcess, policies: Policies, namespace: str
) -> None:
    reference = {"urlSecretRef": {"name": "counters", "key": "url"}}
    await policies.create("api", redis=reference)
    await policies.until("api", "Programmed", "Unknown", "SecretNotFound")
    with redis_server() as own:
        secret = {
            "metadata": {"namespace": namespace, "name": "counters"},
            "stringData": {"url": own.url},
        }
        await policies.client.create(SECRETS, secret)
        async with (
            redis.asyncio.Redis(port=own.port) as client,
            AsyncFollower(client, namespace, labels=API),
        ):
            await policies.until("api", "Enforced", "True")
            # Back to the installation's own: nothing is left behind.
            await policies.edit("api", {"redis": None})
            await policies.until("api", "Enforced", "False", "NoEnforcers")
            text = await client.get(keys_of(namespace).document)
            assert b'"policies":[]' in text
