"""YAML output: every value reads back as it was, without anchors, in block style."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from engineroom.cli.views.yaml_output import to_yaml

TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=20)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4)
)


@given(VALUES)
def test_a_value_reads_back_as_it_was(value: Any) -> None:
    assert yaml.safe_load(to_yaml(value)) == value


@pytest.mark.parametrize("text", ["yes", "1", "null", "2020-01-01", "a: b", "# x", " x", "", "1e3"])
def test_text_that_reads_as_another_type_gets_quotes(text: str) -> None:
    assert yaml.safe_load(to_yaml({"a": text})) == {"a": text}


def test_maps_and_lists_stand_in_blocks_and_a_shared_value_stands_twice() -> None:
    shared = {"b": [1, None, True]}
    assert to_yaml({"x": shared, "y": shared, "z": {}}) == (
        "x:\n  b:\n  - 1\n  - null\n  - true\ny:\n  b:\n  - 1\n  - null\n  - true\nz: {}\n"
    )
