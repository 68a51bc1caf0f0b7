"""Sagas of three steps on a loopback Redis: their rate, and the recovery after SIGKILL.

The floor of the rate is the same number of bare round trips to the same Redis, by as many tasks at
a time, in alternating blocks. The floor of the recovery is the lease of the killed process, one
interval between two looks, and the bare round trips of the sagas to recover.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

from redis.asyncio import Redis

from engineroom.core.sealing import Sealer
from engineroom.core.transactions.saga import LEASE, Coordinator, Saga, Step, StepContext
from engineroom.core.transactions.sagalog import RedisSagaLog
from tests.performance.outcome import Goal, outcome
from tests.support import redis_server

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

GOALS = (
    Goal("sagas_per_second", 500, at_least=True, floor="floor_per_second"),
    Goal("recovery_seconds", 10.0, floor="floor_recovery_seconds"),
)
REASONS = {
    "recovered": "all sagas under way at the kill; the run fails when one is missing",
    "lease_seconds": "a setting: the process that died holds its sagas for this long",
    "round_trips": "the work that the floor repeats",
}
#: Seconds between two looks of a coordinator, as in the API process.
LOOKS = 2.0
#: Sagas at a time, and alternating blocks of sagas and bare round trips.
SIDE_BY_SIDE, BLOCKS = 32, 6


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
    async def run(name: str) -> None:
        await coordinator.run("bench", name, {"n": name})

    await _at_most(most, [run(name) for name in names])


async def _at_most(most: int, work: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Await all of ``work``, ``most`` at a time."""
    places = asyncio.Semaphore(most)

    async def limited(coroutine: Coroutine[Any, Any, None]) -> None:
        async with places:
            await coroutine

    await asyncio.gather(*(limited(coroutine) for coroutine in work))


def _coordinator(url: str) -> tuple[Redis, RedisSagaLog, Coordinator]:
    redis = Redis.from_url(url, max_connections=2048)
    log = RedisSagaLog(redis, sealer=Sealer(b"s" * 32, "saga"))
    return redis, log, Coordinator(log, [_saga()])


async def _rates(url: str, count: int) -> dict[str, float]:
    """Return sagas a second, and the rate of as many bare round trips."""
    redis, _, coordinator = _coordinator(url)
    await _run(coordinator, [f"warm-{n}" for n in range(50)], SIDE_BY_SIDE)
    block = count // BLOCKS
    before = await _reads(redis)
    await _run(coordinator, [f"counted-{n}" for n in range(block)], SIDE_BY_SIDE)
    round_trips = round((await _reads(redis) - before) / block)

    async def bare() -> None:
        for _ in range(round_trips):
            await redis.ping()

    sagas: list[float] = []
    floors: list[float] = []
    for number in range(BLOCKS):
        names = [f"fast-{number}-{n}" for n in range(block)]
        began = time.perf_counter()
        await _run(coordinator, names, SIDE_BY_SIDE)
        sagas.append(block / (time.perf_counter() - began))
        began = time.perf_counter()
        await _at_most(SIDE_BY_SIDE, [bare() for _ in range(block)])
        floors.append(block / (time.perf_counter() - began))
    await redis.aclose()
    return {
        "round_trips": round_trips,
        "sagas_per_second": statistics.median(sagas),
        "floor_per_second": statistics.median(floors),
    }


async def _reads(redis: Redis) -> int:
    """Return the requests that Redis has read from its sockets so far."""
    return int((await redis.info("stats"))["total_reads_processed"])


async def _stopped(url: str, count: int) -> None:
    """Begin all sagas in the process that is killed; none ends."""
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
            raise RuntimeError(f"slow-{number} was not committed")
    await redis.aclose()
    return spent


async def _flying(redis: Redis) -> int:
    """Return the number of sagas that wait in their second step."""
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
        rates = asyncio.run(_rates(server.url, wanted.sagas))
        recovery = asyncio.run(_recovery(server.url, wanted.flying))
    figures = {
        **{name: round(rate, 1) for name, rate in rates.items()},
        "recovered": wanted.flying,
        "lease_seconds": LEASE,
        "recovery_seconds": round(recovery, 2),
        "floor_recovery_seconds": round(
            LEASE + LOOKS + wanted.flying / rates["floor_per_second"], 2
        ),
    }
    return outcome("sagas", figures, GOALS, REASONS)


if __name__ == "__main__":
    raise SystemExit(main())
