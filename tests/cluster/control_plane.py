"""etcd, API server, controller manager and scheduler."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from . import binaries
from .api import ClusterError, Shape
from .certificates import Authority, ensure_signing_key
from .client import Client, write_kubeconfig
from .process import Component

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .layout import Layout

_ISSUER = "https://kubernetes.default.svc.cluster.local"
_SERVICE_NAMES = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc")
# Collect garbage an eighth as often as Go does by itself: two cores are dearer than memory here.
_MEMORY_FOR_TIME = {"GOGC": "800"}
# More than anything here asks for: a test should wait for Kubernetes, never for a client's own
# limit.
_CLIENT_RATE = 2000
_CLIENT_BURST = 4000
_READY_SECONDS = 90.0


class ControlPlane:
    """The control plane of one cluster. All its state is in files, so any process can continue the
    work of another.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._authority = Authority(layout.certificates)
        self._front_proxy = Authority(layout.certificates, "front-proxy")
        self.etcd = self._component("etcd")
        self.apiserver = self._component("apiserver")
        self.controller_manager = self._component("controller-manager")
        self.scheduler = self._component("scheduler")

    def _component(self, name: str) -> Component:
        return Component(self._layout.root, name)

    @property
    def authority(self) -> Authority:
        """The certificate authority of the cluster."""
        return self._authority

    def client(self) -> Client:
        """A client with all permissions."""
        certificate, key = self._authority.issue(
            "admin", "engineroom-admin", groups=["system:masters"]
        )
        return Client(self._layout.server, self._authority.certificate, certificate, key)

    def kubeconfig(self, name: str, user: str, *groups: str) -> Path:
        """Return the kubeconfig of a component that acts as `user`."""
        path = self._layout.root / "kubeconfigs" / name
        path.parent.mkdir(exist_ok=True)
        self._write_kubeconfig(path, name, user, *groups)
        return path

    def _write_kubeconfig(self, path: Path, name: str, user: str, *groups: str) -> None:
        certificate, key = self._authority.issue(name, user, groups=groups)
        layout = self._layout
        write_kubeconfig(
            path,
            f"engineroom-{layout.name}",
            layout.server,
            self._authority.certificate,
            certificate,
            key,
        )

    def configure(self) -> None:
        """Create certificates and kubeconfigs, and configure the processes."""
        self._authority.ensure()
        self._front_proxy.ensure()
        ensure_signing_key(self._layout.certificates)
        self._write_kubeconfig(
            self._layout.kubeconfig, "admin", "engineroom-admin", "system:masters"
        )
        self._configure_etcd()
        self._configure_apiserver()
        self._configure_controller_manager()
        if self._layout.shape is not Shape.CONTROL_PLANE:
            self._configure_scheduler()

    def start(self) -> None:
        """Start the stopped processes; return when the API server and the controllers work.

        Raises ClusterError with the end of the log if they do not.
        """
        self.etcd.start()
        self.apiserver.start()
        # The controller manager gives up on an API server that is not ready within ten seconds.
        self.wait_for_apiserver()
        self.controller_manager.start()
        if self.scheduler.configured:
            self.scheduler.start()
        client = self.client()
        # Pods need their namespace's service account, which the controller manager makes.
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        wait(lambda: client.ready(account), "the controller manager", self.controller_manager)

    def wait_for_apiserver(self) -> None:
        """Return when the API server reports that it is ready."""
        client = self.client()
        wait(client.ready, "the API server", self.apiserver, self.etcd)

    def _start_in_namespace(self, component: Component, argv: list[object]) -> None:
        component.configure(argv, environment=_MEMORY_FOR_TIME, namespace=self._layout.namespace)

    def _configure_etcd(self) -> None:
        ports = self._layout.ports
        client, peer = (f"http://127.0.0.1:{ports[name]}" for name in ("etcd", "etcd-peer"))
        argv = [
            binaries.path_of("etcd"),
            "--name=only",
            f"--data-dir={self._layout.root / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=only={peer}",
            "--unsafe-no-fsync",  # What survives a power cut is no concern of a test's.
            f"--quota-backend-bytes={8 << 30}",
            "--log-level=warn",
        ]
        self._start_in_namespace(self.etcd, argv)

    def _configure_apiserver(self) -> None:
        layout, folder = self._layout, self._layout.certificates
        addresses = {layout.address, layout.services[1]}
        hosts = [f"IP:{address}" for address in sorted(addresses)]
        hosts += [
            f"DNS:{name}" for name in (*_SERVICE_NAMES, f"{_SERVICE_NAMES[-1]}.cluster.local")
        ]
        certificate, key = self._authority.issue("apiserver", "kube-apiserver", hosts=hosts)
        to_kubelet = self._authority.issue(
            "apiserver-kubelet-client", "kube-apiserver-kubelet-client", groups=["system:masters"]
        )
        to_extension = self._front_proxy.issue("front-proxy-client", "front-proxy-client")
        argv = [
            binaries.path_of("kube-apiserver"),
            f"--bind-address={layout.address}",
            f"--advertise-address={layout.address}",
            f"--secure-port={layout.ports['apiserver']}",
            f"--tls-cert-file={certificate}",
            f"--tls-private-key-file={key}",
            f"--client-ca-file={self._authority.certificate}",
            f"--etcd-servers=http://127.0.0.1:{layout.ports['etcd']}",
            f"--service-cluster-ip-range={layout.services}",
            f"--service-account-issuer={_ISSUER}",
            f"--service-account-key-file={folder / 'service-accounts.pub'}",
            f"--service-account-signing-key-file={folder / 'service-accounts.key'}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            # Without a kubelet to reach, or where the kubelet's name does not resolve: by address
            # only.
            "--kubelet-preferred-address-types=InternalIP",
            f"--kubelet-certificate-authority={self._authority.certificate}",
            f"--kubelet-client-certificate={to_kubelet[0]}",
            f"--kubelet-client-key={to_kubelet[1]}",
            f"--requestheader-client-ca-file={self._front_proxy.certificate}",
            "--requestheader-allowed-names=front-proxy-client",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            f"--proxy-client-cert-file={to_extension[0]}",
            f"--proxy-client-key-file={to_extension[1]}",
            "--enable-aggregator-routing=true",
            "--profiling=false",
        ]
        if not layout.own_network:
            # No Service can lead to a loopback address; without pods it has no clients.
            argv.append("--endpoint-reconciler-type=none")
        self._start_in_namespace(self.apiserver, argv)

    def _configure_controller_manager(self) -> None:
        layout, folder = self._layout, self._layout.certificates
        # As a master it is exempt from priority and fairness: what a test waits for is never
        # queued.
        kubeconfig = self.kubeconfig(
            "controller-manager", "system:kube-controller-manager", "system:masters"
        )
        argv = [
            binaries.path_of("kube-controller-manager"),
            f"--kubeconfig={kubeconfig}",
            "--secure-port=0",
            "--leader-elect=false",
            f"--kube-api-qps={_CLIENT_RATE}",
            f"--kube-api-burst={_CLIENT_BURST}",
            f"--root-ca-file={self._authority.certificate}",
            f"--service-account-private-key-file={folder / 'service-accounts.key'}",
            f"--cluster-signing-cert-file={self._authority.certificate}",
            f"--cluster-signing-key-file={folder / 'ca.key'}",
            f"--service-cluster-ip-range={layout.services}",
            "--concurrent-deployment-syncs=20",
            "--concurrent-replicaset-syncs=20",
            "--concurrent-job-syncs=20",
            "--concurrent-cron-job-syncs=20",
            "--concurrent-gc-syncs=40",
            "--concurrent-namespace-syncs=20",
            "--concurrent-endpoint-syncs=10",
            "--concurrent-service-endpoint-syncs=10",
            "--profiling=false",
        ]
        self._start_in_namespace(self.controller_manager, argv)

    def _configure_scheduler(self) -> None:
        kubeconfig = self.kubeconfig("scheduler", "system:kube-scheduler", "system:masters")
        document = {
            "apiVersion": "kubescheduler.config.k8s.io/v1",
            "kind": "KubeSchedulerConfiguration",
            "leaderElection": {"leaderElect": False},
            "clientConnection": {
                "kubeconfig": str(kubeconfig),
                "qps": _CLIENT_RATE,
                "burst": _CLIENT_BURST,
            },
            "podInitialBackoffSeconds": 1,
            "podMaxBackoffSeconds": 2,
        }
        path = self._layout.root / "scheduler.json"
        path.write_text(json.dumps(document, indent=1))
        argv = [binaries.path_of("kube-scheduler"), f"--config={path}", "--secure-port=0"]
        self._start_in_namespace(self.scheduler, argv)


def wait(
    condition: Callable[[], bool], what: str, *processes: Component, seconds: float = _READY_SECONDS
) -> None:
    """Wait until the condition holds.

    Raises ClusterError if one of the processes that it depends on ends, or after the timeout.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        for process in processes:
            if not process.running():
                raise ClusterError(f"{process.name} ended while starting:\n{process.tail()}")
        if time.monotonic() > deadline:
            logs = "\n".join(f"-- {process.name}\n{process.tail()}" for process in processes)
            raise ClusterError(f"{what} is not ready after {seconds:.0f} s:\n{logs}")
        time.sleep(0.05)
