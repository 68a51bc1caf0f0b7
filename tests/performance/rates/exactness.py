"""Whether more is admitted than a limit says, by several processes at once and under faults.

The figure is the worst of all windows: admitted / (burst + rate * window), where a window runs from
before its first request was sent until its last was answered. Clocks are turned by an
hour (see clock.c): Redis' own, the only one that counts, and those of the processes. Each time that
Redis' clock goes forward, or that a Redis that keeps nothing is restarted, a bucket is full again,
which the bound then says; going back, and a Redis that keeps what it answered, give nothing.

As a module with a port and a mode it is one of the processes.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import redis.asyncio

from engineroom.ratelimit.limits.decision import DecisionSource
from engineroom.ratelimit.limits.limiter import AsyncLimiter
from engineroom.ratelimit.limits.model import (
    Distribution,
    DistributionMode,
    Failure,
    FailureMode,
    Limit,
    Policy,
    Rate,
)
from tests.performance.outcome import Figure, Goal
from tests.support import ROOT, RedisServer, redis_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

#: Burst, rate a second, processes, and seconds of a run.
BURST, RATE, PROCESSES, SECONDS = 200, 1000, 3, 2.5
#: Without Redis nothing is admitted, so that every admission is Redis' or a lease's.
FAILURE = Failure(FailureMode.CLOSED, timeout=2.0, breaker_pause=0.05)
#: Seconds that a clock jumps: a bucket is full again long before.
JUMP = 3600
_LEASES = BURST * 0.1


def measure() -> dict[str, Figure]:
    """All figures of exactness."""
    figures: dict[str, Figure] = {}
    for mode in ("strict", "leased"):
        with redis_server() as server:
            figures |= _run(mode, server, mode)
    for name, jumps, extra in (
        ("clock_back", (2 * JUMP, JUMP, 0), 0),
        ("clock_forward", (0, JUMP, 2 * JUMP), 2),
    ):
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            _turn(folder, jumps[0])
            server = stack.enter_context(_turned_redis(folder))
            steps = [functools.partial(_turn, folder, at) for at in jumps[1:]]
            figures |= _run(name, server, "strict", steps, bursts=1 + extra)
    with redis_server() as server, tempfile.TemporaryDirectory() as name_of_folder:
        folder = Path(name_of_folder)
        _turn(folder, 0)
        steps = [functools.partial(_turn, folder, at) for at in (JUMP, -JUMP)]
        figures |= _run("clock_of_processes", server, "strict", steps, turned=_turned(folder))
    for name, durable, extra in (("restart_kept", True, 0), ("restart_lost", False, 1)):
        with redis_server(durable=durable) as server:
            restart = functools.partial(_restart, server)
            figures |= _run(name, server, "strict", [restart], bursts=1 + extra)
    return figures


def goals() -> list[Goal]:
    """At most what the limit says; of leases what the bound of leases says."""
    strict = (
        "strict", "clock_back", "clock_forward", "clock_of_processes", "restart_kept",
        "restart_lost",
    )  # fmt: skip
    return [
        *(Goal(f"exactness_{name}", 1.0) for name in strict),
        # burst + rate * window + min(leased, rate * ttl), to burst + rate * window.
        Goal("exactness_leased", round((BURST + _LEASES) / BURST, 3)),
    ]


def _turn(folder: Path, seconds: int) -> None:
    # In place and at once: programs have it mapped.
    clock = folder / "clock"
    clock.touch()
    with clock.open("r+b", buffering=0) as file:
        file.write(struct.pack("=q", seconds))


def _restart(server: RedisServer) -> None:
    server.stop()
    server.start()


def _turned(folder: Path) -> dict[str, str]:
    """The environment of a program whose wall clock is off by what ``folder/clock`` says."""
    library = folder / "clock.so"
    source = Path(__file__).with_name("clock.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
    return {"LD_PRELOAD": str(library), "TURNED_CLOCK": str(folder / "clock")}


@contextmanager
def _turned_redis(folder: Path) -> Iterator[RedisServer]:
    """A Redis whose clock is off by what the file says; see ``_turn``."""
    program = folder / "redis"
    lines = [f"export {name}='{value}'" for name, value in _turned(folder).items()]
    program.write_text("\n".join(["#!/bin/sh", *lines, 'exec redis-server "$@"', ""]))
    program.chmod(0o755)
    before = os.environ.get("ENGINEROOM_TEST_REDIS")
    os.environ["ENGINEROOM_TEST_REDIS"] = str(program)
    try:
        with redis_server() as server:
            yield server
    finally:
        if before is None:
            del os.environ["ENGINEROOM_TEST_REDIS"]
        else:
            os.environ["ENGINEROOM_TEST_REDIS"] = before


def _run(
    name: str,
    server: RedisServer,
    mode: str,
    steps: Sequence[Callable[[], None]] = (),
    *,
    bursts: int = 1,
    turned: dict[str, str] | None = None,
) -> dict[str, Figure]:
    """Load from several processes; the steps are taken while it lasts."""
    command = [sys.executable, "-m", "tests.performance.rates.exactness", str(server.port), mode]
    environment = os.environ | (turned or {})
    workers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True, env=environment)
        for _ in range(PROCESSES)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for step in steps:
        time.sleep(SECONDS / (len(steps) + 1))
        step()
    admitted: list[tuple[float, float]] = []
    for worker in workers:
        said, _ = worker.communicate(timeout=60)
        if worker.returncode:
            message = f"a process of the exactness run ended with {worker.returncode}"
            raise RuntimeError(message)
        admitted += [(sent, answered) for sent, answered in json.loads(said)]
    ratio = worst_ratio(admitted, BURST * bursts, RATE)
    print(f"exactness, {name}: {len(admitted)} admitted, worst window {ratio:.4f}", flush=True)
    return {f"exactness_{name}": round(ratio, 4), f"exactness_{name}_admitted": len(admitted)}


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


def work(port: int, mode: str) -> None:
    """One of the processes: prints when each admitted request was sent and answered."""

    async def run() -> list[tuple[float, float]]:
        kind = DistributionMode.LEASED if mode == "leased" else DistributionMode.STRICT
        policy = Policy("exact", (Limit("all", Rate(RATE, 1), BURST),), FAILURE, Distribution(kind))
        client = redis.asyncio.Redis(port=port)
        admitted: list[tuple[float, float]] = []
        async with AsyncLimiter(policy, client) as limiter:
            print("ready", flush=True)
            end = time.monotonic() + SECONDS

            async def one() -> None:
                while (sent := time.monotonic()) < end:
                    decision = await limiter.hit("k")
                    if decision.allowed:
                        admitted.append((sent, time.monotonic()))
                    if decision.source is not DecisionSource.REDIS:
                        await asyncio.sleep(0.0005)

            await asyncio.gather(*(one() for _ in range(8)))
        return admitted

    print(json.dumps(asyncio.run(run())))


if __name__ == "__main__":
    work(int(sys.argv[1]), sys.argv[2])
