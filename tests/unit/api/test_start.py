"""The start of each process with a kind whose entry is not complete."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engineroom.api import kinds

ROOT = Path(__file__).parents[3]
#: A kind with references to Secrets that its entry does not declare.
CARELESS = """
import dataclasses
from engineroom.api.kinds import GuardedPaths
from tests.toy_kind import TOY
KINDS = (dataclasses.replace(TOY, guarded=GuardedPaths(pod_templates=("spec.template",))),)
"""


@pytest.mark.parametrize("module", ["engineroom.main", "engineroom.console.main"])
def test_a_process_does_not_start_with_an_incomplete_kind(module: str, tmp_path: Path) -> None:
    (tmp_path / "careless_kinds.py").write_text(CARELESS)
    path = os.pathsep.join([str(tmp_path), str(ROOT), *filter(None, sys.path)])
    ended = subprocess.run(
        [sys.executable, "-m", module],
        env={**os.environ, kinds.SETTING: "careless_kinds", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert "Toy: guarded does not declare spec.bells[].tokenSecretRef" in (
        ended.stdout + ended.stderr
    )
