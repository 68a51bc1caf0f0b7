"""Parts of a pod template that need more than Pod Security level restricted.

The rules are those of Kubernetes' own admission (``k8s.io/pod-security-admission`` of 1.37, with
the versions that a namespace may pin), applied to the pod that the operator makes: it fills in what
a template leaves out, so that the pod is restricted. Pods for Windows are exempt from some rules,
and the API server refuses the fields of those rules in them anyway.
tests/integration/test_pod_security.py compares the verdicts with an API server's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Final

from engineroom.core.errors import Problem
from engineroom.core.validation.json_values import as_list, as_map, as_text
from engineroom.core.validation.paths import child, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

LABEL = "pod-security.kubernetes.io/enforce"
VERSION_LABEL = f"{LABEL}-version"
#: Minor version of Kubernetes 1 with the newest rules; ``latest`` and later versions mean these.
LATEST: Final = 37

_WORDS = ("restricted", "baseline", "privileged")
#: More digits than this are a later version anyway.
_VERSION = re.compile(r"v1\.(0|[1-9][0-9]{0,3})")


@dataclass(frozen=True, slots=True)
class PodSecurityLevel:
    """A level of Pod Security and the version of its rules."""

    #: The level as a namespace's label has it: restricted, baseline or privileged.
    word: str
    #: Minor version of Kubernetes 1, at most LATEST.
    version: int = LATEST

    RESTRICTED: ClassVar[PodSecurityLevel]
    BASELINE: ClassVar[PodSecurityLevel]
    PRIVILEGED: ClassVar[PodSecurityLevel]

    def __str__(self) -> str:
        """Return the level as messages name it."""
        return self.word if self.version == LATEST else f"{self.word} of v1.{self.version}"

    def allows(self, other: PodSecurityLevel) -> bool:
        """Return whether this level is at least as permissive as the word of ``other``."""
        return _WORDS.index(self.word) >= _WORDS.index(other.word)

    @classmethod
    def of(cls, labels: Any) -> PodSecurityLevel:
        """Return the level that a namespace with these labels enforces; accepts any JSON.

        As in Kubernetes, an invalid level is restricted and an invalid version is the latest.
        Without the label Kubernetes enforces nothing; Engineroom then enforces restricted.
        """
        word = labels.get(LABEL) if isinstance(labels, dict) else None
        if word is None:
            return cls.RESTRICTED
        version = _version(labels.get(VERSION_LABEL))
        return _level(word if word in _WORDS else "restricted", version)


@cache
def _level(word: str, version: int) -> PodSecurityLevel:
    """Return the one object of a level: ten thousand pools share it."""
    return PodSecurityLevel(word, version)


PodSecurityLevel.RESTRICTED = _level("restricted", LATEST)
PodSecurityLevel.BASELINE = _level("baseline", LATEST)
PodSecurityLevel.PRIVILEGED = _level("privileged", LATEST)


def _version(label: object) -> int:
    match = _VERSION.fullmatch(label) if isinstance(label, str) else None
    return LATEST if match is None else min(int(match[1]), LATEST)


@dataclass(frozen=True, slots=True)
class Escalation:
    """A field of a template that needs a level above restricted."""

    field: str
    problem: str
    fix: str
    needs: PodSecurityLevel
    #: Versions whose rules forbid it: from ``since`` until before ``until``.
    since: int = 0
    until: int = LATEST + 1

    def exceeds(self, level: PodSecurityLevel) -> bool:
        """Return whether a namespace of ``level`` forbids the field."""
        return not level.allows(self.needs) and self.since <= level.version < self.until

    def refused(self, level: PodSecurityLevel) -> Problem:
        """Return the problem of the field in a namespace of ``level``."""
        return Problem(
            self.field,
            f"{self.problem}, which Pod Security level {level} forbids",
            f"{self.fix}, or label the namespace {LABEL}={self.needs.word}",
        )


_BASELINE, _PRIVILEGED = PodSecurityLevel.BASELINE, PodSecurityLevel.PRIVILEGED

#: Versions in which Kubernetes changed its rules.
_ESCALATION_1_8 = 8
_SECCOMP_FIELD_1_19 = 19
_CAPABILITIES_1_22 = 22
_RUN_AS_USER_1_23 = 23
_PROBE_HOST_1_34 = 34
#: Pods in a user namespace (hostUsers: false) may run as root inside.
_USER_NAMESPACE_1_35 = 35

#: Capabilities that a container may add at level baseline.
_BASELINE_CAPABILITIES = frozenset(
    {
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    }
)
#: Sysctls that a pod may set, and the version that allows them.
_SYSCTLS = {
    "kernel.shm_rmid_forced": 0,
    "net.ipv4.ip_local_port_range": 0,
    "net.ipv4.ip_unprivileged_port_start": 0,
    "net.ipv4.ping_group_range": 0,
    "net.ipv4.tcp_syncookies": 0,
    "net.ipv4.ip_local_reserved_ports": 27,
    "net.ipv4.tcp_fin_timeout": 29,
    "net.ipv4.tcp_keepalive_intvl": 29,
    "net.ipv4.tcp_keepalive_probes": 29,
    "net.ipv4.tcp_keepalive_time": 29,
    "net.ipv4.tcp_rmem": 32,
    "net.ipv4.tcp_wmem": 32,
    "net.ipv4.tcp_notsent_lowat": 37,
    "net.ipv4.tcp_slow_start_after_idle": 37,
}
#: Types of SELinux, and the version that allows them.
_SELINUX_TYPES = {
    "": 0,
    "container_t": 0,
    "container_init_t": 0,
    "container_kvm_t": 0,
    "container_engine_t": 31,
}
_RESTRICTED_VOLUMES = frozenset(
    {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "image",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
)
_PROFILES = frozenset({"RuntimeDefault", "Localhost"})
_PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
_HOOKS = ("postStart", "preStop")
_GROUPS = ("initContainers", "containers", "ephemeralContainers")

_APPARMOR = "container.apparmor.security.beta.kubernetes.io/"
_SECCOMP_POD = "seccomp.security.alpha.kubernetes.io/pod"
_SECCOMP_CONTAINER = "container.seccomp.security.alpha.kubernetes.io/"


def template_escalations(template: object, path: str) -> Iterator[Escalation]:
    """Yield the fields of a PodTemplateSpec that need more than restricted; accepts any JSON."""
    annotations = as_map(as_map(as_map(template).get("metadata")).get("annotations"))
    spec = as_map(as_map(template).get("spec"))
    yield from _annotations(annotations, spec, f"{path}.metadata.annotations")
    yield from escalations(spec, f"{path}.spec")


def escalations(spec: dict[str, Any], path: str) -> Iterator[Escalation]:
    """Yield the fields of a pod spec that need more than restricted; accepts any JSON."""
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(name) is True:
            yield Escalation(f"{path}.{name}", "is true", "remove it", _PRIVILEGED)
    yield from _volumes(spec, path)
    security = as_map(spec.get("securityContext"))
    yield from _security(security, f"{path}.securityContext", _root_until(spec))
    yield from _sysctls(security, f"{path}.securityContext")
    for where, container in _containers(spec, path):
        yield from _container(container, where, spec)


def _containers(spec: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for group in _GROUPS:
        for index, container in enumerate(as_list(spec.get(group))):
            if isinstance(container, dict):
                yield f"{path}.{group}[{index}]", container


def _root_until(spec: dict[str, Any]) -> int:
    """Return the version from which on the pod may run as root."""
    return _USER_NAMESPACE_1_35 if spec.get("hostUsers") is False else LATEST + 1


def _annotations(
    annotations: dict[Any, Any], spec: dict[str, Any], path: str
) -> Iterator[Escalation]:
    names = {as_text(container.get("name")) for _, container in _containers(spec, "")}
    for key, value in annotations.items():
        if not isinstance(key, str) or not isinstance(value, str):
            continue
        found, fix = (child(path, key), f"is {quoted(value)}"), "write runtime/default or remove it"
        if key.startswith(_APPARMOR):
            if value not in {"", "runtime/default"} and not value.startswith("localhost/"):
                yield Escalation(*found, fix, _PRIVILEGED)
        elif key == _SECCOMP_POD or (
            key.startswith(_SECCOMP_CONTAINER) and key.removeprefix(_SECCOMP_CONTAINER) in names
        ):
            allowed = value in {"runtime/default", "docker/default"}
            if not allowed and not value.startswith("localhost/"):
                yield Escalation(*found, fix, _PRIVILEGED, until=_SECCOMP_FIELD_1_19)


def _volumes(spec: dict[str, Any], path: str) -> Iterator[Escalation]:
    for index, volume in enumerate(as_list(spec.get("volumes"))):
        if not isinstance(volume, dict):
            continue
        for source in volume:
            if source == "name" or source in _RESTRICTED_VOLUMES or volume[source] is None:
                continue
            problem = (
                "mounts a folder of the node"
                if source == "hostPath"
                else f"is a volume of kind {source}"
            )
            yield Escalation(
                child(f"{path}.volumes[{index}]", str(source)),
                problem,
                "use a persistentVolumeClaim or an emptyDir",
                _PRIVILEGED if source == "hostPath" else _BASELINE,
            )


def _sysctls(security: dict[str, Any], path: str) -> Iterator[Escalation]:
    for index, sysctl in enumerate(as_list(security.get("sysctls"))):
        name = as_map(sysctl).get("name")
        if not isinstance(name, str):
            continue
        until = _SYSCTLS.get(name, LATEST + 1)
        if until:
            field = f"{path}.sysctls[{index}].name"
            yield Escalation(field, f"sets {quoted(name)}", "remove it", _PRIVILEGED, until=until)


def _container(container: dict[str, Any], path: str, pod: dict[str, Any]) -> Iterator[Escalation]:
    security = as_map(container.get("securityContext"))
    where = f"{path}.securityContext"
    yield from _security(security, where, _root_until(pod))
    if security.get("privileged") is True:
        yield Escalation(f"{where}.privileged", "is true", "remove it", _PRIVILEGED)
    if security.get("allowPrivilegeEscalation") is True:
        field = f"{where}.allowPrivilegeEscalation"
        yield Escalation(field, "is true", "remove it", _BASELINE, _ESCALATION_1_8)
    mount = security.get("procMount")
    if isinstance(mount, str) and mount != "Default":
        found, until = (f"{where}.procMount", f"is {quoted(mount)}", "remove it"), _root_until(pod)
        yield Escalation(*found, _PRIVILEGED, until=until)
        if until <= LATEST:
            yield Escalation(*found, _BASELINE, since=until)
    yield from _capabilities(as_map(security.get("capabilities")), where)
    for index, port in enumerate(as_list(container.get("ports"))):
        number = as_map(port).get("hostPort")
        if isinstance(number, int) and number:
            field = f"{path}.ports[{index}].hostPort"
            yield Escalation(field, f"is {quoted(number)}", "remove it", _PRIVILEGED)
    yield from _hosts(container, path)


def _capabilities(capabilities: dict[str, Any], path: str) -> Iterator[Escalation]:
    for index, name in enumerate(as_list(capabilities.get("add"))):
        if not isinstance(name, str) or name == "NET_BIND_SERVICE":
            continue
        found = (f"{path}.capabilities.add[{index}]", f"adds {quoted(name)}", "remove it")
        if name in _BASELINE_CAPABILITIES:
            yield Escalation(*found, _BASELINE, _CAPABILITIES_1_22)
        else:
            yield Escalation(*found, _PRIVILEGED)
    dropped = capabilities.get("drop")
    if isinstance(dropped, list) and "ALL" not in dropped:
        yield Escalation(
            f"{path}.capabilities.drop",
            "leaves out ALL",
            "write [ALL] or remove it (Engineroom drops all)",
            _BASELINE,
            _CAPABILITIES_1_22,
        )


def _hosts(container: dict[str, Any], path: str) -> Iterator[Escalation]:
    """Yield hosts of probes and hooks: the kubelet would connect to them from the node."""
    lifecycle = as_map(container.get("lifecycle"))
    handlers = [(f"{path}.{name}", container.get(name)) for name in _PROBES]
    handlers += [(f"{path}.lifecycle.{name}", lifecycle.get(name)) for name in _HOOKS]
    for where, handler in handlers:
        for action in ("httpGet", "tcpSocket"):
            if as_text(as_map(as_map(handler).get(action)).get("host")):
                found = (f"{where}.{action}.host", "names a host", "remove it")
                yield Escalation(*found, _PRIVILEGED, _PROBE_HOST_1_34)


def _security(security: dict[str, Any], path: str, root_until: int) -> Iterator[Escalation]:
    """Check the fields that pod and container security contexts share."""
    user = security.get("runAsUser")
    if user == 0 and not isinstance(user, bool):
        field, fix = f"{path}.runAsUser", "write the number of another user, or remove it"
        yield Escalation(field, "is 0 (root)", fix, _BASELINE, _RUN_AS_USER_1_23, root_until)
    if security.get("runAsNonRoot") is False:
        field = f"{path}.runAsNonRoot"
        yield Escalation(field, "is false", "remove it", _BASELINE, until=root_until)
    for name, since in (("seccompProfile", _SECCOMP_FIELD_1_19), ("appArmorProfile", 0)):
        profile = security.get(name)
        kind = as_map(profile).get("type")
        if isinstance(profile, dict) and (not isinstance(kind, str) or kind not in _PROFILES):
            problem = "is Unconfined" if kind == "Unconfined" else f"is {quoted(kind)}"
            fix = "write RuntimeDefault, or remove it"
            yield Escalation(f"{path}.{name}.type", problem, fix, _PRIVILEGED, since)
    yield from _selinux(as_map(security.get("seLinuxOptions")), f"{path}.seLinuxOptions")
    if as_map(security.get("windowsOptions")).get("hostProcess") is True:
        field = f"{path}.windowsOptions.hostProcess"
        yield Escalation(field, "is true", "remove it", _PRIVILEGED)


def _selinux(options: dict[str, Any], path: str) -> Iterator[Escalation]:
    kind = options.get("type")
    if isinstance(kind, str):
        until = _SELINUX_TYPES.get(kind, LATEST + 1)
        if until:
            problem = f"is {quoted(kind)}"
            yield Escalation(f"{path}.type", problem, "remove it", _PRIVILEGED, until=until)
    for name in ("user", "role"):
        if options.get(name):
            yield Escalation(f"{path}.{name}", "is set", "remove it", _PRIVILEGED)
