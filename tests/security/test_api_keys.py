"""API keys: shown once, kept as a keyed hash, over when they are over."""

from __future__ import annotations

import asyncio
import hmac as real_hmac
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from engineroom.auth.errors import ApiKeyError
from engineroom.auth.permissions import Grant
from engineroom.auth.tokens import api_keys
from engineroom.auth.tokens.api_keys import PATTERN, ApiKeys, looks_like_key

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from engineroom.core.clock import FakeClock

PEPPER = b"p" * 32
GRANTS = (Grant("viewer", frozenset({"shop"})),)


@pytest.fixture
def keys(redis: Redis, clock: FakeClock) -> ApiKeys:
    return ApiKeys(redis, clock, [PEPPER])


async def refused(keys: ApiKeys, candidate: str) -> str:
    with pytest.raises(ApiKeyError) as caught:
        await keys.verify(candidate)
    assert str(caught.value) == "API key: not valid; use another one or make a new one"
    return caught.value.reason


async def test_a_key_is_recognised_with_its_rights(keys: ApiKeys) -> None:
    new = await keys.create("ada", "deploy", GRANTS, scopes=["namespace:jobs:read"])
    assert PATTERN.fullmatch(new.secret)
    key = await keys.verify(new.secret)
    assert (key.owner, key.grants, key.scopes) == ("ada", GRANTS, {"namespace:jobs:read"})
    assert new.secret not in repr(new)


async def test_redis_holds_neither_the_key_nor_a_hash_without_the_pepper(
    keys: ApiKeys, redis: Redis, clock: FakeClock
) -> None:
    new = await keys.create("ada", "deploy", GRANTS)
    stored = await redis.hgetall(f"engineroom:auth:apikey:{new.key.id}")
    secret = new.secret.split("_")[2].encode()
    assert all(secret not in value for value in stored.values())
    assert await refused(ApiKeys(redis, clock, [b"q" * 32]), new.secret) == "secret"


async def test_a_pepper_is_changed_as_keys_are_rotated(
    keys: ApiKeys, redis: Redis, clock: FakeClock
) -> None:
    old = await keys.create("ada", "deploy", GRANTS)
    both = ApiKeys(redis, clock, [b"q" * 32, PEPPER])
    new = await both.rotate(old.key.id, timedelta(hours=1))
    for secret in (old.secret, new.secret):
        await both.verify(secret)
    only = ApiKeys(redis, clock, [b"q" * 32])
    await only.verify(new.secret)
    assert await refused(only, old.secret) == "secret"


async def test_every_changed_character_is_refused(keys: ApiKeys) -> None:
    secret = (await keys.create("ada", "deploy", GRANTS)).secret
    for place in range(len(secret)):
        other = "0" if secret[place] != "0" else "1"
        assert await refused(keys, secret[:place] + other + secret[place + 1 :]) == "malformed"
    # With a check that is right the hash still has to be.
    body = secret[:-7] + ("0" if secret[-7] != "0" else "1")
    forged = body + api_keys._check(body)
    assert looks_like_key(forged)
    assert await refused(keys, forged) == "secret"


@pytest.mark.parametrize("candidate", ["", "erk", "erk_a_b", "x" * 100_000, "erk_" + "é" * 66])
async def test_what_is_no_key_is_not_looked_up(keys: ApiKeys, candidate: str) -> None:
    assert await refused(keys, candidate) == "malformed"


async def test_all_outcomes_compare_as_often(
    redis: Redis, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Constant time by construction: compare_digest, once a pepper, whatever the outcome."""
    keys = ApiKeys(redis, clock, [PEPPER, b"q" * 32])
    right = (await keys.create("ada", "deploy", GRANTS)).secret
    wrong_body = right[:-7] + ("0" if right[-7] != "0" else "1")
    unknown_body = f"erk_{'0' * 16}_{'0' * 43}"
    compared: list[int] = []

    class Counting:
        new = staticmethod(real_hmac.new)

        @staticmethod
        def compare_digest(one: str, other: str) -> bool:
            compared.append(len(one))
            assert len(one) == len(other)
            return real_hmac.compare_digest(one, other)

    monkeypatch.setattr(api_keys, "hmac", Counting)
    seen = []
    for candidate in (
        right,
        wrong_body + api_keys._check(wrong_body),
        unknown_body + api_keys._check(unknown_body),
    ):
        compared.clear()
        await asyncio.gather(keys.verify(candidate), return_exceptions=True)
        seen.append(list(compared))
    assert seen == [[6, 64, 64]] * 3


async def test_expired_and_revoked_keys_are_over(keys: ApiKeys, clock: FakeClock) -> None:
    short = await keys.create("ada", "short", GRANTS, lifetime=timedelta(hours=1))
    long = await keys.create("ada", "long", GRANTS)
    clock.advance(3599)
    await keys.verify(short.secret)
    clock.advance(1)
    assert await refused(keys, short.secret) == "expired"
    assert await keys.revoke(long.key.id)
    assert await refused(keys, long.secret) == "revoked"
    assert not await keys.revoke("nothing")
    assert {key.name for key in await keys.of("ada")} == {"short", "long"}
    with pytest.raises(ApiKeyError):
        await keys.rotate(long.key.id, timedelta(hours=1))


async def test_rotation_overlaps_and_ends(keys: ApiKeys, clock: FakeClock) -> None:
    old = await keys.create("ada", "deploy", GRANTS, lifetime=timedelta(days=30))
    new = await keys.rotate(old.key.id, timedelta(hours=1))
    assert new.key.grants == GRANTS
    assert new.key.expires == pytest.approx(clock.now().timestamp() + 30 * 86_400)
    for secret in (old.secret, new.secret):
        await keys.verify(secret)
    clock.advance(3600)
    assert await refused(keys, old.secret) == "expired"
    await keys.verify(new.secret)


async def test_last_used_is_written_once_a_minute_and_never_revives(
    keys: ApiKeys, redis: Redis, clock: FakeClock
) -> None:
    new = await keys.create("ada", "deploy", GRANTS)
    first = clock.now().timestamp()
    await keys.verify(new.secret)
    clock.advance(59)
    await keys.verify(new.secret)
    stored = await keys.get(new.key.id)
    assert stored is not None
    assert stored.last_used == first
    clock.advance(1)
    await keys.verify(new.secret)
    stored = await keys.get(new.key.id)
    assert stored is not None
    assert stored.last_used == first + 60
    await redis.delete(f"engineroom:auth:apikey:{new.key.id}")
    assert await refused(keys, new.secret) == "unknown"
    assert await keys.get(new.key.id) is None


async def test_one_owner_has_a_bounded_number_of_living_keys(
    keys: ApiKeys, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_keys, "MAX_KEYS", 3)
    made = [await keys.create("ada", "one", GRANTS) for _ in range(2)]
    await keys.create("ada", "short", GRANTS, lifetime=timedelta(seconds=10))
    with pytest.raises(ValueError, match="revoke one first"):
        await keys.create("ada", "more", GRANTS)
    await keys.revoke(made[0].key.id)
    await keys.create("ada", "more", GRANTS)
    clock.advance(10)
    await keys.create("ada", "more", GRANTS)
    with pytest.raises(ValueError, match="revoke one first"):
        await keys.create("ada", "more", GRANTS)
    await keys.create("bob", "his", GRANTS)
