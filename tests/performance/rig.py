"""What the control-plane benchmarks stand on: an API server, a Redis and the operator's process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import redis
import yaml

from tests import support
from tests.cluster.pytest_plugin import private_cluster
from tests.deployed.kube import Kube, wait_for
from tests.support import ROOT, pool_document, shared_namespace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cluster.api import Cluster, Shape


#: Where the chart puts the operator, its account's name, and that of whoever makes the pools.
INSTALLED, OPERATOR, GITOPS = "engineroom", "engineroom-operator", "gitops"
RIGHTS = ("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")


@contextmanager
def redis_server() -> Iterator[tuple[redis.Redis, str]]:
    """A real Redis in memory: a client of it, and its URL."""
    with support.redis_server() as server:
        client = redis.Redis(port=server.port)
        try:
            yield client, server.url
        finally:
            client.close()


#: A cluster that goes with this process, whatever becomes of it.
private = contextmanager(private_cluster)


@contextmanager
def api_server(shape: Shape) -> Iterator[Kube]:
    """A private cluster with Engineroom's CRDs in it."""
    with private(shape) as cluster:
        yield with_crds(cluster)


def with_crds(cluster: Cluster) -> Kube:
    """Put Engineroom's CRDs into a cluster; returns its client when they are served."""
    kube = Kube(cluster.kubeconfig)
    for path in sorted((ROOT / "crds").glob("*.yaml")):
        for crd in yaml.safe_load_all(path.read_text()):
            kube.apply("customresourcedefinitions", None, crd)
    wait_for(lambda: kube.all("workerpools") == [], 30, "the CRDs are served")
    return kube


def as_account(kube: Kube, namespace: str, account: str, folder: Path) -> Path:
    """A kubeconfig of a service account, which is who controllers are in a cluster."""
    config = yaml.safe_load(kube.kubeconfig.read_text())
    (user,) = config["users"]
    user["user"] = {"token": kube.token(namespace, account)}
    path = folder / f"{account}.kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return path


def install_rights(kube: Kube) -> None:
    """The operator's account with the rights that the chart gives it, and no other."""
    kube.apply("namespaces", None, shared_namespace(INSTALLED))
    manifests = (ROOT / "deploy/kustomize/base/engineroom.yaml").read_text()
    for thing in yaml.safe_load_all(manifests):
        if not thing["metadata"]["name"].startswith(OPERATOR):
            continue
        if thing["kind"] in RIGHTS:
            plural = f"{thing['kind'].lower()}s"
            kube.apply(plural, thing["metadata"].get("namespace"), thing)


def install_gitops(kube: Kube) -> None:
    """An account that may do all, as the one has that applies a Git repository."""
    subject = {"kind": "ServiceAccount", "name": GITOPS, "namespace": INSTALLED}
    kube.apply("serviceaccounts", INSTALLED, _named("v1", "ServiceAccount", GITOPS))
    binding = _named("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", GITOPS) | {
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "ClusterRole",
            "name": "cluster-admin",
        },
        "subjects": [subject],
    }
    kube.apply("clusterrolebindings", None, binding)


def _named(version: str, kind: str, name: str) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name}}


class Operator:
    """The operator as a process of this machine, run as the image runs it."""

    def __init__(
        self, kubeconfig: Path, redis_url: str, log: Path, pod: str = "engineroom-operator-0"
    ) -> None:
        self._log = log
        self._probe_port = support.free_port()
        self.metrics_port = support.free_port()
        self._environment = os.environ | {
            "KUBECONFIG": str(kubeconfig),
            "ENGINEROOM_REDIS_URL": redis_url,
            "ENGINEROOM_LEASE_NAMESPACE": INSTALLED,
            # As in a cluster, where a container that is started anew keeps its pod's name.
            "ENGINEROOM_POD_NAME": pod,
            "ENGINEROOM_HOST": "127.0.0.1",
            "ENGINEROOM_METRICS_PORT": str(self.metrics_port),
            "ENGINEROOM_PROBE_PORT": str(self._probe_port),
            "ENGINEROOM_LOG_FORMAT": "json",
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its process id. Raises RuntimeError when it does not run."""
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"the operator does not run:\n{self.tail()}")
        return self._process.pid

    def start(self, seconds: float = 60) -> float:
        """Start it; the seconds until it said that it is ready."""
        began = time.monotonic()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "engineroom.main"],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        wait_for(self._ready, seconds, lambda: f"the operator is ready:\n{self.tail()}", every=0.05)
        return time.monotonic() - began

    def stop(self) -> None:
        """End it as Kubernetes does."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def kill(self) -> None:
        """End it as a fault does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def memory(self) -> int:
        """Resident memory in bytes."""
        pages = Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def processor(self) -> float:
        """Seconds of processor time used so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def tail(self, lines: int = 15) -> str:
        """The end of its log."""
        with suppress(FileNotFoundError):
            return "\n".join(self._log.read_text().splitlines()[-lines:])
        return ""

    def _ready(self) -> bool:
        assert self.pid
        with urlopen(f"http://127.0.0.1:{self._probe_port}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)


@contextmanager
def operator(kube: Kube, redis_url: str) -> Iterator[Operator]:
    """The operator, not yet started; ended with the block. Its log's end is shown on an error."""
    install_rights(kube)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kubeconfig = as_account(kube, INSTALLED, OPERATOR, folder)
        process = Operator(kubeconfig, redis_url, folder / "operator.log")
        try:
            yield process
        except BaseException:
            print(process.tail(), file=sys.stderr)
            raise
        finally:
            process.stop()


def pool(name: str, **spec: Any) -> dict[str, Any]:
    """A WorkerPool on a queue of its own; its pods never run where there is no node."""
    container = {"name": "worker", "image": "example.com/app:1"}
    return pool_document(None, name, container=container, **{"queues": [{"name": name}], **spec})
