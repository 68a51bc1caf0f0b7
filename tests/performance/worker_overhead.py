"""What the runtime costs over stock RQ: ``python -m tests.performance.worker_overhead``.

1,000 no-op jobs by ``engineroom_worker`` and by RQ's own Worker, in turns on one Redis, each in a
process of its own that times itself from the first look at the queue to the last job's booked end.
The ratio is the median of the ratios of neighbouring runs, so that whatever else the machine does
falls on both. ``--python`` names another interpreter, with another RQ.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.performance.harness import RedisServer, redis_server, report, root

GOAL = 1.05
#: Jobs, turns, and turns that are thrown away at the beginning.
JOBS, PAIRS, WARM_UP = 1000, 7, 1

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
    "rq": rq.__version__,
}))
"""


def main() -> None:
    """Run the benchmark and print its line."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--python", default=sys.executable, help="interpreter that has RQ")
    arguments.add_argument("--jobs", type=int, default=JOBS)
    arguments.add_argument("--pairs", type=int, default=PAIRS)
    arguments.add_argument("--queues", choices=["one", "multiple"], default="one")
    chosen = arguments.parse_args()
    with redis_server() as server, tempfile.TemporaryDirectory() as directory:
        Path(directory, "overhead_jobs.py").write_text(_JOBS)
        pairs = []
        for turn in range(WARM_UP + chosen.pairs):
            order = ("ours", "stock") if turn % 2 else ("stock", "ours")
            run = {kind: _once(chosen, server, directory, kind) for kind in order}
            if turn < WARM_UP:
                continue
            pairs.append(run)
            stock, ours = (run[kind]["seconds"] for kind in ("stock", "ours"))
            print(f"{turn}: stock {stock:.2f} s, ours {ours:.2f} s", flush=True)
    ratio = statistics.median(run["ours"]["seconds"] / run["stock"]["seconds"] for run in pairs)
    cpu = statistics.median(run["ours"]["cpu"] / run["stock"]["cpu"] for run in pairs)
    report(
        "worker_overhead",
        {
            "ratio": round(ratio, 3),
            "cpu_ratio": round(cpu, 3),
            "ours_seconds": round(statistics.median(run["ours"]["seconds"] for run in pairs), 3),
            "stock_seconds": round(statistics.median(run["stock"]["seconds"] for run in pairs), 3),
            "jobs": chosen.jobs,
            "pairs": chosen.pairs,
            "queues": chosen.queues,
            "rq": pairs[0]["ours"]["rq"],
        },
        {"ratio": GOAL},
        met=ratio <= GOAL,
    )


def _once(
    chosen: argparse.Namespace, server: RedisServer, directory: str, kind: str
) -> dict[str, float]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(root() / "operator"), directory]),
        "PYTHONWARNINGS": "ignore",
    }
    done = subprocess.run(
        [chosen.python, "-c", _RUN, kind, server.url, str(chosen.jobs), chosen.queues],
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    if figures["finished"] != chosen.jobs:
        message = f"{kind}: {figures['finished']} of {chosen.jobs} jobs finished"
        raise RuntimeError(message)
    return figures


if __name__ == "__main__":
    main()
