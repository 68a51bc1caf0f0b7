"""The program of the worker-runtime image."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.unit.chart.rendering import ROOT

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = ROOT / "deploy/worker-runtime/copy-runtime.c"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The program, and the folder that it copies."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is missing")
    folder = tmp_path_factory.mktemp("copy-runtime")
    source, program = folder / "runtime", folder / "copy-runtime"
    (source / "engineroom_worker" / "deep").mkdir(parents=True)
    (source / "engineroom_worker" / "__init__.py").write_text("")
    (source / "engineroom_worker" / "deep" / "big.py").write_bytes(bytes(range(256)) * 1000)
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", f'-DSOURCE="{source}"']
    subprocess.run(["gcc", *flags, "-o", str(program), str(PROGRAM)], check=True)
    return program, source


def copy(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_it_copies_the_tree(compiled: tuple[Path, Path], tmp_path: Path) -> None:
    program, source = compiled
    done = copy(program, str(tmp_path / "volume"))
    assert (done.returncode, done.stderr) == (0, "")
    assert content(tmp_path / "volume") == content(source)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "volume").rglob("*.py")}
    assert modes == {0o644}


def test_it_may_run_again_over_half_written_work(
    compiled: tuple[Path, Path], tmp_path: Path
) -> None:
    program, source = compiled
    half = tmp_path / "engineroom_worker" / "deep"
    half.mkdir(parents=True)
    (half / "big.py").write_text("half")
    (half / "big.py.new").write_text("a quarter")
    assert copy(program, str(tmp_path)).returncode == 0
    assert content(tmp_path) == content(source)


def test_it_says_what_it_could_not_do(compiled: tuple[Path, Path], tmp_path: Path) -> None:
    program, _ = compiled
    target = tmp_path / "a" / "b"
    done = copy(program, str(target))
    assert done.returncode == 1
    assert done.stderr == (f"copy-runtime: cannot make folder {target}: {os.strerror(2)}\n")
    assert copy(program).returncode == 2


def test_it_says_so_when_the_volume_is_full(compiled: tuple[Path, Path], tmp_path: Path) -> None:
    program, _ = compiled
    (tmp_path / "engineroom_worker").mkdir()
    (tmp_path / "engineroom_worker" / "__init__.py.new").symlink_to("/dev/full")
    (tmp_path / "engineroom_worker" / "deep").mkdir()
    (tmp_path / "engineroom_worker" / "deep" / "big.py.new").symlink_to("/dev/full")
    done = copy(program, str(tmp_path))
    assert done.returncode == 1
    assert os.strerror(28) in done.stderr
