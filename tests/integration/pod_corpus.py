"""Pod templates by combination: every field that Pod Security reads, with values of every sort."""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

Template = dict[str, Any]
#: Stands for a field that is left out.
ABSENT: Any = "absent"

#: Values of fields that pod and container have in common.
SHARED: dict[str, list[Any]] = {
    "runAsNonRoot": [True, False, None],
    "runAsUser": [0, 1000, None],
    "runAsGroup": [0, None],
    "seccompProfile": [
        None,
        {},
        {"type": "RuntimeDefault"},
        {"type": "Unconfined"},
        {"type": "Localhost", "localhostProfile": "a.json"},
        {"type": ""},
    ],
    "appArmorProfile": [
        None,
        {},
        {"type": "RuntimeDefault"},
        {"type": "Unconfined"},
        {"type": "Localhost", "localhostProfile": "a"},
        {"type": "Other"},
    ],
    "seLinuxOptions": [
        None,
        {},
        {"type": ""},
        {"type": "container_t"},
        {"type": "container_init_t"},
        {"type": "container_kvm_t"},
        {"type": "container_engine_t"},
        {"type": "spc_t"},
        {"user": ""},
        {"user": "system_u"},
        {"role": "system_r"},
        {"level": "s0:c1"},
    ],
    "windowsOptions": [None, {}, {"hostProcess": False}, {"hostProcess": True}],
}
OF_CONTAINERS: dict[str, list[Any]] = {
    "privileged": [True, False, None],
    "allowPrivilegeEscalation": [True, False, None],
    "procMount": ["Default", "Unmasked", "", None],
    "readOnlyRootFilesystem": [False, None],
    "capabilities": [
        None,
        {},
        {"add": None, "drop": None},
        {"add": []},
        {"add": ["NET_BIND_SERVICE"]},
        {"add": ["CHOWN"]},
        {"add": ["NET_RAW"]},
        {"add": ["SYS_ADMIN"]},
        {"add": ["CAP_SYS_ADMIN"]},
        {"add": ["net_bind_service"]},
        {"add": ["ALL"]},
        {"drop": []},
        {"drop": ["ALL"]},
        {"drop": ["all"]},
        {"drop": ["CHOWN"]},
        {"add": ["KILL", "NET_ADMIN"], "drop": ["CHOWN", "ALL"]},
    ],
}
SYSCTLS = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_notsent_lowat",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_slow_start_after_idle",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
    "kernel.msgmax",
    "net.core.somaxconn",
    "net/ipv4/tcp_syncookies",
]
VOLUMES: list[dict[str, Any]] = [
    {},
    {"emptyDir": {}},
    {"emptyDir": None},
    {"hostPath": None},
    {"hostPath": {"path": "/data"}},
    {"hostPath": None, "emptyDir": {}},
    {"configMap": {"name": "c"}},
    {"secret": {"secretName": "s"}},
    {"downwardAPI": {"items": []}},
    {"projected": {"sources": []}},
    {"persistentVolumeClaim": {"claimName": "p"}},
    {"csi": {"driver": "d.example"}},
    {"image": {"reference": "files:1", "pullPolicy": "Always"}},
    {
        "ephemeral": {
            "volumeClaimTemplate": {
                "spec": {
                    "accessModes": ["ReadWriteOnce"],
                    "resources": {"requests": {"storage": "1Gi"}},
                }
            }
        }
    },
    {"nfs": {"server": "n", "path": "/"}},
    {"iscsi": {"targetPortal": "1.2.3.4", "iqn": "iqn.2001-04.com.example:s", "lun": 0}},
    {"gitRepo": {"repository": "https://git.example/a.git"}},
    {"cephfs": {"monitors": ["m"]}},
    {"rbd": {"monitors": ["m"], "image": "i"}},
    {"fc": {"targetWWNs": ["500a"], "lun": 0}},
    {"glusterfs": {"endpoints": "e", "path": "p"}},
    {"flexVolume": {"driver": "a/b"}},
    {"azureFile": {"secretName": "s", "shareName": "n"}},
    {"azureDisk": {"diskName": "d", "diskURI": "https://a.example/d"}},
    {"gcePersistentDisk": {"pdName": "d"}},
    {"awsElasticBlockStore": {"volumeID": "v"}},
    {"cinder": {"volumeID": "v"}},
    {"vsphereVolume": {"volumePath": "[a] v"}},
    {"portworxVolume": {"volumeID": "v"}},
    {"scaleIO": {"gateway": "g", "system": "s", "secretRef": {"name": "s"}, "volumeName": "v"}},
    {"quobyte": {"registry": "r:1", "volume": "v"}},
    {"flocker": {"datasetName": "d"}},
    {"storageos": {"volumeName": "v"}},
]
HANDLERS: list[dict[str, Any]] = [
    {"exec": {"command": ["true"]}},
    *(
        {action: {"port": 80, **host}}
        for action in ("httpGet", "tcpSocket")
        for host in ({}, {"host": None}, {"host": ""}, {"host": "127.0.0.1"}, {"host": "db.prod"})
    ),
]
APPARMOR = "container.apparmor.security.beta.kubernetes.io/"
SECCOMP = "seccomp.security.alpha.kubernetes.io/"
_VERSIONED = re.compile(
    r"side (allowPriv|runAsNon|runAsUser|seccompProfile=.*(None|Unconf)|seLinux.*_t'"
    r"|capabilities=.*(CHOWN|NET_RAW|\[\])|livenessProbe=.*(db|port': 80}))"
    r"|hostUsers|sysctls|annotation .*seccomp.*(uncon|local)"
)


def corpus() -> Iterator[tuple[str, Template]]:
    """Yield (name, template): single fields at each place, then combinations."""
    yield from _security_contexts()
    yield from _pods()
    yield from _containers()
    yield from _combinations()


def windows() -> Iterator[tuple[str, Template]]:
    """Yield (name, template) of pods for Windows, complete as they are."""
    for user in (True, False):
        for context in ({}, {"windowsOptions": {"hostProcess": False}}, {"privileged": False}):
            for fields in (
                {"securityContext": context},
                {"ports": [{"containerPort": 80, "hostPort": 80}]},
                {"livenessProbe": {"tcpSocket": {"port": 80, "host": "a"}}},
            ):
                spec = {
                    "os": {"name": "windows"},
                    "securityContext": {"runAsNonRoot": user},
                    "containers": [{"name": "worker", "image": "w:1", **fields}],
                }
                yield f"windows {user} {fields}", {"spec": spec}


def by_version() -> Iterator[tuple[str, Template]]:
    """Yield the templates that versions of Kubernetes judge differently."""
    yield from ((name, template) for name, template in corpus() if _VERSIONED.match(name))


def base() -> Template:
    """Return a template of a worker with another container and an init container beside it."""
    return {
        "metadata": {"annotations": {}},
        "spec": {
            "securityContext": {},
            "containers": [
                {"name": "worker", "image": "w:1", "securityContext": {}},
                {"name": "side", "image": "s:1", "securityContext": {}},
            ],
            "initContainers": [{"name": "init", "image": "i:1", "securityContext": {}}],
        },
    }


def _with(part: str, **fields: Any) -> Template:
    """Return the base with fields of the pod, a container, or one of their security contexts."""
    template = base()
    spec = template["spec"]
    name, _, inner = part.partition(".")
    place = spec
    if name != "pod":
        containers = [*spec["containers"], *spec["initContainers"]]
        place = next(c for c in containers if c["name"] == name)
    if inner:
        place = place[inner]
    place.update({k: copy.deepcopy(v) for k, v in fields.items() if v is not ABSENT})
    return template


def _security_contexts() -> Iterator[tuple[str, Template]]:
    for field, values in (SHARED | OF_CONTAINERS).items():
        places = ("worker", "side", "init") if field in OF_CONTAINERS else ("pod", "side", "init")
        for place in places:
            for value in values:
                template = _with(f"{place}.securityContext", **{field: value})
                yield f"{place} {field}={value}", template
    for place in ("pod", "worker", "init"):
        for value in ({}, None):
            yield f"{place} securityContext={value}", _with(place, securityContext=value)


def _pods() -> Iterator[tuple[str, Template]]:
    for field in ("hostNetwork", "hostPID", "hostIPC", "hostUsers", "shareProcessNamespace"):
        for value in (True, False, None):
            yield f"pod {field}={value}", _with("pod", **{field: value})
    for names in ([], None, *([name] for name in SYSCTLS), SYSCTLS[:2]):
        value = names and [{"name": name, "value": "1"} for name in names]
        yield f"sysctls {names}", _with("pod.securityContext", sysctls=value)
    for source in VOLUMES:
        yield f"volume {source}", _with("pod", volumes=[{"name": "v", **source}])
    containers = ("worker", "side", "init", "engineroom-runtime", "nobody")
    keys = [f"{APPARMOR}{name}" for name in containers]
    keys += [f"{SECCOMP}pod", f"container.{SECCOMP}side", f"container.{SECCOMP}nobody"]
    for key in keys:
        for value in ("runtime/default", "docker/default", "localhost/a", "unconfined", "", "x"):
            template = base()
            template["metadata"]["annotations"][key] = value
            yield f"annotation {key}={value}", template


def _containers() -> Iterator[tuple[str, Template]]:
    for place in ("worker", "side", "init"):
        for port in (ABSENT, None, 0, 80, 65535):
            ports = [{"containerPort": 8080, **({} if port is ABSENT else {"hostPort": port})}]
            yield f"{place} hostPort={port}", _with(place, ports=ports)
        yield f"{place} ports=[]", _with(place, ports=[])
        for handler in HANDLERS:
            for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
                fields: dict[str, Any] = {probe: handler}
                if place == "init":
                    fields["restartPolicy"] = "Always"
                yield f"{place} {probe}={handler}", _with(place, **fields)
            for hook in ("postStart", "preStop"):
                fields = {"lifecycle": {hook: handler}}
                if place == "init":
                    fields["restartPolicy"] = "Always"
                yield f"{place} {hook}={handler}", _with(place, **fields)


def _combinations() -> Iterator[tuple[str, Template]]:
    """Yield the fields with a value for the whole pod, at both levels and in user namespaces."""
    seccomp = [{"type": "RuntimeDefault"}, {"type": "Unconfined"}, None, ABSENT]
    values = {
        "runAsNonRoot": [True, False, None, ABSENT],
        "runAsUser": [0, 1000, None, ABSENT],
        "seccompProfile": seccomp,
    }
    for field, choices in values.items():
        for whole in choices:
            for one in choices:
                template = _with("side.securityContext", **{field: one})
                if whole is not ABSENT:
                    template["spec"]["securityContext"][field] = whole
                yield f"pod-wide {field}={whole}, side {one}", template
    for users in (True, False, None):
        for place, fields in (
            ("pod.securityContext", {"runAsUser": 0}),
            ("pod.securityContext", {"runAsNonRoot": False}),
            ("side.securityContext", {"runAsUser": 0, "runAsNonRoot": False}),
            ("init.securityContext", {"runAsUser": 0}),
            ("side.securityContext", {"procMount": "Unmasked"}),
            ("side.securityContext", {"capabilities": {"add": ["SYS_ADMIN"]}}),
            ("side.securityContext", {"privileged": True}),
            ("side.securityContext", {"allowPrivilegeEscalation": True}),
        ):
            template = _with(place, **fields)
            template["spec"]["hostUsers"] = users
            yield f"hostUsers={users} {place} {fields}", template
