"""Text for JSON that other programs read."""

from __future__ import annotations

import pytest

from engineroom.core.validation.json_values import as_utf8, with_utf8


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("\ud800", "\ufffd"),
        ("a\udc00b", "a\ufffdb"),
        ("\ud83d\ude00", "\U0001f600"),
        ("\ud800\ud800x", "\ufffd\ufffdx"),
    ],
)
def test_halves_of_surrogate_pairs_become_the_replacement_character(
    text: str, expected: str
) -> None:
    assert as_utf8(text) == expected
    assert with_utf8({text: [text, (text,), 1, None]}) == {
        expected: [expected, [expected], 1, None]
    }
