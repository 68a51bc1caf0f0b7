"""Resizing a pod's worker container in place: what there is, and what to ask for. Pure.

The kubelet changes the container's control group while its processes go on. It may put that off
(``Deferred``: no room on the node now) or refuse it (``Infeasible``: never on this node); either
stands in a condition of the pod, and asking again for the same changes nothing, so nobody does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from engineroom.workers.objects import RUNTIME_PATH
from engineroom.workers.rightsizing.recommendation import (
    AMOUNTS,
    HEADROOM,
    NOTHING,
    Amounts,
    differ,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

#: First Kubernetes with pods/resize as a stable feature.
SINCE: Final = (1, 35)
DEFERRED: Final = "Deferred"
INFEASIBLE: Final = "Infeasible"
ERROR: Final = "Error"
UNDER_WAY: Final = "InProgress"

_START = f"{RUNTIME_PATH}/start"


@dataclass(frozen=True, slots=True)
class Container:
    """The container that runs the workers. Times are Unix seconds."""

    name: str
    running: bool
    #: What its spec asks for.
    wish: Amounts
    #: What the kubelet has given it; empty where it does not say.
    given: Amounts = NOTHING
    #: Resources whose change would restart it, by its resizePolicy.
    restarts_for: frozenset[str] = frozenset()
    #: When it was last killed for memory.
    killed: float | None = None
    #: What became of the last resize: one of the words above, "" when nothing is open.
    resize: str = ""
    resize_message: str = ""


def container_of(pod: Mapping[str, Any]) -> Container | None:
    """The worker container of a Pod as the API server sent it; None where there is none of ours."""
    containers = (pod.get("spec") or {}).get("containers") or ()
    # By what it runs: something that injects containers may have put its own first.
    spec = next((c for c in containers if (c.get("command") or [""])[0] == _START), None)
    if spec is None:
        return None
    told = pod.get("status") or {}
    statuses = told.get("containerStatuses") or ()
    status: Mapping[str, Any] = next((c for c in statuses if c.get("name") == spec["name"]), {})
    word, message = _resize(told.get("conditions") or ())
    return Container(
        name=spec["name"],
        running="running" in (status.get("state") or {}),
        wish=Amounts.of(spec.get("resources")),
        given=Amounts.of(status.get("resources")),
        restarts_for=frozenset(
            policy.get("resourceName", "")
            for policy in spec.get("resizePolicy") or ()
            if policy.get("restartPolicy") == "RestartContainer"
        ),
        killed=_killed(status),
        resize=word,
        resize_message=message[:256],
    )


def _resize(conditions: Any) -> tuple[str, str]:
    word, message = "", ""
    for condition in conditions:
        if condition.get("status") != "True":
            continue
        said = str(condition.get("message") or "")
        if condition["type"] == "PodResizePending":
            # A new wish that waits says more than the old one that is under way.
            return str(condition.get("reason") or DEFERRED), said
        if condition["type"] == "PodResizeInProgress":
            failed = condition.get("reason") == ERROR
            word, message = (ERROR if failed else UNDER_WAY), said
    return word, message


def _killed(status: Mapping[str, Any]) -> float | None:
    for state in ("state", "lastState"):
        ended = (status.get(state) or {}).get("terminated") or {}
        if ended.get("reason") == "OOMKilled" and ended.get("finishedAt"):
            return datetime.fromisoformat(ended["finishedAt"]).timestamp()
    return None


def plan_resize(container: Container, recommended: Amounts, use: float | None) -> Amounts | None:
    """What to ask for; None when there is nothing to ask for.

    ``use`` is the memory in bytes that the container uses now, None when nobody knows: its limit
    is never lowered to less than that and some room, and not at all on a guess. A limit that the
    container does not have is not given to it, and what would restart it is left alone.
    """
    if not container.running or not recommended:
        return None
    wish = container.wish
    target = wish
    for name in AMOUNTS:
        value = getattr(recommended, name)
        resource, kind = name.split("_")
        present = getattr(wish, name)
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
    if all(not differ(getattr(wish, name), getattr(target, name)) for name in AMOUNTS):
        return None
    return target


def left_alone(container: Container, recommended: Amounts) -> list[str]:
    """The resources that differ and are not changed, because that would restart the container."""
    return sorted(
        resource
        for resource in container.restarts_for
        if any(
            _missed(container, recommended, f"{resource}_{kind}") for kind in ("request", "limit")
        )
    )


def _missed(container: Container, recommended: Amounts, name: str) -> bool:
    if name not in AMOUNTS:
        return False
    present, value = getattr(container.wish, name), getattr(recommended, name)
    if value is None or (present is None and name.endswith("limit")):
        return False
    return differ(present, value)


def resize_patch(container: Container, uid: str, target: Amounts) -> dict[str, Any]:
    """A strategic merge patch for ``pods/resize``; refused when the pod is another by now."""
    changed = Amounts(
        **{
            name: getattr(target, name)
            for name in AMOUNTS
            if getattr(target, name) != getattr(container.wish, name)
        }
    )
    return {
        "metadata": {"uid": uid},
        "spec": {"containers": [{"name": container.name, "resources": changed.resources()}]},
    }


def supported(version: Mapping[str, Any]) -> bool:
    """Whether a server of that ``/version`` resizes pods; some write their minor as ``35+``."""
    try:
        major = int(version.get("major") or 0)
        minor = int("".join(c for c in str(version.get("minor") or "0") if c.isdigit()) or 0)
    except ValueError:
        return False
    return (major, minor) >= SINCE
