"""Decorators that limit functions and RQ jobs."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from engineroom.ratelimit.limits.errors import RateLimitedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from engineroom.ratelimit.limits.limiter import AsyncLimiter, Limiter
    from engineroom.ratelimit.limits.sources import Subject

_P = ParamSpec("_P")
_R = TypeVar("_R")


def limited(
    limiter: Callable[[], Limiter], subject: Callable[_P, Subject], cost: int = 1
) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Limit calls by ``subject`` of their arguments; raise RateLimitedError before a refused call.

    ``limiter`` is called once, at the first call, so that a module that declares jobs can be
    imported without Redis.
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
    """Limit calls of a coroutine function; see ``limited``."""
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
    """Limit an RQ job: a job over the limit is scheduled to run again when the limit admits it.

    The worker is free meanwhile, and none of the job's own retries is used up. A job that can never
    be admitted fails with RateLimitedError. The queue needs a worker with a scheduler. Outside a
    worker the function behaves as with ``limited``.
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
    """Return RQ's retry of the current job after ``wait`` seconds; None outside a job."""
    import math

    from rq import Retry, get_current_job

    if wait is None or get_current_job() is None:
        return None
    # Far above any job's own number of retries, so that waiting never fails the job.
    return Retry(max=1_000_000_000, interval=max(1, math.ceil(wait)))
