"""The shop's jobs.

Each job writes down in Redis that it began and that it finished. By those books the demonstration,
the end-to-end tests and the safety benchmark count what was lost, doubled or killed: they ask
neither RQ nor Engineroom.
"""

from __future__ import annotations

import time
import uuid

from redis import exceptions
from rq import get_current_job


def fulfil(book: str, order: str, seconds: float) -> str:
    """Work `seconds` on an order; `book` names the set of orders that are counted together."""
    job = get_current_job()
    if job is None:
        raise RuntimeError("fulfil runs as an RQ job only: enqueue it")
    # One line for each time that somebody works on the order.
    line = f"{order}/{uuid.uuid4().hex}"
    _write(job.connection, f"shop:{book}:started", line)
    time.sleep(seconds)
    _write(job.connection, f"shop:{book}:finished", line)
    return order


def burn(book: str, order: str, seconds: float) -> str:
    """As `fulfil`, on the processor: what a job costs that computes."""
    until = time.process_time() + seconds
    while time.process_time() < until:
        sum(range(1000))
    return fulfil(book, order, 0)


def gather(book: str, order: str, mebibytes: float) -> str:
    """As `fulfil` for ten seconds, with so much memory in use: what a job costs that collects."""
    gathered = bytearray(int(mebibytes * 2**20))
    gathered[::1024] = bytes(b"." * len(gathered[::1024]))  # memory is given when it is touched
    fulfil(book, order, 10)
    return order if gathered else ""


def _write(redis, page: str, line: str) -> None:  # type: ignore[no-untyped-def]  # any redis-py
    """Write a line with Redis' time, the clock that all pods share; wait while Redis is away.

    Written twice it is the same line: an answer that was lost on its way counts nothing twice.
    """
    while True:
        try:
            seconds, microseconds = redis.time()
            redis.hsetnx(page, line, f"{seconds}.{microseconds:06d}")
            return
        except (exceptions.ConnectionError, exceptions.TimeoutError):
            time.sleep(0.5)
