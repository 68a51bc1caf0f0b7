"""Which limits of a policy a request meets, by what it counts, and what is left: takes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engineroom.ratelimit.limits.decision import Decision
from engineroom.ratelimit.limits.model import MissingKey, Mode
from engineroom.ratelimit.limits.sources import NOT_APPLIED, Applicability, subject_of
from engineroom.ratelimit.service.top import shown

if TYPE_CHECKING:
    from engineroom.ratelimit.limits.limiter import AsyncLimiter
    from engineroom.ratelimit.limits.model import Limit, Policy
    from engineroom.ratelimit.limits.request import RequestView


async def explain(
    policy: Policy, limiter: AsyncLimiter, view: RequestView, cost: int
) -> dict[str, object]:
    """For each limit whether it applies, its key with secrets as digests, and what is left.

    ``allowed`` says whether a request of ``cost`` would be admitted now. Each limit is asked by
    itself, so other requests may come in between.
    """
    subject = subject_of(policy, view)
    limits: list[dict[str, object]] = []
    allowed = True
    for place in policy.effective_limits:
        value = subject.get(place.name, NOT_APPLIED)
        if isinstance(value, Applicability):
            if place in policy.limits:
                limits.append({"limit": place.name, "applies": False})
            continue
        told, admits = await _one(policy, limiter, place, value, view, cost)
        limits.append(told)
        allowed = allowed and (admits or place.mode is Mode.SHADOW)
    return {"policy": policy.name, "allowed": allowed, "limits": limits}


async def _one(
    policy: Policy,
    limiter: AsyncLimiter,
    limit: Limit,
    value: str | None,
    view: RequestView,
    cost: int,
) -> tuple[dict[str, object], bool]:
    told: dict[str, object] = {
        "limit": limit.name,
        "applies": True,
        "mode": limit.mode.value,
        "algorithm": limit.algorithm.value,
        "key": [shown(source, source(view)) for source in limit.key],
    }
    if value is None and limit.missing_key is not MissingKey.SHARED:
        denied = limit.missing_key is MissingKey.DENY
        return {**told, "applies": denied, "missing": limit.missing_key.value}, not denied
    alone = {each.name: NOT_APPLIED for each in policy.limits}
    answer = limiter.submit({**alone, limit.name: value}, 0)
    decision = answer if isinstance(answer, Decision) else await answer
    needed = cost * limit.cost
    told |= {
        "quota": decision.quota,
        "remaining": decision.remaining,
        "needed": needed,
        "reset": decision.reset,
        "source": decision.source.value,
    }
    return told, decision.remaining >= needed
