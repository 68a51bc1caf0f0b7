"""The status of a RateLimitPolicy: pure, from facts, the old status and the time.

A policy is Ready once it is accepted and published. Enforced is a condition of its own: it depends
on the enforcers. Reconciling is True only while a spec is being published.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engineroom.core import reasons
from engineroom.core.conditions import set_condition, timestamp
from engineroom.ratelimit.distribution.redis_schema import LOST_SECONDS
from engineroom.ratelimit.limits.model import FailureMode

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from engineroom.core.errors import InvalidSpecError
    from engineroom.ratelimit.distribution.document import Target
    from engineroom.ratelimit.reconcile.decide import EnforcerCount
    from engineroom.ratelimit.reconcile.facts import PolicyFacts

Status = dict[str, Any]
#: (status, reason, message) of a condition.
Verdict = tuple[str, str, str]

CONTROLLER = "engineroom.dev/controller"
#: Most lost or missing targets named in a message.
_MAX_NAMED = 4

#: The effect of decisions without Redis, by failure mode.
_FALLBACKS = {
    FailureMode.OPEN: (reasons.FAILING_OPEN, "all of those requests were admitted"),
    FailureMode.CLOSED: (reasons.FAILING_CLOSED, "all of those requests were refused with 503"),
    FailureMode.LOCAL: (reasons.DECIDING_LOCALLY, "each enforcer admitted its share of the rate"),
}


def invalid_text(error: InvalidSpecError) -> str:
    """Return the problems of an invalid spec in one line."""
    return "; ".join(str(problem) for problem in error.problems)[:1024]


def is_enforced(facts: PolicyFacts) -> bool:
    """Return whether the policy has enforcers, and all live ones have acknowledged it."""
    return _enforced(facts, _programmed(facts))[0] == "True"


def new_rejection(old: Mapping[str, Any], status: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return (reason, message) if the policy is not accepted for a reason that ``old`` lacks."""
    before, after = (_condition(version, "Accepted") for version in (old, status))
    if after.get("status") == "False" and after.get("reason") != before.get("reason"):
        return str(after["reason"]), str(after["message"])
    return None


def policy_status(old: Mapping[str, Any], facts: PolicyFacts, now: datetime) -> Status:
    """Return the status to publish; equal to ``old`` if nothing changed."""
    verdicts = _verdicts(old, facts)
    conditions = list(old.get("conditions") or ())
    for kind, (value, reason, message) in verdicts.items():
        conditions = set_condition(conditions, kind, value, reason, message, facts.generation, now)
    status: Status = {"observedGeneration": facts.generation}
    if facts.count is not None:
        status["enforcers"] = {
            "ready": facts.count.ready,
            "total": facts.count.total,
            "configHash": facts.result.hash if facts.result is not None else "",
        }
        if verdicts["Enforced"][0] == "True":
            status["enforcers"]["since"] = _since(old, status["enforcers"]["configHash"], now)
        if facts.fallbacks.total:
            status["enforcers"]["withoutRedis"] = facts.fallbacks.total
    elif old.get("enforcers"):
        status["enforcers"] = old["enforcers"]
    ancestors = _ancestors(old, facts, now)
    if ancestors:
        status["ancestors"] = ancestors
    status["conditions"] = conditions
    return status


def _since(old: Mapping[str, Any], config_hash: str, now: datetime) -> str:
    """Return the time since when all live enforcers have this content."""
    before = old.get("enforcers") or {}
    if before.get("configHash") == config_hash and before.get("since"):
        return str(before["since"])
    return timestamp(now)


def _verdicts(old: Mapping[str, Any], facts: PolicyFacts) -> dict[str, Verdict]:
    accepted, programmed = _accepted(facts), _programmed(facts)
    stalled = _stalled(facts, accepted, programmed)
    return {
        "Accepted": accepted,
        "Programmed": programmed,
        "Enforced": _enforced(facts, programmed),
        "Stalled": stalled,
        "Reconciling": _reconciling(old, facts, programmed, stalled),
        "Degraded": _degraded(facts, programmed),
        "Ready": _ready(accepted, programmed),
    }


def _accepted(facts: PolicyFacts) -> Verdict:
    if facts.invalid:
        return "False", reasons.INVALID_SPEC, facts.invalid
    result = facts.result
    if result is not None and result.lost:
        message = ", ".join(
            f"{_target_text(lost.target)} belongs to the older policy {lost.owner}"
            for lost in result.lost[:_MAX_NAMED]
        )
        if len(result.lost) > _MAX_NAMED:
            message += f", and {len(result.lost) - _MAX_NAMED} more"
        if not result.targets:
            return "False", reasons.CONFLICTED, message
        return "True", reasons.PARTLY_CONFLICTED, message
    if facts.missing:
        targets = ", ".join(_target_text(target) for target in facts.missing[:_MAX_NAMED])
        return (
            "False",
            reasons.TARGET_NOT_FOUND,
            f"{targets} does not exist in this namespace, or its kind is not served; create it",
        )
    return "True", reasons.ACCEPTED, "the policy is valid and has all its targets"


def _programmed(facts: PolicyFacts) -> Verdict:
    if facts.foreign:
        return "False", reasons.CONFLICTED, facts.foreign
    if facts.trouble is not None:
        return "Unknown", *facts.trouble
    result = facts.result
    if result is None or not result.programmed:
        if result is not None and result.refused:
            limit = "policies" if result.refused == "count" else "bytes"
            return (
                "False",
                reasons.TOO_MANY_POLICIES,
                f"older policies of this namespace fill the document ({limit}); remove some",
            )
        return "False", reasons.NOT_PROGRAMMED, "see Accepted"
    if facts.invalid:
        return "True", reasons.LAST_VALID, "enforcers follow the last valid spec"
    return "True", reasons.PROGRAMMED, "the policy is in the document that enforcers follow"


def _enforced(facts: PolicyFacts, programmed: Verdict) -> Verdict:
    if facts.foreign:
        return "False", reasons.NOT_PROGRAMMED, "see Programmed"
    if facts.trouble is not None or facts.count is None:
        reason = facts.trouble[0] if facts.trouble is not None else reasons.REDIS_UNREACHABLE
        return "Unknown", reason, "the enforcers cannot be read"
    if programmed[0] != "True":
        return "False", reasons.NOT_PROGRAMMED, "see Programmed"
    count = facts.count
    if count.ready < count.total:
        names = ", ".join(count.lagging)
        return (
            "False",
            reasons.AWAITING_ENFORCERS,
            f"{count.ready} of {count.total} enforcers acknowledged it; still missing: {names}",
        )
    if count.lost:
        message = (
            f"{', '.join(count.lost)} vanished without signing off, and may be cut off from Redis "
            f"and enforce an older policy; it is ignored after {LOST_SECONDS:.0f} seconds"
        )
        return "Unknown", reasons.ENFORCER_LOST, message
    if count.total == 0:
        return "False", reasons.NO_ENFORCERS, _no_enforcers_text(count)
    # Without the number: the message would change with each enforcer that starts or ends.
    return "True", reasons.ENFORCED, "every live enforcer acknowledged it"


def _no_enforcers_text(count: EnforcerCount) -> str:
    if not count.by_labels:
        return (
            "no decision service follows this namespace, so the targets are not limited; one "
            "follows it from the first request of a proxy, or by limiter.namespaces"
        )
    if count.shadowed_by:
        return (
            f"the applications whose labels match the selector also match that of the older policy "
            f"{count.shadowed_by} and follow that one; this policy limits nothing"
        )
    return (
        "no application with the middleware and labels that match the selector follows this "
        "namespace: nothing is limited"
    )


def _degraded(facts: PolicyFacts, programmed: Verdict) -> Verdict:
    fallbacks = facts.fallbacks
    if facts.count is None or programmed[0] != "True":
        return "Unknown", programmed[1], "it is unknown whether Redis decides"
    if not fallbacks.recent:
        return "False", reasons.REDIS_DECIDES, "Redis decides in time"
    reason, effect = _FALLBACKS[fallbacks.mode]
    message = (
        f"Redis did not decide {fallbacks.total} times within spec.failure.timeout, and {effect}; "
        "check the latency of Redis and of the network, or raise the timeout"
    )
    return "True", reason, message


def _stalled(facts: PolicyFacts, accepted: Verdict, programmed: Verdict) -> Verdict:
    """Report what the user has to change; an unreachable Redis never stalls a policy."""
    if facts.invalid or accepted[1] == reasons.CONFLICTED:
        return "True", accepted[1], accepted[2]
    if facts.foreign or programmed[1] == reasons.TOO_MANY_POLICIES:
        return "True", programmed[1], programmed[2]
    if facts.overdue and facts.trouble is not None:
        return "True", *facts.trouble
    return "False", reasons.RECONCILED, "nothing prevents the policy from being published"


def _reconciling(
    old: Mapping[str, Any], facts: PolicyFacts, programmed: Verdict, stalled: Verdict
) -> Verdict:
    """Report a spec that is not published yet.

    A spec is being published from its change until a document with it is written. Later trouble
    with Redis changes nothing about that.
    """
    if stalled[0] == "True":
        return "False", stalled[1], stalled[2]
    if programmed[0] == "Unknown" and _is_unpublished(old, facts.generation):
        return "True", programmed[1], programmed[2]
    return "False", reasons.RECONCILED, "the spec is published"


def _is_unpublished(old: Mapping[str, Any], generation: int) -> bool:
    if old.get("observedGeneration") != generation:
        return True
    conditions = {condition["type"]: condition for condition in old.get("conditions") or ()}
    if any(conditions.get(kind, {}).get("status") == "True" for kind in ("Reconciling", "Stalled")):
        return True
    return "Reconciling" not in conditions


def _ready(accepted: Verdict, programmed: Verdict) -> Verdict:
    for verdict in (accepted, programmed):
        if verdict[0] != "True":
            return "False", verdict[1], verdict[2]
    return "True", reasons.PROGRAMMED, "the policy is accepted and published"


def _ancestors(old: Mapping[str, Any], facts: PolicyFacts, now: datetime) -> list[Status]:
    if facts.invalid:
        return list(old.get("ancestors") or ())
    before = {_identity(row.get("ancestorRef") or {}): row for row in old.get("ancestors") or ()}
    lost = (
        {target.target: target.owner for target in facts.result.lost}
        if facts.result is not None
        else {}
    )
    rows = []
    for target in facts.targets:
        reference: Status = {"group": target.group, "kind": target.kind, "name": target.name}
        if target.section:
            reference["sectionName"] = target.section
        if target in lost:
            message = f"{_target_text(target)} belongs to the older policy {lost[target]}"
            verdict: Verdict = ("False", reasons.CONFLICTED, message)
        elif target in facts.missing:
            message = f"{_target_text(target)}: it does not exist in this namespace"
            verdict = ("False", reasons.TARGET_NOT_FOUND, message)
        else:
            verdict = ("True", reasons.ACCEPTED, "the policy is attached")
        conditions = before.get(_identity(reference), {}).get("conditions") or ()
        rows.append(
            {
                "ancestorRef": reference,
                "controllerName": CONTROLLER,
                "conditions": set_condition(
                    conditions, "Accepted", *verdict, facts.generation, now
                ),
            }
        )
    return rows


def _identity(reference: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(reference.get(key) or "") for key in ("group", "kind", "name", "sectionName"))


def _target_text(target: Target | None) -> str:
    if target is None:
        return "the selector"
    section = f", section {target.section}" if target.section else ""
    return f"{target.kind} {target.name}{section}"


def _condition(status: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    for condition in status.get("conditions") or ():
        if condition.get("type") == kind:
            return dict(condition)
    return {}
