"""The check of language and shape: a text that exceeds a limit fails it."""

from __future__ import annotations

import pytest

from tests.house.__main__ import main
from tests.house.counts import LIMITS, count, problems

GOOD = '"""A module."""\n\n\ndef add(left, right):\n    """Return the sum."""\n'
LINES = "\n" * 1000


def _function(name: str, lines: int) -> str:
    return f"def {name}():\n" + "    pass\n" * (lines - 1)


@pytest.mark.parametrize(
    ("limit", "files"),
    [
        ("clause docstrings, %", [("a.py", '"""What a module holds."""\n')]),
        ("vague identifiers per 1,000 lines", [("a.py", "told = 1\n" * 2 + LINES)]),
        ("vague identifiers per 1,000 lines", [("a.py", "def f(_known, made): ...\n" + LINES)]),
        ("vague identifiers per 1,000 lines", [("a.py", _function("found", 2) * 2 + LINES)]),
        ("lines with a pronoun for a subject", [("a.py", "# somebody asked\n" * 11)]),
        (
            "lines of the largest class",
            [("a.py", "class A:\n" + "    pass\n" * 450)],
        ),
        ("functions over 50 lines, %", [("a.py", _function("long", 51))]),
        ("functions over 50 lines, %", [("a.py", "async " + _function("long", 51))]),
        ("files in the fullest folder", [(f"room/{n}.py", GOOD) for n in range(23)]),
    ],
)
def test_a_text_beyond_a_limit_is_reported_with_its_place(
    limit: str, files: list[tuple[str, str]]
) -> None:
    lines = list(problems(count(files)))

    assert lines[0].startswith(f"{limit}: ")
    assert lines[0].endswith(f", limit {LIMITS[limit]:g}")
    assert [line for line in lines if not line.startswith(" ")] == [lines[0]]
    assert "a.py:" in lines[1] or "room" in lines[1]


@pytest.mark.parametrize(
    "files",
    [
        [],
        [("a.py", GOOD)],
        [("a.py", "class A:\n" + "    pass\n" * 449)],
        [("a.py", _function("long", 50))],
        [("a.py", "# somebody asked\n" * 10)],
        [(f"room/{n}.py", GOOD) for n in range(22)],
    ],
)
def test_a_text_at_the_limits_passes(files: list[tuple[str, str]]) -> None:
    assert list(problems(count(files))) == []


def test_the_tree_is_within_the_limits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main() == 0, capsys.readouterr().err
