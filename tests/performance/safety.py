"""Safety: ten thousand jobs through a hundred cycles of up and down, a rollout and a restart.

Real pods on a real node. What was lost, doubled or killed is counted from what the jobs themselves
wrote down. Beside it stock RQ: a Deployment of `rq worker` from the same image, scaled by the same
numbers at the same pace, where Kubernetes chooses the pods that go.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.cluster.api import Shape
from tests.cluster.progress import step
from tests.deployed import images, shop
from tests.deployed.installation import NAMESPACE as SYSTEM
from tests.deployed.installation import Installation, installed
from tests.deployed.kube import wait_for
from tests.performance.outcome import Figure, Goal, outcome
from tests.performance.rig import private
from tests.support import shared_namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.deployed.forward import Forward
    from tests.deployed.kube import Object

NAMESPACE = "safety"
LEAST, MOST = 2, 8
#: Seconds that a size stands; shorter than a pod's start and end together, so that they overlap.
STAND = 4.0
TEMPLATE = {
    "name": "worker",
    "image": images.SHOP.name,
    "imagePullPolicy": "IfNotPresent",
    "resources": {"requests": {"cpu": "10m", "memory": "48Mi"}},
}


def durations(jobs: int, seed: int) -> list[float]:
    """Of a thousand jobs one takes minutes and ten take seconds; the others are quick."""
    chance = random.Random(seed)
    found = []
    for number in range(jobs):
        if number % 1000 == 200:
            found.append(round(chance.uniform(60, 150), 2))
        elif number % 100 == 50:
            found.append(round(chance.uniform(2, 10), 2))
        else:
            found.append(round(chance.uniform(0.01, 0.1), 3))
    return found


@dataclass
class Side:
    """One of the two that are compared: how it is sized and rolled."""

    name: str
    size: Callable[[int], None]
    roll: Callable[[], None]
    selector: str
    restart: Callable[[], None] | None = None
    pods: set[str] = field(default_factory=set)


REASONS = {
    "engineroom_pods": "the number of pods that the cycles used",
    "engineroom_finished": "all jobs; a missing one counts as lost",
    "*_seconds": "the length of the run",
    "stock_*": "the peer's figures, for comparison",
}


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--cycles", type=int, default=100)
    parser.add_argument("--stock-jobs", type=int, default=2_000, help="0: no comparison")
    parser.add_argument("--stock-cycles", type=int, default=20)
    options = parser.parse_args()
    figures: dict[str, Figure] = {}
    with (
        private(Shape.NODE) as cluster,
        installed(cluster) as installation,
        installation.redis() as forward,
    ):
        installation.kube.apply("namespaces", None, shared_namespace(NAMESPACE))
        with ours(installation) as side:
            figures |= trial(installation, forward, side, options.jobs, options.cycles)
        if options.stock_jobs:
            with stock(installation) as side:
                figures |= trial(
                    installation, forward, side, options.stock_jobs, options.stock_cycles
                )
    goals = [
        Goal("engineroom_jobs", options.jobs, at_least=True),
        Goal("engineroom_cycles", options.cycles, at_least=True),
        Goal("engineroom_lost", 0),
        Goal("engineroom_doubled", 0),
        Goal("engineroom_killed", 0),
        Goal("engineroom_failed", 0),
    ]
    return outcome("safety", figures, goals, REASONS)


def trial(
    installation: Installation, forward: Forward, side: Side, jobs: int, cycles: int
) -> dict[str, Figure]:
    """Enqueue while the size goes up and down; then wait until nothing is left to wait for."""
    chance = random.Random(23)
    every = durations(jobs, seed=29)
    name = side.name
    share = -(-jobs // cycles)
    began = time.monotonic()
    with step(f"{name}: {jobs} jobs, {cycles} cycles", slow=True) as detail:
        for cycle in range(cycles):
            batch = every[cycle * share : (cycle + 1) * share]
            if batch:
                shop.enqueue(
                    forward.client, name, batch, queue=name, first=cycle * share, timeout=900
                )
            for wanted in (chance.randint(LEAST + 3, MOST), chance.randint(LEAST, LEAST + 2)):
                side.size(wanted)
                watch(installation, side, STAND)
            if cycle == cycles // 3:
                side.roll()
            if cycle == cycles // 2 and side.restart is not None:
                side.restart()
            detail(f"cycle {cycle + 1}, {shop.finished(forward.client, name)} finished")
        side.size(MOST)
        drained(forward, side, jobs, detail)
        side.size(0)
        wait_for(
            lambda: not installation.kube.all("pods", NAMESPACE, selector=side.selector),
            300,
            "all pods gone",
            every=2,
        )
    account = shop.account(forward.client, name)
    return {
        f"{name}_jobs": account.enqueued,
        f"{name}_cycles": cycles,
        f"{name}_pods": len(side.pods),
        f"{name}_finished": account.finished,
        f"{name}_lost": len(account.lost),
        f"{name}_doubled": len(account.doubled),
        f"{name}_killed": len(account.killed),
        f"{name}_failed": shop.failed(forward.client, name),
        f"{name}_seconds": round(time.monotonic() - began),
    }


def watch(installation: Installation, side: Side, seconds: float) -> None:
    """Wait, and note which pods there are."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pods = installation.kube.all("pods", NAMESPACE, selector=side.selector)
        side.pods |= {pod["metadata"]["name"] for pod in pods}
        time.sleep(1)


def drained(
    forward: Forward, side: Side, jobs: int, detail: Callable[[str], None], patience: float = 900
) -> None:
    """Return when all is finished, or when for two minutes and a half nothing has moved at all."""
    seen, since = -1, time.monotonic()
    deadline = since + patience
    while time.monotonic() < deadline:
        client = forward.client
        finished = shop.finished(client, side.name)
        detail(f"{finished} of {jobs} finished")
        if finished >= jobs:
            return
        if finished != seen or shop.waiting(client, side.name):
            seen, since = finished, time.monotonic()
        # Longer than the longest job: whoever is still at work would have finished one.
        if time.monotonic() - since > 170:
            return
        time.sleep(1)


@contextmanager
def ours(installation: Installation) -> Iterator[Side]:
    """A WorkerPool, sized by its scale subresource."""
    kube, name = installation.kube, "engineroom"
    body: Object = {
        "apiVersion": "engineroom.dev/v1alpha1",
        "kind": "WorkerPool",
        "metadata": {"name": name},
        "spec": {
            "queues": [{"name": name}],
            "replicas": LEAST,
            "drain": {"maxJobDuration": "5m"},
            "template": {"spec": {"containers": [TEMPLATE]}},
        },
    }
    kube.create("workerpools", NAMESPACE, body)

    def size(replicas: int) -> None:
        kube.patch("workerpools", NAMESPACE, name, {"spec": {"replicas": replicas}}, "scale")

    def roll() -> None:
        annotations = {"example.com/release": "2"}
        template = {"metadata": {"annotations": annotations}}
        kube.patch("workerpools", NAMESPACE, name, {"spec": {"template": template}})

    def restart() -> None:
        component = "app.kubernetes.io/component=operator"
        for pod in kube.all("pods", SYSTEM, selector=component):
            kube.delete("pods", SYSTEM, pod["metadata"]["name"], grace=0)

    yield Side(name, size, roll, f"engineroom.dev/pool={name}", restart)
    kube.delete("workerpools", NAMESPACE, name)


@contextmanager
def stock(installation: Installation) -> Iterator[Side]:
    """A Deployment of RQ's own worker, with Kubernetes' defaults for all that it does not say."""
    kube, name = installation.kube, "stock"
    labels = {"app": name}
    container: dict[str, Any] = {
        **TEMPLATE,
        "command": ["rq", "worker", "--url", "$(REDIS_URL)", name],
        "env": [{"name": "REDIS_URL", "value": installation.redis_url()}],
    }
    body: Object = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "replicas": LEAST,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        },
    }
    kube.create("deployments", NAMESPACE, json.loads(json.dumps(body)))

    def size(replicas: int) -> None:
        kube.patch("deployments", NAMESPACE, name, {"spec": {"replicas": replicas}}, "scale")

    def roll() -> None:
        template = {"metadata": {"annotations": {"example.com/release": "2"}}}
        kube.patch("deployments", NAMESPACE, name, {"spec": {"template": template}})

    yield Side(name, size, roll, f"app={name}")
    kube.delete("deployments", NAMESPACE, name)
