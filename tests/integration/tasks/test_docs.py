"""The examples of the page about tasks do what it says."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from tests.support import ROOT

if TYPE_CHECKING:
    import psycopg
    from redis import Redis


def test_the_examples_run_in_their_order(redis: Redis, database: psycopg.Connection[Any]) -> None:
    page = (ROOT / "docs/tasks.md").read_text()
    examples = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(examples) >= 8
    names: dict[str, Any] = {
        "__name__": "shop.example", "redis": redis, "connection": database,
        "print": lambda *_: None,
    }  # fmt: skip
    for example in examples:
        exec(compile(example, "docs/tasks.md", "exec"), names)  # noqa: S102 - our own page
