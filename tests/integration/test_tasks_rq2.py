"""The tests of tasks once more, with the RQ 2 of its own virtual environment."""

from __future__ import annotations

import os
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.integration.test_redis_servers import LEFT_OUT
from tests.support import ROOT

PYTHON = Path(os.environ.get("ENGINEROOM_TEST_PYTHON_RQ2") or ROOT / ".venv-rq2/bin/python")


def test_tasks_with_rq_2() -> None:
    if not PYTHON.exists() or version("rq").startswith("2."):
        pytest.skip("no .venv-rq2 beside: make .venv-rq2/.made")
    # The plugin left out takes longer to import than many a test runs.
    suite = [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:schemathesis"]
    # Where a process dies is not RQ's business, and the relay does not know of it; "compat" looks
    # for both versions itself. What is left out by name measures time, or is about Redis away.
    suite += [
        f"--ignore=tests/integration/tasks/test_{name}.py"
        for name in ("compat", "crashes", "relay")
    ]
    suite += ["-k", " and ".join(f"not {name}" for name in LEFT_OUT), "tests/integration/tasks"]
    ran = subprocess.run(suite, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
