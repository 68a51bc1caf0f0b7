"""A circuit breaker for calls that decide on requests."""

from __future__ import annotations

from dataclasses import dataclass

from engineroom.core.recovery import BreakerState


@dataclass(slots=True)
class RedisBreaker:
    """Stops calls to Redis after consecutive failures, then lets one call at a time try again.

    Unlike ``core.recovery.Breaker`` it takes the time as an argument and has no lock: it is
    consulted for every request, and each limiter serializes access to its own.
    """

    failures: int
    pause: float
    consecutive_failures: int = 0
    retry_at: float = 0.0
    trial_running: bool = False

    def admits(self, now: float) -> bool:
        """Return whether a call may be made at ``now`` (monotonic seconds)."""
        if self.consecutive_failures < self.failures:
            return True
        if now < self.retry_at or self.trial_running:
            return False
        self.trial_running = True
        return True

    @property
    def state(self) -> BreakerState:
        """The state, as metrics report it."""
        if self.consecutive_failures < self.failures:
            return BreakerState.CLOSED
        return BreakerState.HALF_OPEN if self.trial_running else BreakerState.OPEN

    def record_success(self) -> None:
        """Close the breaker: Redis decided."""
        self.consecutive_failures, self.trial_running = 0, False

    def record_failure(self, now: float) -> None:
        """Count a call in which Redis did not decide, at ``now`` (monotonic seconds)."""
        self.consecutive_failures += 1
        self.trial_running = False
        self.retry_at = now + self.pause

    def abandon(self) -> None:
        """End a trial call without an outcome, such as a cancelled one."""
        self.trial_running = False
