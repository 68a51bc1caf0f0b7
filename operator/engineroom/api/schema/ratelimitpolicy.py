"""CEL rules and printer columns of RateLimitPolicy."""

from __future__ import annotations

from typing import Any

from engineroom.api.schema.common import CelRule, KindSchema
from engineroom.api.v1alpha1.ratelimitpolicy import RateLimitPolicySpec, RateLimitPolicyStatus

#: Sources that need a name, and that may have one.
NAMED = ("Header", "Query", "Cookie", "JWTClaim")

_NAMED = "['Header', 'Query', 'Cookie', 'JWTClaim']"
_SOURCE = (
    CelRule(
        f"!(self.source in {_NAMED}) || has(self.name)",
        "is missing; write the name of the header, parameter, cookie or claim",
        field=".name",
    ),
    CelRule(
        f"!has(self.name) || self.source in {_NAMED} || self.source == 'APIKey'",
        "is set, but this source has no name; remove it",
        field=".name",
    ),
    CelRule(
        "(self.source == 'Constant') == has(self.value)",
        "belongs to Constant, and Constant needs one; add or remove it",
        field=".value",
    ),
    CelRule(
        "!has(self.ipv6Prefix) || self.source == 'ClientIP'",
        "is set, but the source is not ClientIP; remove it",
        field=".ipv6Prefix",
    ),
)
_MATCH = (
    *_SOURCE,
    CelRule(
        "(has(self.operator) && self.operator in ['Exists', 'DoesNotExist'])"
        " ? !has(self.values) || self.values.size() == 0"
        " : has(self.values) && self.values.size() > 0",
        "does not fit the operator; Exists and DoesNotExist take none, the others at least one",
        field=".values",
    ),
    CelRule(
        "!has(self.operator) || self.operator != 'InNetwork' || self.source == 'ClientIP'",
        "InNetwork compares addresses; use it with source ClientIP",
        field=".operator",
    ),
)
_NOT_ZERO = CelRule("self.matches('[1-9]')", "is zero; write 1ms or more, such as 1s")

_RULES: dict[str, tuple[CelRule, ...]] = {
    "spec": (
        CelRule(
            "has(self.selector) != (has(self.targetRefs) && self.targetRefs.size() > 0)",
            "a policy has either targetRefs or a selector; write one of the two",
        ),
        CelRule(
            "!has(self.distribution.mode) || self.distribution.mode != 'Leased' || "
            "self.limits.all(limit, (!has(limit.algorithm) || limit.algorithm == 'TokenBucket') && "
            "(!has(limit.mode) || limit.mode == 'Enforce'))",
            "Leased needs limits of algorithm TokenBucket and mode Enforce; use Strict",
            field=".distribution.mode",
        ),
    ),
    "spec.targetRefs[]": (
        CelRule(
            "!has(self.group) || (self.kind == 'Service' ? self.group == '' : self.group == "
            "(self.kind == 'Ingress' ? 'networking.k8s.io' : 'gateway.networking.k8s.io'))",
            "is not the group of that kind; leave it out",
            field=".group",
        ),
    ),
    "spec.limits[]": (
        CelRule(
            "!has(self.burst) || !has(self.algorithm) || self.algorithm == 'TokenBucket'",
            "only a TokenBucket has a burst; remove it or use TokenBucket",
            field=".burst",
        ),
        CelRule(
            "!has(self.cost) || !has(self.cost.request) || self.cost.request <= "
            "(has(self.burst) ? self.burst : self.rate.requests)",
            "is below cost.request, so every request would be refused; raise it",
            field=".burst",
        ),
    ),
    "spec.limits[].rate.period": (_NOT_ZERO,),
    "spec.limits[].key[]": _SOURCE,
    "spec.limits[].when[]": _MATCH,
    "spec.limits[].tiers[].match[]": _MATCH,
    "spec.limits[].tiers[].rate.period": (_NOT_ZERO,),
    "spec.limits[].exempt[].match[]": _MATCH,
    "spec.distribution.leaseTTL": (_NOT_ZERO,),
    "spec.failure.timeout": (_NOT_ZERO,),
    "spec.failure.breaker.pause": (_NOT_ZERO,),
}


def _condition(kind: str) -> str:
    return f'.status.conditions[?(@.type=="{kind}")]'


_COLUMNS: tuple[dict[str, Any], ...] = (
    {
        "name": "Accepted",
        "type": "string",
        "jsonPath": f"{_condition('Accepted')}.status",
        "description": "Whether it is valid and has its targets.",
    },
    {
        "name": "Programmed",
        "type": "string",
        "jsonPath": f"{_condition('Programmed')}.status",
        "description": "Whether it is in the document that enforcers follow.",
    },
    {
        "name": "Enforced",
        "type": "string",
        "jsonPath": f"{_condition('Enforced')}.status",
        "description": "Whether every live enforcer acknowledged it.",
    },
    {
        "name": "Enforcers",
        "type": "integer",
        "jsonPath": ".status.enforcers.ready",
        "description": "Enforcers that acknowledged it.",
    },
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    {
        "name": "Live",
        "type": "integer",
        "jsonPath": ".status.enforcers.total",
        "priority": 1,
        "description": "Enforcers that are alive.",
    },
    {
        "name": "Degraded",
        "type": "string",
        "jsonPath": f"{_condition('Degraded')}.status",
        "priority": 1,
        "description": "Whether Redis did not decide in time of late.",
    },
    {
        "name": "Reason",
        "type": "string",
        "jsonPath": f"{_condition('Ready')}.reason",
        "priority": 1,
    },
    {
        "name": "Message",
        "type": "string",
        "jsonPath": f"{_condition('Ready')}.message",
        "priority": 1,
    },
)

SCHEMA = KindSchema(
    spec=RateLimitPolicySpec,
    status=RateLimitPolicyStatus,
    rules=_RULES,
    columns=_COLUMNS,
    # As the Gateway API marks policies that are attached to one object and not inherited.
    labels={"gateway.networking.k8s.io/policy": "Direct"},
)
