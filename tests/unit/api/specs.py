"""A valid pool, and changes to it by path."""

from __future__ import annotations

import copy
import re
from typing import Any

from tests.support import pool_document

_PART = re.compile(r"([^.\[\]]+)|\[(\d+)\]")


def pool(changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """A valid pool with values set by path; ``...`` removes what is there."""
    made = pool_document(container={"name": "worker", "image": "shop:1"})
    for path, value in (changes or {}).items():
        put(made, path, copy.deepcopy(value))
    return made


def put(root: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Set one value by path; returns ``root``."""
    *parents, last = [name or int(index) for name, index in _PART.findall(path)]
    place: Any = root
    for part in parents:
        place = place[part] if isinstance(part, int) else place.setdefault(part, {})
    if value is ...:
        del place[last]
    elif isinstance(last, int) and last == len(place):
        place.append(value)
    else:
        place[last] = value
    return root
