"""The result of a limiter."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class DecisionReason(StrEnum):
    """The reason why a request was admitted or refused."""

    #: Every enforced limit had enough left.
    ADMITTED = "Admitted"
    #: No limit applies: all keys were missing and their limits say Skip.
    NOT_LIMITED = "NotLimited"
    #: A limit did not have enough left; wait for ``retry_after``.
    LIMITED = "Limited"
    #: The cost exceeds the burst, so that waiting does not help.
    COST_ABOVE_BURST = "CostAboveBurst"
    #: A key was missing and its limit says Deny.
    MISSING_KEY = "MissingKey"
    #: Redis did not decide, and the policy then admits.
    FAILED_OPEN = "FailedOpen"
    #: Redis did not decide, and the policy then refuses with 503.
    FAILED_CLOSED = "FailedClosed"


class DecisionSource(StrEnum):
    """The component that decided."""

    REDIS = "Redis"
    LEASE = "Lease"
    #: An earlier refusal that still holds.
    DENY_CACHE = "DenyCache"
    #: This process alone, because Redis did not decide.
    LOCAL = "Local"
    #: The policy itself; no counter was needed.
    POLICY = "Policy"


# For the code that runs for every request: in Python 3.11 the lookup of an enum's member costs as
# much as three function calls.
ADMITTED, LIMITED = DecisionReason.ADMITTED, DecisionReason.LIMITED
REDIS, LEASE, DENY_CACHE = DecisionSource.REDIS, DecisionSource.LEASE, DecisionSource.DENY_CACHE


# A named tuple: one is created for every decision, in a third of a frozen dataclass's time.
class Decision(NamedTuple):
    """One decision. Times are seconds from the moment of the decision.

    ``limit`` names the limit that decided: among those that refuse, the one with the longest wait;
    otherwise the one with the least left. A decision from a lease has the ``remaining`` and
    ``reset`` of the moment when the lease was taken.
    """

    allowed: bool
    reason: DecisionReason
    policy: str
    limit: str
    #: The most that the limit admits at once.
    quota: int
    remaining: int
    #: Seconds until the same request can be admitted: 0.0 if it was admitted, None for never.
    retry_after: float | None
    #: Seconds until the limit is completely unused again.
    reset: float
    source: DecisionSource
    #: Limits in mode Shadow that would have refused.
    shadowed: tuple[str, ...] = ()

    def repeated(self, retry_after: float, source: DecisionSource) -> Decision:
        """Return the decision with another wait and source, three times as fast as ``_replace``."""
        allowed, reason, policy, limit, quota, remaining, _, reset, _, shadowed = self
        fields = (
            allowed, reason, policy, limit, quota, remaining, retry_after, reset, source, shadowed,
        )  # fmt: skip
        return tuple.__new__(Decision, fields)
