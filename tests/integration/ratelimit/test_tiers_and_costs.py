"""Tiers, exemptions and costs that are known only afterwards, on a real Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import redis
import redis.asyncio

from engineroom.ratelimit.limits.decision import DecisionReason
from engineroom.ratelimit.limits.limiter import AsyncLimiter, Limiter
from engineroom.ratelimit.limits.matching import Condition, Operator
from engineroom.ratelimit.limits.model import (
    Algorithm,
    Distribution,
    DistributionMode,
    Failure,
    FailureMode,
    Limit,
    Policy,
    Rate,
    Tier,
)
from engineroom.ratelimit.limits.request import RequestView
from engineroom.ratelimit.limits.sources import Constant, Header, subject_of

if TYPE_CHECKING:
    from tests.support import RedisServer

#: On a busy machine nothing is to be decided without Redis here.
CLOSED = Failure(FailureMode.CLOSED, timeout=5.0)
GOLD = RequestView(headers={"x-plan": "gold"})
STAFF = RequestView(headers={"x-staff": "yes"})
PLAIN = RequestView()


def tiered(distribution: Distribution | None = None) -> Policy:
    limit = Limit(
        "per-user",
        Rate(2, 3600),
        key=(Constant("u"),),
        tiers=(
            Tier("gold", (Condition(Header("X-Plan"), values=("gold",)),), Rate(5, 3600), burst=6),
        ),
        exempt=((Condition(Header("X-Staff"), Operator.EXISTS),),),
    )
    return Policy("p", (limit,), CLOSED, distribution or Distribution())


def test_each_tier_has_its_own_rate_and_counts_apart(
    server: RedisServer, store: redis.Redis
) -> None:
    policy = tiered()
    with redis.Redis(port=server.port) as client, Limiter(policy, client) as limiter:

        def hit(request: RequestView) -> bool:
            return limiter.hit(subject_of(policy, request)).allowed

        assert [hit(PLAIN) for _ in range(3)] == [True, True, False]
        assert [hit(GOLD) for _ in range(7)] == [True] * 6 + [False]
        assert not hit(PLAIN), "what a tier consumes gives nothing back to another"
        decision = limiter.hit(subject_of(policy, GOLD))
        assert (decision.limit, decision.quota) == ("per-user/gold", 6)
        exempt = limiter.hit(subject_of(policy, STAFF))
        assert exempt.reason is DecisionReason.NOT_LIMITED


async def test_tiers_can_be_leased(server: RedisServer, store: redis.Redis) -> None:
    policy = tiered(Distribution(DistributionMode.LEASED, "0.5", 5.0))
    async with redis.asyncio.Redis(port=server.port) as client:
        async with AsyncLimiter(policy, client) as limiter:
            admitted = 0
            for _ in range(20):
                admitted += (await limiter.hit(subject_of(policy, GOLD))).allowed
        assert 4 <= admitted <= 6


@pytest.mark.parametrize("algorithm", list(Algorithm))
async def test_a_charge_takes_what_is_there_and_no_more(
    server: RedisServer, store: redis.Redis, algorithm: Algorithm
) -> None:
    policy = Policy(
        "p",
        (
            Limit("tokens", Rate(100, 3600), algorithm=algorithm, response_cost="X-Tokens"),
            Limit("requests", Rate(10, 3600)),
        ),
        CLOSED,
    )
    async with (
        redis.asyncio.Redis(port=server.port) as client,
        AsyncLimiter(policy, client) as limiter,
    ):
        assert (await limiter.hit("u")).allowed
        assert await limiter.charge("u", {"tokens": 30})
        state = await limiter.peek({"tokens": "u", "requests": "other"})
        assert (state.limit, state.remaining) == ("tokens", 69)
        assert await limiter.charge("u", {"tokens": 10**12})
        refused = await limiter.hit("u")
        assert refused.limit == "tokens"
        assert refused.reason is DecisionReason.LIMITED
        assert refused.retry_after is not None
        assert refused.retry_after <= 3600, "empty, and not in debt for years"
        assert (await limiter.peek({"tokens": "other", "requests": "u"})).remaining == 9
        with pytest.raises(ValueError, match="whole number"):
            await limiter.charge("u", {"tokens": -1})


def test_a_charge_that_redis_does_not_take_is_said() -> None:
    policy = Policy("p", (Limit("a", Rate(10)),), CLOSED)
    with redis.Redis(port=1) as client, Limiter(policy, client) as limiter:
        assert not limiter.charge("u", {"a": 1})
        assert limiter.charge("u", {}), "nothing to take"
