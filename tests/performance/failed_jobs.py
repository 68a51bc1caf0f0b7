"""A million failed jobs: the time of a page, and the time that a step of requeueing blocks Redis.

The first pass requeues the jobs that a filter matches, the second all others. SIGKILL ends the
process of each pass when half of the jobs are requeued, and another process continues to the end.
Then the jobs on the queue and among the failed ones are counted.

The floor is the same scripts on an idle Redis that holds 20,000 failed jobs: each page is followed
by one of the floor, and the floor's steps run before, between and after the two passes.

Redis runs on a processor of its own where the machine has two. The longest pause of a program that
only reads the clock on that processor is measured before and after, and printed beside the steps.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from redis import Redis

from engineroom.core.redis_replies import text
from engineroom.tasks import JobFilter, Requeueing, State, Task, Tasks
from tests.performance.outcome import Figure, Goal, outcome, percentile
from tests.support import redis_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

FUNCTION = "tests.integration.tasks.work.boom"
TRACEBACK = b"Traceback (most recent call last):\n" + b"  File 'x.py', line 1, in f\n" * 20
PAGES = ("page", "filtered_page", "listed_page")
GOALS = (
    *(Goal(f"{kind}_p95_ms", 200, floor=f"floor_{kind}_p95_ms") for kind in PAGES),
    Goal("step_p999_ms", 5, floor="floor_step_p999_ms"),
    *(
        Goal(f"{kind}_{wrong}", 0)
        for kind in ("filtered", "unfiltered")
        for wrong in ("not_requeued", "lost", "doubled", "too_many", "miscounted")
    ),
    Goal("killed_in_the_middle", 2, at_least=True),
)
REASONS = {
    "jobs": "the size of the run",
    "*steps": "the size of the run",
    "*steps_over_5_ms": "pauses of the machine are among them; the goal is p99.9",
    "*slowest_step_ms": "one step of tens of thousands; the goal is p99.9",
    "machine_stops_ms": "the machine's own longest pause, for comparison",
    "busiest_turn_cpu_ms": "tells the machine's pauses from Redis' own work",
    "*_requeued": "equals the matching jobs; a difference counts as miscounted",
    "*_seconds": "the length of the run, with the other process's start in it",
    "*_scanned_a_second": "the speed of the whole; the promise is about a step",
}
#: Jobs that the filter matches: of each hundred number 7 and those from 70 to 79.
FILTER, MATCHED = JobFilter(text="number 7"), frozenset({7, *range(70, 80)})
#: Redis logs no command that is quicker than this (ms).
NOTED_MS = 1.0
#: A step looks at or requeues 25 jobs; a command of a single key is quicker than this (ms).
SHORTEST_STEP_MS = 0.05
#: Failed jobs of the idle Redis, and how often a measurement of its steps requeues all of them.
FLOOR_JOBS, FLOOR_ROUNDS = 20_000, 2

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


def _busy_ms(redis: Redis) -> float:
    """Processor time of Redis' main thread so far, in milliseconds."""
    pid = redis.info("server")["process_id"]
    spent = Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]
    return int(spent) / 1e6


def _on_its_own(redis: Redis) -> int:
    """Pin Redis to the last processor and this program to the others; return the last one."""
    pid = redis.info("server")["process_id"]
    *others, last = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(pid, {last})
    os.sched_setaffinity(0, others or [last])
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, pid, -20)
    return last


def _stopped_ms(processor: int, seconds: int) -> float:
    """Return the longest pause of a program that only reads the clock, in milliseconds."""
    command = ["redis-cli", "--intrinsic-latency", str(seconds)]
    printed = subprocess.run(
        command, capture_output=True, text=True, check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {processor}),
    ).stdout  # fmt: skip
    pauses = re.findall(r"Max latency so far: (\d+) micro", printed)
    return max(int(pause) for pause in pauses) / 1000


@dataclass
class _Done:
    """The outcome of one pass of requeueing."""

    seconds: float = 0.0
    steps: int = 0
    scanned: int = 0
    counted: int = 0
    killed: int = 0
    #: The largest processor time of Redis from one step's end to the next (ms).
    busiest: float = 0.0
    #: The duration of each step that Redis logged (ms).
    held: list[float] = field(default_factory=list)
    wrong: dict[str, int] = field(default_factory=dict)


def _carry_on(port: int, operation: str, says: Connection) -> None:
    """Requeue in a process of its own, and send the progress of each step."""
    with Redis(port=port, socket_timeout=60) as redis:
        before = _busy_ms(redis)

        def report(progress: Requeueing) -> None:
            nonlocal before
            busy = _busy_ms(redis)
            says.send((progress.scanned, progress.requeued, progress.done, busy - before))
            before = busy

        Tasks(redis).carry_on_requeueing(operation, report)


def _put_back(redis: Redis, port: int, where: JobFilter, matched: int) -> _Done:
    """Requeue all that match; SIGKILL ends the first process when half of them are requeued."""
    spawn = multiprocessing.get_context("spawn")
    operation = Tasks(redis).start_requeueing("default", where).operation
    done = _Done()
    began = printed = time.perf_counter()
    for kill in (True, False):
        hears, says = spawn.Pipe(duplex=False)
        process = spawn.Process(target=_carry_on, args=(port, operation, says))
        process.start()
        says.close()
        with contextlib.suppress(EOFError), hears:
            while True:
                done.scanned, done.counted, ended, busy = hears.recv()
                done.steps += 1
                done.busiest = max(done.busiest, busy)
                if kill and not ended and done.counted >= matched / 2:
                    process.kill()
                    break
                if time.perf_counter() - printed >= 15:
                    printed = time.perf_counter()
                    print(f"  {done.counted} of {matched} requeued, {done.scanned} scanned")
        process.join()
        done.killed += process.exitcode == -signal.SIGKILL
    done.seconds = time.perf_counter() - began
    return done


def _check(redis: Redis, done: _Done, wanted: set[int], failed: int) -> None:
    """Compare the queue with the ``wanted`` jobs, by number; ``failed`` jobs stay failed."""
    on_queue: list[int] = []
    for first in range(0, redis.llen("rq:queue:default"), 10_000):
        page = redis.lrange("rq:queue:default", first, first + 9_999)
        on_queue += (int(text(job).removeprefix("job-")) for job in page)
    there = set(on_queue)
    waiting = 0
    for first in range(0, len(on_queue), 10_000):
        with redis.pipeline(transaction=False) as pipeline:
            for number in on_queue[first : first + 10_000]:
                pipeline.hget(f"rq:job:job-{number}", "status")
            waiting += pipeline.execute().count(b"queued")
    left = redis.zcard("rq:failed:default")
    done.wrong = {
        "not_requeued": len(wanted - there) + len(on_queue) - waiting,
        # On no queue and not among the failed ones either.
        "lost": max(0, len(wanted) + failed - len(there) - left),
        "doubled": len(on_queue) - len(there) + max(0, len(there) + left - len(wanted) - failed),
        "too_many": len(there - wanted),
        "miscounted": abs(done.counted - len(wanted)),
    }


def _fill(redis: Redis, count: int) -> None:
    """Write ``count`` failed jobs as RQ leaves them; removes all else."""
    redis.flushall()
    job = Tasks(redis).enqueue(Task(FUNCTION))
    data = redis.hget(f"rq:job:{job.job_id}", "data")
    redis.flushall()
    packed = base64.b64encode(zlib.compress(TRACEBACK + b"RuntimeError: boom\n"))
    for first in range(0, count, 20_000):
        last = min(first + 20_000, count) - 1
        redis.eval(_FILL, 0, first, last, data or b"", packed)


class _Pages:
    """Pages of one kind in turn from one Redis, from the beginning again after the last."""

    def __init__(self, redis: Redis, kind: str) -> None:
        self._tasks, self._kind = Tasks(redis), kind
        self._cursor: str | None = None

    def next_ms(self) -> float:
        """Return the milliseconds that the next page took."""
        began = time.perf_counter()
        if self._kind == "listed_page":
            page = self._tasks.jobs([State.FAILED], queues=["default"], cursor=self._cursor)
            assert page.jobs
            self._cursor = page.cursor
        else:
            where = JobFilter(text="number 77") if self._kind == "filtered_page" else JobFilter()
            self._cursor = self._tasks.failures("default", where, cursor=self._cursor).cursor
        return (time.perf_counter() - began) * 1000


@contextlib.contextmanager
def _logged(redis: Redis, least_ms: float) -> Iterator[list[float]]:
    """Have Redis log its slow commands; the list holds their milliseconds after the block."""
    held: list[float] = []
    redis.config_set("slowlog-max-len", 1_000_000)
    redis.config_set("slowlog-log-slower-than", round(least_ms * 1000))
    redis.slowlog_reset()
    try:
        yield held
    finally:
        redis.config_set("slowlog-log-slower-than", -1)
        held += [entry["duration"] / 1000 for entry in redis.slowlog_get(1_000_000)]


def _floor_steps(redis: Redis) -> list[float]:
    """Requeue the failed jobs of the idle Redis; return the milliseconds of each script."""
    steps: list[float] = []
    for _ in range(FLOOR_ROUNDS):
        _fill(redis, FLOOR_JOBS)
        tasks = Tasks(redis)
        with _logged(redis, 0) as commands:
            operation = tasks.start_requeueing("default", JobFilter()).operation
            tasks.carry_on_requeueing(operation, lambda _progress: None)
        # Scripts only: a command of its own, such as the reading of the log, is no step.
        steps += [duration for duration in commands if duration > SHORTEST_STEP_MS]
    return steps


def _p999(held: list[float], steps: int) -> float:
    """Return the 99.9th percentile of ``steps`` steps; ``held`` has only the slow ones (ms)."""
    rank = max(1, round(steps * 0.001))
    slowest = sorted(held, reverse=True)
    return slowest[rank - 1] if len(slowest) >= rank else NOTED_MS


def main() -> int:
    """Print the times of pages, and the longest that one step of requeueing blocks Redis."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--pages", type=int, default=300)
    wanted = parser.parse_args()
    times: dict[str, list[float]] = {}
    put_back: dict[str, _Done] = {}
    with (
        redis_server() as server,
        Redis(port=server.port, socket_timeout=60) as redis,
        redis_server() as idle_server,
        Redis(port=idle_server.port, socket_timeout=60) as idle,
    ):
        _on_its_own(idle)
        processor = _on_its_own(redis)
        stopped = _stopped_ms(processor, 10)
        _fill(redis, wanted.jobs)
        _fill(idle, FLOOR_JOBS)
        for kind in PAGES:
            pages, floor = _Pages(redis, kind), _Pages(idle, kind)
            for _ in range(wanted.pages):
                times.setdefault(kind, []).append(pages.next_ms())
                times.setdefault(f"floor_{kind}", []).append(floor.next_ms())

        floor_steps = _floor_steps(idle)
        numbers = set(range(wanted.jobs))
        matching = {number for number in numbers if number % 100 in MATCHED}
        for kind, where, these in (
            ("filtered", FILTER, matching), ("unfiltered", JobFilter(), numbers - matching)
        ):  # fmt: skip
            print(f"{kind}: {len(these)} to requeue")
            redis.delete("rq:queue:default")
            with _logged(redis, NOTED_MS) as held:
                put_back[kind] = _put_back(redis, server.port, where, len(these))
            put_back[kind].held = held
            left = wanted.jobs - len(matching) if kind == "filtered" else 0
            _check(redis, put_back[kind], these, left)
            floor_steps += _floor_steps(idle)
        stopped = max(stopped, _stopped_ms(processor, 10))
    held = [duration for done in put_back.values() for duration in done.held]
    figures: dict[str, Figure] = {
        "jobs": wanted.jobs,
        **{f"{kind}_p95_ms": round(percentile(ms, 0.95), 2) for kind, ms in times.items()},
        "step_p999_ms": round(_p999(held, sum(done.steps for done in put_back.values())), 2),
        "floor_step_p999_ms": round(percentile(floor_steps, 0.999), 2),
        "floor_steps": len(floor_steps),
        "machine_stops_ms": round(stopped, 2),
        "steps_over_5_ms": sum(duration > 5 for duration in held),
        # The processor time of Redis in the busiest turn, of three steps: a step that took longer
        # than this waited for the processor.
        "busiest_turn_cpu_ms": round(max(done.busiest for done in put_back.values()), 2),
        "killed_in_the_middle": sum(done.killed for done in put_back.values()),
    }
    for kind, done in put_back.items():
        figures |= {
            f"{kind}_requeued": done.counted,
            f"{kind}_seconds": round(done.seconds, 1),
            f"{kind}_scanned_a_second": round(done.scanned / done.seconds),
            f"{kind}_steps": done.steps,
            f"{kind}_slowest_step_ms": round(max([NOTED_MS, *done.held]), 2),
            **{f"{kind}_{name}": number for name, number in done.wrong.items()},
        }
    return outcome("failed_jobs", figures, GOALS, REASONS)
