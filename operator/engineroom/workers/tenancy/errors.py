"""The refusal of a Redis, or of a queue on it, to a pool."""

from __future__ import annotations

from engineroom.core.errors import Category, EngineroomError


class RedisAccessError(EngineroomError):
    """A pool may not use the installation's Redis, or a queue that another namespace owns."""

    code = "redis_access_denied"
    category = Category.PERMISSION
    http_status = 403

    def __init__(self, reason: str, message: str) -> None:
        """``reason`` is a constant of ``core.reasons``."""
        self.reason = reason
        super().__init__(message)
