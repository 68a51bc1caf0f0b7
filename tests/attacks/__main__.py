"""``make attacks``: 10,000 writes by authors with random rights; the last line is JSON."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from redis import Redis

from engineroom.api import kinds
from engineroom.api.schema.common import crd
from engineroom.kube.client import config as kube_config
from engineroom.kube.client.client import Client
from engineroom.kube.client.resources import CRDS
from tests.attacks.authors import Requests
from tests.attacks.walk import TENANTS, Report, Walk
from tests.cluster.api import Shape
from tests.cluster.pytest_plugin import private_cluster
from tests.integration.pools import OperatorProcess
from tests.integration.webhooks import Admission
from tests.performance.outcome import Goal, outcome
from tests.support import redis_server

if TYPE_CHECKING:
    from tests.cluster.api import Cluster
    from tests.support import RedisServer

GOALS = (
    Goal("steps", 1, at_least=True),
    Goal("accepted", 1, at_least=True),
    Goal("gained", 0),
    Goal("refused_wrongly", 0),
    Goal("foreign", 0),
)
REASONS = {"seed": "repeats the run", "refused": "the mix of the run", "seconds": "its length"}
#: Steps between two checks of the state.
CHECK_EVERY = 250


async def run(cluster: Cluster, redis: RedisServer, steps: int, seed: int) -> Report:
    """Walk; the API server must serve the kinds."""
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        api = Requests(cluster.kubeconfig, folder)
        walk = Walk(api, Redis.from_url(redis.url), redis.url, seed)
        walk.prepare()
        operator = OperatorProcess(cluster.kubeconfig, redis.url, ",".join(TENANTS))
        async with Client(kube_config.from_kubeconfig(cluster.kubeconfig)) as client:
            admission = Admission(client, cluster.kubeconfig, TENANTS[0], folder, [], TENANTS[1:])
            await admission.start()
            await operator.start()
            try:
                for number in range(1, steps + 1):
                    await asyncio.to_thread(walk.step)
                    if number % CHECK_EVERY == 0 or number == steps:
                        await walk.judge_state()
                        print(f"{number} of {steps} steps", flush=True)
            except AssertionError:
                for line in operator.log()[-40:]:
                    print(line)
                raise
            finally:
                await operator.stop()
                await admission.close()
                walk.clean()
                api.close()
    return walk.report


async def _serve_kinds(cluster: Cluster) -> None:
    async with Client(kube_config.from_kubeconfig(cluster.kubeconfig)) as client:
        for kind in kinds.registry():
            await client.apply(CRDS, crd(kind))


def main() -> int:
    """Walk on a cluster of its own and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="0 takes the time's")
    wanted = parser.parse_args()
    seed, began = wanted.seed or int(time.time()), time.monotonic()
    print(f"seed {seed}", flush=True)
    clusters = private_cluster(Shape.CONTROL_PLANE)
    cluster = next(clusters)
    try:
        asyncio.run(_serve_kinds(cluster))
        with redis_server() as redis:
            report = asyncio.run(run(cluster, redis, wanted.steps, seed))
    finally:
        clusters.close()
    for line in (report.gained + report.refused_wrongly + report.foreign)[:20]:
        print(line)
    return outcome(
        "attacks",
        {
            "seed": seed,
            "steps": wanted.steps,
            "accepted": report.accepted,
            "refused": report.refused,
            "gained": len(report.gained),
            "refused_wrongly": len(report.refused_wrongly),
            "foreign": len(report.foreign),
            "seconds": round(time.monotonic() - began, 1),
        },
        GOALS,
        REASONS,
    )


if __name__ == "__main__":
    raise SystemExit(main())
