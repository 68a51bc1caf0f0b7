"""Long-running processes that are found and stopped by a recorded identity.

A process id alone is ambiguous: after a crash another process may have it. So each process writes
its own entry of `/proc` before it executes the program. Process id, start time and boot id identify
it for ever, and it never runs without a record.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .api import ClusterError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# $0 is the record's path, "$@" the program: the shell's id and start time stay those of the
# program.
_RECORD_AND_RUN = (
    'cat "/proc/$$/stat" /proc/sys/kernel/random/boot_id > "$0.new"'
    ' && mv "$0.new" "$0" && exec "$@"'
)
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Identity:
    """A unique identity of a process, unlike a process id, which is reused."""

    pid: int
    started: int  # clock ticks since the boot
    boot: str

    @classmethod
    def parse(cls, record: str) -> Identity:
        """Parse a record: a line of `/proc/PID/stat`, then the boot id.

        Raises ValueError for an invalid record.
        """
        stat, _, boot = record.strip().rpartition("\n")
        pid, started, _ = _parse_stat(stat)
        return cls(pid, started, boot.strip())

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """Return the identity of the process with this id; None for none or a zombie."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return None
        _, started, state = _parse_stat(stat)
        if state in "ZX":
            return None
        return cls(pid, started, _BOOT_ID.read_text().strip())

    def alive(self) -> bool:
        """Return True if exactly this process still runs."""
        return Identity.of(self.pid) == self

    def end(self, grace: float) -> None:
        """Ask the process to end, kill it after `grace` seconds, and return when it has ended.

        Another process with the same id is not affected.
        """
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            # From here on the handle means one process; if that is ours, no later signal can hit
            # another.
            if not self.alive():
                return
            for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, 30.0)):
                try:
                    signal.pidfd_send_signal(handle, number)
                except ProcessLookupError:
                    return
                if select.select([handle], [], [], patience)[0]:
                    return
        finally:
            os.close(handle)
            _reap(self.pid)
        raise ClusterError(f"process {self.pid} does not end, not even by SIGKILL")


def _parse_stat(line: str) -> tuple[int, int, str]:
    """Parse process id, start time and state; the command between them may contain anything."""
    before, _, after = line.rpartition(")")
    fields = after.split()
    try:
        return int(before.split(" ", 1)[0]), int(fields[19]), fields[0]
    except (IndexError, ValueError) as error:
        raise ValueError(f"not a line of /proc/PID/stat: {line!r}") from error


def _reap(pid: int) -> None:
    # Where it was started by another process, its end is not ours to collect.
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


class Component:
    """One named process of a cluster. Its record, command line and log are files in the cluster's
    folder.
    """

    def __init__(self, root: Path, name: str) -> None:
        self.name = name
        self.log = root / "logs" / f"{name}.log"
        self._launch = root / "processes" / f"{name}.json"
        self._record = root / "processes" / f"{name}.pid"

    def configure(
        self,
        argv: Sequence[object],
        *,
        environment: Mapping[str, str] | None = None,
        namespace: Path | None = None,
    ) -> None:
        """Set how the process is started; `namespace` is its network namespace."""
        enter = [] if namespace is None else ["nsenter", f"--net={namespace}", "--"]
        launch = {
            "argv": [*enter, "/bin/sh", "-c", _RECORD_AND_RUN, str(self._record), *map(str, argv)],
            "environment": dict(environment or {}),
        }
        self._launch.parent.mkdir(parents=True, exist_ok=True)
        self._launch.write_text(json.dumps(launch, indent=1))

    @property
    def configured(self) -> bool:
        """Return True if the cluster has this component."""
        return self._launch.exists()

    def identity(self) -> Identity | None:
        """Return the recorded identity, even if that process has ended."""
        try:
            return Identity.parse(self._record.read_text())
        except (FileNotFoundError, ValueError):
            return None

    def running(self) -> bool:
        """Return True if the recorded process runs."""
        identity = self.identity()
        return identity is not None and identity.alive()

    def start(self) -> None:
        """Start the process unless it runs; it outlives this one. Return when its record is
        written.
        """
        if self.running():
            return
        launch = json.loads(self._launch.read_text())
        self._record.unlink(missing_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            child = subprocess.Popen(
                launch["argv"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | launch["environment"],
                cwd="/",
                start_new_session=True,
            )
        # Nobody waits for this child: it outlives us, or is collected by `end`.
        child.returncode = 0
        deadline = time.monotonic() + 10
        while self.identity() is None:
            if time.monotonic() > deadline:
                raise ClusterError(f"{self.name} did not start\n{self.tail()}")
            time.sleep(0.005)

    def stop(self, grace: float = 10.0) -> None:
        """Stop the process if it runs, and delete its record."""
        identity = self.identity()
        if identity is not None:
            identity.end(grace)
        self._record.unlink(missing_ok=True)

    def tail(self, lines: int = 15) -> str:
        """Return the end of the log, for error messages."""
        try:
            text = self.log.read_text(errors="replace")
        except FileNotFoundError:
            return "(no log)"
        return "\n".join(text.splitlines()[-lines:])


def components(root: Path) -> list[Component]:
    """Return every component that was ever configured in a cluster's folder."""
    return [Component(root, path.stem) for path in sorted((root / "processes").glob("*.json"))]
