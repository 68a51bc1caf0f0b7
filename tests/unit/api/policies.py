"""RateLimitPolicies as people write them, and what is wrong with some."""

from __future__ import annotations

import copy
from typing import Any

from tests.unit.api.specs import put

GOLD = {"source": "JWTClaim", "name": "plan", "values": ["gold"]}
#: One that uses every field.
FULL: dict[str, Any] = {
    "targetRefs": [
        {"kind": "HTTPRoute", "name": "shop", "sectionName": "api"},
        {"group": "", "kind": "Service", "name": "shop"},
    ],
    "limits": [
        {
            "name": "per-user",
            "rate": {"requests": 100, "period": "1m"},
            "burst": 20,
            "algorithm": "TokenBucket",
            "key": [
                {"source": "ClientIP", "ipv6Prefix": 56},
                {"source": "APIKey", "name": "Authorization"},
            ],
            "missingKey": "Deny",
            "when": [{"source": "Path", "operator": "StartsWith", "values": ["/api/"]}],
            "cost": {"request": 2, "response": {"header": "X-Cost"}},
            "mode": "Enforce",
            "tiers": [
                {
                    "name": "gold",
                    "match": [GOLD],
                    "rate": {"requests": 1000, "period": "1m"},
                    "burst": 200,
                }
            ],
            "exempt": [
                {
                    "match": [
                        {
                            "source": "ClientIP",
                            "operator": "InNetwork",
                            "values": ["10.0.0.0/8", "2001:db8::/32"],
                        }
                    ]
                }
            ],
        },
        {"name": "all", "rate": {"requests": 5, "period": "1ms"}},
    ],
    "distribution": {"mode": "Leased", "maxLeaseFraction": "0.5", "leaseTTL": "250ms"},
    "failure": {
        "mode": "Closed",
        "timeout": "50ms",
        "breaker": {"failures": 3, "pause": "2s"},
    },
    "response": {"status": 503, "headers": "XRateLimit"},
    "trustedProxyHops": 1,
    "redis": {"urlSecretRef": {"name": "redis", "key": "url"}},
}


def policy(changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """A small valid policy with ``changes`` by path; None takes a field away."""
    made: dict[str, Any] = {
        "apiVersion": "engineroom.dev/v1alpha1",
        "kind": "RateLimitPolicy",
        "metadata": {"name": "api", "namespace": "shop"},
        "spec": {
            "targetRefs": [{"kind": "Service", "name": "shop"}],
            "limits": [
                {
                    "name": "all",
                    "rate": {"requests": 10, "period": "1s"},
                    "key": [{"source": "ClientIP"}],
                }
            ],
        },
    }
    for path, value in (changes or {}).items():
        put(made, path, copy.deepcopy(value))
    return made


LIMIT = "spec.limits[0]"
MANY = [{"name": f"l{n}", "rate": {"requests": 1, "period": "1s"}} for n in range(65)]
#: By name: changes, and the problems that they make.
WRONG: dict[str, tuple[dict[str, Any], list[str]]] = {
    "rate-zero": (
        {f"{LIMIT}.rate.requests": 0},
        [f"{LIMIT}.rate.requests: 0 is less than 1; write a number from 1 to 1000000000"],
    ),
    "rate-negative": (
        {f"{LIMIT}.rate.requests": -5},
        [f"{LIMIT}.rate.requests: -5 is less than 1; write a number from 1 to 1000000000"],
    ),
    "period-zero": (
        {f"{LIMIT}.rate.period": "0ms"},
        [f'{LIMIT}.rate.period: "0ms" is zero; write 1ms or more, such as 1s'],
    ),
    "period-microseconds": (
        {f"{LIMIT}.rate.period": "100us"},
        [
            (
                f'{LIMIT}.rate.period: "100us" is not a duration; write a number and its unit (ms, '
                "s, m, h or d), such as 30s or 1h30m"
            )
        ],
    ),
    "period-too-long": (
        {f"{LIMIT}.rate.period": "367d"},
        [f'{LIMIT}.rate.period: "367d" is longer than 366 days; write 366d or less'],
    ),
    "rate-rounds-to-zero": (
        {f"{LIMIT}.rate": {"requests": 2000, "period": "1ms"}},
        [
            (
                f"{LIMIT}.rate: 2000 in 1ms is more than one a microsecond; ask for at most "
                "1,000,000 a second"
            )
        ],
    ),
    "burst-below-cost": (
        {f"{LIMIT}.burst": 3, f"{LIMIT}.cost": {"request": 4}},
        [
            (
                f"{LIMIT}.burst: 3 is below cost.request 4, so every request would be refused; "
                "write at least 4"
            )
        ],
    ),
    "requests-below-cost": (
        {f"{LIMIT}.cost": {"request": 11}},
        [
            (
                f"{LIMIT}.rate.requests: 10 is below cost.request 11, so every request would be "
                "refused; write at least 11"
            )
        ],
    ),
    "burst-takes-years": (
        {f"{LIMIT}.rate": {"requests": 1, "period": "1d"}, f"{LIMIT}.burst": 367},
        [
            (
                f"{LIMIT}.burst: 367 would take more than 366 days to come back; write a smaller "
                "burst or a higher rate"
            )
        ],
    ),
    "burst-of-a-window": (
        {f"{LIMIT}.algorithm": "SlidingWindow", f"{LIMIT}.burst": 20},
        [f"{LIMIT}.burst: SlidingWindow has no burst of its own; remove it, or use TokenBucket"],
    ),
    "source-unknown": (
        {f"{LIMIT}.key": [{"source": "ClientIp"}]},
        [
            (
                f'{LIMIT}.key[0].source: "ClientIp" is not one of Header, Query, Cookie, JWTClaim, '
                "APIKey, ClientIP, Tenant, Route, Method, Path, Constant; did you mean ClientIP?"
            )
        ],
    ),
    "source-without-name": (
        {f"{LIMIT}.key": [{"source": "Header"}]},
        [f"{LIMIT}.key[0].name: is missing; write the name that Header reads"],
    ),
    "source-with-a-name-of-none": (
        {f"{LIMIT}.key": [{"source": "Method", "name": "x"}]},
        [f"{LIMIT}.key[0].name: is set, but Method has no name; remove it"],
    ),
    "constant-without-value": (
        {f"{LIMIT}.key": [{"source": "Constant"}]},
        [f"{LIMIT}.key[0].value: is missing; write the value of the constant"],
    ),
    "field-misspelt": (
        {f"{LIMIT}.missingkey": "Skip"},
        [f"{LIMIT}.missingkey: is not a known field; did you mean missingKey?"],
    ),
    "65-limits": (
        {"spec.limits": MANY},
        ["spec.limits: has 65 items; keep at most 64 of them"],
    ),
    "no-limits": ({"spec.limits": []}, ["spec.limits: is empty; add at least one item"]),
    "limit-twice": (
        {"spec.limits": [MANY[0], MANY[0]]},
        [
            (
                'spec.limits[1].name: "l0" is already the name of spec.limits[0]; give each item a '
                "name of its own"
            )
        ],
    ),
    "target-unknown": (
        {"spec.targetRefs": [{"kind": "HttpRoute", "name": "a"}]},
        [
            (
                'spec.targetRefs[0].kind: "HttpRoute" is not one of Gateway, HTTPRoute, GRPCRoute, '
                "Service, Ingress; did you mean HTTPRoute?"
            )
        ],
    ),
    "target-group": (
        {"spec.targetRefs": [{"group": "apps", "kind": "Ingress", "name": "a"}]},
        [
            (
                'spec.targetRefs[0].group: "apps" is not the group of Ingress; write '
                "networking.k8s.io, or leave it out"
            )
        ],
    ),
    "attached-to-nothing": (
        {"spec.targetRefs": None},
        [
            (
                "spec.targetRefs: is empty, and there is no spec.selector; write what the policy "
                "is attached to, or the labels of applications that enforce it"
            )
        ],
    ),
    "attached-twice": (
        {"spec.selector": {"matchLabels": {"app": "a"}}},
        ["spec.selector: conflicts with spec.targetRefs; remove one of the two"],
    ),
    "operator-without-values": (
        {f"{LIMIT}.when": [{"source": "Path"}]},
        [f"{LIMIT}.when[0].values: In has nothing to compare with; add values"],
    ),
    "operator-with-values": (
        {f"{LIMIT}.when": [{"source": "Tenant", "operator": "Exists", "values": ["a"]}]},
        [f"{LIMIT}.when[0].values: Exists compares with nothing; remove them"],
    ),
    "network-wrong": (
        {
            f"{LIMIT}.exempt": [
                {"match": [{"source": "ClientIP", "operator": "InNetwork", "values": ["10/33"]}]}
            ]
        },
        [
            (
                f'{LIMIT}.exempt[0].match[0].values[0]: "10/33" is not a network; write it as '
                "10.0.0.0/8 or 2001:db8::/32"
            )
        ],
    ),
    "leased-window": (
        {"spec.distribution": {"mode": "Leased"}, f"{LIMIT}.algorithm": "FixedWindow"},
        [
            (
                f"{LIMIT}.algorithm: FixedWindow cannot be leased; use TokenBucket, or "
                "distribution mode Strict"
            )
        ],
    ),
    "leased-too-little": (
        {"spec.distribution": {"mode": "Leased", "maxLeaseFraction": "0.01"}},
        [
            (
                f"{LIMIT}.rate.requests: distribution.maxLeaseFraction of 10 is less than one "
                "request; raise the burst or the fraction, or use distribution mode Strict"
            )
        ],
    ),
    "fraction-above-one": (
        {"spec.distribution": {"maxLeaseFraction": "1.5"}},
        [
            (
                'spec.distribution.maxLeaseFraction: "1.5" is not a ratio above 0 and at most 1; '
                'write it with a point and in quotes, such as "0.1"'
            )
        ],
    ),
    "timeout-zero": (
        {"spec.failure": {"timeout": "0s"}},
        ['spec.failure.timeout: "0s" is zero; write 1ms or more'],
    ),
    "timeout-long": (
        {"spec.failure": {"timeout": "11s"}},
        ['spec.failure.timeout: "11s" is longer than 10s; write less'],
    ),
    "status-ok": (
        {"spec.response": {"status": 200}},
        ["spec.response.status: 200 is less than 400; write a number from 400 to 599"],
    ),
    "tier-below-cost": (
        {
            f"{LIMIT}.cost": {"request": 5},
            f"{LIMIT}.tiers": [
                {"name": "t", "match": [GOLD], "rate": {"requests": 3, "period": "1s"}}
            ],
        },
        [
            (
                f"{LIMIT}.tiers[0].rate.requests: 3 is below cost.request 5, so every request "
                "would be refused; write at least 5"
            )
        ],
    ),
    "name-with-dots": (
        {"metadata.name": "a.b"},
        [
            (
                'metadata.name: "a.b" is not a DNS label; write lower-case letters, digits and '
                "dashes, with a letter or digit at both ends"
            )
        ],
    ),
}
