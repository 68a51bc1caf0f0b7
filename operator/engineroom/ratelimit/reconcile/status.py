"""A policy's status from what was compiled and who acknowledged it: pure; times change only on
transitions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engineroom.core import reasons
from engineroom.core.conditions import set_condition, timestamp
from engineroom.ratelimit.distribution.redis_schema import LOST_SECONDS
from engineroom.ratelimit.limits.model import FailureMode

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from engineroom.core.errors import InvalidSpecError
    from engineroom.ratelimit.distribution.compile import CompileResult
    from engineroom.ratelimit.distribution.document import Target
    from engineroom.ratelimit.reconcile.decide import EnforcerCount

Status = dict[str, Any]
#: (status, reason, message) of a condition.
Word = tuple[str, str, str]

CONTROLLER = "engineroom.dev/controller"

#: What happens while Redis does not decide.
_WITHOUT_REDIS = {
    FailureMode.OPEN: (reasons.FAILING_OPEN, "all of those requests were admitted"),
    FailureMode.CLOSED: (reasons.FAILING_CLOSED, "all of those requests were refused with 503"),
    FailureMode.LOCAL: (reasons.DECIDING_LOCALLY, "each enforcer admitted its share by itself"),
}


@dataclass(frozen=True, slots=True)
class Failing:
    """Decisions that were made without Redis."""

    times: int = 0
    #: Whether there were some of late.
    now: bool = False
    mode: FailureMode = FailureMode.LOCAL


@dataclass(frozen=True, slots=True)
class Seen:
    """All that a status is made from; equal ones make equal statuses but for the time."""

    generation: int
    verdict: CompileResult | None
    #: None when Redis could not be asked.
    count: EnforcerCount | None
    #: All targets of the spec, and those of them that do not exist.
    targets: tuple[Target, ...] = ()
    missing: tuple[Target, ...] = ()
    #: Why the spec is invalid; "" when it is not.
    invalid: str = ""
    #: (reason, message) of what keeps Redis from being read or written.
    trouble: tuple[str, str] | None = None
    #: Why the document in Redis is another installation's; "" when it is not.
    foreign: str = ""
    failing: Failing = Failing()


def invalid_text(error: InvalidSpecError) -> str:
    """The problems in one line."""
    return "; ".join(str(problem) for problem in error.problems)[:1024]


def is_enforced(seen: Seen) -> bool:
    """Whether every live enforcer has acknowledged the policy, and there is one."""
    return _enforced(seen, _programmed(seen))[0] == "True"


def policy_status(old: Mapping[str, Any], seen: Seen, now: datetime) -> Status:
    """The status to publish; equal to ``old`` at the fixed point."""
    words = _words(seen)
    conditions = list(old.get("conditions") or ())
    for kind, (value, reason, message) in words.items():
        conditions = set_condition(conditions, kind, value, reason, message, seen.generation, now)
    status: Status = {"observedGeneration": seen.generation}
    if seen.count is not None:
        status["enforcers"] = {
            "ready": seen.count.ready,
            "total": seen.count.total,
            "configHash": seen.verdict.hash if seen.verdict is not None else "",
        }
        if words["Enforced"][0] == "True":
            status["enforcers"]["since"] = _since(old, status["enforcers"]["configHash"], now)
        if seen.failing.times:
            status["enforcers"]["withoutRedis"] = seen.failing.times
    elif old.get("enforcers"):
        status["enforcers"] = old["enforcers"]
    ancestors = _ancestors(old, seen, now)
    if ancestors:
        status["ancestors"] = ancestors
    status["conditions"] = conditions
    return status


def _since(old: Mapping[str, Any], config_hash: str, now: datetime) -> str:
    """When this very content was acknowledged by all."""
    before = old.get("enforcers") or {}
    if before.get("configHash") == config_hash and before.get("since"):
        return str(before["since"])
    return timestamp(now)


def _words(seen: Seen) -> dict[str, Word]:
    accepted, programmed = _accepted(seen), _programmed(seen)
    enforced = _enforced(seen, programmed)
    stalled = _stalled(seen, accepted, programmed)
    ready = _ready(accepted, programmed, enforced)
    return {
        "Accepted": accepted,
        "Programmed": programmed,
        "Enforced": enforced,
        "Stalled": stalled,
        "Reconciling": _reconciling(programmed, enforced, stalled),
        "Degraded": _degraded(seen, programmed),
        "Ready": ready,
    }


def _accepted(seen: Seen) -> Word:
    if seen.invalid:
        return "False", reasons.INVALID_SPEC, seen.invalid
    verdict = seen.verdict
    if verdict is not None and verdict.lost:
        told = ", ".join(
            f"{_told(each.target)} belongs to the older policy {each.owner}"
            for each in verdict.lost[:4]
        )
        if len(verdict.lost) > 4:
            told += f", and {len(verdict.lost) - 4} more"
        if not verdict.targets:
            return "False", reasons.CONFLICTED, told
        return "True", reasons.PARTLY_CONFLICTED, told
    if seen.missing:
        told = ", ".join(_told(target) for target in seen.missing[:4])
        return (
            "False",
            reasons.TARGET_NOT_FOUND,
            f"{told} does not exist in this namespace, or its kind is not served; create it",
        )
    return "True", reasons.ACCEPTED, "the policy is valid and has its targets for itself"


def _programmed(seen: Seen) -> Word:
    if seen.foreign:
        return "False", reasons.CONFLICTED, seen.foreign
    if seen.trouble is not None:
        return "Unknown", *seen.trouble
    verdict = seen.verdict
    if verdict is None or not verdict.programmed:
        if verdict is not None and verdict.refused:
            limit = "policies" if verdict.refused == "count" else "bytes"
            return (
                "False",
                reasons.TOO_MANY_POLICIES,
                f"older policies of this namespace fill the document ({limit}); remove some",
            )
        return "False", reasons.NOT_PROGRAMMED, "see Accepted"
    if seen.invalid:
        return "True", reasons.LAST_VALID, "the last valid spec is what enforcers follow"
    return "True", reasons.PROGRAMMED, "the policy is in the document that enforcers follow"


def _enforced(seen: Seen, programmed: Word) -> Word:
    if seen.foreign:
        return "False", reasons.NOT_PROGRAMMED, "see Programmed"
    if seen.trouble is not None or seen.count is None:
        reason = seen.trouble[0] if seen.trouble is not None else reasons.REDIS_UNREACHABLE
        return "Unknown", reason, "it cannot be asked who enforces the policy"
    if programmed[0] != "True":
        return "False", reasons.NOT_PROGRAMMED, "see Programmed"
    count = seen.count
    if count.ready < count.total:
        who = ", ".join(count.lagging)
        return (
            "False",
            reasons.AWAITING_ENFORCERS,
            f"{count.ready} of {count.total} enforcers acknowledged it; still to come: {who}",
        )
    if count.lost:
        told = (
            f"{', '.join(count.lost)} vanished without signing off, and may be cut off from Redis "
            f"and enforce something older; it counts as gone after {LOST_SECONDS:.0f} seconds"
        )
        return "Unknown", reasons.ENFORCER_LOST, told
    if count.total == 0:
        return "False", reasons.NO_ENFORCERS, _nobody(count)
    # Without the figure: it would be written for each enforcer that comes and goes.
    return "True", reasons.ENFORCED, "every live enforcer acknowledged it"


def _nobody(count: EnforcerCount) -> str:
    if not count.by_labels:
        return (
            "no decision service follows this namespace, so nothing is limited in front of the "
            "targets; one does from the first question of a proxy on, or as limiter.namespaces says"
        )
    if count.shadowed_by:
        return (
            f"the applications whose labels match the selector match that of the older policy "
            f"{count.shadowed_by}, too, and follow that one; nothing is limited by this one"
        )
    return (
        "no application with the middleware and labels that match the selector follows this "
        "namespace: nothing is limited"
    )


def _degraded(seen: Seen, programmed: Word) -> Word:
    failing = seen.failing
    if seen.count is None or programmed[0] != "True":
        return "Unknown", programmed[1], "it is not known whether Redis decides"
    if not failing.now:
        return "False", reasons.REDIS_DECIDES, "Redis decides in time"
    reason, outcome = _WITHOUT_REDIS[failing.mode]
    told = (
        f"Redis did not decide {failing.times} times within spec.failure.timeout, and {outcome}; "
        "look at the latency of Redis and at the way to it, or raise the timeout"
    )
    return "True", reason, told


def _stalled(seen: Seen, accepted: Word, programmed: Word) -> Word:
    if seen.invalid or accepted[1] == reasons.CONFLICTED:
        return "True", accepted[1], accepted[2]
    if seen.foreign:
        return "True", programmed[1], programmed[2]
    if programmed[1] == reasons.TOO_MANY_POLICIES:
        return "True", programmed[1], programmed[2]
    return "False", reasons.RECONCILED, "nothing keeps the policy from being programmed"


def _reconciling(programmed: Word, enforced: Word, stalled: Word) -> Word:
    if stalled[0] == "True":
        return "False", stalled[1], stalled[2]
    awaited = (reasons.AWAITING_ENFORCERS, reasons.ENFORCER_LOST)
    if programmed[0] == "Unknown" or enforced[1] in awaited:
        word = programmed if programmed[0] == "Unknown" else enforced
        return "True", word[1], word[2]
    return "False", reasons.RECONCILED, "nothing is under way"


def _ready(accepted: Word, programmed: Word, enforced: Word) -> Word:
    for word in (accepted, programmed, enforced):
        if word[0] != "True":
            return "False", word[1], word[2]
    return "True", reasons.ENFORCED, "every live enforcer acknowledged it"


def _ancestors(old: Mapping[str, Any], seen: Seen, now: datetime) -> list[Status]:
    if seen.invalid:
        return list(old.get("ancestors") or ())
    known = {_place(each.get("ancestorRef") or {}): each for each in old.get("ancestors") or ()}
    lost = (
        {each.target: each.owner for each in seen.verdict.lost} if seen.verdict is not None else {}
    )
    rows = []
    for target in seen.targets:
        reference: Status = {"group": target.group, "kind": target.kind, "name": target.name}
        if target.section:
            reference["sectionName"] = target.section
        if target in lost:
            told = f"{_told(target)} belongs to the older policy {lost[target]}"
            word: Word = ("False", reasons.CONFLICTED, told)
        elif target in seen.missing:
            told = f"{_told(target)}: it does not exist in this namespace"
            word = ("False", reasons.TARGET_NOT_FOUND, told)
        else:
            word = ("True", reasons.ACCEPTED, "the policy is attached")
        before = known.get(_place(reference), {}).get("conditions") or ()
        rows.append(
            {
                "ancestorRef": reference,
                "controllerName": CONTROLLER,
                "conditions": set_condition(before, "Accepted", *word, seen.generation, now),
            }
        )
    return rows


def _place(reference: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(reference.get(key) or "") for key in ("group", "kind", "name", "sectionName"))


def _told(target: Target | None) -> str:
    if target is None:
        return "the selector"
    section = f", section {target.section}" if target.section else ""
    return f"{target.kind} {target.name}{section}"
