"""Conditions as plain dictionaries, changed by pure functions.

``Ready``, ``Reconciling`` and ``Stalled`` follow kstatus, so that ``kubectl wait``, Argo CD and
Flux read them: at rest Reconciling and Stalled are False; of the two at most one is True.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from engineroom.core import reasons

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from engineroom.core.errors import InvalidSpecError

READY = "Ready"
RECONCILING = "Reconciling"
STALLED = "Stalled"

Condition = dict[str, Any]
Conditions = list[Condition]
Progress = Literal["Current", "InProgress", "Failed", "Unknown"]

#: Limits of metav1.Condition.
MAX_MESSAGE = 32_768
#: Length of the messages that Engineroom writes itself; longer ones are cut.
MESSAGE_LENGTH = 1024


def timestamp(moment: datetime) -> str:
    """RFC 3339 in whole seconds, as Kubernetes writes it; ``moment`` is in UTC."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def set_condition(
    conditions: Iterable[Mapping[str, Any]],
    kind: str,
    status: str,
    reason: str,
    message: str,
    generation: int,
    now: datetime,
) -> Conditions:
    """A new list in which ``kind`` is as given and all others are as they were, order kept.

    ``status`` is "True", "False" or "Unknown". ``lastTransitionTime`` moves only when ``status``
    does: a new reason, message or generation keeps it. The same input again gives an equal list,
    so that comparing it with the published one tells whether there is anything to write.
    """
    result: Conditions = []
    since = timestamp(now)
    new: Condition = {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message[:MAX_MESSAGE],
        "lastTransitionTime": since,
        "observedGeneration": generation,
    }
    placed = False
    for condition in conditions:
        if condition.get("type") != kind:
            result.append(dict(condition))
        elif not placed:  # a list edited by hand may hold one twice
            if condition.get("status") == status and condition.get("lastTransitionTime"):
                new["lastTransitionTime"] = condition["lastTransitionTime"]
            result.append(new)
            placed = True
    if not placed:
        result.append(new)
    return result


def remove_condition(conditions: Iterable[Mapping[str, Any]], kind: str) -> Conditions:
    """A new list without ``kind``."""
    return [dict(condition) for condition in conditions if condition.get("type") != kind]


def find(conditions: Iterable[Mapping[str, Any]], kind: str) -> Mapping[str, Any] | None:
    """The condition of that type, or None."""
    return next((c for c in conditions if c.get("type") == kind), None)


def is_true(conditions: Iterable[Mapping[str, Any]], kind: str) -> bool:
    """Whether the condition is there and True."""
    condition = find(conditions, kind)
    return condition is not None and condition.get("status") == "True"


def invalid_conditions(
    conditions: Iterable[Mapping[str, Any]],
    error: InvalidSpecError,
    generation: int,
    now: datetime,
) -> Conditions:
    """Return the conditions of an object whose spec is invalid: Stalled, and so not Ready."""
    message = "; ".join(str(problem) for problem in error.problems)[:MESSAGE_LENGTH]
    result = [dict(condition) for condition in conditions]
    for kind, status in ((STALLED, "True"), (READY, "False"), (RECONCILING, "False")):
        result = set_condition(result, kind, status, reasons.INVALID_SPEC, message, generation, now)
    return result


def progress(obj: Mapping[str, Any]) -> Progress:
    """What kstatus, and so Flux and ``kubectl wait``, make of an object of ours.

    Unknown before the first status. InProgress while the status speaks of an older generation.
    """
    metadata, status = obj.get("metadata") or {}, obj.get("status") or {}
    conditions = status.get("conditions") or ()
    if not conditions:
        return "Unknown"
    if status.get("observedGeneration", 0) != metadata.get("generation", 0):
        return "InProgress"
    if is_true(conditions, STALLED):
        return "Failed"
    if is_true(conditions, RECONCILING):
        return "InProgress"
    return "Current" if is_true(conditions, READY) else "InProgress"
