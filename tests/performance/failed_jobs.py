"""A million failed jobs: pages of them, and how long Redis is held by requeueing by filter.

Redis has a processor to itself, as far as the machine lets it: the step is to be measured, not who
else is given the processor in the middle of it. How long the machine stops a program that does
nothing but look at the clock is measured before and after, and told beside the slowest step.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import os
import re
import subprocess
import time
import zlib
from itertools import pairwise
from pathlib import Path

from redis import Redis

from engineroom.tasks import Requeueing, State, Task, Tasks, Where
from tests.performance.outcome import Goal, outcome, percentile
from tests.support import redis_server

FUNCTION = "tests.integration.tasks.work.boom"
TRACEBACK = b"Traceback (most recent call last):\n" + b"  File 'x.py', line 1, in f\n" * 20
GOALS = (
    Goal("page_p95_ms", 200),
    Goal("filtered_page_p95_ms", 200),
    Goal("listed_page_p95_ms", 200),
    Goal("slowest_step_ms", 5),
)

#: Failed jobs as RQ leaves them, many of one score; a tenth has a traceback, to keep it small.
_FILL = """
for at = ARGV[1], ARGV[2] do
  local id = 'job-' .. at
  redis.call('HSET', 'rq:job:' .. id, 'status', 'failed', 'origin', 'default', 'description',
             'number ' .. at % 100, 'data', ARGV[3], 'ended_at', '2026-01-01T00:00:00.000000Z')
  redis.call('ZADD', 'rq:failed:default', 2000000000 + math.floor(at / 50), id)
  if at % 10 == 0 then
    redis.call('XADD', 'rq:results:' .. id, '*', 'type', '2', 'exc_string', ARGV[4])
  end
end
"""


class _EnoughError(Exception):
    """The time for requeueing is over."""


def _busy_ms(redis: Redis) -> float:
    """Processor time of Redis' main thread so far, in milliseconds."""
    pid = redis.info("server")["process_id"]
    spent = Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]
    return int(spent) / 1e6


def _on_its_own(redis: Redis) -> int:
    """Give Redis the last processor, which is returned, and this program the others."""
    pid = redis.info("server")["process_id"]
    *others, last = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(pid, {last})
    os.sched_setaffinity(0, others or [last])
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, pid, -20)
    return last


def _stopped_ms(processor: int, seconds: int) -> float:
    """The longest that a program which only looks at the clock is stopped, in milliseconds."""
    command = ["redis-cli", "--intrinsic-latency", str(seconds)]
    told = subprocess.run(
        command, capture_output=True, text=True, check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {processor}),
    ).stdout  # fmt: skip
    return max(int(each) for each in re.findall(r"Max latency so far: (\d+) micro", told)) / 1000


def main() -> int:
    """Print the times of pages, and the longest that one step of requeueing held Redis."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--pages", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=10, help="how long to requeue")
    wanted = parser.parse_args()
    with redis_server() as server, Redis(port=server.port, socket_timeout=60) as redis:
        processor = _on_its_own(redis)
        stopped = _stopped_ms(processor, 10)
        tasks = Tasks(redis)
        made = tasks.enqueue(Task(FUNCTION))
        data = redis.hget(f"rq:job:{made.job_id}", "data")
        redis.flushall()
        packed = base64.b64encode(zlib.compress(TRACEBACK + b"RuntimeError: boom\n"))
        for first in range(0, wanted.jobs, 20_000):
            last = min(first + 20_000, wanted.jobs) - 1
            redis.eval(_FILL, 0, first, last, data, packed)
        redis.config_set("slowlog-log-slower-than", 500)
        redis.config_set("slowlog-max-len", 10_000)
        redis.slowlog_reset()

        times: dict[str, list[float]] = {"page": [], "filtered_page": [], "listed_page": []}
        for kind, where in (("page", Where()), ("filtered_page", Where(text="number 77"))):
            cursor = None
            for _ in range(wanted.pages):
                began = time.perf_counter()
                cursor = tasks.failures("default", where, cursor=cursor).cursor
                times[kind].append((time.perf_counter() - began) * 1000)
        cursor = None
        for _ in range(wanted.pages):
            began = time.perf_counter()
            page = tasks.jobs([State.FAILED], queues=["default"], cursor=cursor)
            assert page.jobs
            cursor = page.cursor
            times["listed_page"].append((time.perf_counter() - began) * 1000)

        operation = tasks.start_requeueing("default", Where(text="number 7")).operation
        began = time.perf_counter()
        seen: list[Requeueing] = []
        busy = [_busy_ms(redis)]

        def told(so_far: Requeueing) -> None:
            seen.append(so_far)
            busy.append(_busy_ms(redis))
            if time.perf_counter() - began > wanted.seconds:
                raise _EnoughError

        with contextlib.suppress(_EnoughError):
            tasks.carry_on_requeueing(operation, told)
        spent = time.perf_counter() - began
        stopped = max(stopped, _stopped_ms(processor, 10))
        held = [entry["duration"] / 1000 for entry in redis.slowlog_get(10_000)]
    figures = {
        "jobs": wanted.jobs,
        **{f"{kind}_p95_ms": round(percentile(each, 0.95), 2) for kind, each in times.items()},
        "scanned_a_second": round(seen[-1].scanned / spent),
        "requeued": seen[-1].requeued,
        "steps": len(seen),
        "slowest_step_ms": round(max(held, default=0.0), 2),
        "machine_stops_ms": round(stopped, 2),
        # What Redis itself worked for in the busiest turn, of three steps: where the slowest step
        # took longer than this, the machine had given the processor to others.
        "busiest_turn_cpu_ms": round(max(b - a for a, b in pairwise(busy)), 2),
    }
    return outcome("failed_jobs", figures, GOALS)
