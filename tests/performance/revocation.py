"""How long after a revocation a token still works somewhere: several replicas, one Redis."""

from __future__ import annotations

import argparse
import asyncio
import time

from redis.asyncio import Redis

from engineroom.auth.errors import TokenError
from engineroom.auth.tokens.access_tokens import Tokens
from engineroom.auth.tokens.revocation import Revocations
from engineroom.auth.tokens.signing_keys import Keys, RedisKeyStore
from engineroom.core.clock import SystemClock
from tests.performance.outcome import Goal, outcome, percentile
from tests.support import redis_server

GOALS = (Goal("seconds_p99", 1.0),)
EVERY = 0.002


async def _replica(url: str) -> tuple[Redis, Tokens, asyncio.Task[None]]:
    redis, clock = Redis.from_url(url), SystemClock()
    revocations = Revocations(redis, clock)
    keys = Keys(RedisKeyStore(redis, b"s" * 32), clock)
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


async def measure(replicas: int, revocations: int) -> list[float]:
    """Seconds until the last replica refuses, of each revocation."""
    with redis_server() as server:
        made = [await _replica(server.url) for _ in range(replicas)]
        taken = []
        for number in range(revocations):
            pair = await made[0][1].issue(f"user:{number}")
            claims = await made[0][1].verify(pair.access)
            began = time.perf_counter()
            await made[number % replicas][1].revoke_token(claims)
            waits = [_refused(tokens, pair.access, began) for _, tokens, _ in made]
            taken.append(max(await asyncio.gather(*waits)))
        for redis, _, task in made:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await redis.aclose()
    return taken


def main() -> int:
    """Print the percentiles in seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--revocations", type=int, default=300)
    wanted = parser.parse_args()
    taken = asyncio.run(measure(wanted.replicas, wanted.revocations))
    figures = {
        "replicas": wanted.replicas,
        "seconds_p50": round(percentile(taken, 0.5), 4),
        "seconds_p99": round(percentile(taken, 0.99), 4),
        "seconds_max": round(max(taken), 4),
    }
    return outcome("revocation", figures, GOALS)


if __name__ == "__main__":
    raise SystemExit(main())
