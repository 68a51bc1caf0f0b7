"""Replies of Redis as text."""

from __future__ import annotations

from typing import Any

import pytest

from engineroom.core.redis_replies import text, texts


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (b"queue", "queue"),
        ("queue", "queue"),
        ("Köln".encode(), "Köln"),
        (b"", ""),
        ("", ""),
        (None, ""),
        (0, "0"),
        (42, "42"),
        (-1, "-1"),
        (1.5, "1.5"),
    ],
)
def test_a_reply_has_one_text_whether_or_not_the_client_decodes_it(
    reply: Any, expected: str
) -> None:
    assert text(reply) == expected


def test_invalid_bytes_are_replaced() -> None:
    assert text(b"job-\xff") == "job-\ufffd"


def test_binary_state_keeps_its_bytes_in_an_encoding_that_has_them_all() -> None:
    state = bytes(range(256))
    assert text(state, "latin-1").encode("latin-1") == state


def test_a_hash_becomes_a_dictionary_of_texts() -> None:
    assert texts({b"attempts": 0, "name": b"report", b"end": None}) == {
        "attempts": "0",
        "name": "report",
        "end": "",
    }
