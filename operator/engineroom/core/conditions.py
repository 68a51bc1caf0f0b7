"""Pure functions on Kubernetes conditions, which are plain dictionaries here.

``Ready``, ``Reconciling`` and ``Stalled`` follow kstatus, which ``kubectl wait``, Argo CD and Flux
understand. At rest Reconciling and Stalled are False; at most one of them is True.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from engineroom.core import reasons

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

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


#: Seconds that a spec may take to come into force before it counts as stalled.
PROGRESS_DEADLINE = 600.0

#: (reason, message) of something that is wrong.
Trouble = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Rollout:
    """How far a spec has come into force; Reconciling and Stalled follow from it.

    Reconciling says that the spec is being rolled out, and nothing else: what an object does at
    work belongs into other conditions. ``trouble`` keeps the rollout from completing and can pass
    without a new spec (a missing Secret, a quota); it stalls the object after PROGRESS_DEADLINE.
    An absent Redis or API server is no trouble of the rollout; it belongs into Ready.
    """

    complete: bool
    #: What is awaited; the message of Reconciling without trouble.
    awaited: str = ""
    trouble: Trouble | None = None
    #: What only a new spec heals.
    stalled: Trouble | None = None


def rolled_out(conditions: Iterable[Mapping[str, Any]], generation: int) -> bool:
    """Return whether these conditions report that the spec of this generation is in force."""
    conditions = list(conditions)
    for kind in (RECONCILING, STALLED):
        condition = find(conditions, kind)
        if condition is None or condition.get("status") != "False":
            return False
        if condition.get("observedGeneration") != generation:
            return False
    return True


def summary_conditions(
    conditions: Iterable[Mapping[str, Any]],
    rollout: Rollout,
    ready: Trouble | None,
    *,
    generation: int,
    now: datetime,
    since: float = 0.0,
    working: str = "the object is as its spec says",
) -> Conditions:
    """Set Stalled, Reconciling and Ready by the rules of kstatus.

    ``ready`` is what keeps the object from doing its work, or None; ``working`` is the message of
    Ready otherwise. ``since`` is when this generation was first seen (Unix seconds), 0 if unknown.
    """
    result: Conditions = [dict(condition) for condition in conditions]
    calm = (reasons.RECONCILED, "nothing keeps the spec from coming into force")
    in_force = (reasons.RECONCILED, "the spec is in force")
    stalled, reconciling = ("False", *calm), ("False", *in_force)
    if rollout.stalled is not None:
        stalled, reconciling = ("True", *rollout.stalled), ("False", *rollout.stalled)
    elif not rollout.complete and _exceeded(result, rollout, generation, now, since):
        reason, message = rollout.trouble or (reasons.ROLLING_OUT, rollout.awaited)
        minutes = f"{PROGRESS_DEADLINE / 60:.0f} minutes"
        text = f"the spec did not come into force within {minutes}: {message}"
        stalled = ("True", reasons.PROGRESS_DEADLINE_EXCEEDED, text[:MESSAGE_LENGTH])
        reconciling = ("False", reasons.PROGRESS_DEADLINE_EXCEEDED, text[:MESSAGE_LENGTH])
        ready = ready or (reason, message)
    elif not rollout.complete:
        trouble = rollout.trouble or (reasons.ROLLING_OUT, rollout.awaited)
        reconciling = ("True", *trouble)
    ready = rollout.stalled or ready
    values = {
        STALLED: stalled,
        RECONCILING: reconciling,
        READY: ("True", reasons.RECONCILED, working) if ready is None else ("False", *ready),
    }
    for kind, value in values.items():
        result = set_condition(result, kind, *value, generation, now)
    return result


def _exceeded(
    conditions: Conditions, rollout: Rollout, generation: int, now: datetime, since: float
) -> bool:
    """Return whether the rollout is past its deadline, or was and has not completed since."""
    stalled = find(conditions, STALLED)
    if (
        stalled is not None
        and stalled.get("status") == "True"
        and stalled.get("reason") == reasons.PROGRESS_DEADLINE_EXCEEDED
        and stalled.get("observedGeneration") == generation
    ):
        return True
    reconciling = find(conditions, RECONCILING)
    if rollout.trouble is None or reconciling is None or reconciling.get("status") != "True":
        return False
    began = datetime.fromisoformat(reconciling["lastTransitionTime"]).timestamp()
    return now.timestamp() - max(began, since) >= PROGRESS_DEADLINE


def progress(obj: Mapping[str, Any]) -> Progress:
    """Return the kstatus of one of our objects, as Flux and ``kubectl wait`` compute it.

    InProgress before the operator's first status, and while the status is of an older generation.
    Unknown for an object without any status, which our API server never stores.
    """
    metadata, status = obj.get("metadata") or {}, obj.get("status") or {}
    if not status:
        return "Unknown"
    if status.get("observedGeneration", 0) != metadata.get("generation", 0):
        return "InProgress"
    conditions = status.get("conditions") or ()
    if is_true(conditions, STALLED):
        return "Failed"
    if is_true(conditions, RECONCILING):
        return "InProgress"
    return "Current" if is_true(conditions, READY) else "InProgress"
