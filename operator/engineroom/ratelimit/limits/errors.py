"""What goes wrong in rate limiting."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engineroom.core.errors import (
    Category,
    DependencyError,
    EngineroomError,
    InvalidSpecError,
)

if TYPE_CHECKING:
    from engineroom.ratelimit.limits.decision import Decision


class InvalidPolicyError(InvalidSpecError, ValueError):
    """A policy breaks the rules; ``problems`` lists every breach, at least one."""

    code = "invalid_rate_limit_policy"


class LimiterUnavailableError(DependencyError):
    """Redis did not decide in time; what then happens is the policy's ``failure.mode``."""

    code = "rate_limiter_unavailable"


class UnreadableDocumentError(DependencyError):
    """The compiled policies in Redis are not what this version reads; the last good ones hold."""

    code = "unreadable_policy_document"


class RedisClusterError(DependencyError):
    """Redis is a cluster of several shards, or the client one of clusters; use one Redis."""

    code = "redis_cluster_unsupported"
    retryable = False


class RateLimitedError(EngineroomError):
    """A decorated function was called more often than its policy admits; ``decision`` says which
    limit and for how long."""

    code = "rate_limited"
    category = Category.LIMIT
    http_status = 429
    retryable = True

    def __init__(self, decision: Decision) -> None:
        self.decision = decision
        wait = decision.retry_after
        fix = "ask for less at once" if wait is None else f"try again in {wait:.3g} s"
        super().__init__(f"{decision.policy}/{decision.limit}: {decision.reason.value}; {fix}")
