"""The example's web application behind nginx, with a rate limit and a load generator."""

from __future__ import annotations

import json
import re
import secrets
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.deployed import images
from tests.deployed.installation import NAMESPACE as SYSTEM
from tests.deployed.kube import condition, wait_for
from tests.support import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.deployed.installation import Installation
    from tests.deployed.kube import Kube, Object

EXAMPLE = ROOT / "examples/shop/web"
NAMESPACE = "shop"
POLICY = "web"
#: What policy.yaml says: tests hold the two together.
BURST, RATE = 200, 100
LIMITER = "engineroom-limiter"
_DECISIONS = re.compile(
    r'^engineroom_ratelimit_decisions_total\{.*source="(\w+)".*\} (\S+)$', re.MULTILINE
)


@dataclass(frozen=True)
class Load:
    """The result of one load test; times are wall-clock seconds."""

    statuses: dict[str, int]
    #: Of the requests that the policy counted.
    admitted: int
    refused: int
    #: Seconds from the first counted request to the last counted answer.
    window: float
    #: The largest share of the bound that was admitted in any window: above 1 it was broken.
    worst: float
    #: The number that one exact bucket admits of the same requests, decided as they are answered.
    possible: int
    first_counted: float | None
    first_refused: float | None

    @property
    def bound(self) -> float:
        """The maximum number of requests that the policy admits in the window."""
        return BURST + RATE * self.window

    @property
    def failed(self) -> dict[str, int]:
        """Responses that are neither the application's nor a refusal by the limit."""
        return {k: v for k, v in self.statuses.items() if k not in ("200", "429")}


class Web:
    """The example's web application in a cluster."""

    def __init__(self, installation: Installation) -> None:
        self.installation = installation
        self.kube: Kube = installation.kube

    def deploy(self, example: Path = EXAMPLE) -> None:
        """Deploy the application without a limit. `scale` and `rolled_out` wait for it."""
        kubectl = self.installation.kubectl
        kubectl("apply", "-f", str(EXAMPLE.parent / "namespace.yaml"))
        self.forget()
        kubectl("apply", "-k", str(example))

    def forget(self) -> None:
        """Delete the policy."""
        self.kube.delete("ratelimitpolicies", NAMESPACE, POLICY)

    def limit(self) -> None:
        """Apply the policy by kubectl."""
        self.installation.kubectl("apply", "-f", str(EXAMPLE / "policy.yaml"))

    def scale(self, replicas: int) -> None:
        """Scale nginx, the application and the limiter, and wait until they are ready."""
        places = ((NAMESPACE, "shop"), (NAMESPACE, "nginx"), (SYSTEM, LIMITER))
        for namespace, name in places:
            self.kube.patch(
                "deployments", namespace, name, {"spec": {"replicas": replicas}}, "scale"
            )
        for namespace, name in places:
            self.rolled_out(namespace, name)

    def rolled_out(self, namespace: str, name: str) -> None:
        """Wait until a Deployment is rolled out and no older pod remains."""

        def look() -> bool:
            deployment = self.kube.get("deployments", namespace, name)
            status, wanted = deployment["status"], deployment["spec"]["replicas"]
            return bool(
                status.get("observedGeneration") == deployment["metadata"]["generation"]
                and status.get("updatedReplicas") == wanted
                and status.get("availableReplicas") == wanted
                and status.get("replicas") == wanted
            )

        wait_for(look, 90, f"Deployment {name} is rolled out")

    def enforced(self) -> bool:
        """Return True if the policy's status shows Enforced for its current spec."""
        policy = self.kube.get("ratelimitpolicies", NAMESPACE, POLICY)
        enforced = condition(policy, "Enforced")
        current = enforced.get("observedGeneration") == policy["metadata"]["generation"]
        return enforced["status"] == "True" and bool(current)

    def decisions(self) -> dict[str, dict[str, int]]:
        """Return the decisions of each limiter pod so far, by source: Redis, Memory, Local, ..."""
        found: dict[str, dict[str, int]] = {}
        selector = "app.kubernetes.io/component=limiter"
        for pod in self.kube.all("pods", SYSTEM, selector=selector):
            name = pod["metadata"]["name"]
            metrics = self.kube.raw(f"/api/v1/namespaces/{SYSTEM}/pods/{name}:9090/proxy/metrics")
            counts: dict[str, int] = {}
            for source, value in _DECISIONS.findall(metrics):
                counts[source] = counts.get(source, 0) + int(float(value))
            found[name] = counts
        return found

    @contextmanager
    def load(self, rate: int, seconds: float) -> Iterator[Running]:
        """Generate load from one pod, and so from one address; delete the pod at the end of the
        block.
        """
        name = f"load-{secrets.token_hex(3)}"
        self.kube.create("configmaps", NAMESPACE, _script(name))
        self.kube.create("pods", NAMESPACE, _pod(name, rate, seconds))
        running = Running(self.installation, name)
        try:
            yield running
        finally:
            running.close()
            self.kube.delete("pods", NAMESPACE, name, grace=0)
            self.kube.delete("configmaps", NAMESPACE, name)


class Running:
    """A running load test."""

    def __init__(self, installation: Installation, name: str) -> None:
        self._installation = installation
        self._name = name
        self._process: subprocess.Popen[str] | None = None
        self._result: Load | None = None

    def seconds(self) -> Iterator[dict[str, float]]:
        """Yield the counts of each second until the load ends."""
        for line in self._lines():
            counts = json.loads(line)
            if "result" in counts:
                self._result = _load(counts["result"])
                return
            yield counts

    def stop(self) -> None:
        """Stop the load early; `result` has the totals so far."""
        self._installation.kube.delete("pods", NAMESPACE, self._name)

    def result(self) -> Load:
        """Return the totals after the load has ended."""
        if self._result is None:
            for _ in self.seconds():
                pass
        assert self._result is not None, "the load ended without a result"
        return self._result

    def close(self) -> None:
        """Stop following the load."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    def _lines(self) -> Iterator[str]:
        if self._process is None:
            kube = self._installation.kube
            wait_for(
                lambda: kube.get("pods", NAMESPACE, self._name)["status"]["phase"] != "Pending",
                60,
                "the load's pod runs",
                every=0.05,
            )
            self._process = subprocess.Popen(
                ["kubectl", "logs", "-n", NAMESPACE, "-f", self._name],
                env=self._installation.cluster.env(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self._process.stdout is not None
        # Not by iterating over the generator: leaving the loop early would close it.
        while line := self._process.stdout.readline():
            yield line


def _load(totals: dict[str, Any]) -> Load:
    return Load(
        statuses=totals["statuses"],
        admitted=totals["admitted"],
        refused=totals["refused"],
        window=totals["window"],
        worst=totals["worst"],
        possible=totals["possible"],
        first_counted=totals["firstCounted"],
        first_refused=totals["firstRefused"],
    )


def _script(name: str) -> Object:
    text = (Path(__file__).parent / "load.py").read_text()
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name},
        "data": {"load.py": text},
    }


def _pod(name: str, rate: int, seconds: float) -> Object:
    arguments = {
        "--host": "nginx",
        "--rate": rate,
        "--seconds": seconds,
        "--bound-burst": BURST,
        "--bound-rate": RATE,
    }
    flags = [str(part) for pair in arguments.items() for part in pair]
    container = {
        "name": "load",
        "image": images.SHOP.name,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "/load/load.py", *flags],
        "volumeMounts": [{"name": "script", "mountPath": "/load"}],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "load"}},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": [{"name": "script", "configMap": {"name": name}}],
        },
    }


def wait_enforced(web: Web, seconds: float = 30) -> float:
    """Return the wall-clock time at which the status showed Enforced."""
    wait_for(web.enforced, seconds, "the policy is Enforced", every=0.02)
    return time.time()
