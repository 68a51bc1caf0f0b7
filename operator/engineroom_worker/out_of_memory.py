"""Processes of this container that the kernel killed for lack of memory.

On cgroup v1, and with the kubelet's ``singleProcessOOMKill``, the kernel often kills only the work
horse. The container then keeps running, and its status does not show the kill. The kernel's own
counter does.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engineroom_worker.observability.metrics import SharedMetrics, SlotMetrics

ROOT = Path("/sys/fs/cgroup")
#: Files with counter and limit in cgroup v2 and v1, as seen from inside the container.
_COUNTS = ("memory.events", "memory/memory.oom_control")
_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")
#: Version 1 reports a value slightly below 2 to the power of 63 if there is no limit.
_NO_LIMIT = 2**62


def kills(root: Path = ROOT) -> int:
    """Return the number of kills since the container's start; 0 without a counter."""
    for line in _read(root, _COUNTS).splitlines():
        name, _, count = line.partition(" ")
        if name == "oom_kill" and count.strip().isdigit():
            return int(count)
    return 0


def limit(root: Path = ROOT) -> int:
    """Return the container's memory limit in bytes, 0 for none."""
    text = _read(root, _LIMITS).strip()
    number = int(text) if text.isdigit() else 0
    return number if number < _NO_LIMIT else 0


def set_baseline(metrics: SharedMetrics, root: Path = ROOT) -> None:
    """Store the kills before the first worker, which are not reported."""
    for slot in range(metrics.slots):
        metrics.set(slot, "oom_kills", kills(root))


def new_kill_fields(metrics: SlotMetrics, root: Path = ROOT) -> dict[str, Any]:
    """Return fields of the worker's record if there was a kill since the last call, else {}.

    The shared metrics outlive the slot's worker, which may be the process that was killed.
    """
    count = kills(root)
    if count <= metrics.get("oom_kills"):
        return {}
    metrics.set("oom_kills", count)
    return {"er_oom_at": f"{time.time():.0f}", "er_oom_limit": limit(root)}


def _read(root: Path, names: tuple[str, ...]) -> str:
    for name in names:
        try:
            return (root / name).read_text()
        except OSError:
            continue
    return ""
