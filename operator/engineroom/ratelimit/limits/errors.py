"""Errors of rate limiting."""

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
    """A policy is invalid; ``problems`` has at least one entry."""

    code = "invalid_rate_limit_policy"


class LimiterUnavailableError(DependencyError):
    """Redis did not decide in time; the policy's ``failure.mode`` decides."""

    code = "rate_limiter_unavailable"


class UnreadableDocumentError(DependencyError):
    """The compiled policies in Redis are unreadable; the last valid ones stay in force."""

    code = "unreadable_policy_document"


class RedisClusterError(DependencyError):
    """Redis is a cluster of several shards, or the client is a cluster client."""

    code = "redis_cluster_unsupported"
    retryable = False


class RateLimitedError(EngineroomError):
    """A decorated function was called more often than its policy admits.

    ``decision`` has the limit and the wait.
    """

    code = "rate_limited"
    category = Category.LIMIT
    http_status = 429
    retryable = True

    def __init__(self, decision: Decision) -> None:
        self.decision = decision
        wait = decision.retry_after
        fix = "use a lower cost" if wait is None else f"try again in {wait:.3g} s"
        super().__init__(f"{decision.policy}/{decision.limit}: {decision.reason.value}; {fix}")
