"""What the runtime costs over stock RQ, with RQ 3 and RQ 2, on one queue and on several.

1,000 no-op jobs by ``engineroom_worker`` and by RQ's own Worker, in turns on one Redis, each in a
process of its own that times itself from the first look at the queue to the last job's booked end.
The ratio is the median of the ratios of neighbouring runs, so that whatever else the machine does
falls on both.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.integration.rq_versions import interpreter
from tests.performance.outcome import Figure, Goal, outcome
from tests.support import ROOT, redis_server

if TYPE_CHECKING:
    from tests.support import RedisServer

GOAL = 1.05
REASONS = {
    "jobs": "the size of the run",
    "pairs": "the size of the run",
    "*_cpu_ratio": "processor time; the promise is the time of a job",
    "*_ours_seconds": "the ratios of the same run decide",
}
#: Jobs, turns, and turns that are thrown away at the beginning.
JOBS, PAIRS, WARM_UP = 1000, 5, 1

_JOBS = "def noop():\n    return None\n"

_RUN = """
import json, logging, os, sys, time
kind, url, count, multiple = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "multiple"
import redis, rq, overhead_jobs
names = ["first", "default"] if multiple else ["default"]
from engineroom_worker.__main__ import connect
from engineroom_worker.config import Settings
settings = Settings(url, "bench/pool", "pod", tuple(names), log_level="WARNING")
# Stock RQ at its best: with redis-py 8 a client made by from_url, as `rq worker --url` does, costs
# each work horse 2 ms more.
port = int(url.split(":")[2].split("/")[0])
connection = connect(settings) if kind == "ours" else redis.Redis(host="127.0.0.1", port=port)
connection.flushall()
queue = rq.Queue("default", connection=connection)
queue.enqueue_many([rq.Queue.prepare_data(overhead_jobs.noop) for _ in range(count)])
if kind == "ours":
    from engineroom_worker.worker import PoolWorker
    worker = PoolWorker(settings, connection, "pod.0.00000000")
else:
    worker = rq.Worker(names, connection=connection)
begun, cpu = time.perf_counter(), os.times()
worker.work(burst=True, logging_level="WARNING")
took, spent = time.perf_counter() - begun, os.times()
finished = connection.zcard("rq:finished:default")
print(json.dumps({
    "seconds": took,
    "cpu": sum(spent[:4]) - sum(cpu[:4]),
    "finished": finished,
}))
"""


@dataclass(frozen=True)
class Variant:
    """An interpreter, which has its RQ, and the queues that a worker listens to."""

    rq: str
    python: str
    queues: str

    def __str__(self) -> str:
        return f"{self.rq}_{self.queues}"


def main() -> int:
    """Run the benchmark and print its line."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--jobs", type=int, default=JOBS)
    arguments.add_argument("--pairs", type=int, default=PAIRS)
    chosen = arguments.parse_args()
    variants = [
        Variant("rq3", sys.executable, "one"),
        Variant("rq3", sys.executable, "multiple"),
        Variant("rq2", interpreter("rq2"), "one"),
    ]
    figures: dict[str, Figure] = {"jobs": chosen.jobs, "pairs": chosen.pairs}
    with redis_server() as server, tempfile.TemporaryDirectory() as directory:
        Path(directory, "overhead_jobs.py").write_text(_JOBS)
        for variant in variants:
            figures |= _compare(chosen, server, directory, variant)
    goals = [Goal(f"{variant}_ratio", GOAL) for variant in variants]
    return outcome("worker_overhead", figures, goals, REASONS)


def _compare(
    chosen: argparse.Namespace, server: RedisServer, directory: str, variant: Variant
) -> dict[str, Figure]:
    pairs = []
    for turn in range(WARM_UP + chosen.pairs):
        order = ("ours", "stock") if turn % 2 else ("stock", "ours")
        run = {kind: _once(chosen.jobs, variant, server, directory, kind) for kind in order}
        stock, ours = (run[kind]["seconds"] for kind in ("stock", "ours"))
        print(f"{variant} {turn}: stock {stock:.2f} s, ours {ours:.2f} s", flush=True)
        if turn >= WARM_UP:
            pairs.append(run)

    def ratio(figure: str) -> float:
        ratios = [run["ours"][figure] / run["stock"][figure] for run in pairs]
        return round(statistics.median(ratios), 3)

    return {
        f"{variant}_ratio": ratio("seconds"),
        f"{variant}_cpu_ratio": ratio("cpu"),
        f"{variant}_ours_seconds": round(statistics.median(r["ours"]["seconds"] for r in pairs), 2),
    }


def _once(
    jobs: int, variant: Variant, server: RedisServer, directory: str, kind: str
) -> dict[str, float]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "operator"), directory]),
        "PYTHONWARNINGS": "ignore",
    }
    done = subprocess.run(
        [variant.python, "-c", _RUN, kind, server.url, str(jobs), variant.queues],
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    if figures["finished"] != jobs:
        message = f"{kind}: {figures['finished']} of {jobs} jobs finished"
        raise RuntimeError(message)
    return figures
