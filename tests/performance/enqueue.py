"""Enqueueing against plain RQ, in turns of one run: one at a time, and many."""

from __future__ import annotations

import argparse
import statistics
import time
from typing import TYPE_CHECKING

from redis import Redis
from rq import Queue

from engineroom.tasks import Task, Tasks
from tests.performance.outcome import Goal, outcome
from tests.support import redis_server

if TYPE_CHECKING:
    from collections.abc import Callable

FUNCTION = "tests.integration.tasks.work.add"
REASONS = {
    "*_us": "the ratios of the same run decide",
    "batched_ratio_to_rq_many": "beside RQ's own batch; the promise is beside single enqueues",
}
GOALS = (
    Goal("single_ratio", 1.0, at_least=True),
    Goal("batched_ratio", 5.0, at_least=True),
)


def main() -> int:
    """Print microseconds a job and the ratios: how many times as fast as plain RQ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=3000, help="jobs of each way in each round")
    parser.add_argument("--rounds", type=int, default=5)
    wanted = parser.parse_args()
    jobs = range(wanted.jobs)
    taken: dict[str, list[float]] = {}
    with redis_server() as server, Redis(port=server.port) as redis:
        queue, tasks = Queue(connection=redis), Tasks(redis)

        def one_by_rq() -> None:
            for number in jobs:
                queue.enqueue(FUNCTION, number)

        def many_by_rq() -> None:
            queue.enqueue_many([Queue.prepare_data(FUNCTION, (number,)) for number in jobs])

        def one() -> None:
            for number in jobs:
                tasks.enqueue(FUNCTION, number)

        def many() -> None:
            tasks.enqueue_many(Task(FUNCTION, (number,)) for number in jobs)

        ways: tuple[Callable[[], None], ...] = (one_by_rq, one, many_by_rq, many)
        for _ in range(wanted.rounds):
            for way in ways:
                redis.flushall()
                began = time.perf_counter()
                way()
                spent = (time.perf_counter() - began) / wanted.jobs * 1e6
                taken.setdefault(way.__name__, []).append(spent)
    median = {name: statistics.median(times) for name, times in taken.items()}
    figures = {f"{name}_us": round(time_us, 1) for name, time_us in median.items()}
    figures["single_ratio"] = round(median["one_by_rq"] / median["one"], 2)
    figures["batched_ratio"] = round(median["one_by_rq"] / median["many"], 2)
    figures["batched_ratio_to_rq_many"] = round(median["many_by_rq"] / median["many"], 2)
    return outcome("enqueue", figures, GOALS, REASONS)
