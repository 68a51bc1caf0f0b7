"""The prefixes of keys in Redis: one list of them, without overlaps, for every room."""

from __future__ import annotations

import ast
import re
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from engineroom.core import key_prefixes
from engineroom_worker import key_prefixes as worker_key_prefixes
from tests.support import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

#: The beginning of any key of Engineroom's.
_OURS = r"\{?engineroom:\w|er:rl"


def prefixes_of(module: ModuleType) -> dict[str, str]:
    """Return the constants of a module of prefixes by name."""
    return {name: value for name, value in vars(module).items() if name.isupper()}


PREFIXES = prefixes_of(key_prefixes)


def definitions() -> dict[str, set[str]]:
    """Return the names from which each prefix is built."""
    tree = ast.parse(Path(key_prefixes.__file__).read_text())
    return {
        ast.unparse(statement.targets[0]): {
            node.id for node in ast.walk(statement.value) if isinstance(node, ast.Name)
        }
        for statement in tree.body
        if isinstance(statement, ast.Assign)
    }


def strings(folder: str) -> Iterator[tuple[str, str]]:
    """Yield the place and value of each string and bytes literal in the modules of a folder."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
                value = node.value
                text = value if isinstance(value, str) else value.decode("latin-1")
                yield f"{path.relative_to(ROOT)}:{node.lineno}", text


def contains(prefix: str, key: str) -> bool:
    """Return whether ``key`` is a key with the prefix, by whole segments."""
    return f"{key.rstrip(':')}:".startswith(f"{prefix.rstrip(':')}:")


def test_a_prefix_begins_with_another_one_only_where_it_is_built_from_it() -> None:
    built_from = definitions()
    assert set(built_from) == set(PREFIXES)
    overlaps = [
        (first, second)
        for first, second in permutations(PREFIXES, 2)
        if contains(PREFIXES[first], PREFIXES[second]) and first not in built_from[second]
    ]
    assert overlaps == []


def test_the_worker_runtime_has_the_same_prefixes() -> None:
    worker = prefixes_of(worker_key_prefixes)
    assert len(worker) > 10
    assert worker.items() <= PREFIXES.items()


def test_no_other_module_has_a_literal_that_begins_as_a_key() -> None:
    homes = {
        str(Path(module.__file__ or "").relative_to(ROOT))
        for module in (key_prefixes, worker_key_prefixes)
    }
    found = [
        (place, text)
        for folder in ("operator", "webhooks")
        for place, text in strings(folder)
        if re.match(_OURS, text) and place.split(":")[0] not in homes
    ]
    assert found == []


@pytest.mark.parametrize("folder", ["operator", "webhooks"])
def test_keys_in_lua_scripts_begin_with_a_prefix_of_the_list(folder: str) -> None:
    unknown = [
        (place, key)
        for place, text in strings(folder)
        for key in re.findall(rf"""['"]((?:{_OURS})[^'"]*)""", text)
        if not any(contains(prefix, key) for prefix in PREFIXES.values())
    ]
    assert unknown == []


def test_the_scripts_of_the_operator_and_the_workers_are_among_the_literals() -> None:
    places = {place.split(":")[0] for place, text in strings("operator") if "'engineroom:" in text}
    assert "operator/engineroom/queue/recovery.py" in places
    assert "operator/engineroom_worker/dequeue/limits.py" in places
