"""The policies of an enforcer as one immutable snapshot at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from engineroom.ratelimit.distribution.document import PolicySnapshot

#: Returns the decisions without Redis since its last call, by policy without the namespace.
FallbackCounts = Callable[[], Mapping[str, int]]


class PolicySource(Protocol):
    """The source of an enforcer's policies."""

    @property
    def current(self) -> PolicySnapshot:
        """The last valid policies; read this property for every request."""
        ...

    @property
    def synced(self) -> bool:
        """True once policies were read.

        Until then ``current`` is empty, and a setting of the enforcer decides whether to admit.
        """
        ...

    @property
    def enforcers(self) -> int:
        """The number of live enforcers of the same policies, including this one.

        These are the enforcers of the policy that the labels select, or all decision services.
        """
        ...

    def report_fallbacks(self, counts: FallbackCounts) -> None:
        """Report the decisions without Redis that ``counts`` returns, from time to time."""
        ...


class StaticPolicies:
    """Policies that never change; the in-memory twin of a follower."""

    def __init__(self, policies: PolicySnapshot, enforcers: int = 1) -> None:
        self.current = policies
        self.synced = True
        self.enforcers = enforcers

    def report_fallbacks(self, counts: FallbackCounts) -> None:
        """Ignore the counts: there is no status to report them in."""
