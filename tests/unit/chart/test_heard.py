"""The program that has the kubelet wait with SIGTERM until somebody can hear it."""

from __future__ import annotations

import shutil
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests.unit.chart.rendering import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SOURCE = ROOT / "deploy/worker-runtime/heard.c"
DEAF = "SigBlk:\t0000000000000000\nSigIgn:\t0000000001001000\nSigCgt:\t0000000000000002\n"
HOLDS_BACK = "SigBlk:\t0000000000004002\nSigIgn:\t0000000001001000\nSigCgt:\t0000000000000002\n"
CATCHES = "SigBlk:\t0000000000000000\nSigIgn:\t0000000001001000\nSigCgt:\t0000000100014002\n"


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], subprocess.Popen[bytes]]:
    """Run it on a process status; it is patient for half a second here."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is missing")
    folder = tmp_path_factory.mktemp("heard")
    status: Path = folder / "status"
    flags = ["-std=c11", "-D_POSIX_C_SOURCE=200809L", "-Wall", "-Wextra", "-Werror"]
    defines = [f'-DSTATUS="{status}"', "-DPATIENCE=500"]
    subprocess.run(["gcc", *flags, *defines, "-o", str(folder / "heard"), str(SOURCE)], check=True)

    def run(text: str) -> subprocess.Popen[bytes]:
        new = folder / "new"
        new.write_text(text)
        new.rename(status)
        return subprocess.Popen([folder / "heard"])

    return run


@pytest.mark.parametrize("text", [HOLDS_BACK, CATCHES])
def test_it_does_not_wait_for_a_process_that_would_hear(
    heard: Callable[[str], subprocess.Popen[bytes]], text: str
) -> None:
    assert heard(text).wait(5) == 0


def test_it_waits_for_one_that_would_not(heard: Callable[[str], subprocess.Popen[bytes]]) -> None:
    waiting = heard(DEAF)
    time.sleep(0.1)
    assert waiting.poll() is None
    assert heard(CATCHES).wait(5) == 0
    assert waiting.wait(5) == 0


def test_but_not_for_ever(heard: Callable[[str], subprocess.Popen[bytes]]) -> None:
    assert heard(DEAF).wait(5) == 1
