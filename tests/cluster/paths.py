"""Folders that are kept between runs, after the XDG base directory specification."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """Return the folder of binaries and images, which can be built again. All checkouts of a user
    share it.
    """
    return _base("XDG_CACHE_HOME", ".cache") / "engineroom"


def clusters_directory() -> Path:
    """Return the folder with the state of running clusters, one folder each."""
    return _base("XDG_STATE_HOME", ".local/state") / "engineroom" / "clusters"


def _base(variable: str, default: str) -> Path:
    value = os.environ.get(variable, "")
    # The specification has relative paths ignored.
    return Path(value) if Path(value).is_absolute() else Path.home() / default
