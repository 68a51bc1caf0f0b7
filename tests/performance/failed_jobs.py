"""A million failed jobs: pages of them, and how long Redis is held by requeueing all of them.

First those that a filter matches are put back, then all the others without one. Each time whoever
does it is killed by SIGKILL when half is done and another goes on to the end; then it is counted
which jobs are on the queue, and which still among the failed ones.

Redis has a processor to itself, as far as the machine lets it: the step is to be measured, not who
else is given the processor in the middle of it. How long the machine stops a program that does
nothing but look at the clock is measured before and after, and told beside the slowest step.
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

from engineroom.tasks import Requeueing, State, Task, Tasks, Where
from engineroom.tasks.redis_steps import text
from tests.performance.outcome import Figure, Goal, outcome, percentile
from tests.support import redis_server

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

FUNCTION = "tests.integration.tasks.work.boom"
TRACEBACK = b"Traceback (most recent call last):\n" + b"  File 'x.py', line 1, in f\n" * 20
GOALS = (
    Goal("page_p95_ms", 200),
    Goal("filtered_page_p95_ms", 200),
    Goal("listed_page_p95_ms", 200),
    Goal("slowest_step_ms", 5),
    *(
        Goal(f"{kind}_{wrong}", 0)
        for kind in ("filtered", "unfiltered")
        for wrong in ("not_requeued", "lost", "doubled", "too_many", "miscounted")
    ),
    Goal("killed_in_the_middle", 2, at_least=True),
)
#: Jobs that the filter matches: of each hundred number 7 and those from 70 to 79.
FILTER, MATCHED = Where(text="number 7"), frozenset({7, *range(70, 80)})
#: What is quicker than this Redis does not note down (ms).
NOTED_MS = 1.0

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


@dataclass
class _Done:
    """What became of putting jobs back."""

    seconds: float = 0.0
    steps: int = 0
    scanned: int = 0
    counted: int = 0
    killed: int = 0
    #: The most processor time that Redis took from one step's end to the next (ms).
    busiest: float = 0.0
    #: What each step that Redis noted down held it (ms).
    held: list[float] = field(default_factory=list)
    wrong: dict[str, int] = field(default_factory=dict)


def _carry_on(port: int, operation: str, says: Connection) -> None:
    """In a process of its own: put back, and say of each step how far it is."""
    with Redis(port=port, socket_timeout=60) as redis:
        before = _busy_ms(redis)

        def told(so_far: Requeueing) -> None:
            nonlocal before
            busy = _busy_ms(redis)
            says.send((so_far.scanned, so_far.requeued, so_far.done, busy - before))
            before = busy

        Tasks(redis).carry_on_requeueing(operation, told)


def _put_back(redis: Redis, port: int, where: Where, matched: int) -> _Done:
    """Put back all that match; the first who does it is killed when half of them are back."""
    spawn = multiprocessing.get_context("spawn")
    operation = Tasks(redis).start_requeueing("default", where).operation
    done = _Done()
    began = said = time.perf_counter()
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
                if time.perf_counter() - said >= 15:
                    said = time.perf_counter()
                    print(f"  {done.counted} of {matched} put back, {done.scanned} looked at")
        process.join()
        done.killed += process.exitcode == -signal.SIGKILL
    done.seconds = time.perf_counter() - began
    return done


def _check(redis: Redis, done: _Done, wanted: set[int], failed: int) -> None:
    """Count what is on the queue beside what should be: jobs by number, ``failed`` are left."""
    on_queue: list[int] = []
    for first in range(0, redis.llen("rq:queue:default"), 10_000):
        page = redis.lrange("rq:queue:default", first, first + 9_999)
        on_queue += (int(text(each).removeprefix("job-")) for each in page)
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


def main() -> int:
    """Print the times of pages, and the longest that one step of requeueing held Redis."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--pages", type=int, default=300)
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

        put_back: dict[str, _Done] = {}
        numbers = set(range(wanted.jobs))
        matching = {number for number in numbers if number % 100 in MATCHED}
        for kind, where, these in (
            ("filtered", FILTER, matching), ("unfiltered", Where(), numbers - matching)
        ):  # fmt: skip
            print(f"{kind}: {len(these)} to be put back")
            redis.delete("rq:queue:default")
            redis.config_set("slowlog-max-len", 100_000)
            redis.config_set("slowlog-log-slower-than", round(NOTED_MS * 1000))
            redis.slowlog_reset()
            put_back[kind] = _put_back(redis, server.port, where, len(these))
            redis.config_set("slowlog-log-slower-than", -1)
            noted = redis.slowlog_get(100_000)
            put_back[kind].held = [entry["duration"] / 1000 for entry in noted]
            left = wanted.jobs - len(matching) if kind == "filtered" else 0
            _check(redis, put_back[kind], these, left)
        stopped = max(stopped, _stopped_ms(processor, 10))
    held = [each for done in put_back.values() for each in (NOTED_MS, *done.held)]
    figures: dict[str, Figure] = {
        "jobs": wanted.jobs,
        **{f"{kind}_p95_ms": round(percentile(each, 0.95), 2) for kind, each in times.items()},
        # At least what is noted down at all; steps of looking and of putting back alike.
        "slowest_step_ms": round(max(held), 2),
        "machine_stops_ms": round(stopped, 2),
        # One or a few beside machine_stops_ms are the machine's, many would be ours.
        "steps_over_5_ms": sum(each > 5 for each in held),
        # What Redis itself worked for in the busiest turn, of three steps: where the slowest step
        # took longer than this, the machine had given the processor to others.
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
    return outcome("failed_jobs", figures, GOALS)
