"""The memory that a reconciler has of an object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from engineroom.core.errors import InvalidSpecError

#: A moment before any other on a monotonic clock.
NEVER = -1e9

Plan = TypeVar("Plan")


@dataclass(slots=True)
class ObjectMemory(Generic[Plan]):
    """The memory of one object between two reconciles.

    Its loss costs one more reconcile and nothing else. Kinds extend it.
    """

    namespace: str
    name: str
    uid: str
    generation: int = 0
    #: The parsed spec of this generation; None before it is parsed.
    plan: Plan | None = None
    #: Why the spec of this generation cannot be parsed.
    invalid: InvalidSpecError | None = None
    #: When the status was written last (monotonic seconds).
    status_written: float = NEVER
    #: When held-back figures are written (monotonic seconds); None without any.
    figures_due: float | None = None

    @property
    def key(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}"
