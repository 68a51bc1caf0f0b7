"""The production worker with stops at chosen points, for tests of what a crash there does.

At its point the process writes a file with its pid and stops itself; the test then kills it, or
sends signals and lets it go on.
"""

import json
import os
import pathlib
import signal
import sys

from engineroom_worker import __main__ as entry
from engineroom_worker import executions, housekeeping, loop, worker
from engineroom_worker.config import from_environment
from engineroom_worker.dequeue import waiting
from engineroom_worker.observability.metrics import SharedMetrics


def main(options):
    directory = options["directory"]
    chosen = options.get("stop_at")
    for name in ("STRAY_SECONDS", "LOCK_SECONDS", "SETTLING_SECONDS"):
        if name in options:
            setattr(housekeeping, name, options[name])
    if "EXECUTION_TTL" in options:
        executions.EXECUTION_TTL = options["EXECUTION_TTL"]

    def point(name):
        marker = pathlib.Path(directory, f"stopped-{name}")
        if name == chosen and not marker.exists():
            new = marker.with_suffix(".new")
            new.write_text(str(os.getpid()))
            new.rename(marker)
            os.kill(os.getpid(), signal.SIGSTOP)

    read = waiting.WaitingConnection.read

    def read_and_stop(self):
        reply = read(self)
        if isinstance(reply, bytes) and chosen == "blmoved":
            point("blmoved")
        return reply

    waiting.WaitingConnection.read = read_and_stop

    after_death = housekeeping.Housekeeper._after_death

    def stop_and_settle(self, job, queue, reason):
        point("settling")
        after_death(self, job, queue, reason)

    housekeeping.Housekeeper._after_death = stop_and_settle

    run_job = loop.WorkLoop._run_job

    def stop_and_run(self, taken):
        point("taken")
        return run_job(self, taken)

    loop.WorkLoop._run_job = stop_and_run

    class Worker(worker.PoolWorker):
        retired_seconds = options.get("retired_seconds", worker.RETIRED_SECONDS)
        maintenance_grace = options.get("grace", worker.GRACE_SECONDS)

        def prepare_execution(self, job):
            execution = super().prepare_execution(job)
            point("prepared")
            return execution

        def monitor_work_horse(self, *args):
            point("forked")
            super().monitor_work_horse(*args)
            point("done")

        def prepare_job_execution(self, *args, **kwargs):
            super().prepare_job_execution(*args, **kwargs)
            point("horse-begins")

        def handle_execution_ended(self, *args):
            super().handle_execution_ended(*args)
            point("horse-ended")

        def handle_job_success(self, *args, **kwargs):
            super().handle_job_success(*args, **kwargs)
            point("horse-booked")

    def leave(signum, frame):
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, leave)
    sys.exit(entry.run_worker(from_environment(), 0, SharedMetrics(1), lambda: None, Worker))


main(json.loads(sys.argv[1]))
