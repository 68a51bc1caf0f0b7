"""Outages under load: Redis gone for a minute, and the API server restarted.

A real API server and Redis, the operator's process, and workers as processes. Jobs of mixed length
come in before and after; while Redis is away the pool's size must not change, and in the end no job
may be lost or done twice.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import time
from typing import TYPE_CHECKING

from engineroom.kube.client import config as kube_config
from engineroom.kube.client.client import Client
from engineroom.kube.client.resources import NAMESPACES, WORKERPOOLS
from tests.cluster.api import Shape
from tests.cluster.progress import step
from tests.integration.hollow import HollowKubelet
from tests.integration.pools import OperatorProcess, Stage, eventually, pool
from tests.performance.outcome import Figure, Goal, outcome
from tests.performance.rig import private, with_crds
from tests.support import redis_server, shared_namespace

if TYPE_CHECKING:
    from tests.cluster.api import Cluster
    from tests.support import RedisServer

GOALS = [
    Goal("lost", 0),
    Goal("doubled", 0),
    Goal("sizes_during_the_outage", 1),
    # A time-out of the settings decides it, not the speed of the machine.
    Goal("seconds_until_reported", 10),
    Goal("seconds_until_healed", 10),
]
REASONS = {"jobs": "the size of the run"}
#: Kept by all pods during the outage; the jobs last longer than it.
SIZE = 4


def main() -> int:
    """Run it; the exit status says whether every goal is met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="Redis is gone for [60]")
    parser.add_argument("--jobs", type=int, default=120, help="short jobs around it [120]")
    options = parser.parse_args()
    with private(Shape.CONTROL_PLANE) as cluster, redis_server(durable=True) as redis:
        with_crds(cluster)
        figures = asyncio.run(_run(cluster, redis, options.seconds, options.jobs))
    return outcome("outages", figures, GOALS, REASONS)


async def _run(
    cluster: Cluster, redis: RedisServer, seconds: float, jobs: int
) -> dict[str, Figure]:
    namespace = f"outage-{secrets.token_hex(4)}"
    config = kube_config.from_kubeconfig(cluster.kubeconfig)
    operator = OperatorProcess(cluster.kubeconfig, redis.url, namespace)
    async with Client(config) as client:
        await client.create(NAMESPACES, shared_namespace(namespace))
        await operator.start()
        stage = Stage(client, namespace, redis)
        async with HollowKubelet(client, namespace) as kubelet:
            try:
                return await _outages(cluster, redis, stage, kubelet, seconds, jobs)
            finally:
                await operator.stop()


async def _outages(
    cluster: Cluster,
    redis: RedisServer,
    stage: Stage,
    kubelet: HollowKubelet,
    seconds: float,
    jobs: int,
) -> dict[str, Figure]:
    auto = {"maxReplicas": SIZE, "idleTimeout": "1s", "scaleDown": {"stabilizationWindow": "5s"}}
    await stage.client.create(WORKERPOOLS, pool(stage.namespace, autoscaling=auto))
    stage.enqueue(SIZE // 2, seconds + 15)
    stage.enqueue(jobs, 0.2)
    await eventually("the pool is up", lambda: len(kubelet.pods()) == SIZE, 60)
    await eventually("long jobs run", lambda: stage.redis.hlen("booked:started") >= SIZE)
    sizes = {await stage.size()}
    redis.stop()
    gone = time.monotonic()
    reported = 0.0
    with step(f"Redis gone for {seconds:g} s", slow=True):
        while time.monotonic() - gone < seconds:
            sizes.add(await stage.size())
            if not reported and (await stage.condition("RedisReachable"))[0] == "False":
                reported = time.monotonic() - gone
            await asyncio.sleep(0.5)
    redis.start()
    back = time.monotonic()

    async def reachable() -> bool:
        return (await stage.condition("RedisReachable"))[0] == "True"

    await eventually("Redis is seen again", reachable, 60)
    healed = time.monotonic() - back
    stage.enqueue(jobs, 0.2)
    with step("API server restarted", slow=True):
        await asyncio.to_thread(cluster.restart, "apiserver")
    with step("all jobs done", slow=True):
        await eventually("all jobs are done", lambda: stage.ledger().lost == 0, 180)
        await eventually("the pool is at zero", stage.at_rest, 120)
    ledger = stage.ledger()
    return {
        "jobs": ledger.enqueued,
        "lost": ledger.lost,
        "doubled": ledger.doubled,
        "sizes_during_the_outage": len(sizes),
        "seconds_until_reported": round(reported or seconds, 2),
        "seconds_until_healed": round(healed, 2),
    }
