"""Jobs with a limit, as an application would declare them."""

from __future__ import annotations

import functools
import os

import redis

from engineroom.ratelimit.limits.decorators import limited_job
from engineroom.ratelimit.limits.limiter import Limiter
from engineroom.ratelimit.limits.model import Failure, Limit, Policy, Rate

POLICY = Policy("mail", (Limit("per-user", Rate(2, 60)),), Failure(timeout=2.0))


@functools.cache
def limiter() -> Limiter:
    return Limiter(POLICY, redis.Redis.from_url(os.environ["LIMITED_JOBS_REDIS"]))


@limited_job(limiter, lambda user: user)
def send(user: str) -> str:
    return f"sent {user}"


@limited_job(limiter, lambda user: user, cost=3)
def send_much(user: str) -> str:
    return f"sent much to {user}"
