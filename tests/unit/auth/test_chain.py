"""An export of the audit log proves by itself what was edited, removed, added or reordered."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engineroom.auth.audit.hash_chain import canonical, record_mac, verify_export

SECRET = b"s" * 32


def export(count: int) -> list[tuple[dict[str, Any], str]]:
    found: list[tuple[dict[str, Any], str]] = []
    previous = ""
    for number in range(1, count + 1):
        body = {"seq": number, "who": f"user:{number}", "at": 1.5 * number, "details": {}}
        previous = record_mac(SECRET, number, previous, canonical(body))
        found.append((body, previous))
    return found


def test_what_was_written_is_intact_in_any_order_and_twice() -> None:
    records = export(20)
    shuffled = records + records[:3]
    random.Random(1).shuffle(shuffled)
    assert verify_export(shuffled, SECRET) == (20, (20, records[-1][1]), [])
    assert verify_export([], SECRET) == (0, (0, ""), [])
    # From the middle on: what is before it is not known, the rest is checked.
    assert verify_export(records[7:], SECRET)[2] == []
    assert verify_export(records[7:], SECRET, (7, records[6][1]))[2] == []


@given(st.integers(0, 9), st.sampled_from(["edit", "mac", "remove", "swap", "forge"]))
def test_each_way_of_tampering_is_found(index: int, how: str) -> None:
    records = export(11)
    body, mac = records[index]
    match how:
        case "edit":
            records[index] = ({**body, "who": "user:mallory"}, mac)
        case "mac":
            records[index] = (body, "0" * 64)
        case "remove":
            del records[index]
        case "swap":
            other, sealed = records[index + 1]
            records[index] = ({**other, "seq": index + 1}, mac)
            records[index + 1] = ({**body, "seq": index + 2}, sealed)
        case "forge":
            # By somebody without the secret, chained as well as he can.
            forged = {**body, "who": "user:mallory"}
            previous = records[index - 1][1] if index else ""
            records[index] = (
                forged, record_mac(b"x" * 32, index + 1, previous, canonical(forged))
            )  # fmt: skip
    anchor = (11, export(11)[-1][1])
    problems = verify_export(records, SECRET)[2]
    if how == "remove" and index == 0:
        # The beginning is gone: that is for the anchor from before it, or for the server.
        assert problems == []
        told = verify_export(records, SECRET, (0, ""))[2]
        assert told == ["records 1 to 1: missing after the anchor"]
    else:
        assert problems != []
    assert verify_export(export(11), SECRET, anchor)[2] == []


def test_a_log_that_was_set_back_does_not_fit_the_anchor() -> None:
    records = export(9)
    assert "ends at 5" in verify_export(records[:5], SECRET, (9, records[8][1]))[2][0]
    other = verify_export(records, SECRET, (9, "f" * 64))[2]
    assert other == ["record 9: differs from the anchor"]


@pytest.mark.parametrize("number", [None, True, "1", 0, -1, 1.0])
def test_what_has_no_number_is_told(number: Any) -> None:
    problems = verify_export([({"seq": number}, "x")], SECRET)[2]
    assert problems == ["a record has no number"]
