"""Kills for memory inside the container, as the worker runtime finds them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from engineroom_worker import out_of_memory
from engineroom_worker.observability.metrics import SharedMetrics, SlotMetrics, render

if TYPE_CHECKING:
    from pathlib import Path

LIMIT = 256 * 2**20


def version_1(root: Path, kills: int, limit: int = LIMIT) -> None:
    folder = root / "memory"
    folder.mkdir(exist_ok=True)
    (folder / "memory.oom_control").write_text(
        f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n"
    )
    (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")


def version_2(root: Path, kills: int, limit: int | str = LIMIT) -> None:
    (root / "memory.events").write_text(
        f"low 0\nhigh 0\nmax 9\noom 3\noom_kill {kills}\noom_group_kill 0\n"
    )
    (root / "memory.max").write_text(f"{limit}\n")


@pytest.mark.parametrize("hierarchy", [version_1, version_2])
def test_each_kill_is_told_once_by_each_slot(tmp_path, hierarchy):
    hierarchy(tmp_path, 2)
    metrics = SharedMetrics(2)
    out_of_memory.set_baseline(metrics, tmp_path)
    assert out_of_memory.new_kill_fields(SlotMetrics(metrics, 0), tmp_path) == {}
    hierarchy(tmp_path, 3)
    for slot in (0, 1):
        fields = out_of_memory.new_kill_fields(SlotMetrics(metrics, slot), tmp_path)
        assert fields["er_oom_limit"] == LIMIT
        assert float(fields["er_oom_at"]) > 1.7e9
        assert out_of_memory.new_kill_fields(SlotMetrics(metrics, slot), tmp_path) == {}
    assert 'engineroom_worker_oom_kills_total{pool="a/b"} 3' in render(metrics, "a/b", 0.0)


def test_no_limit_is_none(tmp_path):
    version_1(tmp_path, 0, 9223372036854771712)
    assert out_of_memory.limit(tmp_path) == 0
    version_2(tmp_path, 0, "max")
    assert out_of_memory.limit(tmp_path) == 0


def test_where_nobody_counts_nothing_is_told(tmp_path):
    metrics = SharedMetrics(1)
    out_of_memory.set_baseline(metrics, tmp_path)
    assert out_of_memory.kills(tmp_path) == 0
    assert out_of_memory.new_kill_fields(SlotMetrics(metrics, 0), tmp_path) == {}
