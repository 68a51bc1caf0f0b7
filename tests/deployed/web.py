"""The example's web application behind nginx, with a rate limit, and load on it."""

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
    """What became of the requests of one load; times are the wall clock's, seconds."""

    statuses: dict[str, int]
    #: Of the requests that the policy counted.
    admitted: int
    refused: int
    #: Seconds from the first counted request to the last counted answer.
    window: float
    #: The largest share of the bound that was admitted in any window: above 1 it was broken.
    worst: float
    first_counted: float | None
    first_refused: float | None

    @property
    def bound(self) -> float:
        """Requests that the policy may admit in the window."""
        return BURST + RATE * self.window

    @property
    def failed(self) -> dict[str, int]:
        """Answers that were neither the application's nor a refusal by the limit."""
        return {k: v for k, v in self.statuses.items() if k not in ("200", "429")}


class Web:
    """The example's web half in a cluster."""

    def __init__(self, installation: Installation) -> None:
        self.installation = installation
        self.kube: Kube = installation.kube

    def deploy(self, example: Path = EXAMPLE) -> None:
        """Begin to run it, without a limit; `scale` and `rolled_out` wait."""
        kubectl = self.installation.kubectl
        kubectl("apply", "-f", str(EXAMPLE.parent / "namespace.yaml"))
        self.forget()
        kubectl("apply", "-k", str(example))

    def forget(self) -> None:
        """Take the policy away."""
        self.kube.delete("ratelimitpolicies", NAMESPACE, POLICY)

    def limit(self) -> None:
        """What a user does: kubectl apply."""
        self.installation.kubectl("apply", "-f", str(EXAMPLE / "policy.yaml"))

    def scale(self, replicas: int) -> None:
        """So many of nginx, of the application and of the limiter; returns when they are ready."""
        places = ((NAMESPACE, "shop"), (NAMESPACE, "nginx"), (SYSTEM, LIMITER))
        for namespace, name in places:
            self.kube.patch(
                "deployments", namespace, name, {"spec": {"replicas": replicas}}, "scale"
            )
        for namespace, name in places:
            self.rolled_out(namespace, name)

    def rolled_out(self, namespace: str, name: str) -> None:
        """Wait until a Deployment is as it should be, and nothing older is left."""

        def look() -> bool:
            found = self.kube.get("deployments", namespace, name)
            status, wanted = found["status"], found["spec"]["replicas"]
            return bool(
                status.get("observedGeneration") == found["metadata"]["generation"]
                and status.get("updatedReplicas") == wanted
                and status.get("availableReplicas") == wanted
                and status.get("replicas") == wanted
            )

        wait_for(look, 90, f"Deployment {name} is rolled out")

    def enforced(self) -> bool:
        """Whether the policy's status says so of its present spec."""
        policy = self.kube.get("ratelimitpolicies", NAMESPACE, POLICY)
        found = condition(policy, "Enforced")
        current = found.get("observedGeneration") == policy["metadata"]["generation"]
        return found["status"] == "True" and bool(current)

    def decisions(self) -> dict[str, dict[str, int]]:
        """Decisions of each limiter's pod so far, by who decided: Redis, Memory, Local, ..."""
        found: dict[str, dict[str, int]] = {}
        selector = "app.kubernetes.io/component=limiter"
        for pod in self.kube.all("pods", SYSTEM, selector=selector):
            name = pod["metadata"]["name"]
            told = self.kube.raw(f"/api/v1/namespaces/{SYSTEM}/pods/{name}:9090/proxy/metrics")
            counts: dict[str, int] = {}
            for source, value in _DECISIONS.findall(told):
                counts[source] = counts.get(source, 0) + int(float(value))
            found[name] = counts
        return found

    @contextmanager
    def load(self, rate: int, seconds: float) -> Iterator[Running]:
        """Load from a pod of its own, and so from one address; gone when the block ends."""
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
    """A load that runs."""

    def __init__(self, installation: Installation, name: str) -> None:
        self._installation = installation
        self._name = name
        self._process: subprocess.Popen[str] | None = None
        self._result: Load | None = None

    def seconds(self) -> Iterator[dict[str, float]]:
        """What came in each second, as it is told; ends with the load."""
        for line in self._lines():
            told = json.loads(line)
            if "result" in told:
                self._result = _load(told["result"])
                return
            yield told

    def stop(self) -> None:
        """End it before its time; `result` has what came until then."""
        self._installation.kube.delete("pods", NAMESPACE, self._name)

    def result(self) -> Load:
        """What became of all, once the load has ended."""
        if self._result is None:
            for _ in self.seconds():
                pass
        assert self._result is not None, "the load ended without a result"
        return self._result

    def close(self) -> None:
        """Follow it no longer."""
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
        # Not by iterating over it: whoever stops looking for a while would close it.
        while line := self._process.stdout.readline():
            yield line


def _load(told: dict[str, Any]) -> Load:
    return Load(
        statuses=told["statuses"],
        admitted=told["admitted"],
        refused=told["refused"],
        window=told["window"],
        worst=told["worst"],
        first_counted=told["firstCounted"],
        first_refused=told["firstRefused"],
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
    """The wall clock's time at which the status said so."""
    wait_for(web.enforced, seconds, "the policy is Enforced", every=0.02)
    return time.time()
