"""The controller's memory of one policy between two looks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engineroom.kube.runtime.object_memory import NEVER, ObjectMemory
from engineroom.ratelimit.distribution.compile import Candidate
from engineroom.ratelimit.reconcile.facts import FallbackState

if TYPE_CHECKING:
    from engineroom.kube.runtime.redis_addresses import RedisReference
    from engineroom.ratelimit.distribution.document import Target
    from engineroom.ratelimit.reconcile.facts import PolicyFacts

#: Seconds until a missing Secret stalls a policy.
DEADLINE_SECONDS = 600.0


@dataclass(slots=True)
class PolicyMemory(ObjectMemory[Candidate]):
    """One policy; only the controller writes it."""

    created: str = ""
    #: Targets and Redis of the last valid spec.
    targets: tuple[Target, ...] = ()
    redis: RedisReference | None = None
    #: The facts of the last status; None if the status has to be compared.
    reported: PolicyFacts | None = None
    enforced: bool = False
    #: The fallbacks in status, and the time of their last change (monotonic seconds).
    fallbacks: FallbackState = field(default_factory=FallbackState)
    fallbacks_changed: float = NEVER
    #: Time since when a Secret is missing (monotonic seconds).
    secret_missing_since: float | None = None

    def overdue(self, now: float) -> bool:
        """Return whether a Secret is missing for longer than the deadline."""
        since = self.secret_missing_since
        return since is not None and now - since >= DEADLINE_SECONDS
