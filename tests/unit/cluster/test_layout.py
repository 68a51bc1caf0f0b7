from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cluster import layout as layouts
from tests.cluster.api import ClusterError, Shape
from tests.cluster.layout import MAXIMUM_NODES, Layout, plan

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def no_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever runs on this machine meanwhile."""
    monkeypatch.setattr(layouts, "_is_device", lambda name: False)


def test_clusters_side_by_side_share_no_address_range(tmp_path: Path) -> None:
    planned: list[Layout] = []
    for number in range(MAXIMUM_NODES):
        planned.append(plan(tmp_path / f"c{number}", Shape.NODE, planned))
    networks = [n for layout in planned for n in (layout.link, layout.pods, layout.services)]
    assert not any(a.overlaps(b) for i, a in enumerate(networks) for b in networks[:i])
    assert len({layout.host_device for layout in planned}) == MAXIMUM_NODES
    with pytest.raises(ClusterError, match="in use"):
        plan(tmp_path / "more", Shape.NODE, planned)


def test_an_address_range_whose_device_exists_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(layouts, "_is_device", lambda name: name in ("er0-host", "er1-host"))
    assert plan(tmp_path / "here", Shape.NODE, []).index == 2


def test_addresses_come_from_the_benchmarking_range_only(tmp_path: Path) -> None:
    layout = plan(tmp_path / "here", Shape.NODE, [])
    for network in (layout.link, layout.pods, layout.services):
        assert str(network).startswith(("198.18.", "198.19."))
    assert layout.dns in layout.services


def test_a_control_plane_is_on_loopback_with_ports_of_its_own(tmp_path: Path) -> None:
    first = plan(tmp_path / "first", Shape.CONTROL_PLANE, [])
    second = plan(tmp_path / "second", Shape.CONTROL_PLANE, [first])
    assert first.address.is_loopback
    assert not set(first.ports.values()) & set(second.ports.values())


def test_a_layout_reads_back_as_it_was_saved(tmp_path: Path) -> None:
    layout = plan(tmp_path / "here", Shape.NODE, [], owner=(1, 2, "boot"))
    layout.save()
    assert Layout.read(tmp_path / "here") == layout


def test_where_nothing_was_saved_there_is_no_layout(tmp_path: Path) -> None:
    assert Layout.read(tmp_path / "nowhere") is None


def test_device_names_fit_the_kernel(tmp_path: Path) -> None:
    layout = plan(tmp_path / ("x" * 30), Shape.NODE, [])
    assert len(layout.host_device) < 16
    assert len(layout.node_device) < 16
