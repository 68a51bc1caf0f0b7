"""The limiters in an application beside the library `limits`, on one Redis, in turns.

`limits` sync and async with fixed windows, its quickest strategy; the async limiter strict and
leased, and the sync one leased. The async ones with CONCURRENCY requests at a time.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from typing import TYPE_CHECKING

import limits
import limits.aio
import redis
import redis.asyncio

from engineroom.ratelimit.limits.limiter import AsyncLimiter, Limiter
from engineroom.ratelimit.limits.model import (
    Distribution,
    DistributionMode,
    Failure,
    Limit,
    Policy,
    Rate,
)
from tests.performance.outcome import Figure, Goal
from tests.performance.rates.driver import zipf
from tests.support import redis_server

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support import RedisServer

KEYS = (1, 1_000, 100_000)
CONCURRENCY = 256
STRICT = Distribution()
LEASED = Distribution(DistributionMode.LEASED)
FAILURE = Failure(timeout=2.0)


def measure(seconds: float, turns: int) -> dict[str, Figure]:
    """All figures of the application."""
    figures: dict[str, Figure] = {}
    with redis_server() as server:
        for count in KEYS:
            picked = [f"k{random.randrange(count)}" for _ in range(50_000)]
            figures |= _with_keys(server, f"{count}", picked, seconds, turns)
        picked = [f"k{place}" for place in zipf(KEYS[-1], 50_000)]
        figures |= _with_keys(server, f"{KEYS[-1]}_zipf", picked, seconds, turns)
    return figures


def goals() -> list[Goal]:
    """What the design asks."""
    names = [*(f"{count}" for count in KEYS), f"{KEYS[-1]}_zipf"]
    strict = [Goal(f"strict_ratio_{name}", 4.0, at_least=True) for name in names]
    # A key that is seen once has no lease; the goal is of one that is.
    return [*strict, Goal("leased_ratio_1", 100.0, at_least=True)]


def _policy(name: str, distribution: Distribution) -> Policy:
    # Never reached, so that every decision is an admission.
    limit = Limit("all", Rate(1_000_000, 1), burst=500_000_000)
    return Policy(name, (limit,), FAILURE, distribution)


def _with_keys(
    server: RedisServer, count: str, picked: list[str], seconds: float, turns: int
) -> dict[str, Figure]:
    measured: dict[str, list[float]] = {}
    for _ in range(turns):
        with redis.Redis(port=server.port) as client:
            client.flushall()
        for name, measure in (
            ("limits_sync", _limits_sync),
            ("limits_async", _limits_async),
            ("strict", _strict),
            ("leased", _leased_async),
            ("leased_sync", _leased_sync),
        ):
            rate = measure(server, picked, seconds)
            measured.setdefault(name, []).append(rate)
            print(f"{count} keys: {name} {rate:,.0f}/s", flush=True)
    figures: dict[str, Figure] = {
        f"{name}_{count}": round(statistics.median(rates)) for name, rates in measured.items()
    }

    def ratio(name: str, *others: str) -> float:
        """The median of each turn's ratio to the quickest of the others in the same turn."""
        best = [max(rates) for rates in zip(*(measured[other] for other in others), strict=True)]
        pairs = zip(measured[name], best, strict=True)
        ratios: list[float] = [mine / theirs for mine, theirs in pairs]
        return statistics.median(ratios)

    figures[f"strict_ratio_{count}"] = round(ratio("strict", "limits_sync", "limits_async"), 2)
    figures[f"strict_ratio_async_{count}"] = round(ratio("strict", "limits_async"), 2)
    figures[f"leased_ratio_{count}"] = round(ratio("leased_sync", "limits_sync", "limits_async"), 1)
    return figures


def _limits_sync(server: RedisServer, picked: list[str], seconds: float) -> float:
    storage = limits.storage.RedisStorage(server.url)
    limiter = limits.strategies.FixedWindowRateLimiter(storage)
    item = limits.RateLimitItemPerSecond(500_000_000)
    return _loop(lambda key: limiter.hit(item, key), picked, seconds)


def _limits_async(server: RedisServer, picked: list[str], seconds: float) -> float:
    async def run() -> float:
        storage = limits.aio.storage.RedisStorage(f"async+{server.url}", implementation="redispy")
        limiter = limits.aio.strategies.FixedWindowRateLimiter(storage)
        item = limits.RateLimitItemPerSecond(500_000_000)

        async def hit(key: str) -> object:
            return await limiter.hit(item, key)

        return await _crowd(hit, picked, seconds, 32)

    return asyncio.run(run())


def _strict(server: RedisServer, picked: list[str], seconds: float) -> float:
    async def run() -> float:
        client = redis.asyncio.Redis(port=server.port)
        async with AsyncLimiter(_policy("strict", STRICT), client) as limiter:
            rate = await _crowd(limiter.hit, picked, seconds, CONCURRENCY)
            _all_decided(limiter.failed)
            return rate

    return asyncio.run(run())


def _leased_async(server: RedisServer, picked: list[str], seconds: float) -> float:
    async def run() -> float:
        client = redis.asyncio.Redis(port=server.port)
        async with AsyncLimiter(_policy("leased", LEASED), client) as limiter:
            rate = await _crowd(limiter.hit, picked, seconds, CONCURRENCY)
            _all_decided(limiter.failed)
            return rate

    return asyncio.run(run())


def _leased_sync(server: RedisServer, picked: list[str], seconds: float) -> float:
    client = redis.Redis(port=server.port)
    with Limiter(_policy("leased-sync", LEASED), client) as limiter:
        rate = _loop(limiter.hit, picked, seconds)
        _all_decided(limiter.failed)
        return rate


def _all_decided(failed: int) -> None:
    if failed:
        message = f"{failed} decisions were made without Redis"
        raise RuntimeError(message)


def _loop(hit: Callable[[str], object], picked: list[str], seconds: float) -> float:
    done, begun = 0, time.perf_counter()
    while True:
        for at in range(0, len(picked), 100):
            for key in picked[at : at + 100]:
                hit(key)
            done += 100
            took = time.perf_counter() - begun
            if took >= seconds:
                return done / took


async def _crowd(
    hit: Callable[[str], Awaitable[object]], picked: list[str], seconds: float, size: int
) -> float:
    done, begun = 0, time.perf_counter()
    end = begun + seconds

    async def one(offset: int) -> None:
        nonlocal done
        at = offset * 997
        while time.perf_counter() < end:
            for _ in range(10):
                await hit(picked[at % len(picked)])
                at += 1
            done += 10
            # A held lease answers without giving others their turn.
            await asyncio.sleep(0)

    await asyncio.gather(*(one(offset) for offset in range(size)))
    return done / (time.perf_counter() - begun)
