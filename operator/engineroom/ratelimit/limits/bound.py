"""The upper bound of what a limit admits, as text."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

from engineroom.ratelimit.limits.model import Algorithm, FailureMode

if TYPE_CHECKING:
    from engineroom.ratelimit.limits.model import Limit, Policy

_WITHOUT_REDIS = {
    FailureMode.LOCAL: "each enforcer admits its share of the rate, at least one request",
    FailureMode.OPEN: "every request is admitted",
    FailureMode.CLOSED: "every request is refused with 503",
}


def leased_ahead(policy: Policy, limit: Limit) -> Fraction:
    """Return the tokens that leases may add to the bound: min(L, rate * TTL); 0 without leases."""
    if not policy.leased or limit.algorithm is not Algorithm.TOKEN_BUCKET:
        return Fraction(0)
    distribution = policy.distribution
    lease_us = Fraction(str(float(distribution.lease_ttl))) * 1_000_000
    return min(Fraction(distribution.max_leased(limit.burst)), lease_us / limit.rate.interval_us)


def bound_text(policy: Policy, limit: Limit) -> str:
    """Return the most that any window admits while Redis decides."""
    requests, period = limit.rate.requests, f"{limit.rate.period_us / 1_000_000:g} s"
    if limit.algorithm is Algorithm.SLIDING_WINDOW:
        return f"{requests} in any {period}"
    if limit.algorithm is Algorithm.FIXED_WINDOW:
        return f"{requests} from tick to tick, {2 * requests} in any {period}"
    ahead = leased_ahead(policy, limit)
    leased = f" + {float(ahead):.4g} leased" if ahead else ""
    return f"{limit.burst} + {requests} every {period}{leased}"


def without_redis_text(policy: Policy) -> str:
    """Return what happens while Redis does not decide."""
    return _WITHOUT_REDIS[policy.failure.mode]
