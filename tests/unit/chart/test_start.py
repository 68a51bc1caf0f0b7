"""The program that a worker's container begins with."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.unit.chart.rendering import ROOT

if TYPE_CHECKING:
    from pathlib import Path

SOURCE = ROOT / "deploy/worker-runtime/start.c"
#: Slow to be ready, as Python is on a busy node, and then through with the signal as the runtime.
SLOW = """
import signal, sys, time
print("begun", flush=True)
time.sleep(0.5)
def leave(*_):
    print("heard", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
time.sleep(20)
"""


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is missing")
    program = tmp_path_factory.mktemp("start") / "start"
    flags = ["-std=c11", "-D_POSIX_C_SOURCE=200809L", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["gcc", *flags, "-o", str(program), str(SOURCE)], check=True)
    return program


def test_a_signal_that_comes_too_early_is_kept(start: Path) -> None:
    command = [str(start), sys.executable, "-c", SLOW]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "heard\n"
        assert process.wait(10) == 0


def test_the_runtime_lets_it_through(start: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "operator"), "ENGINEROOM_POOL": "a/b"}
    command = [str(start), sys.executable, "-m", "engineroom_worker"]
    # Before it has found out what else its environment lacks: a blocked signal would stay unheard.
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_what_cannot_be_run_is_named(start: Path) -> None:
    command = [str(start), "/no/such/python"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 127
    assert "/no/such/python" in done.stderr


def test_without_arguments_it_says_how_it_is_used(start: Path) -> None:
    done = subprocess.run([start], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage" in done.stderr
