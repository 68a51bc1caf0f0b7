"""Folders, addresses and ports of a local cluster. Chosen once, then read back by every process."""

from __future__ import annotations

import json
import random
import re
import socket
from dataclasses import asdict, dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING

from .api import ClusterError, Shape

if TYPE_CHECKING:
    from collections.abc import Iterable

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,28}[a-z0-9])?")
# Below the range from which Linux takes the ports of outgoing connections: a restarted server finds
# its port free. Apart from the ports of what tests start (tests/support.py).
_PORTS = range(28000, 30000)
_PORT_NAMES = ("apiserver", "etcd", "etcd-peer")
# The benchmarking range (RFC 2544), where nothing real is. One half for links and pods, the other
# for services.
_LINKS_AND_PODS = IPv4Network("198.18.0.0/16")
_SERVICES = IPv4Network("198.19.0.0/16")
_SLICE = 20  # prefix length of one cluster's part of each: sixteen clusters side by side
MAXIMUM_NODES = 2 ** (_SLICE - _SERVICES.prefixlen)


@dataclass(frozen=True)
class Layout:
    """The fixed facts of one cluster.

    `index` distinguishes clusters with a network namespace: their addresses and devices follow from
    it. `owner` is the identity of the process that a private cluster belongs to; when that process
    has ended, the cluster may be removed.
    """

    name: str
    root: Path
    shape: Shape
    ports: dict[str, int]
    index: int = 0
    owner: tuple[int, int, str] | None = None

    @property
    def own_network(self) -> bool:
        """True if the cluster runs in its own network namespace."""
        return self.shape is Shape.NODE

    @property
    def namespace(self) -> Path | None:
        """The network namespace's file; None for a cluster in the machine's network."""
        return Path("/run/netns") / self.namespace_name if self.own_network else None

    @property
    def namespace_name(self) -> str:
        return f"engineroom-{self.name}"

    @property
    def host_device(self) -> str:
        return f"er{self.index}-host"

    @property
    def node_device(self) -> str:
        return f"er{self.index}-node"

    @property
    def link(self) -> IPv4Network:
        """The addresses of the machine and of the node on their link."""
        return IPv4Network((self._slice(_LINKS_AND_PODS).network_address, 30))

    @property
    def host_address(self) -> IPv4Address:
        return self.link[1]

    @property
    def address(self) -> IPv4Address:
        """The address of the API server, and of the node if there is one."""
        return self.link[2] if self.own_network else IPv4Address("127.0.0.1")

    @property
    def pods(self) -> IPv4Network:
        return list(self._slice(_LINKS_AND_PODS).subnets(1))[1]

    @property
    def services(self) -> IPv4Network:
        return self._slice(_SERVICES)

    @property
    def dns(self) -> IPv4Address:
        return self.services[10]

    @property
    def server(self) -> str:
        return f"https://{self.address}:{self.ports['apiserver']}"

    @property
    def certificates(self) -> Path:
        return self.root / "certificates"

    @property
    def kubeconfig(self) -> Path:
        return self.root / "kubeconfig"

    @property
    def runtime(self) -> Path:
        """Folder for sockets, whose paths must be short, and mounts; deleted at reboot."""
        return Path("/run/engineroom") / self.name

    @property
    def cgroup(self) -> str:
        """The control group, in every hierarchy, of all pods."""
        return f"engineroom-{self.name}"

    def _slice(self, network: IPv4Network) -> IPv4Network:
        return list(network.subnets(new_prefix=_SLICE))[self.index]

    def save(self) -> None:
        """Write the layout for `read`."""
        self.root.mkdir(parents=True, exist_ok=True)
        document = asdict(self)
        del document["name"], document["root"]
        new = self.root / "layout.json.new"
        new.write_text(json.dumps(document, indent=1))
        new.rename(self.root / "layout.json")

    @classmethod
    def read(cls, root: Path) -> Layout | None:
        """Read the layout of the cluster with its state in `root`; None if there is none."""
        try:
            document = json.loads((root / "layout.json").read_text())
        except FileNotFoundError:
            return None
        owner = document["owner"]
        return cls(
            name=root.name,
            root=root,
            shape=Shape(document["shape"]),
            ports=document["ports"],
            index=document["index"],
            owner=None if owner is None else (owner[0], owner[1], owner[2]),
        )

    def with_other_ports(self, others: Iterable[Layout]) -> Layout:
        """Return a copy with ports that are free now."""
        return replace(self, ports=_free_ports(others))


def plan(
    root: Path, shape: Shape, others: Iterable[Layout], owner: tuple[int, int, str] | None = None
) -> Layout:
    """Return a layout for a new cluster beside the `others`.

    Raises ClusterError for an invalid name, or if no addresses are left.
    """
    check_name(root.name)
    others = list(others)
    layout = Layout(root.name, root, shape, {}, owner=owner)
    if shape is not Shape.NODE:
        return layout.with_other_ports(others)
    ports = {"apiserver": 6443, "etcd": 2379, "etcd-peer": 2380}
    taken = {other.index for other in others if other.own_network}
    for index in range(MAXIMUM_NODES):
        candidate = replace(layout, index=index, ports=ports)
        # A cluster of another user or state folder is known by its device only.
        if index not in taken and not _is_device(candidate.host_device):
            return candidate
    raise ClusterError(f"all {MAXIMUM_NODES} address ranges are in use; take a cluster down first")


def check_name(name: str) -> None:
    """Raise ClusterError unless the name is valid for a cluster, namespace and control group."""
    if not _NAME.fullmatch(name):
        raise ClusterError(
            f"{name!r} cannot be a cluster's name: "
            "use lower-case letters, digits and dashes, at most 30"
        )


def _free_ports(layouts: Iterable[Layout]) -> dict[str, int]:
    taken = {port for other in layouts if not other.own_network for port in other.ports.values()}
    ports: dict[str, int] = {}
    for name in _PORT_NAMES:
        while True:
            port = random.choice(_PORTS)
            if port not in taken and _is_free(port):
                break
        taken.add(port)
        ports[name] = port
    return ports


def _is_device(name: str) -> bool:
    return Path("/sys/class/net", name).exists()


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
