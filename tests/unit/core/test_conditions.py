"""Conditions: pure, stable, and read by kstatus as meant."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from engineroom.core import reasons
from engineroom.core.conditions import (
    Conditions,
    find,
    invalid_conditions,
    is_true,
    progress,
    remove_condition,
    set_condition,
)
from engineroom.core.errors import InvalidSpecError, Problem

NOW = datetime(2026, 3, 4, 5, 6, 7, 890123, tzinfo=UTC)
LATER = NOW + timedelta(minutes=5)


def one(status: str = "True", reason: str = reasons.RECONCILED, at: datetime = NOW) -> Conditions:
    return set_condition([], "Ready", status, reason, "well", 1, at)


def test_a_new_condition_has_all_fields() -> None:
    assert one() == [
        {
            "type": "Ready",
            "status": "True",
            "reason": "Reconciled",
            "message": "well",
            "lastTransitionTime": "2026-03-04T05:06:07Z",
            "observedGeneration": 1,
        }
    ]


def test_the_same_again_is_equal_whatever_the_time() -> None:
    assert set_condition(one(), "Ready", "True", reasons.RECONCILED, "well", 1, LATER) == one()


def test_time_moves_only_with_the_status() -> None:
    kept = set_condition(one(), "Ready", "True", reasons.SCALING, "other", 2, LATER)
    assert kept[0]["lastTransitionTime"] == "2026-03-04T05:06:07Z"
    assert (kept[0]["reason"], kept[0]["observedGeneration"]) == ("Scaling", 2)
    moved = set_condition(one(), "Ready", "False", reasons.SCALING, "other", 2, LATER)
    assert moved[0]["lastTransitionTime"] == "2026-03-04T05:11:07Z"


def test_order_and_others_stay_and_nothing_is_changed_in_place() -> None:
    before = [{"type": "A", "status": "True"}, *one(), {"type": "B", "status": "False", "x": 1}]
    copied = copy.deepcopy(before)
    after = set_condition(before, "Ready", "False", reasons.SCALING, "m", 2, LATER)
    assert before == copied
    assert [condition["type"] for condition in after] == ["A", "Ready", "B"]
    assert after[0] == before[0]
    assert after[2] == before[2]


def test_a_double_or_incomplete_condition_is_mended() -> None:
    odd: list[dict[str, Any]] = [{"type": "Ready", "status": "True"}, *one()]
    after = set_condition(odd, "Ready", "True", reasons.RECONCILED, "well", 1, LATER)
    assert len(after) == 1
    assert after[0]["lastTransitionTime"] == "2026-03-04T05:11:07Z"


def test_conditions_are_found_and_removed() -> None:
    assert find(one(), "Ready") is not None
    assert find(one(), "Other") is None
    assert is_true(one(), "Ready")
    assert not is_true(one("False"), "Ready")
    assert not is_true([], "Ready")
    assert remove_condition(one(), "Ready") == []


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({}, "InProgress"),
        ({"Ready": "True", "Reconciling": "False", "Stalled": "False"}, "Current"),
        ({"Ready": "False", "Reconciling": "True", "Stalled": "False"}, "InProgress"),
        ({"Ready": "True", "Reconciling": "True", "Stalled": "False"}, "InProgress"),
        ({"Ready": "False", "Reconciling": "False", "Stalled": "True"}, "Failed"),
        ({"Ready": "False", "Reconciling": "False", "Stalled": "False"}, "InProgress"),
    ],
)
def test_progress_is_what_kstatus_reads(status: dict[str, str], expected: str) -> None:
    conditions = [{"type": kind, "status": value} for kind, value in status.items()]
    obj = {
        "metadata": {"generation": 2},
        "status": {"observedGeneration": 2, "conditions": conditions},
    }
    assert progress(obj) == expected


def test_a_status_of_an_older_generation_is_in_progress() -> None:
    obj = {"metadata": {"generation": 3}, "status": {"observedGeneration": 2, "conditions": one()}}
    assert progress(obj) == "InProgress"


def test_every_reason_is_one_word_and_documented() -> None:
    constants = {
        value for name, value in vars(reasons).items() if name.isupper() and name != "DESCRIPTIONS"
    }
    assert constants == set(reasons.DESCRIPTIONS)
    assert all(reason.isalpha() and reason[0].isupper() for reason in constants)
    assert all(text.endswith(".") for text in reasons.DESCRIPTIONS.values())


def test_an_invalid_spec_stalls_and_keeps_other_conditions() -> None:
    error = InvalidSpecError([Problem("spec.queues[0].name", "is empty", "name the queue")])
    before = set_condition(one(), "Draining", "False", reasons.NOT_DRAINING, "no", 1, NOW)
    after = invalid_conditions(before, error, 2, LATER)
    assert {c["type"]: (c["status"], c["reason"]) for c in after} == {
        "Ready": ("False", "InvalidSpec"),
        "Draining": ("False", "NotDraining"),
        "Stalled": ("True", "InvalidSpec"),
        "Reconciling": ("False", "InvalidSpec"),
    }
    assert "spec.queues[0].name: is empty; name the queue" in after[0]["message"]
    assert invalid_conditions(after, error, 2, LATER + timedelta(hours=1)) == after
