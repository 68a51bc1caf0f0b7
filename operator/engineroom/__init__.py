"""Engineroom: the background half of a Python application on Kubernetes."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str


def __getattr__(name: str) -> str:
    """``__version__``, read when asked for: finding it takes longer than importing all the rest."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("engineroom")
    except PackageNotFoundError:  # running from a source tree that was never installed
        return "0.0.0"
