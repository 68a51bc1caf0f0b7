"""Plans for resizing a pod's worker container in place. Pure.

The kubelet changes the container's control group while its processes run. It may defer that
(``Deferred``: no room on the node now) or refuse it (``Infeasible``: never on this node). Either is
reported in a condition of the pod; the same request is not repeated, because it changes nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from engineroom.workers.resources import RESOURCE_NAMES, ResourceAmounts
from engineroom.workers.rightsizing.recommendation import HEADROOM, differ

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engineroom.workers.projections import ContainerView

#: First Kubernetes with pods/resize as a stable feature.
SINCE: Final = (1, 35)


def plan_resize(
    container: ContainerView, recommended: ResourceAmounts, use: float | None
) -> ResourceAmounts | None:
    """Return the resources to request; None if no change is needed.

    ``use`` is the memory in bytes that the container uses now, or None. The memory limit never
    falls below that plus headroom, and does not fall at all while the use is unknown. A container
    gets no limit that it does not have, and no change that would restart it.
    """
    if not container.running or not recommended:
        return None
    desired = container.desired
    target = desired
    for name in RESOURCE_NAMES:
        value = getattr(recommended, name)
        resource, kind = name.split("_")
        present = getattr(desired, name)
        if value is None or resource in container.restarts_for:
            continue
        if present is None and kind == "limit":
            continue
        if name == "memory_limit" and value < present:
            value = present if use is None else min(present, max(value, use * HEADROOM))
        if differ(present, value):
            target = replace(target, **{name: float(value)})
    for resource in ("cpu", "memory"):
        request = getattr(target, f"{resource}_request")
        limit = getattr(target, f"{resource}_limit")
        if request is not None and limit is not None and request > limit:
            target = replace(target, **{f"{resource}_request": limit})
    if all(not differ(getattr(desired, name), getattr(target, name)) for name in RESOURCE_NAMES):
        return None
    return target


def needing_restart(container: ContainerView, recommended: ResourceAmounts) -> list[str]:
    """Return the resources that differ and stay, because a change would restart the container."""
    return sorted(
        resource
        for resource in container.restarts_for
        if any(
            _differs(container, recommended, f"{resource}_{kind}") for kind in ("request", "limit")
        )
    )


def _differs(container: ContainerView, recommended: ResourceAmounts, name: str) -> bool:
    if name not in RESOURCE_NAMES:
        return False
    present, value = getattr(container.desired, name), getattr(recommended, name)
    if value is None or (present is None and name.endswith("limit")):
        return False
    return differ(present, value)


def resize_patch(container: ContainerView, uid: str, target: ResourceAmounts) -> dict[str, Any]:
    """Return a strategic merge patch for ``pods/resize``; it fails on another pod of that name."""
    changed = ResourceAmounts(
        **{
            name: getattr(target, name)
            for name in RESOURCE_NAMES
            if getattr(target, name) != getattr(container.desired, name)
        }
    )
    return {
        "metadata": {"uid": uid},
        "spec": {"containers": [{"name": container.name, "resources": changed.resources()}]},
    }


def supported(version: Mapping[str, Any]) -> bool:
    """Return whether a server of that ``/version`` resizes pods; the minor may be ``35+``."""
    try:
        major = int(version.get("major") or 0)
        minor = int("".join(c for c in str(version.get("minor") or "0") if c.isdigit()) or 0)
    except ValueError:
        return False
    return (major, minor) >= SINCE
