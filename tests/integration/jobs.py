"""Jobs that book what they do, so that lost, doubled and killed can be counted from facts."""

from __future__ import annotations

import time

from redis import Redis
from redis.backoff import ConstantBackoff
from redis.exceptions import ConnectionError as RedisGone
from redis.retry import Retry
from rq import get_current_job


def booked(url: str, seconds: float) -> None:
    """Count the start, work, count the end; each job under its own id."""
    job = get_current_job()
    assert job is not None
    # The job's own books must outlive an outage of Redis, as a careful job's would.
    redis = Redis.from_url(url, retry=Retry(ConstantBackoff(0.2), 300), retry_on_error=[RedisGone])
    redis.hincrby("booked:started", job.id, 1)
    time.sleep(seconds)
    redis.hincrby("booked:finished", job.id, 1)
