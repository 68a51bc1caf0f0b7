"""Which namespaces a limiter follows, whatever it is asked about."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import redis.asyncio

from engineroom.ratelimit.distribution import redis_schema
from engineroom.ratelimit.distribution.document import Target
from engineroom.ratelimit.distribution.policy_source import StaticPolicies
from engineroom.ratelimit.limits.model import Limit, Policy, Rate
from engineroom.ratelimit.reconcile.observe import read_roster
from engineroom.ratelimit.service import directory
from engineroom.ratelimit.service.directory import FollowingDirectory, Room
from engineroom.ratelimit.service.engine import Enforced, Missing
from tests.integration.ratelimit.test_follow import until
from tests.limiter import compiled, publish

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support import RedisServer

POLICY = Policy("shop/api", (Limit("all", Rate(1, 60)),))


@pytest.fixture
async def client(server: RedisServer) -> AsyncIterator[redis.asyncio.Redis]:
    async with redis.asyncio.Redis(port=server.port) as made:
        yield made


async def ask(followed: FollowingDirectory, namespace: str) -> Enforced | Missing | None:
    """What a question comes to once it is known whether there is a policy."""
    for _ in range(2):
        found = followed.find(namespace, "api")
        if isinstance(found, Enforced | Missing):
            return found
        await asyncio.wait([found])
    return None


async def test_made_up_namespaces_make_room_for_each_other_and_for_real_ones(
    client: redis.asyncio.Redis, store: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "MAX_EMPTY", 5)
    monkeypatch.setattr(directory, "MAX_NAMESPACES", 8)
    # An operator was there: no document is no policy.
    store.hset(redis_schema.PUBLISHED, "test", 1)
    followed = FollowingDirectory(client, ["given"], identity="me")
    followed.start()
    try:
        assert await ask(followed, "given") is Missing.UNKNOWN
        for number in range(40):
            assert await ask(followed, f"made-up-{number}") is Missing.UNKNOWN
            # Somebody asks about one without a policy again and again; it is kept.
            assert await ask(followed, "made-up-0") is Missing.UNKNOWN
            assert followed.followed <= 6
        assert "made-up-0" in followed._rooms
        assert "given" in followed._rooms
        await until(lambda: not followed._closing)
        assert (await read_roster(client, "made-up-7")).enforcers == (), "it signed off"
        publish(store, [compiled(POLICY)])
        assert isinstance(await ask(followed, "shop"), Enforced)
        for number in range(40, 80):
            await ask(followed, f"made-up-{number}")
        assert isinstance(followed.find("shop", "api"), Enforced), "those with policies stay"
        assert followed.followed <= 7
        # One that was given up is followed again, under the name that just signed off.
        assert await ask(followed, "made-up-41") is Missing.UNKNOWN
        await until(lambda: not followed._closing)
        assert len((await read_roster(client, "made-up-41")).enforcers) == 1
        clients = await client.client_list()
        assert len(clients) <= 2 * followed.followed + 6
    finally:
        await followed.close()
    assert (await read_roster(client, "made-up-41")).enforcers == ()


async def test_many_at_once_are_followed_a_few_at_a_time(
    client: redis.asyncio.Redis, store: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "MAX_EMPTY", 5)
    followed = FollowingDirectory(client)
    try:
        found = [followed.find(f"made-up-{number}", "api") for number in range(50)]
        assert sum(each is Missing.UNREAD for each in found) == 45
        assert followed.followed == 5
        await until(lambda: not followed._opening)
        publish(store, [compiled(POLICY)])
        assert isinstance(await ask(followed, "shop"), Enforced)
    finally:
        await followed.close()


async def test_names_of_sections_share_their_policy_and_are_not_remembered_for_ever(
    client: redis.asyncio.Redis, store: redis.Redis
) -> None:
    publish(store, [compiled(POLICY, (Target("", "Service", "shop"),))])
    followed = FollowingDirectory(client)
    try:
        assert isinstance(await ask(followed, "shop"), Enforced)
        room = followed._rooms["shop"]
        found = {id(room.find(f"Service:shop:made-up-{number}")) for number in range(5000)}
        assert len(found) == 1, "what is remembered of a policy is there once"
        assert found == {id(room.find("api"))}
        assert len(room._ready) <= 4096
        assert list(room.breakers()) == ["closed"]
    finally:
        await followed.close()


async def test_a_room_of_fixed_policies_answers_the_same(client: redis.asyncio.Redis) -> None:
    from engineroom.ratelimit.distribution.document import PolicySnapshot

    fixed = PolicySnapshot("shop", entries=(compiled(POLICY),))
    room = Room(StaticPolicies(fixed), client)
    assert room.find("api") is room.find("api")
    assert room.find("nobody") is Missing.UNKNOWN
    await room.close()
