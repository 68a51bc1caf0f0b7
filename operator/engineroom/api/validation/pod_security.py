"""Parts of a pod template that need more than Pod Security level restricted.

The rules are those of the Pod Security Standards (restricted and baseline) that a template can
break. The operator fills in what a template leaves out, so that it is restricted.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from engineroom.core.errors import Problem
from engineroom.core.validation.json_values import as_list, as_map
from engineroom.core.validation.paths import child, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

LABEL = "pod-security.kubernetes.io/enforce"


class PodSecurityLevel(IntEnum):
    """Levels of Pod Security, from the strictest up."""

    RESTRICTED = 0
    BASELINE = 1
    PRIVILEGED = 2

    @property
    def word(self) -> str:
        """The level as a namespace's label has it."""
        return self.name.lower()

    @classmethod
    def of(cls, labels: Any) -> PodSecurityLevel:
        """Return the level that a namespace with these labels enforces; restricted by default."""
        word = labels.get(LABEL) if isinstance(labels, dict) else None
        return next((level for level in cls if level.word == word), cls.RESTRICTED)


@dataclass(frozen=True, slots=True)
class Escalation:
    """A field of a template that needs a level above restricted."""

    field: str
    problem: str
    fix: str
    needs: PodSecurityLevel

    def refused(self, level: PodSecurityLevel) -> Problem:
        """Return the problem of the field in a namespace of ``level``."""
        return Problem(
            self.field,
            f"{self.problem}, which Pod Security level {level.word} forbids",
            f"{self.fix}, or label the namespace {LABEL}={self.needs.word}",
        )


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
_SAFE_SYSCTLS = frozenset(
    {
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.ping_group_range",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_rmem",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.tcp_wmem",
    }
)
_SELINUX_TYPES = frozenset(
    {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
)
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


def escalations(spec: dict[str, Any], path: str) -> Iterator[Escalation]:
    """Yield the fields of a pod spec that need more than restricted; accepts any JSON."""
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(name) is True:
            yield Escalation(f"{path}.{name}", "is true", "remove it", PodSecurityLevel.PRIVILEGED)
    yield from _volumes(spec, path)
    yield from _security(as_map(spec.get("securityContext")), f"{path}.securityContext")
    for group in ("initContainers", "containers"):
        for index, container in enumerate(as_list(spec.get(group))):
            if isinstance(container, dict):
                yield from _container(container, f"{path}.{group}[{index}]")


def _volumes(spec: dict[str, Any], path: str) -> Iterator[Escalation]:
    for index, volume in enumerate(as_list(spec.get("volumes"))):
        if not isinstance(volume, dict):
            continue
        for source in volume:
            if source == "name" or source in _RESTRICTED_VOLUMES or volume[source] is None:
                continue
            needs = (
                PodSecurityLevel.PRIVILEGED if source == "hostPath" else PodSecurityLevel.BASELINE
            )
            problem = (
                "mounts a folder of the node"
                if source == "hostPath"
                else f"is a volume of kind {source}"
            )
            yield Escalation(
                child(f"{path}.volumes[{index}]", str(source)),
                problem,
                "use a persistentVolumeClaim or an emptyDir",
                needs,
            )


def _container(container: dict[str, Any], path: str) -> Iterator[Escalation]:
    security = as_map(container.get("securityContext"))
    where = f"{path}.securityContext"
    yield from _security(security, where)
    if security.get("privileged") is True:
        yield Escalation(f"{where}.privileged", "is true", "remove it", PodSecurityLevel.PRIVILEGED)
    if security.get("allowPrivilegeEscalation") is True:
        field = f"{where}.allowPrivilegeEscalation"
        yield Escalation(field, "is true", "remove it", PodSecurityLevel.BASELINE)
    mount = security.get("procMount")
    if isinstance(mount, str) and mount != "Default":
        yield Escalation(
            f"{where}.procMount", f"is {quoted(mount)}", "remove it", PodSecurityLevel.PRIVILEGED
        )
    capabilities = as_map(security.get("capabilities"))
    for index, name in enumerate(as_list(capabilities.get("add"))):
        if not isinstance(name, str) or name == "NET_BIND_SERVICE":
            continue
        needs = (
            PodSecurityLevel.BASELINE
            if name in _BASELINE_CAPABILITIES
            else PodSecurityLevel.PRIVILEGED
        )
        field = f"{where}.capabilities.add[{index}]"
        yield Escalation(field, f"adds {quoted(name)}", "remove it", needs)
    dropped = capabilities.get("drop")
    if isinstance(dropped, list) and "ALL" not in dropped:
        yield Escalation(
            f"{where}.capabilities.drop",
            "leaves out ALL",
            "write [ALL] or remove it (Engineroom drops all)",
            PodSecurityLevel.BASELINE,
        )
    for index, port in enumerate(as_list(container.get("ports"))):
        number = as_map(port).get("hostPort")
        if isinstance(number, int) and number:
            field = f"{path}.ports[{index}].hostPort"
            yield Escalation(
                field, f"is {quoted(number)}", "remove it", PodSecurityLevel.PRIVILEGED
            )
    for hook in ("postStart", "preStop"):
        action = as_map(as_map(as_map(container.get("lifecycle")).get(hook)).get("httpGet"))
        if action.get("host"):
            yield Escalation(
                f"{path}.lifecycle.{hook}.httpGet.host",
                "names a host",
                "remove it",
                PodSecurityLevel.PRIVILEGED,
            )


def _security(security: dict[str, Any], path: str) -> Iterator[Escalation]:
    """Check the fields that pod and container security contexts share."""
    if security.get("runAsUser") == 0 and not isinstance(security.get("runAsUser"), bool):
        fix = "write the number of another user, or remove it"
        yield Escalation(f"{path}.runAsUser", "is 0 (root)", fix, PodSecurityLevel.BASELINE)
    if security.get("runAsNonRoot") is False:
        yield Escalation(f"{path}.runAsNonRoot", "is false", "remove it", PodSecurityLevel.BASELINE)
    for name in ("seccompProfile", "appArmorProfile"):
        if as_map(security.get(name)).get("type") == "Unconfined":
            fix = "write RuntimeDefault, or remove it"
            yield Escalation(
                f"{path}.{name}.type", "is Unconfined", fix, PodSecurityLevel.PRIVILEGED
            )
    selinux = as_map(security.get("seLinuxOptions"))
    kind = selinux.get("type")
    if isinstance(kind, str) and kind not in _SELINUX_TYPES:
        field = f"{path}.seLinuxOptions.type"
        yield Escalation(field, f"is {quoted(kind)}", "remove it", PodSecurityLevel.PRIVILEGED)
    for name in ("user", "role"):
        if selinux.get(name):
            field = f"{path}.seLinuxOptions.{name}"
            yield Escalation(field, "is set", "remove it", PodSecurityLevel.PRIVILEGED)
    if as_map(security.get("windowsOptions")).get("hostProcess") is True:
        field = f"{path}.windowsOptions.hostProcess"
        yield Escalation(field, "is true", "remove it", PodSecurityLevel.PRIVILEGED)
    for index, sysctl in enumerate(as_list(security.get("sysctls"))):
        setting = as_map(sysctl).get("name")
        if isinstance(setting, str) and setting not in _SAFE_SYSCTLS:
            yield Escalation(
                f"{path}.sysctls[{index}].name",
                f"sets {quoted(setting)}",
                "remove it",
                PodSecurityLevel.PRIVILEGED,
            )
