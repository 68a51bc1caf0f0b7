"""The audit's own judgement: what counts as explained, and as pinned by a hash."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.audit.__main__ import explained, pinned
from tests.support import ROOT

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("test", "lines", "is_explained"),
    [
        ("B101", ["assert x  # noqa: S101 - the only caller has looked"], True),
        ("B101", ["assert x  # noqa: S101"], False),
        ("B101", ["assert x  # noqa: S105 - of another"], False),
        ("B603", ["run(x)  # nosec B603 - a list"], True),
        ("B603", ["# nosec B603 - a list", "run(x)"], True),
        ("B603", ["y = 1  # nosec B603 - of another line", "run(x)"], False),
        ("B603", ["run(x)  # nosec"], False),
        ("B311", ["sleep(random())  # noqa: S311 # nosec B311"], True),
        ("B311", ["sleep(random())"], False),
    ],
)
def test_a_finding_needs_a_reason_at_its_line(
    test: str, lines: list[str], is_explained: bool
) -> None:
    assert explained(test, lines) is is_explained


def test_a_requirement_needs_a_hash(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text("a==1 \\\n    --hash=sha256:00 \\\n    --hash=sha256:11\nb==2\n")
    assert pinned(lock) == {"a==1": True, "b==2": False}
    assert len(pinned(ROOT / "requirements/image.txt")) > 30


def test_gitleaks_finds_what_is_planted_and_explains_no_more_than_it_says(tmp_path: Path) -> None:
    from tests.cluster.binaries import PROGRAMS

    program = PROGRAMS["gitleaks"].folder / "gitleaks"
    if not program.exists():
        pytest.skip("gitleaks is missing; `make audit` builds it")
    key = "erk_" + "a1B2" * 4 + "_" + "a1B2c3D" * 7
    (tmp_path / "settings.py").write_text(f'KEY = "{key}"\n')
    (tmp_path / "tests/unit/core").mkdir(parents=True)
    planted = "ghp_" + "k3Jd8Lq0Zx" * 3 + "b7Tn2W"
    (tmp_path / "tests/unit/core/test_logging.py").write_text(f'TOKEN = "{planted}"\n')
    done = subprocess.run(
        [program, "dir", str(tmp_path), "--no-banner", "--config", str(ROOT / ".gitleaks.toml"),
         "--report-format", "csv", "--report-path", "-"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "engineroom-api-key" in done.stdout
    assert "github-pat" in done.stdout
