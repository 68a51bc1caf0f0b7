"""Translation of Redis errors for the parts of ``engineroom.auth`` that keep data in Redis."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from engineroom.auth.errors import AuthStoreError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def store_errors() -> Iterator[None]:
    """Raise failures of Redis in the block as AuthStoreError, with the cause kept."""
    # Imported here, because the caller's client has imported it already.
    from redis.exceptions import RedisError

    try:
        yield
    except (RedisError, OSError, TimeoutError) as error:
        raise AuthStoreError(
            f"Redis: {type(error).__name__}; access is denied until it answers"
        ) from error
