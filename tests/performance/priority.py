"""Urgent and other jobs in one queue: who begins first, and who waits longer than is promised.

Jobs of all priorities come while several workers work, on a clock that runs fast enough for ageing
to show: what was enqueued at the beginning is in the end too old to be overtaken. A job is inverted
when one that should have gone before it had come, and began later. How late a job may have come
that went before another is the bound. Both go by the order of the jobs' beginnings; what workers
take within a moment of each other may begin in another order, so neighbours of ``slack`` places are
not compared. Then what one urgent job costs Redis in a long queue.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redis import Redis

from engineroom.core.clock import FakeClock
from engineroom.queue import priority as queue_priority
from engineroom.tasks import Task, Tasks
from tests.performance.outcome import Goal, outcome, percentile
from tests.support import ROOT, RedisServer, redis_server

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

JOBS, WORKERS, BACKLOG, SPEED = 10_000, 4, 2000, 300.0
GOALS = (
    Goal("lost_or_doubled", 0),
    Goal("inversions", 0),
    Goal("bound_broken", 0),
    Goal("urgent_wait_share", 0.5),
    Goal("place_100k_ms", 5.0, floor="floor_place_ms"),
    Goal("place_1m_ms", 5.0, floor="floor_place_ms"),
)
REASONS = {
    "jobs": "the size of the run",
    "workers": "the size of the run",
    "slack": "the size of the run",
    "seconds": "the length of the run",
    "jobs_a_second": "the workers' start is in it; worker_overhead measures the worker",
    "enqueue_urgent_*": "beside busy workers; the promise is the time that Redis is blocked",
    "urgent_wait_s": "urgent_wait_share decides",
    "plain_wait_s": "urgent_wait_share decides",
    "overtaken": "allowed up to the bound; bound_broken decides",
    "latest_overtaker_s": "allowed up to bound_s; bound_broken decides",
    "bound_s": "a constant of the design",
}
_JOBS = "def noop():\n    return None\n"


class FastClock:
    """Begins now and runs ``speed`` times as fast."""

    def __init__(self, speed: float) -> None:
        self._begin, self._speed = datetime.now(UTC), speed

    def now(self) -> datetime:
        """The time on it."""
        return self._begin + (datetime.now(UTC) - self._begin) * self._speed

    def monotonic(self) -> float:
        """As the machine's."""
        return time.monotonic()


@dataclass(frozen=True)
class Run:
    """One job: when it came by the machine's clock and by the fast one, and when it began."""

    priority: int
    real: float
    came: float
    began: float

    @property
    def counts_as(self) -> float:
        """The time at which it counts as come."""
        return self.came - queue_priority.SECONDS * self.priority


def main() -> int:
    """Run the benchmark and print its line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=JOBS)
    parser.add_argument("--workers", type=int, default=WORKERS)
    parser.add_argument("--slack", type=int, help="default: 10 for each worker")
    parser.add_argument("--stock", action="store_true", help="with RQ's own workers")
    chosen = parser.parse_args()
    slack = chosen.slack or 10 * chosen.workers
    with redis_server() as server, tempfile.TemporaryDirectory() as directory:
        Path(directory, "priority_jobs.py").write_text(_JOBS)
        with contextlib.closing(Redis(port=server.port)) as redis:
            with _workers(chosen, server, directory):
                runs, extra = _mixed(redis, chosen)
            figures = {**extra, **_judged(runs, slack)}
            for name, count in (("100k", 100_000), ("1m", 1_000_000)):
                figures[f"place_{name}_ms"] = _place(redis, count)
            # The same script where all the queue is young: it looks at as many jobs.
            figures["floor_place_ms"] = _place(redis, 0)
    figures |= {"jobs": chosen.jobs, "workers": chosen.workers, "slack": slack}
    return outcome("priority", figures, GOALS, REASONS)


def _mixed(redis: Redis, chosen: argparse.Namespace) -> tuple[list[Run], dict[str, Any]]:
    tasks = Tasks(redis, clock=FastClock(SPEED))
    dice = random.Random(7)  # the same jobs in every run
    came: dict[str, tuple[int, float]] = {}
    single: list[float] = []
    began = time.monotonic()
    while len(came) < chosen.jobs:
        if redis.llen("rq:queue:default") >= BACKLOG:
            time.sleep(0.005)
            continue
        count = min(50, chosen.jobs - len(came))
        priorities = [dice.choice((0, 0, 0, 0, 0, 0, 0, 4, 4, 9)) for _ in range(count)]
        batch = [Task("priority_jobs.noop", priority=each, timeout=60) for each in priorities]
        for priority, done in zip(priorities, tasks.enqueue_many(batch), strict=True):
            came[done.job_id] = priority, time.time()
        at = time.perf_counter()
        done = tasks.enqueue(Task("priority_jobs.noop", priority=9, timeout=60))
        single.append((time.perf_counter() - at) * 1000)
        came[done.job_id] = 9, time.time()
    deadline = time.monotonic() + 300
    while redis.zcard("rq:finished:default") < len(came):
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    seconds = time.monotonic() - began
    finished = int(redis.zcard("rq:finished:default"))
    totals = {key: int(value) for key, value in redis.hgetall("engineroom:stats:default").items()}
    runs_booked = totals.get(b"finished", finished)
    with redis.pipeline(transaction=False) as pipeline:
        for job in came:
            pipeline.hmget(f"rq:job:{job}", "enqueued_at", "started_at")
        rows = pipeline.execute()
    runs = [
        Run(priority, real, _seconds(row[0]), _seconds(row[1]))
        for (priority, real), row in zip(came.values(), rows, strict=True)
        if row[1]
    ]
    return runs, {
        "seconds": round(seconds, 1),
        "jobs_a_second": round(len(came) / seconds),
        "lost_or_doubled": len(came) - finished + abs(runs_booked - len(came)),
        "enqueue_urgent_p50_ms": round(statistics.median(single), 2),
        "enqueue_urgent_p99_ms": round(percentile(single, 0.99), 2),
    }


def _judged(runs: Sequence[Run], slack: int) -> dict[str, Any]:
    ordered = sorted(runs, key=lambda run: run.began)
    waits = {
        priority: statistics.mean(
            run.began - run.real for run in ordered if run.priority == priority
        )
        for priority in (0, 9)
    }
    return {
        "inversions": _inversions(ordered, slack),
        **_bound(ordered, slack),
        "urgent_wait_s": round(waits[9], 2),
        "plain_wait_s": round(waits[0], 2),
        "urgent_wait_share": round(waits[9] / waits[0], 3),
    }


def _inversions(ordered: Sequence[Run], slack: int) -> int:
    """Jobs that began while one that counts as come before was there, and began later."""
    place = {id(run): at for at, run in enumerate(ordered)}
    coming = sorted(ordered, key=lambda run: run.real, reverse=True)
    there: list[tuple[float, int]] = []
    inverted = 0
    for at, run in enumerate(ordered):
        while coming and coming[-1].real < run.began - 0.1:
            one = coming.pop()
            heapq.heappush(there, (one.counts_as, place[id(one)]))
        while there and there[0][1] <= at + slack:
            heapq.heappop(there)
        inverted += bool(there) and there[0][0] < run.counts_as
    return inverted


def _bound(ordered: Sequence[Run], slack: int) -> dict[str, Any]:
    """By how much later those came, at most, that began before a job (seconds of its clock)."""
    latest, broken, furthest, overtaken = float("-inf"), 0, 0.0, 0
    for at, run in enumerate(ordered):
        if at >= slack:
            latest = max(latest, ordered[at - slack].came)
        later = latest - run.came
        overtaken += later > 0
        furthest = max(furthest, later)
        broken += later > queue_priority.SECONDS * (queue_priority.MAX_PRIORITY - run.priority)
    return {
        "overtaken": overtaken,
        "bound_s": queue_priority.MAX_BOOST,
        "latest_overtaker_s": round(furthest),
        "bound_broken": broken,
    }


def _place(redis: Redis, count: int) -> float:
    """What Redis spends on one urgent job behind ``count`` too old to be overtaken (ms)."""
    redis.flushall()
    clock = FakeClock(datetime.now(UTC))
    old = (clock.now() - timedelta(seconds=2 * queue_priority.MAX_BOOST)).strftime(
        "%Y-%m-%dT%H:%M:%S.%fZ"
    )
    for start in range(0, count, 10_000):
        with redis.pipeline(transaction=False) as pipeline:
            ids = [f"00000000-0000-4000-8000-{at:012}" for at in range(start, start + 10_000)]
            pipeline.rpush("rq:queue:default", *ids)
            for each in ids:
                pipeline.hset(f"rq:job:{each}", "enqueued_at", old)
            pipeline.execute()
    tasks = Tasks(redis, clock=clock)
    tasks.enqueue_many([Task("priority_jobs.noop")] * 20_000)
    spent: list[float] = []
    for _ in range(9):
        redis.config_resetstat()
        tasks.enqueue(Task("priority_jobs.noop", priority=9))
        stats = redis.info("commandstats")
        calls = [
            stats[name]["usec"] for name in ("cmdstat_evalsha", "cmdstat_eval") if name in stats
        ]
        spent.append(sum(calls) / 1000)
    return round(statistics.median(spent), 2)


@contextlib.contextmanager
def _workers(chosen: argparse.Namespace, server: RedisServer, directory: str) -> Iterator[None]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "operator"), directory]),
        "PYTHONWARNINGS": "ignore",
        "ENGINEROOM_REDIS_URL": server.url,
        "ENGINEROOM_POOL": "bench/pool",
        "ENGINEROOM_POD_NAME": "pod",
        "ENGINEROOM_QUEUES": json.dumps([{"name": "default"}]),
        "ENGINEROOM_WORKERS": str(chosen.workers),
        "ENGINEROOM_METRICS_PORT": "0",
        "ENGINEROOM_LOG_LEVEL": "WARNING",
    }
    ours = [sys.executable, "-m", "engineroom_worker"]
    stock = [sys.executable, "-m", "rq.cli", "worker", "--url", server.url, "--quiet"]
    commands = [stock] * chosen.workers if chosen.stock else [ours]
    processes = [subprocess.Popen(command, env=environment) for command in commands]
    try:
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait(30)


def _seconds(stamp: bytes) -> float:
    return datetime.fromisoformat(stamp.decode()).timestamp()
