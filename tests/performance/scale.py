"""Scale: ten thousand WorkerPools in one operator.

The API server, its controllers and Redis are real; nodes and pods are simulated by KWOK. Creation
is timed until every pool is Ready. Writes are counted by the API server itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rq import Queue

from tests.cluster.api import Shape
from tests.cluster.progress import step
from tests.deployed.kube import condition, wait_for
from tests.performance.outcome import Figure, Goal, outcome, percentile
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

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis

    from tests.deployed.kube import Kube

NAMESPACES = 100
ACTIVE_QUEUES = 100
#: What only the operator writes in this cluster, but for what the controller manager does by PUT.
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
    goals = [
        Goal("created_per_second", 150, at_least=True),
        Goal("restart_seconds_until_reacting", 15),
        Goal("restart_writes", 0),
        Goal("idle_writes", 0),
        Goal("idle_memory_mib", 200),
        Goal("idle_cores", 0.2),
        Goal("reaction_p99_ms", 250),
    ]
    return outcome("scale", figures, goals)


# ---- creation -----------------------------------------------------------------------------------


def create(kube: Kube, pools: int) -> dict[str, Figure]:
    """Create all pools, and wait until each is as its spec says."""
    for number in range(NAMESPACES):
        namespace, _ = place(number)
        kube.apply(
            "namespaces",
            None,
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
        )
    install_gitops(kube)
    with (
        tempfile.TemporaryDirectory() as folder,
        step(f"create {pools} pools", slow=True) as detail,
    ):
        account = as_account(kube, INSTALLED, GITOPS, Path(folder))
        created, converged = asyncio.run(_create(account, pools, detail))
    return {
        "creation_seconds": round(created, 1),
        "converged_seconds": round(converged, 1),
        "created_per_second": round(pools / converged, 1),
    }


async def _create(
    kubeconfig: Path, pools: int, detail: Callable[[str], None]
) -> tuple[float, float]:
    """Create them, 6 at a time; seconds until all are created, and as their specs say.

    A watch tells which are: listing ten thousand pools again and again would be most of the load.
    """
    from engineroom.core.errors import EngineroomError
    from engineroom.kube.client.client import Client
    from engineroom.kube.client.resources import WORKERPOOLS
    from engineroom.main import load_config
    from engineroom.settings import Settings

    busy = set(active(pools))
    numbers = iter(range(pools))
    converged: set[str] = set()
    done = asyncio.Event()

    async def some(client: Client) -> None:
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
                detail(f"{len(converged)} as their specs say")
            if len(converged) == pools:
                done.set()

    async def listen(client: Client, version: str) -> None:
        while True:
            try:
                async for change, thing in client.watch(WORKERPOOLS, None, version):
                    if change == "MODIFIED":
                        see(thing)
            except EngineroomError as error:
                print(f"the benchmark's watch broke: {error}")
            # Whatever was missed meanwhile.
            listed, version = await client.list(WORKERPOOLS)
            for thing in listed:
                if thing.get("status"):
                    see(thing)

    async with Client(load_config(Settings(kubeconfig=kubeconfig))) as client:
        _, version = await client.list(WORKERPOOLS)
        listener = asyncio.create_task(listen(client, version))
        began = time.monotonic()
        await asyncio.gather(*(some(client) for _ in range(6)))
        created = time.monotonic() - began
        async with asyncio.timeout(pools / 10 + 120):
            await done.wait()
        taken = time.monotonic() - began
        listener.cancel()
        return created, taken


def as_its_spec_says(thing: dict[str, Any]) -> bool:
    """Whether a pool is Ready, at rest, and its status speaks of its present spec."""
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
    process.kill()
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
    return {"restart_seconds_until_reacting": round(seconds, 1)}


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
    try:
        time.sleep(20)  # the busy pools reach their size, their simulated pods are there
        # A pool has no Deployment before its first job: the first round has them made.
        for which, times in taken.items():
            with step(f"{len(quiet)} samples under traffic: {which}", slow=True):
                for number in quiet:
                    times.append(react(kube, client, number))
                    time.sleep(chance.uniform(0.05, 0.2))
            at_rest(kube, dict.fromkeys(quiet, 0))
    finally:
        over.set()
        thread.join()
    figures: dict[str, Figure] = {"reaction_samples": len(quiet), "traffic_jobs": moved[0]}
    for which, times in taken.items():
        figures[f"{which}_p50_ms"] = round(percentile(times, 0.5) * 1000, 1)
        figures[f"{which}_p99_ms"] = round(percentile(times, 0.99) * 1000, 1)
    return figures


def react(kube: Kube, client: redis.Redis, number: int) -> float:
    """Seconds from before the enqueue until a watch hears of the Deployment's new size."""
    namespace, name = place(number)
    listed = deployments(kube, number)
    version = listed["metadata"]["resourceVersion"]
    assert all(each["spec"]["replicas"] == 0 for each in listed["items"])
    heard = threading.Event()
    at = [0.0]
    listening = threading.Event()

    def listen() -> None:
        events = kube.watch(
            "deployments", namespace, version, field_selector=f"metadata.name={name}"
        )
        listening.set()
        for _, thing in events:
            if thing["spec"]["replicas"] > 0:
                at[0] = time.perf_counter()
                heard.set()
                return

    threading.Thread(target=listen, daemon=True).start()
    listening.wait(5)
    time.sleep(0.05)  # the request for the watch is on its way
    began = time.perf_counter()
    enqueue(client, number, 1)
    if not heard.wait(20):
        raise AssertionError(f"{namespace}/{name} was not scaled within 20 s")
    empty(client, [number])
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
