"""The verdict of a benchmark."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.performance import report
from tests.performance.outcome import Goal, outcome, ratios_of, record, settle

if TYPE_CHECKING:
    from pathlib import Path

FIGURES = {"p99_ms": 30.0, "floor_ms": 10.0}


def goal(ratio: float | None) -> Goal:
    return Goal("p99_ms", 5, floor="floor_ms", ratio=ratio)


@pytest.mark.parametrize(("ratio", "status"), [(3.0, 0), (2.9, 1), (None, 1)])
def test_the_ratio_to_the_floor_decides(ratio: float | None, status: int) -> None:
    assert outcome("example", FIGURES, [goal(ratio)]) == status


def test_a_rate_costs_more_floors_when_it_is_lower() -> None:
    rate = Goal("rate", 500, at_least=True, floor="floor_rate", ratio=2.0)
    assert rate.met({"rate": 100.0, "floor_rate": 200.0})
    assert not rate.met({"rate": 99.0, "floor_rate": 200.0})


def test_a_figure_without_floor_is_compared_with_its_bound() -> None:
    assert outcome("example", {"lost": 0}, [Goal("lost", 0)]) == 0
    assert outcome("example", {"lost": 1}, [Goal("lost", 0)]) == 1
    assert outcome("example", {}, [Goal("lost", 0)]) == 1


def test_a_missing_floor_misses_the_goal() -> None:
    assert not goal(100.0).met({"p99_ms": 1.0})


def test_a_figure_needs_a_goal_or_a_reason() -> None:
    with pytest.raises(ValueError, match="seconds"):
        outcome("example", {"lost": 0, "seconds": 3}, [Goal("lost", 0)])
    reasons = {"sec*": "the length of the run"}
    assert outcome("example", {"lost": 0, "seconds": 3}, [Goal("lost", 0)], reasons) == 0


def test_the_closing_line_is_recorded_in_place_of_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "lines.jsonl"
    monkeypatch.setenv("ENGINEROOM_BENCH_RECORD", str(path))
    for value in (7.0, 30.0):
        outcome("reaction", {**FIGURES, "p99_ms": value}, [goal(3.0)])
    record(path, "admission", json.dumps({"name": "admission"}))
    names = [json.loads(line)["name"] for line in path.read_text().splitlines()]
    assert names == ["admission", "reaction"]
    closing = capsys.readouterr().out.splitlines()[-1]
    assert path.read_text().splitlines()[1] == closing
    assert json.loads(closing)["figures"]["p99_ms_to_floor"] == 3.0


def test_the_page_shows_figure_floor_ratio_and_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lines.jsonl"
    monkeypatch.setenv("ENGINEROOM_BENCH_RECORD", str(path))
    outcome("reaction", {**FIGURES, "samples": 9}, [goal(2.0)], {"sam*": "the size of the run"})
    text = report.page([json.loads(line) for line in path.read_text().splitlines()])
    assert "| `p99_ms` | 30.0 | 10.0 | 3.0 | <= 2 floors; by design <= 5 | **missed** |" in text
    assert "| `samples` | 9 | the size of the run |" in text
    assert "Not recorded yet: " in text


def test_a_settled_ratio_falls_and_never_rises(tmp_path: Path) -> None:
    path = tmp_path / "ratios.json"
    assert ratios_of("reaction", path) == {}
    assert settle("reaction", {"p50_ms": 2.0, "p99_ms": 3.0}, path) == {
        "p50_ms": 2.2,
        "p99_ms": 3.3,
    }
    settle("sagas", {"rate": 1.0}, path)
    settle("reaction", {"p50_ms": 1.0, "p99_ms": 9.0}, path)
    assert ratios_of("reaction", path) == {"p50_ms": 1.1, "p99_ms": 3.3}
    assert ratios_of("sagas", path) == {"rate": 1.1}


def test_the_settled_ratio_of_a_benchmark_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ratios.json"
    settle("example", {"p99_ms": 3.0}, path)
    monkeypatch.setattr("tests.performance.outcome.ratios_of", lambda name: ratios_of(name, path))
    assert outcome("example", FIGURES, [goal(None)]) == 0
    assert outcome("other", FIGURES, [goal(None)]) == 1
