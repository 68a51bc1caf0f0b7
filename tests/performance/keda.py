"""KEDA's operator as a process of this machine, beside ours, on the same API server."""

from __future__ import annotations

import datetime
import os
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests import support
from tests.cluster import binaries
from tests.deployed.kube import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.deployed.kube import Kube

NAMESPACE = "keda"
#: Seconds between two polls, the shortest that KEDA takes.
POLLING = 1


@contextmanager
def operator(kube: Kube) -> Iterator[None]:
    """Run KEDA's operator with its custom resource definitions until the block ends."""
    binary = binaries.path_of("keda")
    sources = binaries.module_folder(binaries.PROGRAMS["keda"], "github.com/kedacore/keda/v2")
    for path in sorted(sources.glob("config/crd/bases/*.yaml")):
        for crd in yaml.safe_load_all(path.read_text()):
            kube.apply("customresourcedefinitions", None, crd)
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    kube.apply("namespaces", None, namespace)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _certificate(folder)
        metrics, probes, service = (support.free_port() for _ in range(3))
        command = [
            str(binary),
            f"--cert-dir={folder}",
            f"--metrics-bind-address=127.0.0.1:{metrics}",
            f"--health-probe-bind-address=127.0.0.1:{probes}",
            f"--metrics-service-bind-address=127.0.0.1:{service}",
        ]
        environment = {
            "PATH": os.environ["PATH"],
            "KUBECONFIG": str(kube.kubeconfig),
            "POD_NAMESPACE": NAMESPACE,
            "WATCH_NAMESPACE": "",
        }
        log = folder / "log"
        with log.open("wb") as stream:
            process = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream)
        try:
            wait_for(
                lambda: _healthy(process, probes),
                120,
                lambda: f"KEDA is healthy:\n{log.read_text()[-2000:]}",
            )
            yield
        finally:
            process.terminate()
            process.wait(60)


def scaled_object(name: str, redis_port: int) -> dict[str, Any]:
    """Return a ScaledObject that scales the Deployment ``name`` by the RQ queue of that name."""
    trigger = {
        "type": "redis",
        "metadata": {
            "address": f"127.0.0.1:{redis_port}",
            "listName": f"rq:queue:{name}",
            "listLength": "1",
        },
    }
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": {"name": name},
        "spec": {
            "scaleTargetRef": {"name": name},
            "pollingInterval": POLLING,
            "cooldownPeriod": 1,
            "minReplicaCount": 0,
            "maxReplicaCount": 10,
            "triggers": [trigger],
        },
    }


def _healthy(process: subprocess.Popen[bytes], port: int) -> bool:
    if process.poll() is not None:
        raise RuntimeError(f"KEDA's operator ended with status {process.returncode}")
    with urlopen(f"http://127.0.0.1:{port}/healthz", timeout=2) as answer:
        return bool(answer.status == 200)


def _certificate(folder: Path) -> None:
    """Write the certificate of KEDA's metrics service, which nothing here asks."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "keda-operator")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    for file, content in (("ca.crt", certificate), ("tls.crt", certificate), ("tls.key", private)):
        (folder / file).write_bytes(content)
