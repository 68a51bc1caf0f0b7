"""Counts the example application's orders from the records that its jobs write to Redis."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rq import Queue, Retry
from rq.registry import FailedJobRegistry, StartedJobRegistry

if TYPE_CHECKING:
    from collections.abc import Sequence

    import redis


PAGES = ("enqueued", "started", "finished")


@dataclass(frozen=True)
class Account:
    """The outcome of one series of orders."""

    enqueued: int
    started: int
    finished: int
    #: Orders that no job finished.
    lost: tuple[str, ...]
    #: Orders that were finished more than once.
    doubled: tuple[str, ...]
    #: Jobs that began and did not come to their end, whether or not they were run again.
    killed: tuple[str, ...]
    first_wait: float | None
    longest_wait: float | None
    seconds: float | None

    @property
    def clean(self) -> bool:
        """True if every order was done exactly once."""
        return not self.lost and not self.doubled and not self.killed


def account(client: redis.Redis, book: str) -> Account:
    """Read the records of a series. Orders that still wait or run count as lost, so read it at the
    end.
    """
    with client.pipeline(transaction=True) as pipe:
        for page in PAGES:
            pipe.hgetall(f"shop:{book}:{page}")
        enqueued, started, finished = [
            {key.decode(): float(value) for key, value in page.items()} for page in pipe.execute()
        ]
    times = Counter(_order(line) for line in finished)
    waits = [
        at - enqueued[_order(line)] for line, at in started.items() if _order(line) in enqueued
    ]
    return Account(
        enqueued=len(enqueued),
        started=len({_order(line) for line in started}),
        finished=len(times),
        lost=tuple(sorted(enqueued.keys() - times.keys())),
        doubled=tuple(sorted(order for order, count in times.items() if count > 1)),
        killed=tuple(sorted(_order(line) for line in started.keys() - finished.keys())),
        first_wait=min(waits, default=None),
        longest_wait=max(waits, default=None),
        seconds=max(finished.values()) - min(enqueued.values()) if finished and enqueued else None,
    )


def _order(line: str) -> str:
    return line.partition("/")[0]


def enqueue(
    client: redis.Redis,
    book: str,
    durations: Sequence[float],
    *,
    queue: str = "orders",
    first: int = 0,
    job: str = "fulfil",
    timeout: int = 600,
    retry: Retry | None = None,
) -> list[str]:
    """Enqueue orders as the application does, without its code; return the job ids."""
    rq_queue = Queue(queue, connection=client)
    seconds, microseconds = client.time()
    came = f"{seconds}.{microseconds:06d}"
    orders = [f"{first + number:05d}" for number in range(len(durations))]
    with client.pipeline() as pipe:
        pipe.hset(f"shop:{book}:enqueued", mapping=dict.fromkeys(orders, came))
        jobs = rq_queue.enqueue_many(
            [
                Queue.prepare_data(
                    f"shop.jobs.{job}", (book, order, duration), timeout=timeout, retry=retry
                )
                for order, duration in zip(orders, durations, strict=True)
            ],
            pipeline=pipe,
        )
        pipe.execute()
    return [str(job.id) for job in jobs]


def waiting(client: redis.Redis, queue: str = "orders") -> int:
    """Count the jobs in the queue, and those dequeued but not yet started."""
    return int(client.llen(f"rq:queue:{queue}")) + int(
        client.llen(f"rq:queue:{queue}:intermediate")
    )


def running(client: redis.Redis, queue: str = "orders") -> int:
    """Count the running jobs in RQ's registry."""
    # Not by .count, which cleans up: this looks on and must not help.
    return int(client.zcard(StartedJobRegistry(queue, connection=client).key))


def failed(client: redis.Redis, queue: str = "orders") -> int:
    """Count the failed jobs in RQ's registry."""
    return int(client.zcard(FailedJobRegistry(queue, connection=client).key))


def finished(client: redis.Redis, book: str) -> int:
    """Count the finished orders."""
    return int(client.hlen(f"shop:{book}:finished"))


def forget(client: redis.Redis, book: str) -> None:
    """Delete the records of a series."""
    client.delete(*(f"shop:{book}:{page}" for page in PAGES))
