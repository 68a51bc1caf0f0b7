"""Jobs that book what they do, so that lost, doubled and killed can be counted from facts."""

from __future__ import annotations

import time

from redis import Redis
from rq import get_current_job


def booked(url: str, seconds: float) -> None:
    """Count the start, work, count the end; each job under its own id."""
    job = get_current_job()
    assert job is not None
    redis = Redis.from_url(url)
    redis.hincrby("booked:started", job.id, 1)
    time.sleep(seconds)
    redis.hincrby("booked:finished", job.id, 1)
