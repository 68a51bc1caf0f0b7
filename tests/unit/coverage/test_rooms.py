"""Coverage by room."""

from __future__ import annotations

from typing import Any

from tests.coverage.rooms import page, problems, room_of, rooms


def file(statements: int, covered: int, **functions: int) -> dict[str, Any]:
    summary = {
        "num_statements": statements,
        "num_branches": 0,
        "covered_lines": covered,
        "covered_branches": 0,
    }
    gaps = {
        name: {"summary": {"missing_lines": missing, "missing_branches": 0}}
        for name, missing in functions.items()
    }
    return {"summary": summary, "functions": gaps}


def report(**files: dict[str, Any]) -> dict[str, Any]:
    return {"files": {path.replace("__", "/") + ".py": part for path, part in files.items()}}


def test_a_room_is_the_first_folder_of_a_package() -> None:
    assert room_of("operator/engineroom/tasks/inspection/jobs.py") == "engineroom.tasks"
    assert room_of("operator/engineroom/main.py") == "engineroom"
    assert room_of("operator/engineroom_worker/worker.py") == "engineroom_worker"
    assert room_of("webhooks/engineroom_webhooks/tls.py") == "engineroom_webhooks"


def test_a_room_and_the_total_below_their_limits_are_problems() -> None:
    measured = rooms(
        report(
            operator__engineroom__tasks__jobs=file(100, 79),
            operator__engineroom__core__clock=file(100, 100),
        )
    )
    assert problems(measured) == [
        "total: 89.5% is below 90%",
        "engineroom.tasks: 79.0% is below 80%",
    ]
    measured = rooms(report(operator__engineroom__tasks__jobs=file(100, 90)))
    assert problems(measured) == []


def test_the_page_names_the_largest_gaps() -> None:
    gaps = {"first": 2, "second": 8, "third": 0}
    text = page(rooms(report(operator__engineroom__tasks__jobs=file(20, 10, **gaps))), gaps=1)
    assert "| `engineroom.tasks` | 20 | 50.0 | `jobs.py:second` (8) |" in text
    assert "first" not in text
