"""The names of the public library exist: applications import them."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIST = ROOT / "tests" / "data" / "public_library.txt"
PAGES = ("core", "auth", "tasks", "ratelimit")


def listed() -> dict[str, list[str]]:
    """Return the names of each module: an indented line is a name of the module above it."""
    modules: dict[str, list[str]] = {}
    names: list[str] = []
    for line in LIST.read_text().splitlines():
        if line.startswith("  "):
            names.append(line.strip())
        elif line and not line.startswith("#"):
            names = modules.setdefault(line, [])
    return modules


MODULES = listed()


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_exists(module: str) -> None:
    loaded = importlib.import_module(module)
    assert [name for name in MODULES[module] if not hasattr(loaded, name)] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_import_in_the_documentation_is_on_the_list(page: str) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text()
    imports = re.findall(r"^from (engineroom[\w.]*) import ([\w, ]+)$", text, re.MULTILINE)
    assert imports
    missing = [
        f"{module}.{name}"
        for module, names in imports
        for name in names.split(", ")
        if name not in MODULES.get(module, [])
    ]
    assert missing == []
