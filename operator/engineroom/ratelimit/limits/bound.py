"""The most that a limit admits, in words with its numbers: pure."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

from engineroom.ratelimit.limits.model import Algorithm, FailureMode

if TYPE_CHECKING:
    from engineroom.ratelimit.limits.model import Limit, Policy

_WITHOUT_REDIS = {
    FailureMode.LOCAL: "each enforcer admits its share of it, at least one request",
    FailureMode.OPEN: "everything is admitted",
    FailureMode.CLOSED: "everything is refused with 503",
}


def leased_ahead(policy: Policy, limit: Limit) -> Fraction:
    """Tokens that leases may add to the bound: min(L, rate * TTL); 0 when nothing is leased."""
    if not policy.leased or limit.algorithm is not Algorithm.TOKEN_BUCKET:
        return Fraction(0)
    distribution = policy.distribution
    while_it_lasts = Fraction(str(float(distribution.lease_ttl))) * 1_000_000
    return min(
        Fraction(distribution.most_leased(limit.burst)), while_it_lasts / limit.rate.interval_us
    )


def bound_text(policy: Policy, limit: Limit) -> str:
    """What any window admits at most while Redis decides."""
    requests, period = limit.rate.requests, f"{limit.rate.period_us / 1_000_000:g} s"
    if limit.algorithm is Algorithm.SLIDING_WINDOW:
        return f"{requests} in any {period}"
    if limit.algorithm is Algorithm.FIXED_WINDOW:
        return f"{requests} from tick to tick, {2 * requests} in any {period}"
    ahead = leased_ahead(policy, limit)
    leased = f" + {float(ahead):.4g} leased" if ahead else ""
    return f"{limit.burst} + {requests} every {period}{leased}"


def without_redis_text(policy: Policy) -> str:
    """What happens while Redis does not decide."""
    return _WITHOUT_REDIS[policy.failure.mode]
