"""The network of a node: its own namespace, and one link to the machine.

The machine forwards no packets into or out of it, and the namespace has no default route: programs
in it reach the machine and nothing else. The machine reaches pods and Services.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from .api import ClusterError
from .leftovers import is_mounted

if TYPE_CHECKING:
    from .layout import Layout

_NAMESPACES = Path("/run/netns")


def create(layout: Layout) -> None:
    """Create namespace, link and routes, as far as they do not exist."""
    name, host, node = layout.namespace_name, layout.host_device, layout.node_device
    if not (_NAMESPACES / name).exists():
        _ip("netns", "add", name)
    if not Path("/sys/class/net", host).exists():
        _ip("link", "add", host, "type", "veth", "peer", "name", node, "netns", name)
    prefix = layout.link.prefixlen
    _ip("addr", "replace", f"{layout.host_address}/{prefix}", "dev", host)
    _ip("link", "set", host, "up")
    _ip("-n", name, "addr", "replace", f"{layout.address}/{prefix}", "dev", node)
    _ip("-n", name, "link", "set", node, "up")
    _ip("-n", name, "link", "set", "lo", "up")
    for network in (layout.pods, layout.services):
        _ip("route", "replace", str(network), "via", str(layout.address), "dev", host)
    # Between pods; the file shows the namespace of the process that opens it.
    _run("nsenter", f"--net={layout.namespace}", "--", "sysctl", "-qw", "net.ipv4.ip_forward=1")


def remove(layout: Layout) -> None:
    """Remove what `create` created, including processes in the namespace."""
    if Path("/sys/class/net", layout.host_device).exists() and _is_ours(layout):
        _ip("link", "delete", layout.host_device)
    if (_NAMESPACES / layout.namespace_name).exists():
        _ip("netns", "delete", layout.namespace_name)
    # `ip netns` mounts this folder on itself for the first namespace, and leaves that.
    if is_mounted(_NAMESPACES) and not any(_NAMESPACES.iterdir()):
        _run("umount", str(_NAMESPACES))


def _is_ours(layout: Layout) -> bool:
    """Return True if the device has this cluster's address."""
    devices = json.loads(_ip("-json", "addr", "show", "dev", layout.host_device) or "[]")
    addresses = [info.get("local") for device in devices for info in device.get("addr_info", [])]
    return not addresses or str(layout.host_address) in addresses


def _ip(*arguments: str) -> str:
    return _run("ip", *arguments)


def _run(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise ClusterError(f"{' '.join(command)} failed: {result.stderr.strip()}")
    return result.stdout
