"""Rate limits on the screen: policies, a rehearsed request, top keys, who enforces."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.text import Text

from engineroom.cli.views.diagnose import Check, Severity
from engineroom.cli.views.kinds import condition, conditions_table
from engineroom.cli.views.output_formats import Indent, table, word
from engineroom.cli.views.text import ABSENT, age
from engineroom.ratelimit.limits.bound import bound_text, without_redis_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import RenderableType

    from engineroom.api.kinds import Kind
    from engineroom.cli.connections.model import Document
    from engineroom.cli.connections.policies import TopKeys
    from engineroom.cli.views.status import InstallationOverview
    from engineroom.ratelimit.distribution.document import CompiledPolicy
    from engineroom.ratelimit.limits.dry_run import DryRunResult, LimitOutcome
    from engineroom.ratelimit.limits.model import Limit
    from engineroom.ratelimit.reconcile.observe import Enforcer, EnforcerRoster

_KINDS = ("Accepted", "Programmed", "Enforced", "Degraded")
_FIXES = {
    "Conflicted": "delete one of the two, or attach this one to something else",
    "PartlyConflicted": "take the lost targets out of the spec, or delete the older policy",
    "TargetNotFound": "create it, or correct spec.targetRefs; the policy holds when it appears",
    "InvalidSpec": "`engineroom lint` shows the same offline; correct the spec",
    "AwaitingEnforcers": "the enforcers named above have not taken it: look at their logs",
    "EnforcerLost": "if its pod is gone, wait a minute; else check its connection to Redis",
    "FailingOpen": "nothing is limited while Redis is slow: check its latency and load",
    "FailingClosed": "requests are refused while Redis is slow: check its latency and load",
    "DecidingLocally": "Redis is slow: check its latency and load",
    "RedisUnreachable": "bring Redis back; enforcers go on with the last policies meanwhile",
    "Unseen": "`engineroom status` says whether an operator runs",
    "Outdated": "wait a second; `engineroom status` says whether an operator runs",
}


#: For NoEnforcers, by whether applications enforce the policy by their labels.
_NOBODY = {
    True: "run the middleware AsgiPolicies with this namespace and labels that the selector has",
    False: "run the decision service (limiter.enabled=true) and have the proxy ask it; with "
    "limiter.namespaces it follows the namespace from its start",
}


#: Reasons of policies that pass by themselves, at each roll-out for instance.
_TRANSIENT = frozenset({"AwaitingEnforcers", "EnforcerLost", "NoEnforcers", "Unseen", "Outdated"})


def policies_table(
    kind: Kind, policies: Sequence[Document], now: datetime, *, namespaces: bool, wide: bool
) -> RenderableType:
    """Return a table of policies."""
    del kind
    columns = ["NAME", "STATE", "ENFORCERS", "LIMITS", "MODE", "AGE"]
    columns += ["FAILURE", "ATTACHED TO", "MESSAGE"] if wide else []
    columns = ["NAMESPACE", *columns] if namespaces else columns
    rows: list[list[str | Text]] = []
    for policy in policies:
        metadata, spec = policy["metadata"], policy["spec"]
        row: list[str | Text] = [
            metadata["name"],
            word(policy_state(policy)),
            _enforcers(policy),
            str(len(spec["limits"])),
            str((spec.get("distribution") or {}).get("mode", "Strict")),
            age(_time(metadata.get("creationTimestamp")), now),
        ]
        if wide:
            row += [
                str((spec.get("failure") or {}).get("mode", "Local")),
                attached_to(spec),
                str(condition(policy, "Ready").get("message", "")),
            ]
        rows.append([metadata["namespace"], *row] if namespaces else row)
    return table(columns, rows, right=("LIMITS",))


def policy_state(policy: Document) -> str:
    """Return ``Ready``, or the reason why the policy is not ready or not enforced."""
    for kind in ("Ready", "Enforced"):
        entry = condition(policy, kind)
        if entry["status"] != "True":
            return str(entry["reason"])
    return "Ready"


def policies_status(
    kind: Kind, policies: Sequence[Document], overview: InstallationOverview
) -> Check | None:
    """Count the policies that are not enforced, or decided without Redis; name the first."""
    del kind
    if not policies:
        return None
    pending = [policy for policy in policies if policy_state(policy) != "Ready"]
    summary = f"{len(policies)} {'policy' if len(policies) == 1 else 'policies'}"
    degraded = [p for p in policies if condition(p, "Degraded")["status"] == "True"]
    if not pending and not degraded:
        return Check("rate limits", Severity.OK, f"{summary}, all enforced")
    first = (pending or degraded)[0]
    metadata = first["metadata"]
    name = f"{metadata['namespace']}/{metadata['name']}"
    fix = f"{overview.program} ratelimit explain {metadata['name']} -n {metadata['namespace']}"
    if not pending:
        reason = condition(first, "Degraded")["reason"]
        text = f"{summary}, {len(degraded)} decided without Redis: {name} ({reason})"
        return Check("rate limits", Severity.WARNING, text, fix)
    state = policy_state(first)
    more = f" and {len(pending) - 1} more" if len(pending) > 1 else ""
    return Check(
        "rate limits",
        Severity.WARNING if state in _TRANSIENT else Severity.PROBLEM,
        f"{summary}, {len(pending)} not enforced: {name} ({state}){more}",
        fix,
    )


def _enforcers(policy: Document) -> str:
    enforcers = (policy.get("status") or {}).get("enforcers")
    return f"{enforcers.get('ready', 0)}/{enforcers.get('total', 0)}" if enforcers else ABSENT


def attached_to(spec: Document) -> str:
    """Return the targets or the selector of a policy in one line."""
    selector = (spec.get("selector") or {}).get("matchLabels") or {}
    if selector:
        return "applications with " + ",".join(f"{k}={v}" for k, v in sorted(selector.items()))
    return ", ".join(
        "/".join(
            part
            for part in (reference["kind"], reference["name"], reference.get("sectionName"))
            if part
        )
        for reference in spec.get("targetRefs") or ()
    )


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


# -- test ---------------------------------------------------------------------------------------


def source_text(source: object, value: str | None) -> str:
    """``ClientIP=192.0.2.7``; what may be a secret as the digest that `top` shows too."""
    from engineroom.ratelimit.distribution.document import encode_source
    from engineroom.ratelimit.service.top import redacted

    kind, *rest = encode_source(source)  # type: ignore[arg-type]  # what a policy names
    name = str(rest[0]) if rest and kind in ("Header", "Query", "Cookie", "JWTClaim") else ""
    return f"{kind}{f' {name}' if name else ''}={redacted(source, value)}"


def _key_text(outcome: LimitOutcome) -> str:
    if not outcome.key:
        return "" if outcome.limit.key else "all requests"
    pairs = zip(outcome.limit.key, outcome.key, strict=True)
    return " ".join(source_text(source, value) for source, value in pairs)


def rehearsals_text(rehearsals: Sequence[DryRunResult]) -> RenderableType:
    """Each policy's answer, and below it each of its limits."""
    parts: list[RenderableType] = []
    for rehearsal in rehearsals:
        parts += [Text()] if parts else []
        parts += [_answer(rehearsal), Indent(_limits(rehearsal))]
    return Group(*parts)


def _answer(rehearsal: DryRunResult) -> Text:
    decision = rehearsal.decision
    verb = "is" if rehearsal.consumed else "would be"
    verdict = ("admitted", "green") if decision.allowed else ("refused", "bold red")
    text = Text.assemble((decision.policy, "bold"), f"  {verb} ", verdict)
    status = response_status(rehearsal)
    text.append(f" ({decision.reason.value}" + (f", {status})" if status else ")"))
    if not decision.allowed:
        text.append(f" by limit {decision.limit}")
        wait = decision.retry_after
        text.append(": waiting does not help" if wait is None else f": try again in {wait:.3g} s")
    if decision.shadowed:
        text.append(f"; in the shadow it is refused by {', '.join(decision.shadowed)}")
    return text


def response_status(rehearsal: DryRunResult) -> int | None:
    """Return the status code of a middleware's response; None for an admitted request."""
    from engineroom.ratelimit.limits.middleware import status_of

    if rehearsal.decision.allowed:
        return None
    return status_of(rehearsal.decision, rehearsal.policy.response.status)


def _limits(rehearsal: DryRunResult) -> RenderableType:
    columns = ("LIMIT", "SAYS", "LEFT", "OF", "NEEDS", "FULL IN", "MODE", "KEY")
    rows = []
    for outcome in rehearsal.limits:
        limit = outcome.limit
        if outcome.not_applied:
            reason = f"does not apply: {outcome.not_applied}"
            rows.append((limit.name, "-", ABSENT, ABSENT, ABSENT, ABSENT, limit.mode.value, reason))
            continue
        left = ABSENT if outcome.left is None else str(outcome.left)
        full = ABSENT if outcome.left is None else f"{outcome.reset:.3g}s"
        rows.append(
            (
                limit.name, says(outcome), left, str(limit.burst), str(outcome.needed), full,
                limit.mode.value, _key_text(outcome),
            )
        )  # fmt: skip
    return table(columns, rows, right=("LEFT", "OF", "NEEDS"))


def says(outcome: LimitOutcome) -> str:
    """Return the decision of one limit by itself."""
    if outcome.wait is None:
        return "never"
    return f"wait {outcome.wait:.3g}s" if outcome.wait > 0 else "admits"


def rehearsals_document(rehearsals: Sequence[DryRunResult]) -> dict[str, Any]:
    """The same for programs; times in seconds."""
    return {
        "allowed": all(rehearsal.decision.allowed for rehearsal in rehearsals),
        "policies": [
            {
                "policy": rehearsal.decision.policy,
                "allowed": rehearsal.decision.allowed,
                "consumed": rehearsal.consumed,
                "reason": rehearsal.decision.reason.value,
                "status": response_status(rehearsal),
                "limit": rehearsal.decision.limit,
                "retryAfter": rehearsal.decision.retry_after,
                "shadowed": list(rehearsal.decision.shadowed),
                "limits": [_limit_document(outcome) for outcome in rehearsal.limits],
            }
            for rehearsal in rehearsals
        ],
    }


def _limit_document(outcome: LimitOutcome) -> dict[str, Any]:
    limit = outcome.limit
    document: dict[str, Any] = {"limit": limit.name, "applies": not outcome.not_applied}
    if outcome.not_applied:
        return {**document, "why": outcome.not_applied}
    pairs = zip(limit.key, outcome.key, strict=True)
    return {
        **document,
        "mode": limit.mode.value,
        "algorithm": limit.algorithm.value,
        "key": [source_text(source, value) for source, value in pairs],
        "left": outcome.left,
        "quota": limit.burst,
        "needed": outcome.needed,
        "wait": outcome.wait,
        "reset": outcome.reset,
    }


# -- top ----------------------------------------------------------------------------------------


def top_text(top: TopKeys) -> RenderableType:
    """One line a key, most first."""
    columns = ("ASKED", "PER SECOND", "POLICY", "LIMIT", "KEY")
    rows = [
        (
            f"{key.times}" if not key.error else f"{key.times - key.error}..{key.times}",
            f"{key.times / top.seconds:.1f}",
            f"{key.namespace}/{key.policy}",
            key.limit,
            key.key or "all requests",
        )
        for key in top.keys
    ]
    return table(columns, rows, right=("ASKED", "PER SECOND"))


def top_document(top: TopKeys) -> dict[str, Any]:
    """The same for programs."""
    return {
        "seconds": top.seconds,
        "total": top.total,
        "limiters": {"asked": top.asked, "failures": list(top.failures)},
        "keys": [key._asdict() for key in top.keys],
    }


# -- explain ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PolicyExplanation:
    """All that ``ratelimit explain`` shows; None where Redis could not be asked."""

    policy: Document
    compiled: CompiledPolicy | None
    #: Digest, revision and lineage of the document that stands in Redis.
    head: tuple[str, int, str] | None
    roster: EnforcerRoster | None
    #: Why Redis was not asked; "" when it was.
    blind: str
    now: datetime
    #: Names of those who can enforce it, of all who follow the namespace.
    enforcers: frozenset[str] | None = None

    @property
    def spec_limits(self) -> tuple[Limit, ...]:
        """The limits with their tiers; of the last valid spec when this one is none."""
        return () if self.compiled is None else self.compiled.policy.effective_limits


def enforces(explanation: PolicyExplanation, enforcer: Enforcer) -> bool:
    """Return whether an enforcer can enforce this policy; True if that is unknown."""
    return explanation.enforcers is None or enforcer.identity in explanation.enforcers


def acknowledged(explanation: PolicyExplanation, enforcer: Enforcer) -> bool | None:
    """Return whether an enforcer has acknowledged the policy as it is in Redis.

    Returns None if that is unknown, or if the process does not enforce the policy.
    """
    from engineroom.ratelimit.reconcile.decide import CurrentDocument, has_acknowledged

    if (
        explanation.head is None
        or explanation.compiled is None
        or not enforces(explanation, enforcer)
    ):
        return None
    return has_acknowledged(
        enforcer, CurrentDocument(*explanation.head), explanation.compiled.since
    )


def explanation_text(explanation: PolicyExplanation) -> RenderableType:
    """Conditions with what to do, targets, enforcers, and the bound of each limit."""
    policy, now = explanation.policy, explanation.now
    metadata, spec = policy["metadata"], policy["spec"]
    name = f"{metadata['namespace']}/{metadata['name']}"
    parts: list[RenderableType] = [
        Text.assemble((name, "bold"), "  ", word(policy_state(policy))),
        Text(f"for {attached_to(spec)}"),
        Text(),
    ]
    conditions = [condition(policy, kind) for kind in _KINDS]
    parts.append(conditions_table(conditions, now))
    fixes_now = {**_FIXES, "NoEnforcers": _NOBODY[bool(spec.get("selector"))]}
    fixes = dict.fromkeys(fixes_now.get(str(condition["reason"]), "") for condition in conditions)
    parts += [Text(f"fix: {fix}") for fix in fixes if fix]
    ancestors = (policy.get("status") or {}).get("ancestors") or ()
    if ancestors:
        parts += [Text(), _targets(ancestors)]
    parts += [Text(), _enforcing(explanation)]
    if explanation.spec_limits:
        parts += [Text(), *_bounds(explanation)]
    return Group(*parts)


def _targets(ancestors: Iterable[Document]) -> RenderableType:
    rows = []
    for ancestor in ancestors:
        reference, status = ancestor["ancestorRef"], (ancestor.get("conditions") or [{}])[0]
        place = (reference["kind"], reference["name"], reference.get("sectionName"))
        rows.append(
            (
                "/".join(part for part in place if part),
                str(status.get("reason", "")),
                str(status.get("message", "")),
            )
        )
    return table(("TARGET", "REASON", "MESSAGE"), rows)


def _enforcing(explanation: PolicyExplanation) -> RenderableType:
    roster = explanation.roster
    if roster is None:
        counts = _enforcers(explanation.policy)
        return Text(
            f"enforcers: {counts} by status; Redis was not asked: {explanation.blind}", "dim"
        )
    if not any(enforcer.live and enforces(explanation, enforcer) for enforcer in roster.enforcers):
        who = (
            "application with labels that the selector has"
            if explanation.policy["spec"].get("selector")
            else "decision service"
        )
        counts = f"enforcers: no {who} follows this namespace, so nothing is limited"
        followers = [_followers(explanation, roster)] if roster.enforcers else []
        return Group(Text(counts, "bold red"), *followers)
    return _followers(explanation, roster)


def _followers(explanation: PolicyExplanation, roster: EnforcerRoster) -> RenderableType:
    rows = []
    for enforcer in sorted(roster.enforcers, key=lambda enforcer: enforcer.identity):
        has = acknowledged(explanation, enforcer)
        state = {True: "acknowledged", False: "not yet", None: "follows"}[has]
        if not enforces(explanation, enforcer):
            state = "enforces others"
        elif not enforcer.live:
            state = f"lost, {state}"
        acknowledgement = enforcer.acknowledgement
        rows.append(
            (
                enforcer.identity,
                acknowledgement.role if acknowledgement is not None else ABSENT,
                Text(state, "yellow" if has is False else ""),
                f"{enforcer.silent:.1f}s ago",
                "its acknowledgement cannot be read"
                if acknowledgement is None
                else acknowledgement.problem,
            )
        )
    return table(("ENFORCER", "ROLE", "STATE", "HEARD OF", "TROUBLE"), rows)


def _bounds(explanation: PolicyExplanation) -> list[RenderableType]:
    compiled = explanation.compiled
    if compiled is None:
        return []
    policy = compiled.policy
    rows = [
        (
            limit.name,
            limit.algorithm.value,
            limit.mode.value,
            bound_text(policy, limit),
            " ".join(type(source).__name__ for source in limit.key) or "all requests",
        )
        for limit in explanation.spec_limits
    ]
    mode = policy.distribution.mode.value
    return [
        table(("LIMIT", "ALGORITHM", "MODE", f"AT MOST ({mode.upper()})", "COUNTED BY"), rows),
        Text(f"while Redis does not decide: {without_redis_text(policy)}"),
    ]


def explanation_document(explanation: PolicyExplanation) -> dict[str, Any]:
    """The same for programs."""
    policy, compiled, roster = explanation.policy, explanation.compiled, explanation.roster
    return {
        "namespace": policy["metadata"]["namespace"],
        "name": policy["metadata"]["name"],
        "state": policy_state(policy),
        "conditions": [condition(policy, kind) for kind in (*_KINDS, "Ready")],
        "ancestors": (policy.get("status") or {}).get("ancestors") or [],
        "redis": explanation.blind or "asked",
        "enforcers": None
        if roster is None
        else [
            {
                "name": enforcer.identity,
                "role": None
                if enforcer.acknowledgement is None
                else enforcer.acknowledgement.role,
                "enforces": enforces(explanation, enforcer),
                "live": enforcer.live,
                "acknowledged": acknowledged(explanation, enforcer),
                "silentSeconds": round(enforcer.silent, 3),
                "trouble": None
                if enforcer.acknowledgement is None
                else enforcer.acknowledgement.problem,
            }
            for enforcer in sorted(roster.enforcers, key=lambda enforcer: enforcer.identity)
        ],
        "distribution": None if compiled is None else compiled.policy.distribution.mode.value,
        "limits": [
            {
                "limit": limit.name,
                "mode": limit.mode.value,
                "bound": bound_text(compiled.policy, limit),
            }
            for limit in explanation.spec_limits
            if compiled is not None
        ],
    }  # fmt: skip
