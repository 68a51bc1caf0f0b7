"""One policy with all that can make a limit apply or not, and requests with what comes of them."""

from __future__ import annotations

import functools
import os
from typing import NamedTuple

import redis

from engineroom.ratelimit.limits.decorators import limited_job
from engineroom.ratelimit.limits.limiter import Limiter
from engineroom.ratelimit.limits.matching import Condition, Operator
from engineroom.ratelimit.limits.model import Failure, Limit, Mode, Policy, Rate, Tier
from engineroom.ratelimit.limits.request import RequestView
from engineroom.ratelimit.limits.sources import ClientIP, Header, Path, subject_of

GOLD = Tier("gold", (Condition(Header("X-Plan"), values=("gold",)),), Rate(4, 3600))
POLICY = Policy(
    "shop/doors",
    (
        Limit(
            "per-key",
            Rate(2, 3600),
            key=(Header("X-Api-Key"),),
            when=(Condition(Path(), Operator.STARTS_WITH, ("/api/",)),),
            exempt=((Condition(ClientIP(), Operator.IN_NETWORK, ("10.0.0.0/8",)),),),
            tiers=(GOLD,),
        ),
        Limit("tried", Rate(1, 3600), mode=Mode.SHADOW),
    ),
    Failure(timeout=2.0),
)


class Step(NamedTuple):
    """So many equal requests, and how many of them are admitted."""

    path: str
    key: str
    plan: str
    peer: str
    times: int
    admitted: int


STEPS = (
    Step("/api/x", "a", "", "192.0.2.1", 4, 2),
    Step("/api/x", "a", "gold", "192.0.2.1", 6, 4),
    Step("/other", "a", "", "192.0.2.1", 4, 4),
    Step("/api/x", "a", "", "10.1.2.3", 4, 4),
    Step("/api/x", "b", "", "192.0.2.1", 3, 2),
)


def view_of(step: Step, door: str) -> RequestView:
    """The request of a step; each door has keys of its own."""
    return RequestView("GET", step.path, "", headers_of(step, door), step.peer)


def headers_of(step: Step, door: str) -> dict[str, str]:
    """Its headers, in lower case."""
    headers = {"x-api-key": f"{step.key}-{door}"}
    return headers | ({"x-plan": step.plan} if step.plan else {})


@functools.cache
def limiter() -> Limiter:
    """Of the process that works."""
    return Limiter(POLICY, redis.Redis.from_url(os.environ["LIMITED_JOBS_REDIS"]))


@limited_job(limiter, lambda step, door: subject_of(POLICY, view_of(Step(*step), door)))
def job(step: tuple[str, str, str, str, int, int], door: str) -> str:
    """Does nothing."""
    return f"{door} {step[0]}"
