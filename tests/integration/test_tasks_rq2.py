"""The tests of tasks once more, with the RQ 2 of its own virtual environment."""

from __future__ import annotations

import os
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.support import ROOT

PYTHON = Path(os.environ.get("ENGINEROOM_RQ2_PYTHON") or ROOT / ".venv-rq2/bin/python")


def test_tasks_with_rq_2() -> None:
    if not PYTHON.exists() or version("rq").startswith("2."):
        pytest.skip("no .venv-rq2 beside: make .venv-rq2/.made")
    suite = [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/integration/tasks"]
    # Where a process dies is not RQ's business; and both versions are looked for there.
    suite += [f"--ignore=tests/integration/tasks/test_{name}.py" for name in ("crashes", "compat")]
    ran = subprocess.run(suite, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
