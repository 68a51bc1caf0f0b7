"""The limiters against a real Redis: one round trip a turn, deadlines, failures, leases."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest
import redis
import redis.asyncio

from engineroom.core.clock import FakeClock
from engineroom.core.recovery import Circuit
from engineroom.ratelimit.limits.decision import DecisionReason, DecisionSource
from engineroom.ratelimit.limits.limiter import AsyncLimiter, Limiter
from engineroom.ratelimit.limits.model import (
    Algorithm,
    Distribution,
    DistributionMode,
    Failure,
    FailureMode,
    Limit,
    MissingKey,
    Mode,
    Policy,
    Rate,
)
from tests.integration.ratelimit.relay import Relay
from tests.support import RedisServer, free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engineroom.ratelimit.limits.decision import Decision

#: The machine may be busy: what is not about time gets plenty.
PATIENT = Failure(timeout=2.0)
SLOW = Rate(5, 3600)


def policy(*limits: Limit, failure: Failure = PATIENT, leased: bool = False) -> Policy:
    mode = DistributionMode.LEASED if leased else DistributionMode.STRICT
    distribution = Distribution(mode, lease_ttl=30.0)
    return Policy("p", limits or (Limit("a", SLOW),), failure, distribution)


def client(server: RedisServer) -> redis.asyncio.Redis:
    return redis.asyncio.Redis(port=server.port)


def calls(store: redis.Redis) -> int:
    stats = store.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("evalsha", "eval"))


async def test_as_many_pass_as_the_burst_holds(server: RedisServer, store: redis.Redis) -> None:
    async with AsyncLimiter(policy(), client(server)) as limiter:
        decisions = [await limiter.hit("me") for _ in range(7)]
        assert [decision.allowed for decision in decisions] == [True] * 5 + [False] * 2
        assert [decision.remaining for decision in decisions[:5]] == [4, 3, 2, 1, 0]
        refused, again = decisions[5:]
        assert (refused.reason, refused.source) == (DecisionReason.LIMITED, DecisionSource.REDIS)
        assert refused.retry_after == pytest.approx(720, abs=5)
        # Known from the first refusal: Redis is not asked again, and the wait goes on.
        assert again.source is DecisionSource.DENY_CACHE
        assert again.retry_after is not None
        assert again.retry_after <= refused.retry_after  # type: ignore[operator]
        assert (await limiter.hit("you")).allowed


async def test_requests_of_one_turn_share_a_round_trip(
    server: RedisServer, store: redis.Redis
) -> None:
    async with AsyncLimiter(policy(), client(server)) as limiter:
        await limiter.hit("warm")
        before = calls(store)
        decisions = await asyncio.gather(*(limiter.hit(f"k{n % 20}") for n in range(120)))
        assert calls(store) - before == 1
        assert sum(decision.allowed for decision in decisions) == 100


async def test_more_requests_than_fit_one_call_are_all_decided(
    server: RedisServer, store: redis.Redis
) -> None:
    async with AsyncLimiter(policy(), client(server)) as limiter:
        decisions = await asyncio.gather(*(limiter.hit(f"k{n}") for n in range(1000)))
        assert all(
            decision.allowed and decision.source is DecisionSource.REDIS for decision in decisions
        )


@pytest.mark.parametrize("sync", [False, True])
async def test_who_is_refused_is_known_whatever_else_changes(
    sync: bool, server: RedisServer, store: redis.Redis
) -> None:
    """Refused by address, and a header that is another each time: Redis is not asked again."""
    built = policy(Limit("address", SLOW), Limit("header", Rate(5000, 3600)))
    long = "x" * 5000
    before = 0
    with Limiter(built, redis.Redis(port=server.port)) as plain:
        async with AsyncLimiter(built, client(server)) as limiter:
            for n in range(30):
                subject = {"address": long, "header": f"{n}{long}"}
                decision = plain.hit(subject) if sync else await limiter.hit(subject)
                if n == 5:
                    assert (decision.limit, decision.source) == ("address", DecisionSource.REDIS)
                    before = calls(store)
            assert decision.source is DecisionSource.DENY_CACHE
            assert calls(store) == before
            # Others are not meant, nor is the header for whom another address speaks.
            other = {"address": "you", "header": f"5{long}"}
            assert (plain.hit(other) if sync else await limiter.hit(other)).allowed


async def test_what_is_remembered_has_a_bound_whatever_is_sent(
    server: RedisServer, store: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engineroom.ratelimit.limits.limiter_core.MAX_REMEMBERED", 40)
    both = policy(Limit("a", Rate(10, 3600)), Limit("b", Rate(5000, 3600)), leased=True)
    async with AsyncLimiter(both, client(server)) as limiter:
        for n in range(60):
            for _ in range(12):
                await limiter.hit({"a": f"{n}" + "x" * 1000, "b": f"{n}" + "y" * 1000})
        sizes = [len(refusal) for refusal in limiter._core._refusals]
        assert sizes == [20, 0]
        assert max(len(str(value)) for value in limiter._core._refusals[0]) <= 64
        assert not limiter._core._held


async def test_a_queue_that_is_never_empty_leaves_its_calls_their_time(
    server: RedisServer, store: redis.Redis
) -> None:
    """More callers at once than fit two calls, for longer than the deadline."""
    built = policy(failure=Failure(timeout=0.25))
    rounds = Counter[str]()

    async def caller(name: str) -> None:
        end = time.monotonic() + 4 * built.failure.timeout
        while time.monotonic() < end:
            decision = await limiter.hit(name, 0)
            rounds[decision.source] += 1

    with Relay(server.port) as relay:
        relay.delay = 0.01
        address = redis.asyncio.Redis.from_url(relay.url)
        async with AsyncLimiter(built, address) as limiter:
            await asyncio.gather(*(caller(f"k{n}") for n in range(600)))
            assert limiter.failed == 0
            assert set(rounds) == {DecisionSource.REDIS}
        await address.aclose()


async def test_who_has_no_turn_within_the_deadline_is_decided_without_redis(
    server: RedisServer, store: redis.Redis
) -> None:
    """All at once, and Redis slow: the first calls are answered, the rest waits no longer."""
    built = policy(failure=Failure(timeout=1.0))
    with Relay(server.port) as relay:
        address = redis.asyncio.Redis.from_url(relay.url)
        async with AsyncLimiter(built, address) as limiter:
            relay.delay = 0.4
            decisions = await asyncio.gather(*(limiter.hit(f"k{n}") for n in range(2000)))
            sources = Counter(decision.source for decision in decisions)
            assert sources[DecisionSource.REDIS] >= 128
            assert sources[DecisionSource.LOCAL] >= 1000
            # Redis answers, late or not: the breaker stays closed.
            assert limiter.breaker_state == "closed"
        await address.aclose()


async def test_a_script_that_redis_forgot_is_sent_again(
    server: RedisServer, store: redis.Redis
) -> None:
    async with AsyncLimiter(policy(), client(server)) as limiter:
        await limiter.hit("me")
        store.script_flush()
        assert (await limiter.hit("me")).remaining == 3


async def test_a_request_that_is_given_up_leaves_the_others_alone(
    server: RedisServer, store: redis.Redis
) -> None:
    async with AsyncLimiter(policy(), client(server)) as limiter:
        tasks = [asyncio.create_task(limiter.hit(f"k{n}")) for n in range(3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        assert (await tasks[0]).allowed
        assert (await tasks[2]).allowed


async def test_several_limits_say_which_refused(server: RedisServer, store: redis.Redis) -> None:
    built = policy(
        Limit("user", Rate(3, 3600)),
        Limit("all", Rate(100, 3600), algorithm=Algorithm.SLIDING_WINDOW),
        Limit("trial", Rate(1, 3600), mode=Mode.SHADOW),
    )
    async with AsyncLimiter(built, client(server)) as limiter:
        first = await limiter.hit("me")
        assert (first.limit, first.remaining, first.shadowed) == ("user", 2, ())
        second = await limiter.hit("me")
        assert (second.allowed, second.shadowed) == (True, ("trial",))
        assert (await limiter.hit("me")).remaining == 0
        refused = await limiter.hit("me")
        assert (refused.allowed, refused.limit) == (False, "user")
        # What was refused took nothing from the other limit either.
        left = await limiter.peek({"user": "new", "all": "me", "trial": "new"})
        assert left.allowed
        assert left.limit == "all"
        assert left.remaining == 97


async def test_missing_keys(server: RedisServer, store: redis.Redis) -> None:
    async with AsyncLimiter(
        policy(
            Limit("skip", SLOW, missing_key=MissingKey.SKIP),
            Limit("shared", Rate(2, 3600), missing_key=MissingKey.SHARED),
        ),
        client(server),
    ) as limiter:
        shared = [await limiter.hit({"skip": None, "shared": None}) for _ in range(3)]
        assert [entry.allowed for entry in shared] == [True, True, False]
        # A client cannot send the shared key.
        for text in ("", "-", "None"):
            assert (await limiter.hit({"skip": None, "shared": text})).remaining == 1
    async with AsyncLimiter(
        policy(Limit("skip", SLOW, missing_key=MissingKey.SKIP)), client(server)
    ) as limiter:
        assert (await limiter.hit({"skip": None})).reason is DecisionReason.NOT_LIMITED
    async with AsyncLimiter(
        policy(Limit("deny", SLOW, missing_key=MissingKey.DENY)), client(server)
    ) as limiter:
        denied = await limiter.hit({"deny": None})
        assert (denied.allowed, denied.reason) == (False, DecisionReason.MISSING_KEY)


async def test_cost_above_burst_is_refused_without_redis(
    server: RedisServer, store: redis.Redis
) -> None:
    async with AsyncLimiter(policy(), client(server)) as limiter:
        before = calls(store)
        decision = await limiter.hit("me", cost=6)
        assert (decision.reason, decision.retry_after) == (DecisionReason.COST_ABOVE_BURST, None)
        assert calls(store) == before
        for wrong in (-1, 1.5, True):
            with pytest.raises(ValueError, match="cost"):
                await limiter.hit("me", cost=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mode", "allowed", "reason"),
    [
        (FailureMode.OPEN, [True] * 4, DecisionReason.FAILED_OPEN),
        (FailureMode.CLOSED, [False] * 4, DecisionReason.FAILED_CLOSED),
        # Half of a burst of 5, since two enforcers share it.
        (FailureMode.LOCAL, [True, True, False, False], DecisionReason.ADMITTED),
    ],
)
async def test_without_redis_the_failure_mode_decides(
    mode: FailureMode, allowed: list[bool], reason: DecisionReason
) -> None:
    built = policy(failure=Failure(mode, timeout=0.05))
    port = free_port()
    async with AsyncLimiter(built, redis.asyncio.Redis(port=port), enforcers=2) as limiter:
        decisions = [await limiter.hit("me") for _ in range(4)]
        assert [decision.allowed for decision in decisions] == allowed
        assert decisions[0].reason is reason
        assert limiter.failed == 4
    with Limiter(built, redis.Redis(port=port), enforcers=2) as sync:
        assert [sync.hit("me").allowed for _ in range(4)] == allowed


@contextlib.asynccontextmanager
async def silent_redis() -> AsyncIterator[int]:
    """A port that takes connections and never says a word."""

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    listening = await asyncio.start_server(listen, "127.0.0.1", 0)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()


async def test_a_silent_redis_costs_the_deadline_and_then_nothing() -> None:
    failure = Failure(FailureMode.OPEN, timeout=0.05, breaker_failures=3, breaker_pause=5.0)
    async with silent_redis() as port:
        limiter = AsyncLimiter(policy(failure=failure), redis.asyncio.Redis(port=port))
        took = []
        for _ in range(6):
            begun = time.monotonic()
            assert (await limiter.hit("me")).reason is DecisionReason.FAILED_OPEN
            took.append(time.monotonic() - begun)
        assert all(0.045 <= entry < 1 for entry in took[:3])
        assert all(entry < 0.045 for entry in took[3:])
        # Those that wait behind calls that hang have the same deadline.
        limiter._core.breaker = Circuit(failures=10_000, pause=1.0, late_results=True)
        begun = time.monotonic()
        many = await asyncio.gather(*(limiter.hit(f"k{n}") for n in range(2000)))
        assert all(entry.reason is DecisionReason.FAILED_OPEN for entry in many)
        assert time.monotonic() - begun < 1
        await limiter.close()
        sync = Limiter(policy(failure=failure), redis.Redis(port=port))
        begun = time.monotonic()
        assert (await asyncio.to_thread(sync.hit, "me")).reason is DecisionReason.FAILED_OPEN
        assert 0.045 <= time.monotonic() - begun < 1
        sync.close()


def test_the_breaker_lets_one_request_try() -> None:
    breaker = Circuit(failures=2, pause=1.0, late_results=True)
    breaker.record_failure(0.0)
    assert breaker.admits(0.1)
    breaker.record_failure(0.1)
    assert not breaker.admits(0.5)
    assert breaker.admits(1.2)
    assert not breaker.admits(1.2)
    breaker.record_failure(1.3)
    assert not breaker.admits(2.2)
    assert breaker.admits(2.4)
    breaker.record_success()
    assert breaker.admits(2.4)


async def test_redis_that_comes_back_decides_again(server: RedisServer) -> None:
    own = RedisServer()
    own.start()
    try:
        failure = Failure(FailureMode.OPEN, timeout=1.0, breaker_failures=1, breaker_pause=0.01)
        async with AsyncLimiter(policy(failure=failure), client(own)) as limiter:
            assert (await limiter.hit("me")).source is DecisionSource.REDIS
            own.stop()
            assert (await limiter.hit("me")).reason is DecisionReason.FAILED_OPEN
            own.start()
            async with asyncio.timeout(10):
                decision = await limiter.hit("me")
                while decision.source is not DecisionSource.REDIS:
                    decision = await limiter.hit("me")
                    await asyncio.to_thread(time.sleep, 0.01)
    finally:
        own.close()


def test_threads_share_a_limiter(server: RedisServer, store: redis.Redis) -> None:
    built = policy(Limit("a", Rate(50, 3600)))
    allowed: list[bool] = []
    with Limiter(built, redis.Redis(port=server.port)) as limiter:

        def work() -> None:
            allowed.extend([limiter.hit("me").allowed for _ in range(30)])

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(allowed) == 120
    assert sum(allowed) == 50


def test_the_same_limit_for_sync_and_async(server: RedisServer, store: redis.Redis) -> None:
    with Limiter(policy(), redis.Redis(port=server.port)) as limiter:
        assert [limiter.hit("me").allowed for _ in range(4)] == [True] * 4

    async def rest() -> list[bool]:
        async with AsyncLimiter(policy(), client(server)) as other:
            return [(await other.hit("me")).allowed for _ in range(2)]

    assert asyncio.run(rest()) == [True, False]


def test_less_than_what_was_refused_may_still_pass(server: RedisServer, store: redis.Redis) -> None:
    with Limiter(policy(), redis.Redis(port=server.port)) as limiter:
        assert [limiter.hit("me", cost).allowed for cost in (3, 3, 3, 1)] == [
            True, False, False, True,
        ]  # fmt: skip


def test_refusals_are_remembered_no_longer_than_they_hold(
    server: RedisServer, store: redis.Redis
) -> None:
    clock = FakeClock()
    limiter = Limiter(policy(), redis.Redis(port=server.port), clock=clock)
    refused = [limiter.hit("me") for _ in range(6)][-1]
    assert refused.retry_after is not None
    clock.advance(refused.retry_after - 0.001)
    assert limiter.hit("me").source is DecisionSource.DENY_CACHE
    # Less than what was refused may still be there.
    assert limiter.hit("me", 0).source is DecisionSource.REDIS
    clock.advance(0.002)
    assert limiter.hit("me").source is DecisionSource.REDIS
    limiter.close()


async def test_leases_spare_redis_and_go_back_at_the_end(
    server: RedisServer, store: redis.Redis
) -> None:
    built = policy(Limit("a", Rate(1000, 36000)), leased=True)
    async with AsyncLimiter(built, client(server)) as limiter:
        before = calls(store)
        decisions: list[Decision] = [await limiter.hit("me") for _ in range(400)]
        assert all(decision.allowed for decision in decisions)
        assert sum(decision.source is DecisionSource.LEASE for decision in decisions) > 300
        assert calls(store) - before < 60
    async with AsyncLimiter(built, client(server)) as other:
        # All that was not used is there again: nothing is out.
        assert (await other.peek("me")).remaining == 600
    assert [key for key in store.scan_iter() if key.endswith(":l")] == []


async def test_a_crowd_on_many_keys_is_decided_by_redis(
    server: RedisServer, store: redis.Redis
) -> None:
    # As many lease calls at once as requests would need as many connections.
    built = policy(Limit("a", Rate(1000, 36000)), leased=True)
    async with AsyncLimiter(built, client(server)) as limiter:
        for _ in range(3):
            crowd = await asyncio.gather(*(limiter.hit(f"k{n}") for n in range(400)))
            assert all(entry.allowed for entry in crowd)
        assert limiter.failed == 0


async def test_a_crowd_takes_one_lease(server: RedisServer, store: redis.Redis) -> None:
    built = policy(Limit("a", Rate(1000, 36000)), leased=True)
    async with AsyncLimiter(built, client(server)) as limiter:
        await limiter.hit("me")
        before = calls(store)
        crowd = await asyncio.gather(*(limiter.hit("me") for _ in range(100)))
        assert all(entry.allowed for entry in crowd)
        assert calls(store) - before == 2


def test_what_can_never_pass_is_said_so_while_others_wait(
    server: RedisServer, store: redis.Redis
) -> None:
    with Limiter(policy(), redis.Redis(port=server.port)) as limiter:
        assert [limiter.hit("me").allowed for _ in range(6)][-1] is False
        assert limiter.hit("me").reason is DecisionReason.LIMITED
        assert limiter.hit("me", 6).reason is DecisionReason.COST_ABOVE_BURST


def test_exactly_the_burst_passes_through_leases_of_several(
    server: RedisServer, store: redis.Redis
) -> None:
    built = policy(
        Limit("a", Rate(1000, 36000)), Limit("b", Rate(2000, 72000), cost=2), leased=True
    )
    limiters = [Limiter(built, redis.Redis(port=server.port)) for _ in range(3)]
    allowed = 0
    for turn in range(2400):
        allowed += limiters[turn % 3].hit("me").allowed
    for limiter in limiters:
        limiter.close()
    # A few can be left in leases of those that were not asked again; never one too many.
    assert 990 <= allowed <= 1000
