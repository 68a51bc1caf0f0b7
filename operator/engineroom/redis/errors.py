"""What all parts that live in Redis share: one way to fail, and text from what clients return."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from engineroom.auth.errors import AuthStoreError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@contextlib.contextmanager
def asking() -> Iterator[None]:
    """Failures of Redis within the block become AuthStoreError, the cause kept."""
    # Whoever holds a client has paid for this import already; importing a room should not.
    from redis.exceptions import RedisError

    try:
        yield
    except (RedisError, OSError, TimeoutError) as error:
        raise AuthStoreError(
            f"Redis: {type(error).__name__}; who may do what cannot be told until it answers"
        ) from error


def text(value: Any) -> str:
    """A reply as text, whether the client decodes replies or not; ``None`` is the empty text."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return "" if value is None else str(value)


def texts(reply: Mapping[Any, Any]) -> dict[str, str]:
    """A hash as a dictionary of texts."""
    return {text(field): text(value) for field, value in reply.items()}
