"""Helpers for code that serves sync and async callers: results are awaited only if awaitable."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, TypeVar

from engineroom.core.transactions.errors import TransactionStateError

if TYPE_CHECKING:
    from collections.abc import Coroutine

_T = TypeVar("_T")


async def settle(result: Any) -> Any:
    """Return ``result``, awaited if it is awaitable."""
    return await result if inspect.isawaitable(result) else result


def run_plain(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine that never suspends and return its result.

    Raises TransactionStateError if it suspends.
    """
    try:
        coroutine.send(None)
    except StopIteration as ended:
        answer: _T = ended.value
        return answer
    coroutine.close()
    raise TransactionStateError("an async participant needs an AsyncUnitOfWork")
