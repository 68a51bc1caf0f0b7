"""Scale: ten thousand WorkerPools in one operator.

The API server, its controllers and Redis are real; KWOK simulates nodes and pods. Creation lasts
until every pool is Ready. The API server's own metrics count the writes.

Floors, measured in the same run: bare creations and patches of ConfigMaps between the parts of the
creation; a bare list of all pools, and the rest of the lease, for the restart; a bare PATCH of a
Deployment's scale after each sample of the reaction.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import statistics
import tempfile
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rq import Queue

from tests.cluster.api import Shape
from tests.cluster.progress import step
from tests.deployed.kube import condition, wait_for
from tests.performance.outcome import Figure, Goal, outcome, percentile
from tests.performance.reaction import FLOOR, deployment
from tests.performance.rig import (
    GITOPS,
    INSTALLED,
    Operator,
    api_server,
    as_account,
    install_gitops,
    operator,
    pool,
    redis_server,
)
from tests.support import shared_namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import redis

    from engineroom.kube.client.client import Client
    from tests.deployed.kube import Kube

NAMESPACES = 100
ACTIVE_QUEUES = 100
#: Pools are created in parts; after each part so many ConfigMaps are created and patched.
PARTS, FLOOR_OBJECTS = 10, 200
GOALS = (
    Goal("created_per_second", 150, at_least=True, floor="floor_created_per_second"),
    Goal("restart_seconds_until_reacting", 15, floor="floor_restart_seconds"),
    Goal("restart_writes", 0),
    Goal("idle_writes", 0),
    Goal("idle_memory_mib", 200),
    Goal("idle_cores", 0.2, floor="floor_list_cpu_seconds"),
    Goal("reaction_p99_ms", 250, floor="floor_reaction_p99_ms"),
)
REASONS = {
    "pools": "the size of the run",
    "creation_seconds": "the clients' part of created_per_second",
    "converged_seconds": "created_per_second, as a time",
    "after_creation_*": "the same as idle_*, before the restart; the operator still frees memory",
    "restart_ready_seconds": "readiness comes before the lease; the promise is the reaction",
    "reaction_samples": "the size of the run",
    "traffic_jobs": "the load beside the samples",
    "first_ever_*": "a pool's first job creates its objects, once in its life",
    "reaction_p50_ms": "the promise is p99; the median is the benchmark reaction's",
    "memory_at_the_end_mib": "after the load; the promise is idle_memory_mib",
}
LEASE = "engineroom-operator"
#: Objects that only the operator writes in this cluster, but for PUTs of the controller manager.
OURS = ("workerpools", "deployments", "serviceaccounts", "poddisruptionbudgets", "secrets")
_REQUESTS = re.compile(r"^apiserver_request_total\{([^}]*)\} ([0-9.e+]+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


def place(number: int) -> tuple[str, str]:
    """Namespace and name of a pool. The name is its queue's, so it is one of its kind."""
    return f"scale-{number % NAMESPACES:02d}", f"pool-{number:05d}"


def active(pools: int) -> list[int]:
    """The pools whose queues have traffic, spread over all of them."""
    return list(range(0, pools, max(1, pools // ACTIVE_QUEUES)))[:ACTIVE_QUEUES]


def idle_ones(pools: int) -> list[int]:
    """All the other pools."""
    return sorted(set(range(pools)) - set(active(pools)))


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pools", type=int, default=10_000)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--idle-seconds", type=float, default=30)
    options = parser.parse_args()
    figures: dict[str, Figure] = {"pools": options.pools}
    with (
        redis_server() as (client, url),
        api_server(Shape.SCALE) as kube,
        operator(kube, url) as process,
    ):
        process.start()
        figures |= create(kube, options.pools)
        settle(kube)
        figures |= idle(kube, process, options.idle_seconds, "after_creation")
        figures |= restart_without_writes(kube, process)
        figures |= idle(kube, process, options.idle_seconds, "idle")
        figures |= restart_and_react(kube, process, client, options.pools)
        figures |= react_under_traffic(kube, client, options.pools, options.samples)
        figures["memory_at_the_end_mib"] = mib(process)
    return outcome("scale", figures, GOALS, REASONS)


# ---- creation -----------------------------------------------------------------------------------


def create(kube: Kube, pools: int) -> dict[str, Figure]:
    """Create all pools, and wait until the status of each is that of its spec."""
    for number in range(NAMESPACES):
        namespace, _ = place(number)
        kube.apply("namespaces", None, shared_namespace(namespace))
    install_gitops(kube)
    with (
        tempfile.TemporaryDirectory() as folder,
        step(f"create {pools} pools", slow=True) as detail,
    ):
        account = as_account(kube, INSTALLED, GITOPS, Path(folder))
        created, converged, floor = asyncio.run(_create(account, pools, detail))
    return {
        "creation_seconds": round(created, 1),
        "converged_seconds": round(converged, 1),
        "created_per_second": round(pools / converged, 1),
        "floor_created_per_second": round(floor, 1),
    }


async def _create(
    kubeconfig: Path, pools: int, detail: Callable[[str], None]
) -> tuple[float, float, float]:
    """Create the pools in parts, 6 at a time.

    Returns the seconds of all creations, the seconds until all have converged, and the floor's
    objects a second. A watch reports convergence: repeated lists would be most of the load.
    """
    from engineroom.core.errors import EngineroomError
    from engineroom.kube.client.client import Client
    from engineroom.kube.client.resources import WORKERPOOLS
    from engineroom.main import load_config
    from engineroom.settings import Settings

    busy = set(active(pools))
    converged: set[str] = set()
    expected = 0
    done = asyncio.Event()

    async def create_pools(client: Client, numbers: Iterator[int]) -> None:
        for number in numbers:
            namespace, name = place(number)
            # Pools with traffic have a pod from the first, and behave as by default; samples of
            # the others go back to zero at once.
            autoscaling: dict[str, Any] = {"minReplicas": 1}
            if number not in busy:
                autoscaling = {"idleTimeout": "1s", "scaleDown": {"stabilizationWindow": "0s"}}
            body = pool(name, autoscaling=autoscaling)
            body["metadata"]["namespace"] = namespace
            await client.create(WORKERPOOLS, body)

    def see(thing: dict[str, Any]) -> None:
        if as_its_spec_says(thing):
            converged.add(thing["metadata"]["name"])
            if len(converged) % 1000 == 0:
                detail(f"{len(converged)} converged")
            if len(converged) == expected:
                done.set()

    async def listen(client: Client, version: str) -> None:
        while True:
            try:
                async for change, thing in client.watch(WORKERPOOLS, None, version):
                    if change == "MODIFIED":
                        see(thing)
            except EngineroomError as error:
                print(f"the benchmark's watch broke: {error}")
            # The changes between the two watches.
            listed, version = await client.list(WORKERPOOLS)
            for thing in listed:
                if thing.get("status"):
                    see(thing)

    async with Client(load_config(Settings(kubeconfig=kubeconfig))) as client:
        _, version = await client.list(WORKERPOOLS)
        listener = asyncio.create_task(listen(client, version))
        created = taken = 0.0
        floors: list[float] = []
        for part in range(PARTS):
            first, expected = pools * part // PARTS, pools * (part + 1) // PARTS
            done.clear()
            numbers = iter(range(first, expected))
            began = time.monotonic()
            await asyncio.gather(*(create_pools(client, numbers) for _ in range(6)))
            created += time.monotonic() - began
            async with asyncio.timeout(pools / 10 + 120):
                await done.wait()
            taken += time.monotonic() - began
            floors.append(await _floor_rate(client, part))
        listener.cancel()
        return created, taken, statistics.median(floors)


async def _floor_rate(client: Client, part: int) -> float:
    """Return the rate of bare ConfigMaps, each created and then patched once, 6 at a time."""
    from engineroom.kube.client.resources import CONFIG_MAPS

    namespace, _ = place(part)
    numbers = iter(range(FLOOR_OBJECTS))

    async def create_some() -> None:
        for number in numbers:
            name = f"floor-{part}-{number}"
            body = {"metadata": {"name": name, "namespace": namespace}, "data": {"a": "b" * 500}}
            await client.create(CONFIG_MAPS, body)
            await client.merge_patch(CONFIG_MAPS, namespace, name, {"data": {"a": "c" * 500}})

    began = time.monotonic()
    await asyncio.gather(*(create_some() for _ in range(6)))
    return FLOOR_OBJECTS / (time.monotonic() - began)


def as_its_spec_says(thing: dict[str, Any]) -> bool:
    """Return whether a pool is Ready, not reconciling, and its status is that of its spec."""
    return bool(
        condition(thing, "Ready")["status"] == "True"
        and condition(thing, "Reconciling")["status"] == "False"
        and thing["status"].get("observedGeneration") == thing["metadata"]["generation"]
    )


# ---- at rest and restarted ----------------------------------------------------------------------


def writes(kube: Kube) -> int:
    """Requests so far that could change what the operator looks after, as the API server counts."""
    total = 0.0
    for labels, value in _REQUESTS.findall(kube.raw("/metrics")):
        label = dict(_LABEL.findall(labels))
        if label["resource"] not in OURS or label.get("dry_run"):
            continue
        # The controller manager writes the status of Deployments, by PUT; nobody else PUTs.
        if label["verb"] in ("POST", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION"):
            total += float(value)
    return int(total)


def settle(kube: Kube, seconds: float = 120) -> None:
    """Return when nothing has been written for five seconds."""
    seen = [writes(kube)]

    def quiet() -> bool:
        time.sleep(5)
        seen.append(writes(kube))
        return seen[-1] == seen[-2]

    wait_for(quiet, seconds, lambda: f"no more writes: {seen}", every=0)


def idle(kube: Kube, process: Operator, seconds: float, name: str) -> dict[str, Figure]:
    """Memory, processor and writes while nothing happens."""
    before, used = writes(kube), process.processor()
    with step(f"idle for {seconds:.0f} s"):
        time.sleep(seconds)
    return {
        f"{name}_cores": round((process.processor() - used) / seconds, 3),
        f"{name}_memory_mib": mib(process),
        f"{name}_writes": writes(kube) - before,
    }


def mib(process: Operator) -> float:
    """Resident memory of the operator."""
    return round(process.memory() / 2**20, 1)


def restart_without_writes(kube: Kube, process: Operator) -> dict[str, Figure]:
    """Restart it while nothing has changed: it must find that out and write nothing."""
    before = writes(kube)
    process.stop()
    with step("restart the operator"):
        ready = process.start(120)
        time.sleep(max(0.0, 30 - ready))
    return {"restart_ready_seconds": round(ready, 1), "restart_writes": writes(kube) - before}


def restart_and_react(
    kube: Kube, process: Operator, client: redis.Redis, pools: int
) -> dict[str, Figure]:
    """Restart it while jobs come in, to pools all over: how long until each has reacted."""
    lease = kube.get("leases", INSTALLED, LEASE)["spec"]
    process.kill()
    renewed = datetime.fromisoformat(lease["renewTime"]).timestamp()
    held = max(0.0, renewed + lease["leaseDurationSeconds"] - time.time())
    chance = random.Random(11)
    chosen = chance.sample(idle_ones(pools), min(20, pools // 2))
    sizes = {number: size(kube, number) for number in chosen}
    for number in chosen:
        enqueue(client, number, 200)
    # A killed operator holds its lease until it runs out; that is part of the time.
    began = time.monotonic()
    process.start(120)
    wait_for(
        lambda: all(size(kube, number) > sizes[number] for number in chosen),
        120,
        lambda: f"all scaled: {[(place(number), size(kube, number)) for number in chosen]}",
        every=0.1,
    )
    seconds = time.monotonic() - began
    empty(client, chosen)
    at_rest(kube, {number: sizes[number] for number in chosen})
    listed, processor = list_all(kube)
    return {
        "restart_seconds_until_reacting": round(seconds, 1),
        "floor_restart_seconds": round(held + listed, 2),
        "floor_list_cpu_seconds": round(processor, 3),
    }


def list_all(kube: Kube) -> tuple[float, float]:
    """Return the seconds, and this process' processor seconds, of listing and parsing all pools."""
    began, used = time.monotonic(), time.process_time()
    kube.all("workerpools")
    return time.monotonic() - began, time.process_time() - used


# ---- reaction -----------------------------------------------------------------------------------


def react_under_traffic(
    kube: Kube, client: redis.Redis, pools: int, samples: int
) -> dict[str, Figure]:
    """Reaction of empty pools while a hundred others have jobs coming and going."""
    chance = random.Random(13)
    busy = active(pools)
    others = chance.sample(idle_ones(pools), min(pools - len(busy), 400))
    quiet = [number for number in others if size(kube, number) == 0][:samples]
    over = threading.Event()
    moved = [0]

    def traffic() -> None:
        rounds = 0
        while not over.is_set():
            for number in busy:
                if over.wait(1 / ACTIVE_QUEUES):
                    return
                key = f"rq:queue:{place(number)[1]}"
                # A job comes, and an older one is taken, as by a worker.
                enqueue(client, number, 1)
                if rounds > 2:
                    client.rpop(key)
                moved[0] += 1
            rounds += 1

    thread = threading.Thread(target=traffic, daemon=True)
    thread.start()
    taken: dict[str, list[float]] = {"first_ever": [], "reaction": []}
    floors: list[float] = []
    namespace, _ = place(0)
    kube.create("deployments", namespace, deployment(FLOOR))
    try:
        time.sleep(20)  # the busy pools reach their size, their simulated pods are there
        # A pool has no Deployment before its first job: the first round has them made.
        for which, times in taken.items():
            with step(f"{len(quiet)} samples under traffic: {which}", slow=True):
                for number in quiet:
                    times.append(react(kube, client, number))
                    time.sleep(chance.uniform(0.05, 0.2))
                    if which == "reaction":
                        floors.append(patch_floor(kube, namespace))
            at_rest(kube, dict.fromkeys(quiet, 0))
    finally:
        over.set()
        thread.join()
    figures: dict[str, Figure] = {
        "reaction_samples": len(quiet),
        "traffic_jobs": moved[0],
        "floor_reaction_p99_ms": round(percentile(floors, 0.99) * 1000, 1),
    }
    for which, times in taken.items():
        figures[f"{which}_p50_ms"] = round(percentile(times, 0.5) * 1000, 1)
        figures[f"{which}_p99_ms"] = round(percentile(times, 0.99) * 1000, 1)
    return figures


def react(kube: Kube, client: redis.Redis, number: int) -> float:
    """Return the seconds from before the enqueue until a watch receives the new size."""
    namespace, name = place(number)
    assert all(item["spec"]["replicas"] == 0 for item in deployments(kube, number)["items"])
    taken = time_to_size(kube, namespace, name, lambda: enqueue(client, number, 1))
    empty(client, [number])
    return taken


def patch_floor(kube: Kube, namespace: str) -> float:
    """Return the seconds from a bare PATCH of a scale until a watch receives the size."""

    def scale(replicas: int) -> None:
        body = {"spec": {"replicas": replicas}}
        kube.patch("deployments", namespace, FLOOR, body, "scale")

    taken = time_to_size(kube, namespace, FLOOR, lambda: scale(1))
    scale(0)
    return taken


def time_to_size(kube: Kube, namespace: str, name: str, act: Callable[[], None]) -> float:
    """Return the seconds from the call of ``act`` until a watch receives a size above zero."""
    path = kube.path("deployments", namespace) + f"?fieldSelector=metadata.name%3D{name}"
    version = json.loads(kube.raw(path))["metadata"]["resourceVersion"]
    received, listening = threading.Event(), threading.Event()
    at = [0.0]

    def listen() -> None:
        events = kube.watch(
            "deployments", namespace, version, field_selector=f"metadata.name={name}"
        )
        listening.set()
        for _, thing in events:
            if thing["spec"]["replicas"] > 0:
                at[0] = time.perf_counter()
                received.set()
                return

    threading.Thread(target=listen, daemon=True).start()
    listening.wait(5)
    time.sleep(0.05)  # the request for the watch is on its way
    began = time.perf_counter()
    act()
    if not received.wait(20):
        raise AssertionError(f"{namespace}/{name} was not scaled within 20 s")
    return at[0] - began


def size(kube: Kube, number: int) -> int:
    """The Deployment's size; a pool that never had work has none yet."""
    return sum(int(each["spec"]["replicas"]) for each in deployments(kube, number)["items"])


def deployments(kube: Kube, number: int) -> dict[str, Any]:
    """The list of the pool's Deployments: one or none."""
    namespace, name = place(number)
    path = kube.path("deployments", namespace) + f"?fieldSelector=metadata.name%3D{name}"
    listed: dict[str, Any] = json.loads(kube.raw(path))
    return listed


def enqueue(client: redis.Redis, number: int, jobs: int) -> None:
    """Put jobs into a pool's queue."""
    queue = Queue(place(number)[1], connection=client)
    queue.enqueue_many([Queue.prepare_data("time.sleep", (0.1,)) for _ in range(jobs)])


def empty(client: redis.Redis, numbers: list[int]) -> None:
    """Take the jobs away again."""
    for number in numbers:
        Queue(place(number)[1], connection=client).empty()  # type: ignore[no-untyped-call]


def at_rest(kube: Kube, sizes: dict[int, int]) -> None:
    """Return when pools have these sizes again."""
    wait_for(
        lambda: all(size(kube, number) == wanted for number, wanted in sizes.items()),
        120,
        lambda: f"sizes {sizes}: {[size(kube, number) for number in sizes]}",
        every=1,
    )
