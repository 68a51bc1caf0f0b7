"""Cluster DNS and resource metrics: processes beside the node, behind Services."""

from __future__ import annotations

import base64
import secrets
import socket
import struct
from typing import TYPE_CHECKING, Any

from . import binaries
from .process import Component

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from .client import Client
    from .control_plane import ControlPlane
    from .layout import Layout

_METRICS_PORT = 4443
_READ = ["get", "list", "watch"]

_COREFILE = """\
cluster.local in-addr.arpa ip6.arpa {{
    bind {address}
    errors
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        kubeconfig {kubeconfig}
        pods insecure
        ttl 5
    }}
    loadbalance
}}
# Nothing else exists. Say so at once, rather than have resolvers wait for a server that is not
# there.
. {{
    bind {address}
    template ANY ANY {{
        rcode NXDOMAIN
    }}
}}
"""


class Dns:
    """CoreDNS at the cluster's DNS service address."""

    def __init__(self, layout: Layout, control_plane: ControlPlane) -> None:
        self._layout = layout
        self._control_plane = control_plane
        self.process = Component(layout.root, "coredns")

    def start(self, client: Client) -> None:
        """Start it. It is ready when `answers` returns True."""
        layout = self._layout
        kubeconfig = self._control_plane.kubeconfig("coredns", "system:coredns")
        corefile = layout.root / "Corefile"
        corefile.write_text(_COREFILE.format(address=layout.address, kubeconfig=kubeconfig))
        core = ["endpoints", "services", "pods", "namespaces"]
        rules = [_rule("", core), _rule("discovery.k8s.io", ["endpointslices"])]
        ports = {"dns": ("UDP", 53, 53), "dns-tcp": ("TCP", 53, 53)}
        client.apply(
            [
                *_cluster_role("system:coredns", rules, user="system:coredns"),
                *_service("kube-dns", layout, ports, cluster_ip=str(layout.dns)),
            ]
        )
        argv = [binaries.path_of("coredns"), "-conf", corefile]
        self.process.configure(argv, namespace=layout.namespace)
        self.process.start()

    def answers(self) -> bool:
        """Return True if the service address resolves the API server's name."""
        return resolves("kubernetes.default.svc.cluster.local", str(self._layout.dns))


class Metrics:
    """metrics-server, for `kubectl top` and autoscalers."""

    def __init__(self, layout: Layout, control_plane: ControlPlane) -> None:
        self._layout = layout
        self._control_plane = control_plane
        self.process = Component(layout.root, "metrics-server")

    def start(self, client: Client) -> None:
        """Start it. The first metrics follow after two measurements, about twenty seconds later."""
        layout, user = self._layout, "system:metrics-server"
        authority = self._control_plane.authority
        certificate, key = authority.issue(
            "metrics-server-serving", "metrics-server", hosts=["DNS:metrics-server.kube-system.svc"]
        )
        kubeconfig = self._control_plane.kubeconfig("metrics-server", user)
        argv = [
            binaries.path_of("metrics-server"),
            f"--kubeconfig={kubeconfig}",
            f"--authentication-kubeconfig={kubeconfig}",
            f"--authorization-kubeconfig={kubeconfig}",
            f"--bind-address={layout.address}",
            f"--secure-port={_METRICS_PORT}",
            f"--tls-cert-file={certificate}",
            f"--tls-private-key-file={key}",
            f"--kubelet-certificate-authority={authority.certificate}",
            "--kubelet-preferred-address-types=InternalIP",
            # The shortest that it allows.
            "--metric-resolution=10s",
            "--kubelet-request-timeout=5s",
        ]
        rules = [_rule("", ["nodes/metrics"]), _rule("", ["pods", "nodes", "namespaces"])]
        ports = {"https": ("TCP", 443, _METRICS_PORT)}
        client.apply(
            [
                *_cluster_role(user, rules, user=user),
                _binding(f"{user}-auth-delegator", "system:auth-delegator", user),
                _authentication_reader(user),
                *_service("metrics-server", layout, ports),
                _api_service(authority.certificate),
            ]
        )
        self.process.configure(argv, namespace=layout.namespace)
        self.process.start()

    def answers(self, client: Client) -> bool:
        """Return True if the API server reaches it. Until then discovery is incomplete and garbage
        collection does not run.
        """
        return client.ready("/apis/metrics.k8s.io/v1beta1")


def resolves(name: str, server: str, timeout: float = 0.5) -> bool:
    """Return True if a DNS server resolves a name. Sends one UDP query; a timeout means False."""
    identifier = secrets.randbelow(1 << 16)
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    question = struct.pack(">6H", identifier, 0x0100, 1, 0, 0, 0) + labels + b"\0" + b"\0\1\0\1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
        connection.settimeout(timeout)
        try:
            connection.connect((server, 53))
            connection.send(question)
            answer = connection.recv(512)
        except OSError:
            return False
    if len(answer) < 12:
        return False
    answered, flags, _, answers = struct.unpack(">4H", answer[:8])
    return bool(answered == identifier and flags & 0xF == 0 and answers > 0)


def _rule(group: str, resources: list[str]) -> dict[str, Any]:
    return {"apiGroups": [group], "resources": resources, "verbs": _READ}


_RBAC = "rbac.authorization.k8s.io"


def _cluster_role(name: str, rules: list[dict[str, Any]], user: str) -> list[dict[str, Any]]:
    metadata = {"name": name}
    role = {
        "apiVersion": f"{_RBAC}/v1",
        "kind": "ClusterRole",
        "metadata": metadata,
        "rules": rules,
    }
    return [role, _binding(name, name, user)]


def _binding(name: str, role: str, user: str) -> dict[str, Any]:
    return {
        "apiVersion": f"{_RBAC}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": _RBAC, "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": _RBAC, "kind": "User", "name": user}],
    }


def _authentication_reader(user: str) -> dict[str, Any]:
    role = "extension-apiserver-authentication-reader"
    return {
        "apiVersion": f"{_RBAC}/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "metrics-server-auth-reader", "namespace": "kube-system"},
        "roleRef": {"apiGroup": _RBAC, "kind": "Role", "name": role},
        "subjects": [{"apiGroup": _RBAC, "kind": "User", "name": user}],
    }


def _service(
    name: str,
    layout: Layout,
    ports: Mapping[str, tuple[str, int, int]],
    cluster_ip: str | None = None,
) -> list[dict[str, Any]]:
    """Create a Service without a selector, and its endpoint by hand."""
    metadata = {"name": name, "namespace": "kube-system"}
    outer = [
        {"name": port, "protocol": protocol, "port": number, "targetPort": target}
        for port, (protocol, number, target) in ports.items()
    ]
    inner = [
        {"name": port, "protocol": protocol, "port": target}
        for port, (protocol, _, target) in ports.items()
    ]
    spec: dict[str, Any] = {"ports": outer}
    if cluster_ip is not None:
        spec["clusterIP"] = cluster_ip
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec},
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": metadata | {"labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [str(layout.address)], "conditions": {"ready": True}}],
            "ports": inner,
        },
    ]


def _api_service(authority: Path) -> dict[str, Any]:
    return {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": "v1beta1.metrics.k8s.io"},
        "spec": {
            "group": "metrics.k8s.io",
            "version": "v1beta1",
            "service": {"name": "metrics-server", "namespace": "kube-system", "port": 443},
            "caBundle": base64.b64encode(authority.read_bytes()).decode(),
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
        },
    }
