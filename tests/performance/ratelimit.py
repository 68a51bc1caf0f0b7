"""Decisions a second in the application, beside the library `limits`, and whether they are exact.

On one Redis, in turns: `limits` sync and async with fixed windows, its quickest strategy; the async
limiter strict and leased, and the sync one leased. The async ones with CONCURRENCY requests at a
time. Then several processes at once on one key: the worst window's admitted / (burst + rate *
window), where a window runs from before its first request was sent until its last was answered.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import limits
import limits.aio
import redis
import redis.asyncio

from engineroom.ratelimit.decision import Source
from engineroom.ratelimit.limiter import AsyncLimiter, Limiter
from engineroom.ratelimit.model import Distribution, DistributionMode, Failure, Limit, Policy, Rate
from tests.performance.outcome import Figure, Goal, outcome
from tests.support import ROOT, redis_server

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support import RedisServer

KEYS = (1, 1_000, 100_000)
CONCURRENCY = 256
#: The exactness run: burst, rate a second, processes, seconds.
BURST, RATE, PROCESSES, SECONDS = 200, 1000, 3, 3.0
STRICT = Distribution()
LEASED = Distribution(DistributionMode.LEASED)
FAILURE = Failure(timeout=2.0)


def main() -> int:
    """Run the benchmark and print its line; `--worker` is one of its own processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of one measurement")
    parser.add_argument("--turns", type=int, default=3, help="measurements of each kind")
    parser.add_argument("--worker", nargs=2, metavar=("PORT", "MODE"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.worker:
        _worker(int(chosen.worker[0]), chosen.worker[1])
        return 0
    figures: dict[str, Figure] = {}
    with redis_server() as server:
        for count in KEYS:
            figures |= _throughput(server, count, chosen.seconds, chosen.turns)
        for mode in ("strict", "leased"):
            figures |= _exactness(server, mode)
    goals = [Goal(f"strict_ratio_{count}", 4.0, at_least=True) for count in KEYS]
    leases = BURST * 0.1
    return outcome(
        "ratelimit",
        figures,
        [
            *goals,
            Goal("leased_ratio_1", 100.0, at_least=True),
            Goal("exactness_strict", 1.0),
            # The bound of leases: burst + rate * window + min(leased, rate * ttl).
            Goal("exactness_leased", round((BURST + leases) / BURST, 3)),
        ],
    )


def _policy(name: str, distribution: Distribution) -> Policy:
    # Never reached, so that every decision is an admission.
    limit = Limit("all", Rate(1_000_000, 1), burst=500_000_000)
    return Policy(name, (limit,), FAILURE, distribution)


def _throughput(server: RedisServer, count: int, seconds: float, turns: int) -> dict[str, Figure]:
    picked = [f"k{random.randrange(count)}" for _ in range(50_000)]
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


def _exactness(server: RedisServer, mode: str) -> dict[str, Figure]:
    command = [sys.executable, "-m", "tests.performance.ratelimit", "--worker", str(server.port)]
    workers = [
        subprocess.Popen([*command, mode], stdout=subprocess.PIPE, cwd=ROOT, text=True)
        for _ in range(PROCESSES)
    ]
    admitted: list[tuple[float, float]] = []
    for worker in workers:
        said, _ = worker.communicate(timeout=60)
        if worker.returncode:
            message = f"a process of the exactness run ended with {worker.returncode}"
            raise RuntimeError(message)
        admitted += [(sent, answered) for sent, answered in json.loads(said)]
    ratio = worst_ratio(admitted, BURST, RATE)
    print(f"exactness, {mode}: {len(admitted)} admitted, worst window {ratio:.4f}", flush=True)
    return {f"exactness_{mode}": round(ratio, 4), f"exactness_{mode}_admitted": len(admitted)}


def worst_ratio(admitted: list[tuple[float, float]], burst: int, rate: float) -> float:
    """Of all windows the one that exceeds rate * window most: its admitted / (burst + rate * w)."""
    # In order of the answers; counted are those that were sent and answered inside the window.
    ordered = sorted(admitted, key=lambda each: each[1])
    best, begin, worst, ratio = float("-inf"), (0, 0.0), float("-inf"), 0.0
    for place, (sent, answered) in enumerate(ordered):
        if rate * sent - place > best:
            best, begin = rate * sent - place, (place, sent)
        excess = place + 1 - rate * answered + best
        if excess > worst:
            worst = excess
            ratio = (place + 1 - begin[0]) / (burst + rate * (answered - begin[1]))
    return ratio


def _worker(port: int, mode: str) -> None:
    async def run() -> list[tuple[float, float]]:
        distribution = LEASED if mode == "leased" else STRICT
        policy = Policy(
            f"exact-{mode}", (Limit("all", Rate(RATE, 1), BURST),), FAILURE, distribution
        )
        client = redis.asyncio.Redis(port=port)
        admitted: list[tuple[float, float]] = []
        async with AsyncLimiter(policy, client) as limiter:
            end = time.monotonic() + SECONDS

            async def one() -> None:
                while (sent := time.monotonic()) < end:
                    decision = await limiter.hit("k")
                    if decision.allowed:
                        admitted.append((sent, time.monotonic()))
                    if decision.source is not Source.REDIS:
                        await asyncio.sleep(0.0005)

            await asyncio.gather(*(one() for _ in range(8)))
            _all_decided(limiter.failed)
        return admitted

    print(json.dumps(asyncio.run(run())))


if __name__ == "__main__":
    sys.exit(main())
