"""Which namespaces a limiter follows, whatever it is asked about."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from engineroom.ratelimit.distribution import redis_schema
from engineroom.ratelimit.distribution.document import Target
from engineroom.ratelimit.distribution.policy_source import StaticPolicies
from engineroom.ratelimit.limits.model import Limit, Policy, Rate
from engineroom.ratelimit.reconcile.observe import read_roster
from engineroom.ratelimit.service import directory
from engineroom.ratelimit.service.directory import FollowingDirectory, NamespacePolicies
from engineroom.ratelimit.service.engine import EnforcedPolicy, MissingPolicy
from tests.integration.ratelimit.test_follow import until
from tests.limiter import compiled, publish

if TYPE_CHECKING:
    import pytest
    import redis.asyncio

POLICY = Policy("shop/api", (Limit("all", Rate(1, 60)),))


async def ask(
    followed: FollowingDirectory, namespace: str
) -> EnforcedPolicy | MissingPolicy | None:
    """Return the policy of a request, once its namespace is open."""
    for _ in range(2):
        actual = followed.find(namespace, "api")
        if isinstance(actual, EnforcedPolicy | MissingPolicy):
            return actual
        await asyncio.wait([actual])
    return None


async def test_made_up_namespaces_make_room_for_each_other_and_for_real_ones(
    redis_client: redis.asyncio.Redis, store: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "MAX_EMPTY", 5)
    monkeypatch.setattr(directory, "MAX_NAMESPACES", 8)
    # An operator was there: no document is no policy.
    store.hset(redis_schema.PUBLISHED, "test", 1)
    followed = FollowingDirectory(redis_client, ["given"], identity="me")
    followed.start()
    try:
        assert await ask(followed, "given") is MissingPolicy.UNKNOWN
        for number in range(40):
            assert await ask(followed, f"made-up-{number}") is MissingPolicy.UNKNOWN
            # Somebody asks about one without a policy again and again; it is kept.
            assert await ask(followed, "made-up-0") is MissingPolicy.UNKNOWN
            assert followed.followed <= 6
        assert "made-up-0" in followed._followed
        assert "given" in followed._followed
        await until(lambda: not followed._closing)
        assert (await read_roster(redis_client, "made-up-7")).enforcers == (), "it signed off"
        publish(store, [compiled(POLICY)])
        assert isinstance(await ask(followed, "shop"), EnforcedPolicy)
        for number in range(40, 80):
            await ask(followed, f"made-up-{number}")
        assert isinstance(followed.find("shop", "api"), EnforcedPolicy), "those with policies stay"
        assert followed.followed <= 7
        # One that was given up is followed again, under the name that just signed off.
        assert await ask(followed, "made-up-41") is MissingPolicy.UNKNOWN
        await until(lambda: not followed._closing)
        assert len((await read_roster(redis_client, "made-up-41")).enforcers) == 1
        clients = await redis_client.client_list()
        assert len(clients) <= 2 * followed.followed + 6
    finally:
        await followed.close()
    assert (await read_roster(redis_client, "made-up-41")).enforcers == ()


async def test_many_at_once_are_followed_a_few_at_a_time(
    redis_client: redis.asyncio.Redis, store: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "MAX_EMPTY", 5)
    followed = FollowingDirectory(redis_client)
    try:
        actual = [followed.find(f"made-up-{number}", "api") for number in range(50)]
        assert sum(entry is MissingPolicy.UNREAD for entry in actual) == 45
        assert followed.followed == 5
        await until(lambda: not followed._opening)
        publish(store, [compiled(POLICY)])
        assert isinstance(await ask(followed, "shop"), EnforcedPolicy)
    finally:
        await followed.close()


async def test_names_of_sections_share_their_policy_and_are_not_remembered_for_ever(
    redis_client: redis.asyncio.Redis, store: redis.Redis
) -> None:
    publish(store, [compiled(POLICY, (Target("", "Service", "shop"),))])
    followed = FollowingDirectory(redis_client)
    try:
        assert isinstance(await ask(followed, "shop"), EnforcedPolicy)
        room = followed._followed["shop"]
        actual = {id(room.find(f"Service:shop:made-up-{number}")) for number in range(5000)}
        assert len(actual) == 1, "what is remembered of a policy is there once"
        assert actual == {id(room.find("api"))}
        assert len(room._by_name) <= 4096
        assert list(room.breakers()) == ["closed"]
    finally:
        await followed.close()


async def test_a_room_of_fixed_policies_answers_the_same(redis_client: redis.asyncio.Redis) -> None:
    from engineroom.ratelimit.distribution.document import PolicySnapshot

    fixed = PolicySnapshot("shop", entries=(compiled(POLICY),))
    room = NamespacePolicies(StaticPolicies(fixed), redis_client)
    assert room.find("api") is room.find("api")
    assert room.find("missing") is MissingPolicy.UNKNOWN
    await room.close()
