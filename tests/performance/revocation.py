"""The time from a revocation until the last of several replicas refuses the token.

The floor is an entry of a bare Redis stream until as many bare readers have it, in turns.
"""

from __future__ import annotations

import argparse
import asyncio
import time

from redis.asyncio import Redis

from engineroom.auth.errors import TokenError
from engineroom.auth.tokens.access_tokens import Tokens
from engineroom.auth.tokens.revocation import Revocations
from engineroom.auth.tokens.signing_keys import RedisKeyStore, SigningKeyCache
from engineroom.core.clock import SystemClock
from tests.performance.outcome import Goal, outcome, percentile
from tests.support import redis_server

GOALS = (Goal("seconds_p99", 1.0, floor="floor_seconds_p99"),)
REASONS = {
    "replicas": "the size of the run",
    "seconds_p50": "the promise is p99",
    "floor_seconds_p50": "the promise is p99",
    "seconds_max": "one of thousands; the promise is p99",
}
STREAM = "bench:floor"
EVERY = 0.002


async def _replica(url: str) -> tuple[Redis, Tokens, asyncio.Task[None]]:
    redis, clock = Redis.from_url(url), SystemClock()
    revocations = Revocations(redis, clock)
    keys = SigningKeyCache(RedisKeyStore(redis, b"s" * 32), clock)
    await keys.ensure()
    tokens = Tokens(redis, keys, revocations, clock, issuer="https://x", audience="https://x")
    await revocations.read(block_ms=1)
    return redis, tokens, asyncio.create_task(revocations.run())


async def _refused(tokens: Tokens, token: str, since: float) -> float:
    while True:
        try:
            await tokens.verify(token)
        except TokenError:
            return time.perf_counter() - since
        await asyncio.sleep(EVERY)


async def _floor(clients: list[Redis], number: int) -> float:
    """Return the seconds from an XADD until every client's blocking XREAD has returned."""

    async def read(redis: Redis) -> float:
        await redis.xread({STREAM: str(number)}, block=5000)
        return time.perf_counter()

    readers = [asyncio.create_task(read(redis)) for redis in clients]
    await asyncio.sleep(EVERY)
    began = time.perf_counter()
    await clients[0].xadd(STREAM, {"a": "b"}, id=f"{number + 1}-0")
    return max(await asyncio.gather(*readers)) - began


async def measure(replicas: int, revocations: int) -> tuple[list[float], list[float]]:
    """Return the seconds until the last replica refuses, of each revocation, and the floor's."""
    with redis_server() as server:
        started = [await _replica(server.url) for _ in range(replicas)]
        clients = [Redis.from_url(server.url) for _ in range(replicas)]
        taken, floors = [], []
        for number in range(revocations):
            pair = await started[0][1].issue(f"user:{number}")
            claims = await started[0][1].verify(pair.access)
            began = time.perf_counter()
            await started[number % replicas][1].revoke_token(claims)
            waits = [_refused(tokens, pair.access, began) for _, tokens, _ in started]
            taken.append(max(await asyncio.gather(*waits)))
            floors.append(await _floor(clients, number))
        for redis, _, task in started:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await redis.aclose()
        for client in clients:
            await client.aclose()
    return taken, floors


def main() -> int:
    """Print the percentiles in seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--revocations", type=int, default=2000)
    wanted = parser.parse_args()
    taken, floors = asyncio.run(measure(wanted.replicas, wanted.revocations))
    figures = {
        "replicas": wanted.replicas,
        "seconds_p50": round(percentile(taken, 0.5), 4),
        "seconds_p99": round(percentile(taken, 0.99), 4),
        "seconds_max": round(max(taken), 4),
        "floor_seconds_p50": round(percentile(floors, 0.5), 4),
        "floor_seconds_p99": round(percentile(floors, 0.99), 4),
    }
    return outcome("revocation", figures, GOALS, REASONS)


if __name__ == "__main__":
    raise SystemExit(main())
