"""The page on adding a kind names files, classes and fields that exist."""

from __future__ import annotations

import dataclasses
import re

from engineroom.api import kinds
from engineroom.api.kinds import Kind
from tests.support import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("## How to add a kind\n")[2].partition("\n## ")[0]


def test_every_field_of_an_entry_stands_in_the_page() -> None:
    rows = re.findall(r"^ +\| (`.*?) \|", SECTION, re.MULTILINE)
    fields = {field.name for field in dataclasses.fields(Kind)} - {"group", "version"}

    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == fields


def test_every_file_that_the_page_names_exists() -> None:
    named = re.findall(r"`((?:operator|tests)/[\w/.<>-]+)`", SECTION)

    assert named
    for path in named:
        if path.endswith("<package>"):
            continue
        for kind in kinds.KINDS:
            assert (ROOT / path.replace("<kind>", kind.singular)).is_file(), path


def test_every_class_that_the_page_names_exists() -> None:
    from engineroom.api.schema import common as schema
    from engineroom.api.validation import common as validation

    for name, home in (("Kind", kinds), ("KindSchema", schema), ("KindRules", validation)):
        assert f"`{name}`" in SECTION
        assert hasattr(home, name)
