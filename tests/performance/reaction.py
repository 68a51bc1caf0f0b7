"""Reaction: the time from a job on an empty pool's queue to the Deployment's new size.

A real API server with its controller manager, a real Redis, and the operator's process. The clock
starts with the job's own `enqueued_at`, which RQ takes before it sends anything to Redis. It stops
when a watch of this process receives the new size, and includes both transports. `from_call` starts
before the call of RQ's `enqueue`.

KEDA's operator runs beside ours, at its shortest polling interval of a second, and scales
Deployments of its own by queues of the same Redis. Samples of both, and of the floor, alternate.

The floor is a bare PATCH of another Deployment's scale, sent to the same API server by this process
and received by the same watch. Each sample is followed by one of the floor.
"""

from __future__ import annotations

import argparse
import json
import random
import threading
import time
from typing import TYPE_CHECKING, Any

from rq import Queue

from tests.cluster.api import Shape
from tests.cluster.progress import step
from tests.deployed.kube import condition, wait_for
from tests.performance import keda
from tests.performance.outcome import Goal, outcome, percentile
from tests.performance.rig import api_server, operator, pool, redis_server

if TYPE_CHECKING:
    import redis

    from tests.deployed.kube import Kube

NAMESPACE = "default"
#: Pools that take turns, so that one is sampled while the others go back to zero.
POOLS = 20
#: Deployments that KEDA scales, in turns like the pools.
KEDA_DEPLOYMENTS = 10
REASONS = {
    "max_ms": "one sample of two hundred: the machine's own pauses decide it",
    "from_call_*": "the same reaction and RQ's own enqueue before it",
    "first_ever_p50_ms": "a pool's first job creates its objects, once in its life",
    "keda_*": "the peer's figures, for comparison",
    "zero_to_hundred_ms": "one sample; the goal is the single step",
}


#: The Deployment whose scale this process changes itself.
FLOOR = "floor"


class Sizes:
    """The sizes of all Deployments over time, from a watch."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._changed = threading.Condition()
        self._sizes: dict[str, list[tuple[float, int]]] = {}
        listed = kube.raw(kube.path("deployments", NAMESPACE) + "?limit=1")
        self._version = str(json.loads(listed)["metadata"]["resourceVersion"])
        threading.Thread(target=self._listen, daemon=True).start()

    def forget(self, name: str) -> None:
        """Drop the sizes of a Deployment."""
        with self._changed:
            self._sizes[name] = []

    def changes(self, name: str) -> list[tuple[float, int]]:
        """Return (time, size) of each change of size since ``forget``."""
        with self._changed:
            return list(self._sizes.get(name, []))

    def wait_above_zero(self, name: str, seconds: float) -> tuple[float, int]:
        """Return the time and value of the first size above zero. Raises AssertionError."""
        deadline = time.perf_counter() + seconds
        with self._changed:
            while True:
                for at, size in self._sizes.get(name, []):
                    if size > 0:
                        return at, size
                left = deadline - time.perf_counter()
                if left <= 0:
                    raise AssertionError(f"{name} was not scaled within {seconds:g} s")
                self._changed.wait(left)

    def _listen(self) -> None:
        for kind, thing in self._kube.watch("deployments", NAMESPACE, self._version):
            at = time.perf_counter()
            if kind not in ("ADDED", "MODIFIED"):
                continue
            name, size = thing["metadata"]["name"], thing["spec"]["replicas"]
            with self._changed:
                history = self._sizes.setdefault(name, [])
                if not history or history[-1][1] != size:
                    history.append((at, size))
                    self._changed.notify_all()


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=200)
    options = parser.parse_args()
    with (
        redis_server() as (client, url),
        api_server(Shape.CONTROL_PLANE) as kube,
        operator(kube, url) as process,
        keda.operator(kube),
    ):
        process.start()
        names = [f"reaction-{number:02d}" for number in range(POOLS)]
        autoscaling = {"idleTimeout": "1s", "scaleDown": {"stabilizationWindow": "0s"}}
        for name in names:
            kube.create("workerpools", NAMESPACE, pool(name, autoscaling=autoscaling))
        many = {**autoscaling, "maxReplicas": 100, "targetBacklogPerWorker": 1}
        kube.create("workerpools", NAMESPACE, pool("hundred", autoscaling=many))
        at_rest(kube, client, [*names, "hundred"])
        sizes = Sizes(kube)
        # A pool has no Deployment before its first job: that one is made, all later ones patched.
        first_ever = [sample(client, sizes, name)[0] for name in [*names, "hundred"]]
        at_rest(kube, client, [*names, "hundred"])
        kube.create("deployments", NAMESPACE, deployment(FLOOR))
        peers = [f"keda-{number}" for number in range(KEDA_DEPLOYMENTS)]
        port = client.connection_pool.connection_kwargs["port"]
        for name in peers:
            kube.create("deployments", NAMESPACE, deployment(name))
            kube.create("scaledobjects", NAMESPACE, keda.scaled_object(name, port))
        keda_samples: list[float] = []
        patch_floor(kube, sizes)  # the first use opens the connection
        samples: list[float] = []
        from_call: list[float] = []
        floors: list[float] = []
        chance = random.Random(1)
        with step(f"{options.samples} samples", slow=True) as detail:
            while len(samples) < options.samples:
                for name in names[: options.samples - len(samples)]:
                    # What follows a scaling, pods made and status written, is over by then.
                    time.sleep(chance.uniform(0.2, 0.5))
                    taken, with_rq = sample(client, sizes, name)
                    samples.append(taken)
                    from_call.append(with_rq)
                    time.sleep(chance.uniform(0.2, 0.5))
                    floors.append(patch_floor(kube, sizes))
                for name in peers:
                    time.sleep(chance.uniform(0.2, 0.5))
                    keda_samples.append(sample(client, sizes, name)[0])
                    Queue(name, connection=client).empty()  # type: ignore[no-untyped-call]
                detail(f"{len(samples)}")
                at_rest(kube, client, names + peers)
        sizes.forget("hundred")
        began = time.perf_counter()
        queue = Queue("hundred", connection=client)
        queue.enqueue_many([Queue.prepare_data("time.sleep", (1,)) for _ in range(100)])
        at, _ = sizes.wait_above_zero("hundred", 10)
        time.sleep(2)  # whatever other sizes might follow
        steps = [size for _, size in sizes.changes("hundred")]
    figures = {
        "samples": len(samples),
        "p50_ms": round(percentile(samples, 0.5) * 1000, 2),
        "p99_ms": round(percentile(samples, 0.99) * 1000, 2),
        "max_ms": round(max(samples) * 1000, 2),
        "from_call_p50_ms": round(percentile(from_call, 0.5) * 1000, 2),
        "from_call_p99_ms": round(percentile(from_call, 0.99) * 1000, 2),
        "first_ever_p50_ms": round(percentile(first_ever, 0.5) * 1000, 2),
        "floor_p50_ms": round(percentile(floors, 0.5) * 1000, 2),
        "floor_p99_ms": round(percentile(floors, 0.99) * 1000, 2),
        "keda_samples": len(keda_samples),
        "keda_p50_ms": round(percentile(keda_samples, 0.5) * 1000, 2),
        "keda_p99_ms": round(percentile(keda_samples, 0.99) * 1000, 2),
        "keda_p50_ratio": round(percentile(keda_samples, 0.5) / percentile(samples, 0.5), 1),
        "zero_to_hundred_sizes": len(steps),
        "zero_to_hundred_first_size": steps[0],
        "zero_to_hundred_ms": round((at - began) * 1000, 2),
    }
    goals = [
        Goal("samples", options.samples, at_least=True),
        Goal("p50_ms", 10, floor="floor_p50_ms"),
        Goal("p99_ms", 50, floor="floor_p99_ms"),
        Goal("zero_to_hundred_sizes", 1),
        Goal("zero_to_hundred_first_size", 100, at_least=True),
    ]
    return outcome("reaction", figures, goals, REASONS)


def deployment(name: str) -> dict[str, Any]:
    """Return a Deployment of size zero whose pods never run: the cluster has no node."""
    labels = {"app": name}
    container = {"name": "worker", "image": "example.com/app:1"}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        },
    }


def patch_floor(kube: Kube, sizes: Sizes) -> float:
    """Return the seconds from a PATCH of the floor's scale until the watch receives it."""
    sizes.forget(FLOOR)
    called = time.perf_counter()
    kube.patch("deployments", NAMESPACE, FLOOR, {"spec": {"replicas": 1}}, "scale")
    received, _ = sizes.wait_above_zero(FLOOR, 10)
    kube.patch("deployments", NAMESPACE, FLOOR, {"spec": {"replicas": 0}}, "scale")
    return received - called


def sample(client: redis.Redis, sizes: Sizes, name: str) -> tuple[float, float]:
    """Enqueue one job; return the seconds to the new size from its own time and from the call."""
    sizes.forget(name)
    called = time.perf_counter()
    job = Queue(name, connection=client).enqueue("time.sleep", 0.1)
    assert job.enqueued_at is not None
    received, _ = sizes.wait_above_zero(name, 10)
    age = time.time() - job.enqueued_at.timestamp()
    enqueued = time.perf_counter() - age
    return received - enqueued, received - called


def at_rest(kube: Kube, client: redis.Redis, names: list[str]) -> None:
    """Empty the queues, and return when every pool is Ready, at zero, without a pod."""
    for name in names:
        Queue(name, connection=client).empty()  # type: ignore[no-untyped-call]

    def look() -> bool:
        # A pool that never had work has no Deployment yet.
        return all(
            each["spec"]["replicas"] == 0 and not each.get("status", {}).get("replicas")
            for each in kube.all("deployments", NAMESPACE)
            if each["metadata"]["name"] in names
        ) and all(
            condition(each, "Ready")["status"] == "True"
            for each in kube.all("workerpools")
            if each["metadata"]["name"] in names
        )

    wait_for(look, 180, "all pools at zero", every=0.3)
    # What happens last, a status written, shall not fall into the next sample.
    time.sleep(1)
