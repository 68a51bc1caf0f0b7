"""A node that really runs pods: containerd, kubelet, kube-proxy, DNS and metrics, in its own
network.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import binaries, leftovers, network
from .addons import Dns, Metrics
from .api import ClusterError
from .control_plane import ControlPlane, wait
from .process import Component
from .progress import step

if TYPE_CHECKING:
    from .client import Client
    from .layout import Layout

NODE = "engineroom"
PAUSE = "engineroom-pause:local"
# In the environment of containerd, hence of the shims that outlive it: by this they are found.
_MARKER = "ENGINEROOM_CLUSTER"
_LINKS_TO_LOGS = Path("/var/log/containers")
_CNI_RESULTS = Path("/var/lib/cni/results")


class Node:
    """The node of one cluster."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._control_plane = ControlPlane(layout)
        self._dns = Dns(layout, self._control_plane)
        self._metrics = Metrics(layout, self._control_plane)
        self._containerd = Component(layout.root, "containerd")
        self._kubelet = Component(layout.root, "kubelet")
        self._proxy = Component(layout.root, "proxy")

    def prepare(self) -> None:
        layout = self._layout
        for folder in (layout.runtime, data(layout)):
            folder.mkdir(parents=True, exist_ok=True, mode=0o711)
        leftovers.save_settings(layout.root / "settings.json")
        leftovers.create_cgroup(layout.cgroup)
        network.create(layout)
        # Beside the control plane, which takes longer to start.
        self._configure_containerd()
        self._containerd.start()

    def start(self) -> None:
        client = self._control_plane.client()
        with step("container runtime"):
            self._wait_for_containerd()
            self._load_pause()
        with step("node"):
            self._configure_proxy()
            self._proxy.start()
            self._configure_kubelet()
            self._kubelet.start()
            self._dns.start(client)
            self._metrics.start(client)
            self._wait_for_node(client)
            self._wait_for_dns()
            self._wait_for_metrics(client)

    def wait(self, component: str) -> None:
        client = self._control_plane.client()
        if component == "containerd":
            self._wait_for_containerd()
        elif component == "kubelet":
            self._wait_for_node(client)
        elif component in ("coredns", "proxy"):
            self._wait_for_dns()
        elif component == "metrics-server":
            self._wait_for_metrics(client)

    def load(self, archive: Path, image: str) -> None:
        del image  # The archive says its names itself.
        self._ctr("images", "import", str(archive))

    def _ctr(self, *arguments: str) -> str:
        command = [str(binaries.path_of("ctr")), "--address", str(_socket(self._layout))]
        command += ["--namespace", "k8s.io", *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise ClusterError(f"ctr {' '.join(arguments)} failed: {result.stderr.strip()}")
        return result.stdout

    def _wait_for_containerd(self) -> None:
        def answers() -> bool:
            with suppress(ClusterError):
                self._ctr("version")
                return True
            return False

        wait(answers, "containerd", self._containerd)

    def _load_pause(self) -> None:
        from .images import full_name, own

        present = self._ctr("images", "list", "--quiet").split()
        if full_name(PAUSE) not in present:
            self.load(own(PAUSE), PAUSE)

    def _wait_for_node(self, client: Client) -> None:
        def ready() -> bool:
            status, body = client.request("GET", f"/api/v1/nodes/{NODE}")
            if status != 200:
                return False
            conditions = json.loads(body)["status"].get("conditions", [])
            return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

        wait(ready, "the node", self._kubelet, self._containerd)

    def _wait_for_dns(self) -> None:
        wait(self._dns.answers, "cluster DNS", self._dns.process, self._proxy)

    def _wait_for_metrics(self, client: Client) -> None:
        wait(lambda: self._metrics.answers(client), "metrics-server", self._metrics.process)

    def _configure_containerd(self) -> None:
        layout = self._layout
        programs = [binaries.PROGRAMS[name].folder for name in ("containerd", "runc")]
        path = os.pathsep.join(
            [*map(str, programs), os.environ.get("PATH", os.defpath), "/usr/sbin"]
        )
        file = layout.root / "containerd.toml"
        file.write_text(_toml(_containerd_configuration(layout)))
        plugins = layout.runtime / "cni"
        plugins.mkdir(exist_ok=True)
        _write_json(plugins / "10-engineroom.conflist", _pod_network(layout))
        self._containerd.configure(
            [binaries.path_of("containerd"), f"--config={file}"],
            environment={"PATH": path, _MARKER: str(layout.root)},
            namespace=layout.namespace,
        )

    def _configure_kubelet(self) -> None:
        layout = self._layout
        kubeconfig = self._control_plane.kubeconfig(
            "kubelet", f"system:node:{NODE}", "system:nodes"
        )
        # The machine's resolver and search list are nothing for pods.
        (layout.root / "resolv.conf").write_text(f"nameserver {layout.dns}\n")
        authority = self._control_plane.authority
        serving = authority.issue(
            "kubelet-serving", NODE, hosts=[f"IP:{layout.address}", f"DNS:{NODE}"]
        )
        configuration = _write_json(
            layout.root / "kubelet.json",
            _kubelet_configuration(layout, authority.certificate, *serving),
        )
        argv = [
            binaries.path_of("kubelet"),
            f"--config={configuration}",
            f"--kubeconfig={kubeconfig}",
            f"--root-dir={data(layout) / 'kubelet'}",
            f"--cert-dir={data(layout) / 'kubelet' / 'pki'}",
            f"--hostname-override={NODE}",
            f"--node-ip={layout.address}",
        ]
        # mount, umount and mkfs are where users' search paths may not lead.
        path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
        self._kubelet.configure(argv, environment={"PATH": path}, namespace=layout.namespace)

    def _configure_proxy(self) -> None:
        layout = self._layout
        kubeconfig = self._control_plane.kubeconfig("proxy", "system:kube-proxy")
        configuration = _write_json(
            layout.root / "proxy.json",
            {
                "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
                "kind": "KubeProxyConfiguration",
                "mode": "nftables",
                "clientConnection": {"kubeconfig": str(kubeconfig)},
                "clusterCIDR": str(layout.pods),
                "hostnameOverride": NODE,
                "bindAddress": str(layout.address),
                "healthzBindAddress": "127.0.0.1:10256",
                "metricsBindAddress": "127.0.0.1:10249",
                # The machine's connection table is not the node's to size.
                "conntrack": {"maxPerCore": 0, "min": 0},
                "nftables": {"minSyncPeriod": "100ms"},
                "oomScoreAdj": 0,
            },
        )
        path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
        argv = [binaries.path_of("kube-proxy"), f"--config={configuration}"]
        self._proxy.configure(argv, environment={"PATH": path}, namespace=layout.namespace)


def remove(layout: Layout) -> None:
    """Remove what a node left, whether it was stopped or its processes were killed.

    Its recorded processes must have ended before.
    """
    leftovers.kill_marked(_MARKER, str(layout.root))
    leftovers.remove_cgroup(layout.cgroup)
    leftovers.unmount_below(layout.runtime, data(layout))
    network.remove(layout)
    leftovers.restore_settings(layout.root / "settings.json")
    for folder in (layout.runtime, data(layout)):
        if folder.exists():
            shutil.rmtree(folder)
        with suppress(OSError):
            folder.parent.rmdir()
    _remove_traces(layout)


def _remove_traces(layout: Layout) -> None:
    """Remove files that programs write to fixed paths."""
    for path in _CNI_RESULTS.glob(f"{layout.namespace_name}-*"):
        path.unlink(missing_ok=True)
    if _LINKS_TO_LOGS.exists():
        for link in _LINKS_TO_LOGS.iterdir():
            if link.is_symlink() and link.readlink().is_relative_to(data(layout)):
                link.unlink(missing_ok=True)


def data(layout: Layout) -> Path:
    """Folder on disk for large data. It contains sockets, so its path is short."""
    return Path("/var/lib/engineroom") / layout.name


def _socket(layout: Layout) -> Path:
    return layout.runtime / "containerd.sock"


def _containerd_configuration(layout: Layout) -> dict[str, Any]:
    from .images import full_name

    runtime = layout.runtime
    return {
        "version": 4,
        "root": str(data(layout) / "containerd"),
        "state": str(runtime / "containerd"),
        "plugins": {
            "io.containerd.server.v1.grpc": {"address": str(_socket(layout))},
            "io.containerd.server.v1.ttrpc": {"address": f"{_socket(layout)}.ttrpc"},
            "io.containerd.shim.v1.manager": {"socket_dir": str(runtime / "shims")},
            "io.containerd.internal.v1.opt": {"path": str(data(layout) / "opt")},
            "io.containerd.nri.v1.nri": {"disable": True},
            "io.containerd.metadata.v1.bolt": {"no_sync": True},
            "io.containerd.cri.v1.images": {
                "snapshotter": _snapshotter(data(layout)),
                "pinned_images": {"sandbox": full_name(PAUSE)},
            },
            "io.containerd.cri.v1.runtime": {
                # Lowering the score takes a capability that containers often lack.
                "restrict_oom_score_adj": True,
                "netns_mounts_under_state_dir": True,
                "disable_apparmor": True,
                "cni": {
                    "bin_dirs": ["/usr/lib/cni", "/opt/cni/bin"],
                    "conf_dir": str(runtime / "cni"),
                    "use_internal_loopback": True,
                },
                "containerd": {
                    "runtimes": {
                        "runc": {
                            "runtime_type": "io.containerd.runc.v2",
                            "options": {
                                "BinaryName": str(binaries.path_of("runc")),
                                "Root": str(runtime / "runc"),
                                "SystemdCgroup": False,
                            },
                        }
                    }
                },
            },
        },
    }


def _snapshotter(folder: Path) -> str:
    """Return overlayfs, or another one if the disk itself is an overlay, as in most containers."""
    command = ["stat", "--file-system", "--format=%T", str(folder)]
    kind = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return "native" if kind == "overlayfs" else "overlayfs"


def _pod_network(layout: Layout) -> dict[str, Any]:
    """Return a network with a separate link per pod and routed traffic, so that replies pass the
    Services' rules.
    """
    return {
        "cniVersion": "1.0.0",
        "name": layout.namespace_name,
        "plugins": [
            {
                "type": "ptp",
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": str(layout.pods)}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                    "dataDir": str(data(layout) / "addresses"),
                },
            }
        ],
    }


def _kubelet_configuration(
    layout: Layout, authority: Path, certificate: Path, key: Path
) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": str(layout.address),
        "healthzBindAddress": "127.0.0.1",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(authority)},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(certificate),
        "tlsPrivateKeyFile": str(key),
        "containerRuntimeEndpoint": f"unix://{_socket(layout)}",
        "clusterDomain": "cluster.local",
        "clusterDNS": [str(layout.dns)],
        "resolvConf": str(layout.root / "resolv.conf"),
        "podLogsDir": str(data(layout) / "pod-logs"),
        "volumePluginDir": str(data(layout) / "volume-plugins"),
        "makeIPTablesUtilChains": False,
        "oomScoreAdj": 0,
        # Control groups as they are on the machine; version 1 too.
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{layout.cgroup}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "localStorageCapacityIsolation": False,
        # Tests wait for pods, so nothing here waits without need.
        "maxPods": 200,
        "syncFrequency": "10s",
        "nodeStatusUpdateFrequency": "5s",
        "serializeImagePulls": False,
        "registryPullQPS": 0,
        "eventRecordQPS": 0,
        "kubeAPIQPS": 500,
        "kubeAPIBurst": 1000,
        # A disk that is full of other things must not drive tests' pods away, or delete their
        # images.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "100Mi"},
    }


def _write_json(path: Path, document: dict[str, Any]) -> Path:
    path.write_text(json.dumps(document, indent=1))
    return path


def _toml(document: dict[str, Any], prefix: str = "") -> str:
    """Format nested dictionaries as TOML. JSON's strings, numbers, booleans and lists are valid
    TOML.
    """
    scalars = {key: value for key, value in document.items() if not isinstance(value, dict)}
    tables = {key: value for key, value in document.items() if isinstance(value, dict)}
    lines = [f"[{prefix}]"] if prefix and scalars else []
    lines += [f"{json.dumps(key)} = {json.dumps(value)}" for key, value in scalars.items()]
    text = "".join(f"{line}\n" for line in lines)
    for key, table in tables.items():
        text += _toml(table, f"{prefix}.{json.dumps(key)}" if prefix else json.dumps(key))
    return text
