"""Rules of Kubernetes for names, keys and labels, and the names that Engineroom reserves."""

from __future__ import annotations

import re

from engineroom.api import GROUP

DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
DNS_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_QUALIFIED = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")

#: The container, volumes and folders that the operator adds to a pool's pods.
INIT_CONTAINER = "engineroom-runtime"
VOLUME_PREFIX = "engineroom"
MOUNT_PREFIX = "/engineroom"
ENV_PREFIX = "ENGINEROOM_"
METRICS_PORT = 9477
#: Labels that the operator overwrites.
SET_LABELS = frozenset(
    {
        "app.kubernetes.io/managed-by",
        "app.kubernetes.io/instance",
        "app.kubernetes.io/component",
    }
)
#: Annotations that the operator alone may set on pods, because scaling down depends on them.
OWN_ANNOTATIONS = frozenset(
    {
        "controller.kubernetes.io/pod-deletion-cost",
        "cluster-autoscaler.kubernetes.io/safe-to-evict",
        "karpenter.sh/do-not-disrupt",
    }
)


def is_key(key: str) -> bool:
    """Return whether ``key`` is a valid key of a label or an annotation."""
    prefix, slash, name = key.rpartition("/")
    if slash and not (len(prefix) <= 253 and DNS_SUBDOMAIN.fullmatch(prefix)):
        return False
    return _QUALIFIED.fullmatch(name) is not None


def is_label_value(value: str) -> bool:
    """Return whether ``value`` is a valid value of a label."""
    return _LABEL_VALUE.fullmatch(value) is not None


def is_reserved_key(key: str) -> bool:
    """Return whether the key of a label or annotation has Engineroom's own prefix."""
    prefix = key.rpartition("/")[0]
    return prefix == GROUP or prefix.endswith(f".{GROUP}")
