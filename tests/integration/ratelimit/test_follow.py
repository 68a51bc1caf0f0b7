"""Followers: what they give, what they acknowledge, and what they do when Redis does not answer."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
import redis
import redis.asyncio

from engineroom.ratelimit.distribution import redis_schema
from engineroom.ratelimit.distribution.document import (
    CompiledPolicy,
    Target,
    part_hash,
    part_of,
    render_document,
)
from engineroom.ratelimit.distribution.policy_follower import AsyncFollower, Follower
from engineroom.ratelimit.distribution.policy_limiters import AsyncLimiters, Limiters
from engineroom.ratelimit.distribution.publish import record_check, replace_document
from engineroom.ratelimit.distribution.redis_schema import head_text, keys_of
from engineroom.ratelimit.limits.decision import DecisionReason
from engineroom.ratelimit.limits.model import (
    Distribution,
    DistributionMode,
    Failure,
    FailureMode,
    Limit,
    Policy,
    Rate,
)
from engineroom.ratelimit.reconcile.observe import read_roster
from tests.integration.ratelimit.relay import Relay
from tests.support import RedisServer

if TYPE_CHECKING:
    from collections.abc import Callable

    from engineroom.ratelimit.distribution.document import DocumentText

NAMESPACE = "shop"


def compiled(name: str, requests: int = 10, period: float = 60.0) -> CompiledPolicy:
    failure = Failure(FailureMode.CLOSED, timeout=5.0)
    policy = Policy(f"{NAMESPACE}/{name}", (Limit("all", Rate(requests, period)),), failure)
    return CompiledPolicy(NAMESPACE, name, policy, (Target("", "Service", name),))


class Writer:
    """A controller without Kubernetes."""

    def __init__(self, redis_client: redis.asyncio.Redis) -> None:
        self.redis_client = redis_client
        self.head = ""
        self.revision = 0
        self.before: dict[str, tuple[str, int]] = {}

    async def write(self, *policies: CompiledPolicy) -> DocumentText:
        parts = [part_of(policy) for policy in policies]
        rows = [(part, part_hash(part)) for part in parts]
        self.revision += 1
        text = render_document(
            NAMESPACE, rows, revision=self.revision, lineage="first", before=self.before
        )
        self.before = {part["name"]: (its, text.since[part["name"]]) for part, its in rows}
        self.head = await replace_document(self.redis_client, NAMESPACE, self.head, text)
        return text


async def until(condition: Callable[[], bool], within: float = 5.0) -> float:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < within
        await asyncio.sleep(0.002)
    return time.monotonic() - began


async def acknowledged(redis_client: redis.asyncio.Redis) -> list[int]:
    return sorted(
        e.acknowledgement.revision
        for e in (await read_roster(redis_client, NAMESPACE)).enforcers
        if e.acknowledgement
    )


async def test_a_follower_has_the_policies_when_it_starts_and_soon_after_each_change(
    redis_client: redis.asyncio.Redis,
) -> None:
    writer = Writer(redis_client)
    await writer.write(compiled("a"))
    async with AsyncFollower(redis_client, NAMESPACE) as follower:
        assert follower.synced
        assert follower.current.for_target("Service", "a") is follower.current.get("a")
        remaining = follower.current.get("a")
        await writer.write(compiled("a"), compiled("b"))
        took = await until(lambda: follower.current.get("b") is not None)
        assert took < redis_schema.HEARTBEAT_SECONDS / 2, "it was pushed, not found by a heartbeat"
        assert follower.current.get("a") is remaining
        await until(lambda: follower.current.revision == 2)
        assert await acknowledged(redis_client) == [2]
        await writer.write()
        await until(lambda: not follower.current.entries)
    assert (await read_roster(redis_client, NAMESPACE)).enforcers == ()


async def test_a_lost_push_costs_a_heartbeat(
    redis_client: redis.asyncio.Redis, store: redis.Redis
) -> None:
    async with AsyncFollower(redis_client, NAMESPACE) as follower:
        text = render_document(NAMESPACE, [], revision=1, lineage="x", before={})
        keys = keys_of(NAMESPACE)
        store.mset({keys.document: text.text, keys.head: head_text(text.hash, 1, "x")})
        assert (
            await until(lambda: follower.current.revision == 1) < 2 * redis_schema.HEARTBEAT_SECONDS
        )


async def test_the_last_good_policies_hold_while_redis_is_away_or_tells_rubbish() -> None:
    server = RedisServer()
    server.start()
    try:
        async with redis.asyncio.Redis(port=server.port) as redis_client:
            writer = Writer(redis_client)
            await writer.write(compiled("a"))
            async with AsyncFollower(redis_client, NAMESPACE) as follower:
                keys = keys_of(NAMESPACE)
                await redis_client.mset(
                    {keys.document: '{"format": 99}', keys.head: "other 2 first"}
                )
                await redis_client.publish(keys.changes, "")
                await until(lambda: "format 99" in follower.problem)
                assert follower.current.get("a") is not None
                (enforcer,) = (await read_roster(redis_client, NAMESPACE)).enforcers
                assert enforcer.acknowledgement is not None
                assert enforcer.acknowledgement.revision == 1, "it acknowledges what it follows"
                server.stop()
                await until(lambda: "does not answer" in follower.problem)
                assert follower.current.get("a") is not None
                server.start()  # empty
                await until(lambda: follower.problem == "")
                assert follower.current.get("a") is not None
                await Writer(redis_client).write(compiled("b"))
                await until(lambda: follower.current.get("b") is not None)
    finally:
        server.close()


async def test_without_redis_nothing_is_known() -> None:
    async with (
        redis.asyncio.Redis(port=1) as redis_client,
        AsyncFollower(redis_client, NAMESPACE) as follower,
    ):
        assert not follower.synced
        assert follower.problem


async def test_the_sync_follower_does_the_same(
    server: RedisServer, redis_client: redis.asyncio.Redis
) -> None:
    writer = Writer(redis_client)
    await writer.write(compiled("a"))
    with redis.Redis(port=server.port) as sync, Follower(sync, NAMESPACE, role="test") as follower:
        assert follower.current.get("a") is not None
        await writer.write(compiled("b"))
        assert (
            await until(lambda: follower.current.get("b") is not None)
            < redis_schema.HEARTBEAT_SECONDS / 2
        )
        async with AsyncFollower(redis_client, NAMESPACE, role="test") as other:
            await until(lambda: follower.enforcers == 2 and other.enforcers == 2)
        (enforcer,) = (await read_roster(redis_client, NAMESPACE)).enforcers
        assert enforcer.acknowledgement is not None
        assert enforcer.acknowledgement.role == "test"
    assert (await read_roster(redis_client, NAMESPACE)).enforcers == ()


@pytest.mark.parametrize("leased", [False, True])
async def test_what_was_consumed_stays_consumed_when_a_policy_is_edited(
    redis_client: redis.asyncio.Redis, leased: bool
) -> None:
    mode = DistributionMode.LEASED if leased else DistributionMode.STRICT

    def edition(burst: int) -> CompiledPolicy:
        limit = Limit("all", Rate(10, 3600), burst=burst)
        # On a busy machine nothing is to be decided without Redis here.
        failure = Failure(FailureMode.CLOSED, timeout=5.0)
        policy = Policy("shop/a", (limit,), failure, Distribution(mode, "0.5"))
        return CompiledPolicy(NAMESPACE, "a", policy)

    writer = Writer(redis_client)
    await writer.write(edition(10))
    admitted = 0
    async with AsyncFollower(redis_client, NAMESPACE) as follower:
        limiters = AsyncLimiters(follower, redis_client)

        async def hit() -> bool:
            actual = follower.current.get("a")
            assert actual is not None
            return (await limiters.of(actual).hit("u")).allowed

        for _ in range(8):
            admitted += await hit()
        await writer.write(edition(12))
        await until(lambda: follower.current.revision == 2)
        for _ in range(8):
            admitted += await hit()
        await limiters.close()
    # Leases that an edit retires come back in part only: never more than the burst is admitted.
    assert admitted <= 12
    assert leased or admitted == 12


def test_sync_limiters_are_kept_while_their_policy_is(
    server: RedisServer, store: redis.Redis
) -> None:
    with redis.Redis(port=server.port) as sync, Follower(sync, NAMESPACE) as follower:
        limiters = Limiters(follower, sync)
        first = limiters.of(compiled("a"))
        assert first.hit("u").allowed
        edited = compiled("a", 20)
        object.__setattr__(edited, "hash", "other")
        second = limiters.of(edited)
        assert second is not first
        assert limiters.of(edited) is second
        # The bucket keeps the 6 s that the first request took; now a request takes 3 s.
        assert second.hit("u").remaining == 17
        limiters.close()


async def test_a_rate_without_redis_is_shared_by_those_who_enforce_the_same(
    redis_client: redis.asyncio.Redis,
) -> None:
    selected = CompiledPolicy(NAMESPACE, "s", compiled("s").policy, selector={"app": "shop"})
    writer = Writer(redis_client)
    await writer.write(selected, compiled("front"))
    shop, other = {"app": "shop"}, {"app": "other"}
    async with AsyncExitStack() as stack:

        async def follow(**more: Any) -> AsyncFollower:
            return await stack.enter_async_context(AsyncFollower(redis_client, NAMESPACE, **more))

        services = [await follow(role=redis_schema.LIMITER) for _ in range(2)]
        # Two applications with different labels of which one selector has a part.
        workers = [await follow(labels={**shop, "tier": str(place)}) for place in range(3)]
        await follow(labels=other)
        await until(lambda: [service.enforcers for service in services] == [2, 2])
        await until(lambda: [worker.enforcers for worker in workers] == [3, 3, 3])


def test_labels_that_are_too_long_are_refused() -> None:
    with pytest.raises(ValueError, match="labels: more than 4096"):
        Follower(redis.Redis(), NAMESPACE, labels={"app": "x" * 4096})


async def test_a_redis_without_a_document_says_nothing_until_an_operator_published_there(
    server: RedisServer, redis_client: redis.asyncio.Redis
) -> None:
    async with AsyncFollower(redis_client, NAMESPACE) as follower:
        assert not follower.synced
        assert "no operator" in follower.problem
        assert not await record_check(redis_client, "one", all_written=False)
        await asyncio.sleep(1.5 * redis_schema.HEARTBEAT_SECONDS)
        assert not follower.synced
        assert not await record_check(redis_client, "one", all_written=True)
        await until(lambda: follower.synced)
        assert follower.problem == ""
        # Whoever knows goes on with it, whatever Redis has forgotten since.
        await redis_client.flushall()
        await asyncio.sleep(1.5 * redis_schema.HEARTBEAT_SECONDS)
        assert follower.synced
        with redis.Redis(port=server.port) as sync, Follower(sync, NAMESPACE) as late:
            assert not late.synced


async def test_heartbeats_tell_what_was_decided_without_redis(
    server: RedisServer, redis_client: redis.asyncio.Redis
) -> None:
    # Long enough for a machine with other work; after one failure the breaker spares the wait.
    failure = Failure(FailureMode.OPEN, timeout=1.0, breaker_failures=1, breaker_pause=10.0)
    policy = Policy(f"{NAMESPACE}/a", (Limit("all", Rate(1, 3600)),), failure)
    slow = CompiledPolicy(NAMESPACE, "a", policy)
    await Writer(redis_client).write(slow)
    with Relay(server.port) as relay, redis.Redis(port=server.port) as sync:
        async with (
            redis.asyncio.Redis.from_url(relay.url) as late,
            AsyncFollower(redis_client, NAMESPACE) as follower,
        ):
            limiters, rest = AsyncLimiters(follower, late), Limiters(follower, sync)
            actual = follower.current.get("a")
            assert actual is not None
            assert (await limiters.of(actual).hit("u")).allowed
            assert rest.of(actual).hit("v").allowed
            relay.delay = 3.0
            for who in ("w", "x", "y"):
                assert (await limiters.of(actual).hit(who)).reason is DecisionReason.FAILED_OPEN

            async def told() -> list[int]:
                fallbacks = (await read_roster(redis_client, NAMESPACE)).fallbacks
                return [count.total for count in fallbacks.values()]

            began = time.monotonic()
            while await told() != [3]:
                assert time.monotonic() - began < 5
                await asyncio.sleep(0.02)
            # Neither a heartbeat without news nor an edit counts anything twice, or loses any.
            await limiters.of(actual).hit("z")
            edited = compiled("a")
            object.__setattr__(edited, "hash", "other")
            limiters.of(edited)
            while await told() != [4]:
                assert time.monotonic() - began < 10
                await asyncio.sleep(0.02)
            await asyncio.sleep(1.5 * redis_schema.HEARTBEAT_SECONDS)
            assert await told() == [4]
            relay.delay = 0.0
            await limiters.close()
            rest.close()
