"""Figures in status: not too often for one object, nor for all objects together."""

from engineroom.kube.runtime.status_pacing import StatusPacer


def test_a_single_object_waits_for_its_own_interval_only() -> None:
    pacer = StatusPacer(0.1)
    assert pacer.slot(now=50.0, earliest=20.0) == 50.0
    assert pacer.slot(now=50.5, earliest=52.0) == 52.0
    assert pacer.slot(now=52.5, earliest=54.0) == 54.0


def test_many_objects_at_once_get_moments_in_a_row() -> None:
    pacer = StatusPacer(0.5)
    assert [pacer.slot(10.0, 10.0) for _ in range(4)] == [10.0, 10.5, 11.0, 11.5]


def test_a_write_that_has_to_wait_delays_no_other() -> None:
    pacer = StatusPacer(0.5)
    assert pacer.slot(10.0, earliest=60.0) == 60.0
    assert pacer.slot(10.0, earliest=10.0) == 10.5


def test_unused_moments_do_not_add_up() -> None:
    pacer = StatusPacer(0.5)
    pacer.slot(10.0, 10.0)
    assert [pacer.slot(100.0, 0.0) for _ in range(2)] == [100.0, 100.5]
