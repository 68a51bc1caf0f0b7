"""Runs other programs."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence

from .api import ClusterError

# Runs a command, with the given standard input, and returns its output; a test's twin records
# instead.
Run = Callable[[Sequence[str], str], str]


def run(command: Sequence[str], stdin: str = "") -> str:
    """Return the command's standard output. Raises ClusterError with its output if it fails."""
    try:
        result = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise ClusterError(f"{command[0]} is not installed") from error
    if result.returncode != 0:
        raise ClusterError(f"{' '.join(command)} failed: {result.stderr.strip()}")
    return result.stdout
