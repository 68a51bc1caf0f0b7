"""Sagas of three steps on a loopback Redis: how many a second, and how soon a kill is made good."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from typing import TYPE_CHECKING

from redis.asyncio import Redis

from engineroom.core.sealing import Sealer
from engineroom.core.transactions.saga import LEASE, Coordinator, Saga, Step, StepContext
from engineroom.core.transactions.sagalog import RedisSagaLog
from tests.performance.outcome import Goal, outcome
from tests.support import redis_server

if TYPE_CHECKING:
    from collections.abc import Sequence

GOALS = (Goal("sagas_per_second", 500, at_least=True), Goal("recovery_seconds", 10.0))
#: Seconds between two looks of a coordinator, as in the API process.
LOOKS = 2.0
SIDE_BY_SIDE = 32


async def _act(step: StepContext) -> str:
    return step.key


async def _wait(step: StepContext) -> str:
    # Only in the process that is killed: there each saga stops in its second step.
    if os.environ.get("ENGINEROOM_BENCH_STOPS"):
        await asyncio.sleep(3600)
    return step.key


def _saga() -> Saga:
    steps = [Step("one", _act, _act), Step("two", _wait, _act), Step("three", _act, _act)]
    return Saga("bench", tuple(steps))


async def _run(coordinator: Coordinator, names: Sequence[str], most: int) -> None:
    places = asyncio.Semaphore(most)

    async def one(name: str) -> None:
        async with places:
            await coordinator.run("bench", name, {"n": name})

    await asyncio.gather(*(one(name) for name in names))


def _coordinator(url: str) -> tuple[Redis, RedisSagaLog, Coordinator]:
    redis = Redis.from_url(url, max_connections=2048)
    log = RedisSagaLog(redis, sealer=Sealer(b"s" * 32, "saga"))
    return redis, log, Coordinator(log, [_saga()])


async def _speed(url: str, count: int) -> float:
    redis, _, coordinator = _coordinator(url)
    await _run(coordinator, [f"warm-{n}" for n in range(50)], SIDE_BY_SIDE)
    began = time.perf_counter()
    await _run(coordinator, [f"fast-{n}" for n in range(count)], SIDE_BY_SIDE)
    spent = time.perf_counter() - began
    await redis.aclose()
    return count / spent


async def _stopped(url: str, count: int) -> None:
    """What the killed process runs: all sagas under way, none ends."""
    redis, _, coordinator = _coordinator(url)
    await _run(coordinator, [f"slow-{n}" for n in range(count)], count)
    await redis.aclose()


async def _recovery(url: str, count: int) -> float:
    redis, log, coordinator = _coordinator(url)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.performance.sagas", "--stopped", url, "--flying", str(count),
        env=os.environ | {"ENGINEROOM_BENCH_STOPS": "1"},
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while await _flying(redis) < count:
            if time.monotonic() > deadline or process.returncode is not None:
                raise RuntimeError("the sagas did not get under way")
            await asyncio.sleep(0.2)
    finally:
        process.send_signal(signal.SIGKILL)
        began = time.perf_counter()
        await process.wait()
    ended = 0
    while ended < count:
        ended += await coordinator.recover(most=count)
        if ended < count:
            await asyncio.sleep(LOOKS)
    spent = time.perf_counter() - began
    for number in (0, count // 2, count - 1):
        record = await log.read(f"slow-{number}")
        if record is None or record.status != "committed":
            raise RuntimeError(f"slow-{number} did not end well")
    await redis.aclose()
    return spent


async def _flying(redis: Redis) -> int:
    """Sagas that wait in their second step."""
    total = 0
    async for key in redis.scan_iter("{engineroom:sagas}:log:slow-*", count=2000):
        total += int(await redis.xlen(key) >= 4)
    return total


def main() -> int:
    """Print sagas a second and the seconds from the kill to the last end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sagas", type=int, default=3000)
    parser.add_argument("--flying", type=int, default=1000, help="sagas under way at the kill")
    parser.add_argument("--stopped", help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.stopped:
        asyncio.run(_stopped(wanted.stopped, wanted.flying))
        return 0
    with redis_server() as server:
        speed = asyncio.run(_speed(server.url, wanted.sagas))
        recovery = asyncio.run(_recovery(server.url, wanted.flying))
    figures = {
        "sagas_per_second": round(speed, 1),
        "recovered": wanted.flying,
        "lease_seconds": LEASE,
        "recovery_seconds": round(recovery, 2),
    }
    return outcome("sagas", figures, GOALS)


if __name__ == "__main__":
    raise SystemExit(main())
