"""Code written once for plain and for async callers: answers are awaited where they have to be."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, TypeVar

from engineroom.core.transactions.errors import TransactionStateError

if TYPE_CHECKING:
    from collections.abc import Coroutine

_T = TypeVar("_T")


async def settle(result: Any) -> Any:
    """What a plain function returned, or what an async one will."""
    return await result if inspect.isawaitable(result) else result


def run_plain(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Run to the end what never waits; what would wait does not belong into plain code."""
    try:
        coroutine.send(None)
    except StopIteration as ended:
        answer: _T = ended.value
        return answer
    coroutine.close()
    raise TransactionStateError("an async participant needs an AsyncUnitOfWork")
