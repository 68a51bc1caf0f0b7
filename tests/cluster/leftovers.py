"""Finds and removes what a node leaves behind: control groups, processes, mounts, settings."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from .api import ClusterError
from .process import Identity

if TYPE_CHECKING:
    from collections.abc import Iterator

_CGROUPS = Path("/sys/fs/cgroup")
# Set by the kubelet when it starts, for the whole machine.
_SETTINGS = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
_SECONDS = 30.0


def create_cgroup(name: str) -> None:
    """Create the control group in every hierarchy: one in version 2, many in version 1."""
    for hierarchy in _hierarchies(at=_CGROUPS):
        (hierarchy / name).mkdir(exist_ok=True)


def remove_cgroup(name: str) -> None:
    """Kill all processes of the group and its children, and remove them. Raises ClusterError if one
    remains.
    """
    deadline = time.monotonic() + _SECONDS
    for root in [hierarchy / name for hierarchy in _hierarchies()]:
        while root.exists():
            # Children before parents: only an empty group can go.
            groups = [Path(folder) for folder, _, _ in os.walk(root, topdown=False)]
            for group in groups:
                _kill_all_in(group)
            for group in groups:
                with suppress(OSError):
                    group.rmdir()
            if root.exists():
                if time.monotonic() > deadline:
                    raise ClusterError(f"control group {root} cannot be emptied")
                time.sleep(0.02)


def _hierarchies(at: Path | None = None) -> Iterator[Path]:
    """Return the roots of all control groups; with `at`, of version 2 only if it is mounted there.

    Elsewhere version 2 has no controllers beside version 1, but runc puts processes into it all the
    same.
    """
    for point, kind in _mounts():
        if kind == "cgroup" or (kind == "cgroup2" and at in (None, point)):
            yield point


def _kill_all_in(group: Path) -> None:
    with suppress(FileNotFoundError, OSError):
        for line in (group / "cgroup.procs").read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(line), signal.SIGKILL)


def kill_marked(variable: str, value: str) -> None:
    """Kill processes that were started with this environment variable, and their descendants."""
    marker = f"{variable}={value}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes()
        except OSError:
            continue  # It ended, or is not ours to read.
        if marker not in environment.split(b"\0"):
            continue
        identity = Identity.of(int(folder.name))
        if identity is not None and identity.pid != os.getpid():
            identity.end(grace=0.0)


def unmount_below(*folders: Path) -> None:
    """Unmount everything mounted in the folders, the newest first."""
    points = [point for point, _ in _mounts()]
    for point in reversed(points):
        if any(point.is_relative_to(folder) for folder in folders):
            # Lazily: what still holds the mount is being killed, and must not hold us up.
            subprocess.run(["umount", "-l", str(point)], capture_output=True, check=False)


def is_mounted(folder: Path) -> bool:
    """Return True if the folder is a mount point, also of its own file system."""
    return any(point == folder for point, _ in _mounts())


def _mounts() -> list[tuple[Path, str]]:
    """Return mount point and file system of each mount, in the order of mounting."""
    rows = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    # Spaces and the like are written as octal escapes.
    return [(Path(row[1].encode().decode("unicode_escape")), row[2]) for row in rows]


def save_settings(file: Path) -> None:
    """Save the kernel settings that a kubelet changes, unless they are saved already."""
    if not file.exists():
        paths = [Path("/proc/sys", name) for name in _SETTINGS]
        present = {str(path): path.read_text().strip() for path in paths if path.exists()}
        file.write_text(json.dumps(present, indent=1))


def restore_settings(file: Path) -> None:
    """Restore the settings that `save_settings` saved."""
    try:
        saved = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return
    for path, value in saved.items():
        with suppress(OSError):
            if Path(path).read_text().strip() != value:
                Path(path).write_text(value)
