"""Pure functions on Kubernetes conditions, which are plain dictionaries here.

``Ready``, ``Reconciling`` and ``Stalled`` follow kstatus, which ``kubectl wait``, Argo CD and Flux
understand. At rest Reconciling and Stalled are False; at most one of them is True.
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
    """Format a UTC time as RFC 3339 in whole seconds, as Kubernetes does."""
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
    """Return a new list with the condition ``kind`` set; the order and all others stay.

    ``status`` is "True", "False" or "Unknown". ``lastTransitionTime`` changes only with ``status``,
    not with reason, message or generation. The function is idempotent: if the result equals the
    published list, there is nothing to write.
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
    is_set = False
    for condition in conditions:
        if condition.get("type") != kind:
            result.append(dict(condition))
        elif not is_set:  # a list edited by hand may hold one twice
            if condition.get("status") == status and condition.get("lastTransitionTime"):
                new["lastTransitionTime"] = condition["lastTransitionTime"]
            result.append(new)
            is_set = True
    if not is_set:
        result.append(new)
    return result


def remove_condition(conditions: Iterable[Mapping[str, Any]], kind: str) -> Conditions:
    """Return a new list without the condition ``kind``."""
    return [dict(condition) for condition in conditions if condition.get("type") != kind]


def find(conditions: Iterable[Mapping[str, Any]], kind: str) -> Mapping[str, Any] | None:
    """Return the condition of type ``kind``, or None."""
    return next((c for c in conditions if c.get("type") == kind), None)


def is_true(conditions: Iterable[Mapping[str, Any]], kind: str) -> bool:
    """Return True if the condition exists and its status is "True"."""
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
    """Return the kstatus of one of our objects, as Flux and ``kubectl wait`` compute it.

    Unknown before the first status; InProgress while the status is of an older generation.
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
