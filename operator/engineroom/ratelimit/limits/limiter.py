"""Limiters for applications, sync and async: one policy, any number of subjects.

``limiter_core`` decides. The async limiter sends all requests of one turn of the event loop in one
script call; see ``request_batches``.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

from engineroom.core import key_prefixes
from engineroom.ratelimit.limits.decision import LEASE, Decision, DecisionReason
from engineroom.ratelimit.limits.limiter_core import CLOSE_SECONDS, LimiterCore, fits_lease
from engineroom.ratelimit.limits.redis_calls.redis_clients import (
    SharedAsyncRedis,
    dedicated_async_client,
    dedicated_client,
    sender_of,
)
from engineroom.ratelimit.limits.redis_calls.script_calls import drive, drive_async
from engineroom.ratelimit.limits.request_batches import RequestBatches

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType
    from typing import Self

    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis

    from engineroom.core.clock import Clock
    from engineroom.core.recovery import BreakerState
    from engineroom.ratelimit.limits.leases import LeaseHolder
    from engineroom.ratelimit.limits.model import Policy
    from engineroom.ratelimit.limits.redis_calls.script_calls import Steps
    from engineroom.ratelimit.limits.sources import Subject, SubjectValues

#: Calls for leases at the same time.
MAX_LEASE_CALLS = 4

_T = TypeVar("_T")
_Context = TypeVarTuple("_Context")


class AsyncLimiter:
    """Decides for one policy on one event loop.

    ``redis`` provides the address; the limiter opens connections of its own, with the policy's
    deadline. ``enforcers`` is the number of processes that share the rate while Redis is
    unavailable (failure.mode Local). Use it with ``async with``, or call ``close`` at the end, to
    return leases.
    """

    def __init__(
        self,
        policy: Policy,
        redis: AsyncRedis,
        *,
        clock: Clock | None = None,
        enforcers: int = 1,
        prefix: str = key_prefixes.RATE_LIMITS,
    ) -> None:
        self._core = LimiterCore(policy, clock=clock, enforcers=enforcers, prefix=prefix)
        self._redis = dedicated_async_client(redis)
        self._sender = sender_of(self._redis)
        self._batches = RequestBatches(self._core, self._sender)
        self._lease_calls = 0
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def policy(self) -> Policy:
        """The policy that the limiter enforces."""
        return self._core.policy

    @property
    def failed(self) -> int:
        """The number of decisions without Redis, because it did not decide."""
        return self._core.failed

    @property
    def breaker_state(self) -> BreakerState:
        """The state of the circuit breaker for Redis."""
        return self._core.breaker.state

    def share_rate(self, enforcers: int) -> None:
        """Set how many processes split the rate while Redis is unavailable."""
        self._core.share_rate(enforcers)

    async def __aenter__(self) -> Self:
        # Connect now: a decision's deadline is too short for it.
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        pending = self._sender.send(("PING",), functools.partial(_set_result, future=reply))
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                failed = isinstance(await reply, Exception)
        except TimeoutError:
            self._sender.abandon(pending)
            failed = True
        if failed:
            self._core.breaker.record_failure(self._core.monotonic())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def hit(self, subject: Subject, cost: int = 1) -> Decision:
        """Decide on one request; a refused request consumes nothing.

        Never raises because of Redis. Raises ValueError for an invalid cost.
        """
        decision = self.submit(subject, cost)
        return decision if isinstance(decision, Decision) else await decision

    def submit(self, subject: Subject, cost: int = 1) -> Decision | asyncio.Future[Decision]:
        """Decide like ``hit``, without a coroutine: return the decision or its future."""
        core = self._core
        values, now = core.subject_values(subject), core.monotonic()
        decision = self._immediate(values, cost, now)
        if decision is not None:
            return decision
        future: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        decision = self._start(values, cost, now, _set_result, (future,))
        return future if decision is None else decision

    def decide(
        self, values: SubjectValues, cost: int, done: Callable[[Decision, *_Context], None],
        *context: *_Context,
    ) -> Decision | None:  # fmt: skip
        """Decide like ``hit``, with a callback.

        Returns the decision, or None; then ``done`` is called later with the decision and
        ``context``, and must not raise. ``values`` is a subject in the order of
        ``policy.effective_limits``. For servers with so many requests that a task or a future for
        each would cost more than the decision.
        """
        now = self._core.monotonic()
        decision = self._immediate(values, cost, now)
        return self._start(values, cost, now, done, context) if decision is None else decision

    def _immediate(self, values: SubjectValues, cost: int, now: float) -> Decision | None:
        decision = self._core.immediate(values, cost, now)
        if decision is not None and decision.source is LEASE:
            self._refill(values, now)
        return decision

    def _start(
        self, values: SubjectValues, cost: int, now: float, done: Callable[..., None],
        context: tuple[object, ...],
    ) -> Decision | None:  # fmt: skip
        """Send the request to Redis, unless it needs no call or the breaker is open."""
        core = self._core
        request = core.prepare(values, cost)
        if isinstance(request, Decision):
            return request
        if not core.breaker.admits(now):
            return core.without_redis(request, now)
        if core.leased and cost and fits_lease(values):
            holder = core.holder_of(request)
            # One lease at a time for the same keys, and few in all; others are decided singly.
            if not holder.refilling and self._lease_calls < MAX_LEASE_CALLS:
                size = holder.next_size(now)
                if size:
                    steps = core.lease_steps(request, holder, size, now)
                    self._start_lease(holder, steps, done, context)
                    return None
        self._batches.add(request, done, context, now)
        return None

    async def peek(self, subject: Subject) -> Decision:
        """Return the limits' state without consuming anything."""
        return await self.hit(subject, 0)

    async def charge(self, subject: Subject, tokens: Mapping[str, int]) -> bool:
        """Take further tokens by limit, for a request that cost more than was known before.

        Takes what is left and never refuses: the limit is then empty. Returns whether Redis took
        the tokens. Raises ValueError for an invalid number.
        """
        return await self._drive(self._core.charge_steps(subject, tokens), self._core.timeout)

    async def close(self) -> None:
        """Wait for calls without a reply, return leases and close the connections."""
        while self._tasks or self._batches.busy:
            if self._tasks:
                await asyncio.gather(*self._tasks, return_exceptions=True)
            else:
                await self._batches.wait_idle()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._drive(self._core.return_steps(), CLOSE_SECONDS)
        if not isinstance(self._redis, SharedAsyncRedis):
            await self._sender.close()
        await self._redis.aclose()

    async def _drive(self, steps: Steps[_T], deadline: float) -> _T:
        return await drive_async(self._redis, steps, deadline, self._sender.reconnect)

    # -- leases ---------------------------------------------------------------------------------

    def _start_lease(
        self, holder: LeaseHolder, steps: Steps[Decision], done: Callable[..., None],
        context: tuple[object, ...],
    ) -> None:  # fmt: skip
        # Before the task runs: the next request of this turn must not take a lease, too.
        holder.refilling = True
        self._lease_calls += 1
        task = asyncio.get_running_loop().create_task(self._drive(steps, self._core.timeout))
        self._tasks.add(task)
        task.add_done_callback(functools.partial(self._end_lease, holder, done, context))

    def _end_lease(
        self, holder: LeaseHolder, done: Callable[..., None], context: tuple[object, ...],
        task: asyncio.Task[Decision],
    ) -> None:  # fmt: skip
        """Deliver the decision, also of a task that was cancelled before its first step."""
        holder.refilling = False
        self._lease_calls -= 1
        self._tasks.discard(task)
        if task.cancelled() or task.exception() is not None:
            self._core.breaker.abandon()
            done(self._core.by_policy(0, DecisionReason.FAILED_CLOSED), *context)
        else:
            done(task.result(), *context)

    def _refill(self, values: SubjectValues, now: float) -> None:
        """Begin to refill a lease once half of it is used."""
        core = self._core
        lease = core.refillable(values, now)
        if lease is not None and self._lease_calls < MAX_LEASE_CALLS and not core.breaker.failed_at:
            request, holder = lease
            holder.refilling = True
            self._lease_calls += 1
            steps = core.refill_steps(request, holder, now)
            task = asyncio.get_running_loop().create_task(self._drive(steps, core.timeout))
            self._tasks.add(task)
            task.add_done_callback(functools.partial(self._end_refill, holder))

    def _end_refill(self, holder: LeaseHolder, task: asyncio.Task[None]) -> None:
        holder.refilling = False
        self._lease_calls -= 1
        self._tasks.discard(task)


class Limiter:
    """Decides for one policy; safe to share between threads. See AsyncLimiter."""

    def __init__(
        self,
        policy: Policy,
        redis: Redis,
        *,
        clock: Clock | None = None,
        enforcers: int = 1,
        prefix: str = key_prefixes.RATE_LIMITS,
    ) -> None:
        self._core = LimiterCore(policy, clock=clock, enforcers=enforcers, prefix=prefix)
        self._redis = dedicated_client(redis, self._core.timeout)
        self._lock = threading.Lock()

    @property
    def policy(self) -> Policy:
        """The policy that the limiter enforces."""
        return self._core.policy

    @property
    def failed(self) -> int:
        """The number of decisions without Redis, because it did not decide."""
        return self._core.failed

    @property
    def breaker_state(self) -> BreakerState:
        """The state of the circuit breaker for Redis."""
        return self._core.breaker.state

    def share_rate(self, enforcers: int) -> None:
        """Set how many processes split the rate while Redis is unavailable."""
        self._core.share_rate(enforcers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def hit(self, subject: Subject, cost: int = 1) -> Decision:
        """Decide on one request; a refused request consumes nothing.

        Waits for Redis at most the policy's timeout for each of: connecting, the call, and the call
        with the script's text. Never raises because of Redis. Raises ValueError for an invalid
        cost.
        """
        core = self._core
        now = core.monotonic()
        values = core.subject_values(subject)
        with self._lock:
            decision = core.immediate(values, cost, now)
            if decision is not None:
                return decision
            request = core.prepare(values, cost)
            if isinstance(request, Decision):
                return request
            if not core.breaker.admits(now):
                return core.without_redis(request, now)
        return drive(self._redis, core.decision_steps(request, now), self._lock)

    def peek(self, subject: Subject) -> Decision:
        """Return the limits' state without consuming anything."""
        return self.hit(subject, 0)

    def charge(self, subject: Subject, tokens: Mapping[str, int]) -> bool:
        """Take further tokens by limit; see AsyncLimiter.charge."""
        return drive(self._redis, self._core.charge_steps(subject, tokens), self._lock)

    def close(self) -> None:
        """Return leases and close the connections."""
        drive(self._redis, self._core.return_steps(), self._lock)
        self._redis.close()


def _set_result(result: Any, future: asyncio.Future[Any]) -> None:
    """Set a future's result, unless its waiter was cancelled."""
    if not future.done():
        future.set_result(result)
