"""Crashes: the operator killed before and after every single write of a pool's life.

The life is the one of tests/integration/crashes.py: up from zero, a rollout, down to zero, with
real workers as processes. It is played once to count the writes and then twice for each of them.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import TYPE_CHECKING

from engineroom.kube.client import config as kube_config
from tests.cluster.api import Shape
from tests.cluster.progress import step
from tests.integration.crashes import Crash, Record, live
from tests.performance.outcome import Figure, Goal, outcome
from tests.performance.rig import private, with_crds
from tests.support import redis_server

if TYPE_CHECKING:
    from engineroom.kube.client.config import ApiConfig
    from tests.support import RedisServer

GOALS = [
    Goal("different_ends", 0),
    Goal("lost", 0),
    Goal("doubled", 0),
    Goal("crashes", 2 * 10, at_least=True),
]
REASONS = {
    "writes": "the number of writes in one life; two crashes each",
    "seconds": "the length of the run",
}


def main() -> int:
    """Play all lives; the exit status says whether every goal is met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side-by-side", type=int, default=4, help="lives at a time [4]")
    options = parser.parse_args()
    with private(Shape.CONTROL_PLANE) as cluster, redis_server() as redis:
        with_crds(cluster)
        config = kube_config.from_kubeconfig(cluster.kubeconfig)
        figures = asyncio.run(_main(config, redis, options.side_by_side))
    return outcome("crashes", figures, GOALS, REASONS)


async def _main(config: ApiConfig, redis: RedisServer, side_by_side: int) -> dict[str, Figure]:
    began = time.monotonic()
    with step("one life unharmed"):
        whole = await live(config, redis, None)
    crashes = [Crash(n, after) for n in range(len(whole.writes)) for after in (False, True)]
    places = asyncio.Semaphore(side_by_side)
    done = 0

    async def one(crash: Crash) -> tuple[Crash, Record]:
        nonlocal done
        async with places:
            record = await live(config, redis, crash)
        done += 1
        if record.life != whole.life:
            print(f"killed {crash} ({whole.writes[crash.number]}): {record.life}")
        if done % 10 == 0:
            print(f"{done} of {len(crashes)} lives", flush=True)
        return crash, record

    with step(f"{len(crashes)} lives with a crash in each"):
        records = await asyncio.gather(*(one(crash) for crash in crashes))
    return {
        "writes": len(whole.writes),
        # A life's number of writes varies a little; the last ones may not come up.
        "crashes": sum(record.crashed for _, record in records),
        "different_ends": sum(record.life != whole.life for _, record in records),
        "lost": whole.life.lost + sum(record.life.lost for _, record in records),
        "doubled": whole.life.doubled + sum(record.life.doubled for _, record in records),
        "seconds": round(time.monotonic() - began, 1),
    }
