"""RateLimitPolicies: from a policy changed to enforced everywhere, with a thousand beside it.

A real API server, a real Redis, the operator's process with the rights that the chart gives it, and
enforcers as processes of their own. The clock starts before the PATCH is sent. `enforced` ends when
the last enforcer decides by the new policy, on the clock that all processes of a machine share;
`told` when a watch of this process hears that status says Enforced for that generation.
"""

from __future__ import annotations

import argparse
import json
import queue
import random
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import redis

from engineroom.ratelimit.distribution.policy_follower import Follower
from engineroom.ratelimit.distribution.redis_schema import LIMITER
from tests.cluster.api import Shape
from tests.cluster.progress import step
from tests.deployed.kube import wait_for
from tests.performance.outcome import Goal, outcome, percentile
from tests.performance.rig import api_server, operator, redis_server
from tests.support import ROOT

if TYPE_CHECKING:
    from engineroom.ratelimit.distribution.document import PolicySnapshot
    from tests.deployed.kube import Kube

NAMESPACE = "default"
KIND = "ratelimitpolicies"
REASONS = {
    "policies": "the size of the run",
    "enforcers": "the size of the run",
    "samples": "the size of the run",
    "first_seconds": "the operator's start with all policies; the promise is an edit",
    "*_median_ms": "the promise is p99",
    "operator_cpu_ms_per_edit": "no promise yet",
    "document_bytes": "no promise yet",
}


def policy(name: str, burst: int) -> dict[str, Any]:
    """A policy of some size, with a target of its own."""
    key = [{"source": "Header", "name": "X-Api-Key"}, {"source": "ClientIP"}]
    return {
        "apiVersion": "engineroom.dev/v1alpha1",
        "kind": "RateLimitPolicy",
        "metadata": {"name": name},
        "spec": {
            "targetRefs": [{"kind": "Service", "name": name}],
            "limits": [
                {
                    "name": "per-key",
                    "rate": {"requests": 100, "period": "1s"},
                    "burst": burst,
                    "key": key,
                },
                {"name": "all", "rate": {"requests": 10000, "period": "1s"}},
            ],
        },
    }


def service(name: str) -> dict[str, Any]:
    """What a policy is attached to."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"clusterIP": "None", "ports": [{"port": 80}]},
    }


def enforce(url: str) -> None:
    """Follow, and say of each policy that changed when it was swapped in."""

    def changed(before: PolicySnapshot, after: PolicySnapshot) -> None:
        at = time.monotonic()
        for entry in after.entries:
            if before.get(entry.name) is not entry:
                burst = entry.policy.limits[0].burst
                print(json.dumps([entry.name, burst, at]), flush=True)

    client = redis.Redis.from_url(url)
    with Follower(client, NAMESPACE, role=LIMITER, on_change=changed):
        sys.stdin.read()


class Enforcer:
    """One of those processes."""

    def __init__(self, url: str) -> None:
        command = [sys.executable, "-m", "tests.performance.policies", "--enforce", url]
        self.heard: queue.Queue[tuple[str, int, float]] = queue.Queue()
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if not line.startswith("["):
                continue  # what the library logs
            name, burst, at = json.loads(line)
            self.heard.put((name, burst, at))

    def wait(self, name: str, burst: int) -> float:
        """When the policy came with that burst."""
        while True:
            found = self.heard.get(timeout=30)
            if found[:2] == (name, burst):
                return found[2]

    def stop(self) -> None:
        """End it."""
        self._process.communicate("", timeout=30)


class Statuses:
    """Hears when status says that a generation of a policy is enforced."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._changed = threading.Condition()
        self._enforced: dict[tuple[str, int], float] = {}
        self._annotated: dict[str, float] = {}
        listed = kube.raw(kube.path(KIND, NAMESPACE) + "?limit=1")
        self._version = str(json.loads(listed)["metadata"]["resourceVersion"])
        threading.Thread(target=self._listen, daemon=True).start()

    def wait(self, name: str, generation: int) -> float:
        """When it was heard of."""
        key = name, generation
        with self._changed:
            if not self._changed.wait_for(lambda: key in self._enforced, 30):
                raise AssertionError(f"{name} is not enforced")
            return self._enforced[key]

    def patch_floor(self, name: str) -> float:
        """Return the seconds from a bare PATCH of an annotation until the watch receives it."""
        began = time.monotonic()
        value = str(began)
        body = {"metadata": {"annotations": {"example.com/floor": value}}}
        self._kube.patch(KIND, NAMESPACE, name, body)
        with self._changed:
            if not self._changed.wait_for(lambda: value in self._annotated, 30):
                raise AssertionError(f"the annotation of {name} was not received")
            return self._annotated.pop(value) - began

    def _listen(self) -> None:
        for _, thing in self._kube.watch(KIND, NAMESPACE, self._version):
            at = time.monotonic()
            value = thing["metadata"].get("annotations", {}).get("example.com/floor")
            if value is not None:
                with self._changed:
                    self._annotated[value] = at
                    self._changed.notify_all()
            if not enforced(thing):
                continue
            key = thing["metadata"]["name"], thing["metadata"]["generation"]
            with self._changed:
                self._enforced.setdefault(key, at)
                self._changed.notify_all()


def enforced(thing: dict[str, Any]) -> bool:
    """Whether its status says so, for its generation."""
    return any(
        each["type"] == "Enforced"
        and each["status"] == "True"
        and each["observedGeneration"] == thing["metadata"]["generation"]
        for each in thing.get("status", {}).get("conditions", ())
    )


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policies", type=int, default=1000)
    parser.add_argument("--enforcers", type=int, default=3)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--enforce", metavar="URL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.enforce:
        enforce(options.enforce)
        return 0
    names = [f"policy-{number:04d}" for number in range(options.policies)]
    with (
        redis_server() as (client, url),
        api_server(Shape.CONTROL_PLANE) as kube,
        operator(kube, url) as process,
    ):
        with step(f"{options.policies} policies"):
            for name in names:
                kube.create("services", NAMESPACE, service(name))
                kube.create(KIND, NAMESPACE, policy(name, 50))
        enforcers = [Enforcer(url) for _ in range(options.enforcers)]
        try:
            process.start()
            began = time.monotonic()
            with step("all are enforced", slow=True):
                wait_for(
                    lambda: all(enforced(thing) for thing in kube.all(KIND)),
                    120,
                    "all policies are enforced",
                )
            first = time.monotonic() - began
            statuses = Statuses(kube)
            chance = random.Random(1)
            swapped: list[float] = []
            status_times: list[float] = []
            floors: list[float] = []
            used = process.processor()
            with step(f"{options.samples} edits", slow=True) as detail:
                for number in range(options.samples):
                    time.sleep(chance.uniform(0.05, 0.2))
                    name, burst = chance.choice(names), 51 + number
                    at = time.monotonic()
                    made = kube.patch(KIND, NAMESPACE, name, {"spec": policy(name, burst)["spec"]})
                    last = max(enforcer.wait(name, burst) for enforcer in enforcers)
                    swapped.append(last - at)
                    status_times.append(statuses.wait(name, made["metadata"]["generation"]) - at)
                    detail(str(number + 1))
                    floors.append(statuses.patch_floor(name))
            used = process.processor() - used
            size = int(client.strlen(f"er:rlp:{{{NAMESPACE}}}:doc"))
            written = kube.raw(kube.path(KIND, NAMESPACE) + "?limit=1")
            time.sleep(10)
            rest = kube.raw(kube.path(KIND, NAMESPACE) + "?limit=1")
            quiet = [json.loads(text)["items"][0]["metadata"] for text in (written, rest)]
        finally:
            for enforcer in enforcers:
                enforcer.stop()
    return outcome(
        "policies",
        {
            "policies": options.policies,
            "enforcers": options.enforcers,
            "samples": len(swapped),
            "first_seconds": round(first, 2),
            "enforced_median_ms": round(percentile(swapped, 0.5) * 1000, 1),
            "enforced_p99_ms": round(percentile(swapped, 0.99) * 1000, 1),
            "status_median_ms": round(percentile(status_times, 0.5) * 1000, 1),
            "status_p99_ms": round(percentile(status_times, 0.99) * 1000, 1),
            "floor_p99_ms": round(percentile(floors, 0.99) * 1000, 1),
            "operator_cpu_ms_per_edit": round(used / max(1, len(swapped)) * 1000, 1),
            "document_bytes": size,
            "written_at_rest": int(quiet[0] != quiet[1]),
        },
        [
            Goal("enforced_p99_ms", 1000.0, floor="floor_p99_ms"),
            Goal("status_p99_ms", 1000.0, floor="floor_p99_ms"),
            Goal("written_at_rest", 0.0),
        ],
        REASONS,
    )


if __name__ == "__main__":
    sys.exit(main())
