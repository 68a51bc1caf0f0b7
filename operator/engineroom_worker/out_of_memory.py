"""Processes of this container that the kernel killed for memory.

Often it is the work horse alone that goes: on cgroup v1, and wherever the kubelet is told so
(``singleProcessOOMKill``). The container then stays, and its status never tells of the kill; the
kernel's own count does.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engineroom_worker.metrics import Board

ROOT = Path("/sys/fs/cgroup")
#: Where version 2 and version 1 keep count and limit, seen from inside the container.
_COUNTS = ("memory.events", "memory/memory.oom_control")
_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")
#: What version 1 says where there is no limit is a little below 2 to the power of 63.
_NO_LIMIT = 2**62


def kills(root: Path = ROOT) -> int:
    """How many processes were killed since the container began; 0 where nobody counts."""
    for line in _read(root, _COUNTS).splitlines():
        name, _, count = line.partition(" ")
        if name == "oom_kill" and count.strip().isdigit():
            return int(count)
    return 0


def limit(root: Path = ROOT) -> int:
    """The container's memory limit in bytes, 0 for none."""
    text = _read(root, _LIMITS).strip()
    number = int(text) if text.isdigit() else 0
    return number if number < _NO_LIMIT else 0


def begin(board: Board, root: Path = ROOT) -> None:
    """Kills so far are none of this supervisor's workers."""
    for slot in range(board.slots):
        board.set(slot, "oom_kills", kills(root))


def news(board: Board, slot: int, root: Path = ROOT) -> dict[str, Any]:
    """Fields of the worker's record when somebody was killed since the last time; else none.

    The board remembers across workers of the slot: the one killed may have been the worker.
    """
    count = kills(root)
    if count <= board.get(slot, "oom_kills"):
        return {}
    board.set(slot, "oom_kills", count)
    return {"er_oom_at": f"{time.time():.0f}", "er_oom_limit": limit(root)}


def _read(root: Path, names: tuple[str, ...]) -> str:
    for name in names:
        try:
            return (root / name).read_text()
        except OSError:
            continue
    return ""
