"""The shop's jobs.

Each job writes down in Redis that it began and that it finished. By those books the demonstration,
the end-to-end tests and the safety benchmark count what was lost, doubled or killed: they ask
neither RQ nor Engineroom.
"""

from __future__ import annotations

import time

from rq import get_current_job


def fulfil(book: str, order: str, seconds: float) -> str:
    """Work `seconds` on an order; `book` names the set of orders that are counted together."""
    job = get_current_job()
    if job is None:
        raise RuntimeError("fulfil runs as an RQ job only: enqueue it")
    redis = job.connection
    began = _now(redis)
    with redis.pipeline() as pipe:
        pipe.hincrby(f"shop:{book}:started", order, 1)
        pipe.hsetnx(f"shop:{book}:began", order, began)
        pipe.execute()
    time.sleep(seconds)
    with redis.pipeline() as pipe:
        pipe.hincrby(f"shop:{book}:finished", order, 1)
        pipe.hset(f"shop:{book}:ended", order, _now(redis))
        pipe.execute()
    return order


def burn(book: str, order: str, seconds: float) -> str:
    """As `fulfil`, on the processor: what a job costs that computes."""
    until = time.process_time() + seconds
    while time.process_time() < until:
        sum(range(1000))
    return fulfil(book, order, 0)


def _now(redis) -> str:  # type: ignore[no-untyped-def]  # redis-py's own types are not in every image
    """Redis' clock, the only one that all pods share; seconds."""
    seconds, microseconds = redis.time()
    return f"{seconds}.{microseconds:06d}"
