"""Schedules due over a minute, while the leader of two operators is killed in the middle.

A real API server, a real Redis, and two operators as processes with a lease between them. All jobs
are taken off their queue as they come, and what counts is the time at which they could be taken,
not what the jobs themselves say. Half of the schedules go by interval, one in twenty by cron, all
of these in the same second, and the rest is for one time each.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engineroom.tasks import Cron, Every, Missed, Once, Schedule, Task, Tasks
from tests.cluster.api import Shape
from tests.cluster.progress import step
from tests.deployed.kube import wait_for
from tests.performance.outcome import Figure, Goal, outcome, percentile
from tests.performance.rig import (
    INSTALLED,
    OPERATOR,
    Operator,
    api_server,
    as_account,
    install_rights,
    pool,
    redis_server,
)
from tests.support import shared_namespace

if TYPE_CHECKING:
    from redis import Redis

    from tests.deployed.kube import Kube

GOALS = (
    Goal("missing", 0),
    Goal("doubled", 0),
    Goal("unexpected", 0),
    Goal("p99_lateness_s", 1, floor="floor_p99_lateness_s"),
)
REASONS = {
    "schedules": "the size of the run",
    "seconds": "the size of the run",
    "p50_lateness_s": "the promise is p99",
    "max_lateness_s": "one of ten thousand; the promise is p99",
    "p99_lateness_without_leader_s": "the worst seconds of the run; the promise is the whole",
    "led*": "the process that held the lease",
    "leader_killed": "the process that held the lease",
}
#: Markers that the floor's process pushes each second.
MARKERS_A_SECOND = 100
MARKER = "floor-"
QUEUE = "scheduled"
LEASE = "engineroom-operator"


def main() -> int:
    """Run it; the exit status says whether every goal is met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schedules", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=60, help="over which they are due [60]")
    wanted = parser.parse_args()
    with ExitStack() as stack:
        kube = stack.enter_context(api_server(Shape.CONTROL_PLANE))
        redis, url = stack.enter_context(redis_server())
        install_rights(kube)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        account = as_account(kube, INSTALLED, OPERATOR, folder)
        operators = {}
        for name in ("one", "two"):
            one = Operator(account, url, folder / f"{name}.log", f"operator-{name}")
            stack.callback(one.stop)
            operators[f"operator-{name}"] = one
        figures = _measure(kube, redis, operators, wanted.schedules, wanted.seconds)
    return outcome("schedules", figures, GOALS, REASONS)


def _measure(
    kube: Kube, redis: Redis, operators: dict[str, Operator], count: int, seconds: float
) -> dict[str, Figure]:
    kube.apply("namespaces", None, shared_namespace("shop"))
    declared = pool("jobs", schedules=[{"name": "often", "every": "1h", "function": "a.b"}])
    kube.apply("workerpools", "shop", declared)
    for operator in operators.values():
        operator.start()
    with step(f"{count} schedules made"):
        expected = _schedules(redis, count, seconds)
    begins = min(expected.values())
    wait_for(lambda: redis.exists("engineroom:schedule:shop_jobs_often"), 30, "the pool's schedule")
    left = begins - time.time()
    if left < 0:
        raise RuntimeError(f"making the schedules took {-left:.1f} s longer than thought")

    arrivals: list[tuple[str, float]] = []
    ended = threading.Event()
    reader = threading.Thread(target=_read, args=(redis, arrivals, ended))
    reader.start()
    pusher = threading.Thread(target=_push_markers, args=(redis, begins, seconds))
    pusher.start()
    with step(f"due over {seconds:g} s, the leader killed in the middle", slow=True):
        time.sleep(max(0.0, begins + seconds / 2 - time.time()))
        leader = _holder(kube)
        operators[leader].kill()
        killed = time.time()
        time.sleep(max(0.0, begins + seconds - time.time()))
        deadline = time.time() + 30
        while (
            sum(not _is_marker(job) for job, _ in tuple(arrivals)) < count
            and time.time() < deadline
        ):
            time.sleep(0.1)
        time.sleep(2)  # for what would come twice
    taken_over = _holder(kube)
    ended.set()
    reader.join()
    pusher.join()
    markers = [at - float(job.removeprefix(MARKER)) for job, at in arrivals if _is_marker(job)]
    arrivals = [arrival for arrival in arrivals if not _is_marker(arrival[0])]

    seen = Counter(job for job, _ in arrivals)
    late = [at - expected[job] for job, at in arrivals if job in expected]
    # Until somebody else leads, only the other one ticks.
    after = [
        at - expected[job]
        for job, at in arrivals
        if job in expected and killed - 1 <= expected[job] <= killed + 15
    ]
    return {
        "schedules": count,
        "seconds": seconds,
        "missing": len(expected.keys() - seen.keys()),
        "doubled": sum(times - 1 for times in seen.values()),
        "unexpected": len(seen.keys() - expected.keys()),
        "p50_lateness_s": round(percentile(late, 0.5), 4),
        "p99_lateness_s": round(percentile(late, 0.99), 4),
        "max_lateness_s": round(max(late, default=0.0), 4),
        "floor_p99_lateness_s": round(percentile(markers, 0.99), 4),
        "p99_lateness_without_leader_s": round(percentile(after, 0.99), 4),
        "leader_killed": leader,
        "led_in_the_end": taken_over,
    }


def _schedules(redis: Redis, count: int, seconds: float) -> dict[str, float]:
    """Make them, of all three kinds; by the id of its job, when each is due."""
    tasks = Tasks(redis)
    # Long enough from now that all are made by then, on a slow machine too.
    begins = time.time() + 10 + count / 400
    minute = math.ceil(begins / 60) * 60
    expected = {}
    for number in range(count):
        at = round(begins + seconds * number / count, 3)
        trigger: Once | Every | Cron = Once(at)
        if number % 2:
            trigger = Every(30 * 86400, start=round(at - 30 * 86400, 3))
        elif number % 20 == 0 and minute < begins + seconds:
            # Cron knows whole minutes only, so all of these come at once.
            trigger, at = Cron(time.strftime("%M %H %d %m *", time.gmtime(minute))), float(minute)
        task = Task("tests.integration.tasks.work.add", (number,), queue=QUEUE)
        tasks.put_schedule(Schedule(f"s{number}", trigger, task, Missed.RUN_ALL))
        expected[f"s{number}-{at:.17g}".replace(".", "_")] = at
    return expected


def _push_markers(redis: Redis, begins: float, seconds: float) -> None:
    """Push markers that carry the time at which they were due: a timer and a bare RPUSH."""
    for number in range(int(seconds * MARKERS_A_SECOND)):
        due = begins + number / MARKERS_A_SECOND
        time.sleep(max(0.0, due - time.time()))
        redis.rpush(f"rq:queue:{QUEUE}", f"{MARKER}{due:.6f}")


def _is_marker(job: str) -> bool:
    return job.startswith(MARKER)


def _jobs(arrivals: list[tuple[str, float]]) -> int:
    return sum(not _is_marker(job) for job, _ in tuple(arrivals))


def _read(redis: Redis, arrivals: list[tuple[str, float]], ended: threading.Event) -> None:
    """Take jobs off the queue, and record the time of each."""
    while not ended.is_set():
        found: Any = redis.blmpop(0.2, 1, f"rq:queue:{QUEUE}", direction="LEFT", count=1000)
        now = time.time()
        if found:
            arrivals.extend((job.decode(), now) for job in found[1])


def _holder(kube: Kube) -> str:
    """Who holds the lease."""
    with suppress(KeyError):
        lease = kube.get("leases", INSTALLED, LEASE)
        return str(lease["spec"].get("holderIdentity") or "")
    return ""


if __name__ == "__main__":
    raise SystemExit(main())
