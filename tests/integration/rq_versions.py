"""Interpreters that have RQ 2 and RQ 3: the runtime has to work in both.

``ENGINEROOM_TEST_PYTHON_RQ2`` and ``ENGINEROOM_TEST_PYTHON_RQ3`` name them; otherwise RQ 3 is the
interpreter that runs the tests, and RQ 2 gets a virtual environment under the user's cache, made
once. ``ENGINEROOM_TEST_PYTHON_RQ24`` adds the oldest RQ that is supported, where it is set.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

RQ2_REQUIREMENT = "rq==2.12.0"


def interpreter(version: str) -> str:
    """Path of a Python that imports RQ of ``version`` (rq2, rq3 or rq24)."""
    named = os.environ.get(f"ENGINEROOM_TEST_PYTHON_{version.upper()}")
    if named:
        return named
    if version == "rq3":
        return sys.executable
    if version == "rq2":
        return cached(RQ2_REQUIREMENT)
    raise pytest.skip.Exception(f"ENGINEROOM_TEST_PYTHON_{version.upper()} is not set")


def versions() -> list[str]:
    """What to parametrise over."""
    oldest = ["rq24"] if os.environ.get("ENGINEROOM_TEST_PYTHON_RQ24") else []
    return ["rq3", "rq2", *oldest]


def cached(requirement: str, *others: str) -> str:
    """The Python of an environment that has the packages; named by the first, made once."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "engineroom"
    tag = f"{requirement.replace('==', '-')}-py{sys.version_info[0]}{sys.version_info[1]}"
    home = cache / "venvs" / tag
    python = home / "bin" / "python"
    home.parent.mkdir(parents=True, exist_ok=True)
    with (home.parent / f"{tag}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = home / "complete"
        if not done.exists():
            venv.create(home, with_pip=True, clear=True)
            subprocess.run([python, "-m", "pip", "install", "-q", requirement, *others], check=True)
            done.touch()
    return str(python)
