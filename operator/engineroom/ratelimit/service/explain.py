"""Explanation of a decision: the limits that apply, their keys, and what is left of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engineroom.ratelimit.limits.decision import Decision
from engineroom.ratelimit.limits.model import MissingKey, Mode
from engineroom.ratelimit.limits.sources import NOT_APPLIED, Applicability, subject_of
from engineroom.ratelimit.service.top import redacted

if TYPE_CHECKING:
    from engineroom.ratelimit.limits.limiter import AsyncLimiter
    from engineroom.ratelimit.limits.model import Limit, Policy
    from engineroom.ratelimit.limits.request import RequestView


async def explain(
    policy: Policy, limiter: AsyncLimiter, view: RequestView, cost: int
) -> dict[str, object]:
    """Return for each limit whether it applies, its key with digests of secrets, and what is left.

    ``allowed`` is whether a request of ``cost`` would be admitted now. Nothing is consumed. Each
    limit is read by itself, so that other requests may be decided in between.
    """
    subject = subject_of(policy, view)
    limits: list[dict[str, object]] = []
    allowed = True
    for limit in policy.effective_limits:
        value = subject.get(limit.name, NOT_APPLIED)
        if isinstance(value, Applicability):
            if limit in policy.limits:
                limits.append({"limit": limit.name, "applies": False})
            continue
        explanation, admits = await _explain_limit(policy, limiter, limit, value, view, cost)
        limits.append(explanation)
        allowed = allowed and (admits or limit.mode is Mode.SHADOW)
    return {"policy": policy.name, "allowed": allowed, "limits": limits}


async def _explain_limit(
    policy: Policy,
    limiter: AsyncLimiter,
    limit: Limit,
    value: str | None,
    view: RequestView,
    cost: int,
) -> tuple[dict[str, object], bool]:
    explanation: dict[str, object] = {
        "limit": limit.name,
        "applies": True,
        "mode": limit.mode.value,
        "algorithm": limit.algorithm.value,
        "key": [redacted(source, source(view)) for source in limit.key],
    }
    if value is None and limit.missing_key is not MissingKey.SHARED:
        denied = limit.missing_key is MissingKey.DENY
        return {**explanation, "applies": denied, "missing": limit.missing_key.value}, not denied
    hidden = {other.name: NOT_APPLIED for other in policy.limits}
    pending = limiter.submit({**hidden, limit.name: value}, 0)
    decision = pending if isinstance(pending, Decision) else await pending
    needed = cost * limit.cost
    explanation |= {
        "quota": decision.quota,
        "remaining": decision.remaining,
        "needed": needed,
        "reset": decision.reset,
        "source": decision.source.value,
    }
    return explanation, decision.remaining >= needed
