"""Limits on functions and on RQ jobs, which are functions."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from engineroom.ratelimit.limits.errors import RateLimitedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from engineroom.ratelimit.limits.limiter import AsyncLimiter, Limiter, Subject

_P = ParamSpec("_P")
_R = TypeVar("_R")


def limited(
    limiter: Callable[[], Limiter], subject: Callable[_P, Subject], cost: int = 1
) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Admit a call by ``subject`` of its arguments, or raise RateLimitedError before it begins.

    ``limiter`` is called at the first call, in the process that needs it: a module that declares
    jobs can be imported without Redis.
    """
    lazy = functools.cache(limiter)

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        if inspect.iscoroutinefunction(function):
            raise TypeError(f"{function.__qualname__} is async; decorate it with limited_async")

        @functools.wraps(function)
        def call(*arguments: _P.args, **named: _P.kwargs) -> _R:
            decision = lazy().hit(subject(*arguments, **named), cost)
            if not decision.allowed:
                raise RateLimitedError(decision)
            return function(*arguments, **named)

        return call

    return decorate


def limited_async(
    limiter: Callable[[], AsyncLimiter], subject: Callable[_P, Subject], cost: int = 1
) -> Callable[[Callable[_P, Awaitable[_R]]], Callable[_P, Awaitable[_R]]]:
    """As ``limited``, for coroutine functions."""
    lazy = functools.cache(limiter)

    def decorate(function: Callable[_P, Awaitable[_R]]) -> Callable[_P, Awaitable[_R]]:
        @functools.wraps(function)
        async def call(*arguments: _P.args, **named: _P.kwargs) -> _R:
            decision = await lazy().hit(subject(*arguments, **named), cost)
            if not decision.allowed:
                raise RateLimitedError(decision)
            return await function(*arguments, **named)

        return call

    return decorate


def limited_job(
    limiter: Callable[[], Limiter], subject: Callable[..., Subject], cost: int = 1
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Limit an RQ job: over the limit it is put back to run when the limit admits it.

    The worker is free meanwhile, and no retry of the job's own is used up. A job that can never
    be admitted fails with RateLimitedError. Its queue needs a worker with a scheduler. Outside a
    worker the decorated function behaves as with ``limited``.
    """
    lazy = functools.cache(limiter)

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            decision = lazy().hit(subject(*arguments, **named), cost)
            if decision.allowed:
                return function(*arguments, **named)
            postponed = _postpone(decision.retry_after)
            if postponed is None:
                raise RateLimitedError(decision)
            return postponed

        return call

    return decorate


def _postpone(wait: float | None) -> object | None:
    """RQ's word for running the current job once more after ``wait`` seconds; None: not a job."""
    import math

    from rq import Retry, get_current_job

    if wait is None or get_current_job() is None:
        return None
    # One more than any job of its own would count, so that waiting alone never fails it.
    return Retry(max=1_000_000_000, interval=max(1, math.ceil(wait)))
