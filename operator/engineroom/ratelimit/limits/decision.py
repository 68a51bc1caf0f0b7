"""What a limiter answers."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Reason(StrEnum):
    """Why a request was admitted or refused."""

    #: Every enforced limit had enough left.
    ADMITTED = "Admitted"
    #: No limit applies: all keys were missing and their limits say Skip.
    NOT_LIMITED = "NotLimited"
    #: A limit had not enough left; wait for ``retry_after``.
    LIMITED = "Limited"
    #: The cost is above the burst: waiting does not help.
    COST_ABOVE_BURST = "CostAboveBurst"
    #: A key was missing and its limit says Deny.
    MISSING_KEY = "MissingKey"
    #: Redis did not decide; the policy admits then.
    FAILED_OPEN = "FailedOpen"
    #: Redis did not decide; the policy refuses then, with 503.
    FAILED_CLOSED = "FailedClosed"


class Source(StrEnum):
    """Who decided."""

    REDIS = "Redis"
    LEASE = "Lease"
    #: Known from an earlier refusal.
    DENY_CACHE = "DenyCache"
    #: This process alone, because Redis did not decide.
    LOCAL = "Local"
    #: Nobody had to be asked.
    POLICY = "Policy"


# For what is done for each request: Python 3.11 takes as long to look up an enum's member as to
# call three functions.
ADMITTED, LIMITED = Reason.ADMITTED, Reason.LIMITED
REDIS, LEASE, DENY_CACHE = Source.REDIS, Source.LEASE, Source.DENY_CACHE


# A named tuple and no dataclass: it is made once a decision, and a frozen dataclass of as many
# fields takes three times as long.
class Decision(NamedTuple):
    """One answer. Times are seconds from the moment it was given.

    ``limit`` names the limit that decided: of those that refuse the one with the longest wait,
    else the one with the least left. ``remaining`` and ``reset`` of a decision from a lease are
    those of the moment the lease was taken.
    """

    allowed: bool
    reason: Reason
    policy: str
    limit: str
    #: The most that the limit admits at once.
    quota: int
    remaining: int
    #: Seconds after which the same request can be admitted; 0.0 if it was, None: never.
    retry_after: float | None
    #: Seconds until the limit is as good as new.
    reset: float
    source: Source
    #: Limits in mode Shadow that would have refused.
    shadowed: tuple[str, ...] = ()

    def again(self, retry_after: float, source: Source) -> Decision:
        """The same, told once more: a third of the time that ``_replace`` takes."""
        allowed, reason, policy, limit, quota, remaining, _, reset, _, shadowed = self
        told = (
            allowed, reason, policy, limit, quota, remaining, retry_after, reset, source, shadowed,
        )  # fmt: skip
        return tuple.__new__(Decision, told)
