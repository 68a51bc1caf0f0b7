"""Requests and limits of a container as numbers: cores and bytes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeVar

from engineroom.api.quantity import QuantityError, parse_quantity

if TYPE_CHECKING:
    from collections.abc import Mapping

Frozen = TypeVar("Frozen")

_MEBI: Final = 2**20


def shared(value: Frozen) -> Frozen:
    """Return the first of all equal values, because thousands of pods have a few values."""
    first: Frozen = _first(value)
    return first


@lru_cache(maxsize=4096)
def _first(value: Any) -> Any:
    return value


@dataclass(frozen=True, slots=True)
class ResourceAmounts:
    """Requests and limits of a container: cores and bytes. None: not set, or unknown."""

    cpu_request: float | None = None
    memory_request: float | None = None
    cpu_limit: float | None = None
    memory_limit: float | None = None

    def __bool__(self) -> bool:
        """Return whether any amount is set."""
        return any(getattr(self, name) is not None for name in RESOURCE_NAMES)

    def resources(self) -> dict[str, dict[str, str]]:
        """Return them as a container's ``resources``: millicores, and MiB where they are whole."""
        resources: dict[str, dict[str, str]] = {}
        for name in RESOURCE_NAMES:
            value = getattr(self, name)
            if value is not None:
                resource, kind = name.split("_")
                resources.setdefault(f"{kind}s", {})[resource] = quantity(resource, value)
        return resources

    @classmethod
    def of(cls, resources: Mapping[str, Any] | None) -> ResourceAmounts:
        """Read a container's ``resources``; a value that is no quantity counts as not set."""
        amounts: dict[str, float] = {}
        for name in RESOURCE_NAMES:
            resource, kind = name.split("_")
            value = ((resources or {}).get(f"{kind}s") or {}).get(resource)
            if value is None:
                continue
            try:
                amounts[name] = float(parse_quantity(value))
            except QuantityError:
                continue
        return shared(cls(**amounts))


RESOURCE_NAMES: Final = tuple(part.name for part in fields(ResourceAmounts))
NO_RESOURCES: Final = ResourceAmounts()


def quantity(resource: str, value: float) -> str:
    """Return a Kubernetes quantity: ``120m``, ``96Mi``; bytes if they are no whole MiB."""
    if resource == "cpu":
        return f"{max(1, round(value * 1000))}m"
    mebibytes, rest = divmod(int(value), _MEBI)
    return str(int(value)) if rest else f"{mebibytes}Mi"
