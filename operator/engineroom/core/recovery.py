"""What to do when a call fails, declared once: retry, hold back, fall back, or give up.

A ``Recovery`` belongs to one dependency. Its policy comes from the error's category and may be
replaced per call::

    stock = Recovery("stock")
    count = stock.call(fetch_count, "sku-1")
    count = await stock.call_async(fetch_count_async, "sku-1", policy=Policy(attempts=1))

Waits have full jitter: uniform between 0 and the exponential bound, which spreads a herd best (M.
Brooker, "Exponential Backoff And Jitter", AWS 2015). Retries of all calls together draw on a
budget, so that a dependency that is down is not hit several times as hard as one that is up.
Tenacity runs the attempts.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from engineroom.core.clock import SystemClock
from engineroom.core.error_translation import wrap
from engineroom.core.errors import Category, CircuitOpenError, EngineroomError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from engineroom.core.clock import Clock

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Policy:
    """How often and how long to try; times are seconds.

    ``attempts`` counts the first one. The wait before attempt n+1 is uniform in
    [0, min(``longest``, ``base`` * 2**(n-1))], or what the error's ``retry_after`` says plus that.
    No attempt begins when ``total`` seconds would have gone by since the first.
    """

    attempts: int = 1
    base: float = 0.1
    longest: float = 5.0
    total: float = 30.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or min(self.base, self.longest, self.total) < 0:
            raise ValueError("a policy needs attempts >= 1 and no negative time")


ONCE = Policy()

#: By category; an error that says of itself that it is not retryable is never tried again.
POLICIES: Mapping[Category, Policy] = MappingProxyType(
    {
        Category.VALIDATION: ONCE,
        Category.AUTHENTICATION: ONCE,
        Category.PERMISSION: ONCE,
        Category.NOT_FOUND: ONCE,
        Category.CONFLICT: Policy(attempts=5, base=0.02, longest=0.5, total=5.0),
        Category.LIMIT: Policy(attempts=3, base=0.5, longest=10.0, total=30.0),
        Category.DEPENDENCY: Policy(attempts=4, base=0.1, longest=5.0, total=30.0),
        Category.TRANSIENT: Policy(attempts=4, base=0.1, longest=5.0, total=30.0),
        Category.PERMANENT: ONCE,
        Category.BUG: ONCE,
    }
)

#: These say that the dependency itself is unwell; others say that the request is.
_UNWELL = frozenset({Category.DEPENDENCY, Category.TRANSIENT})


class BreakerState(StrEnum):
    """Whether calls go through."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class RecoveryMetrics(Protocol):
    """Where recovery is counted; ``engineroom_errors_total`` and ``engineroom_breaker_state``."""

    def failed(self, code: str, category: str) -> None:
        """One attempt failed with an error of this code."""
        ...

    def breaker(self, name: str, state: BreakerState) -> None:
        """The breaker of ``name`` changed to ``state``."""
        ...


class NullMetrics:
    """Counts nothing."""

    def failed(self, code: str, category: str) -> None:
        """Not counted."""

    def breaker(self, name: str, state: BreakerState) -> None:
        """Not kept."""


class Budget:
    """Retries that all calls of a dependency share.

    Each call adds ``ratio`` of a retry and each retry takes one; at most ``reserve`` are saved up,
    and so many are there at the start. Safe for threads.
    """

    def __init__(self, *, ratio: float = 0.2, reserve: float = 10.0) -> None:
        self._ratio = ratio
        self._reserve = reserve
        self._left = reserve
        self._lock = threading.Lock()

    def called(self) -> None:
        """A call begins."""
        with self._lock:
            self._left = min(self._reserve, self._left + self._ratio)

    def take(self) -> bool:
        """Whether a retry may be made; takes it from the budget."""
        with self._lock:
            if self._left < 1.0:
                return False
            self._left -= 1.0
            return True


class Breaker:
    """Holds calls back from a dependency that keeps failing. Safe for threads.

    Opens when ``failures`` of the last calls within ``window`` seconds failed in a row without a
    success between; after ``pause`` seconds lets one call through to try, and closes when it
    succeeds.
    """

    def __init__(
        self,
        name: str,
        *,
        failures: int = 5,
        window: float = 30.0,
        pause: float = 10.0,
        clock: Clock | None = None,
        metrics: RecoveryMetrics | None = None,
    ) -> None:
        self.name = name
        self._window = window
        self._pause = pause
        self._clock = clock or SystemClock()
        self._metrics = metrics or NullMetrics()
        self._failed_at: deque[float] = deque(maxlen=failures)
        self._state = BreakerState.CLOSED
        self._since = 0.0
        self._lock = threading.Lock()
        self._metrics.breaker(name, self._state)

    @property
    def state(self) -> BreakerState:
        """As of the last call; an open one becomes half open when a call asks."""
        return self._state

    def admit(self) -> None:
        """Let a call through, or raise CircuitOpenError with the seconds until the next try.

        Who was let through says afterwards ``succeeded``, ``failed`` or ``abandoned``.
        """
        with self._lock:
            if self._state is BreakerState.CLOSED:
                return
            wait = self._since + self._pause - self._clock.monotonic()
            if wait > 0:
                raise CircuitOpenError(
                    f"{self.name} kept failing and is left alone for {wait:.1f} s",
                    context={"breaker": self.name},
                    retry_after=wait,
                )
            # A trial that never reports back must not hold the circuit open for ever: it has
            # ``pause`` seconds, then another one is let through.
            self._since = self._clock.monotonic()
            self._move(BreakerState.HALF_OPEN)

    def succeeded(self) -> None:
        """The dependency answered."""
        with self._lock:
            if self._state is BreakerState.OPEN:
                return  # an old call that was slow says nothing of now
            self._failed_at.clear()
            self._move(BreakerState.CLOSED)

    def failed(self) -> None:
        """The dependency failed."""
        with self._lock:
            now = self._clock.monotonic()
            self._failed_at.append(now)
            full = len(self._failed_at) == self._failed_at.maxlen
            if self._state is BreakerState.HALF_OPEN or (
                self._state is BreakerState.CLOSED
                and full
                and now - self._failed_at[0] <= self._window
            ):
                self._since = now
                self._move(BreakerState.OPEN)

    def abandoned(self) -> None:
        """The call ended in a way that says nothing of the dependency (cancelled, our own bug)."""
        with self._lock:
            if self._state is BreakerState.HALF_OPEN:
                self._since = self._clock.monotonic() - self._pause
                self._move(BreakerState.OPEN)

    def _move(self, state: BreakerState) -> None:
        if state is not self._state:
            self._state = state
            self._metrics.breaker(self.name, state)


@dataclass(slots=True)
class _Attempts:
    """One call's bookkeeping."""

    recovery: Recovery
    policy: Policy | None
    began: float
    number: int = 0
    delay: float = field(default=0.0)

    def again(self, error: EngineroomError | None) -> bool:
        """Whether to try once more; sets ``delay``."""
        if error is None or not error.retryable or isinstance(error, CircuitOpenError):
            return False
        policy = self.policy or self.recovery.policies.get(error.category, ONCE)
        if self.number >= policy.attempts:
            return False
        bound = min(policy.longest, policy.base * 2.0 ** min(self.number - 1, 60))
        self.delay = self.recovery.random() * bound + (error.retry_after or 0.0)
        spent = self.recovery.clock.monotonic() - self.began
        return spent + self.delay < policy.total and self.recovery.budget.take()


class Recovery:
    """The declared recovery of calls to one dependency.

    ``fallback`` answers in place of a call that failed for good; it gets the error. ``dead_letter``
    is told of it first. Both are plain functions and may be given per call too. A ``breaker`` of
    None means none.
    """

    def __init__(
        self,
        name: str,
        *,
        policies: Mapping[Category, Policy] = POLICIES,
        breaker: Breaker | None = None,
        budget: Budget | None = None,
        dead_letter: Callable[[EngineroomError], None] | None = None,
        metrics: RecoveryMetrics | None = None,
        clock: Clock | None = None,
        sleep: Callable[[float], None] = time.sleep,
        sleep_async: Callable[[float], Awaitable[None]] = asyncio.sleep,
        random: Callable[[], float] = random.random,  # nosec B311 - jitter
    ) -> None:
        self.name = name
        self.policies = policies
        self.breaker = breaker
        self.budget = budget or Budget()
        self.clock: Clock = clock or SystemClock()
        self.random = random
        self._dead_letter = dead_letter
        self._metrics = metrics or NullMetrics()
        self._sleep = sleep
        self._sleep_async = sleep_async

    def call(
        self,
        function: Callable[..., _T],
        *arguments: Any,
        policy: Policy | None = None,
        fallback: Callable[[EngineroomError], _T] | None = None,
        dead_letter: Callable[[EngineroomError], None] | None = None,
    ) -> _T:
        """``function(*arguments)``, recovered.

        Raises the last EngineroomError when no fallback is given. Library errors are wrapped; other
        exceptions pass at once and unchanged.
        """
        import tenacity

        attempts = self._begin(policy)
        retrying = tenacity.Retrying(sleep=self._sleep, **self._options(attempts))
        try:
            for attempt in retrying:
                with attempt, _Attempt(self, attempts):
                    answer = function(*arguments)
                if not attempt.retry_state.outcome.failed:  # type: ignore[union-attr]
                    return answer
        except EngineroomError as error:
            return self._given_up(error, fallback, dead_letter)
        raise AssertionError("tenacity ends with an answer or an error")

    @contextmanager
    def watched(self) -> Iterator[None]:
        """A call that somebody else makes: its end is told to the breaker and counted.

        Errors pass as they are and nothing is tried again. Whoever calls asks the breaker before.
        """
        try:
            yield
        except BaseException as error:
            self._ended(error)
            raise
        self._ended(None)

    async def call_async(
        self,
        function: Callable[..., Awaitable[_T]],
        *arguments: Any,
        policy: Policy | None = None,
        fallback: Callable[[EngineroomError], _T] | None = None,
        dead_letter: Callable[[EngineroomError], None] | None = None,
    ) -> _T:
        """As ``call`` for a coroutine function; being cancelled is never retried."""
        import tenacity

        attempts = self._begin(policy)
        retrying = tenacity.AsyncRetrying(sleep=self._sleep_async, **self._options(attempts))
        try:
            async for attempt in retrying:
                with attempt, _Attempt(self, attempts):
                    answer = await function(*arguments)
                if not attempt.retry_state.outcome.failed:  # type: ignore[union-attr]
                    return answer
        except EngineroomError as error:
            return self._given_up(error, fallback, dead_letter)
        raise AssertionError("tenacity ends with an answer or an error")

    def _begin(self, policy: Policy | None) -> _Attempts:
        self.budget.called()
        return _Attempts(self, policy, self.clock.monotonic())

    def _options(self, attempts: _Attempts) -> dict[str, Any]:
        import tenacity

        def again(state: tenacity.RetryCallState) -> bool:
            outcome = state.outcome
            error = None if outcome is None else outcome.exception()
            return isinstance(error, EngineroomError) and attempts.again(error)

        return {
            "retry": again,
            "stop": tenacity.stop_never,
            "wait": lambda _: attempts.delay,
            "reraise": True,
        }

    def _given_up(
        self,
        error: EngineroomError,
        fallback: Callable[[EngineroomError], _T] | None,
        dead_letter: Callable[[EngineroomError], None] | None,
    ) -> _T:
        tell = dead_letter or self._dead_letter
        if tell is not None:
            tell(error)
        if fallback is None:
            raise error
        return fallback(error)

    def counted(self, error: EngineroomError) -> None:
        """An attempt failed with ``error``."""
        self._metrics.failed(error.code, error.category.value)

    def _ended(self, error: BaseException | None) -> EngineroomError | None:
        """Tell the breaker how a call ended, and count it; the error as ours, if it is one."""
        breaker = self.breaker
        ours = None if error is None else wrap(error, operation=self.name)
        if breaker is not None:
            if ours is not None and ours.category in _UNWELL:
                breaker.failed()
            elif error is None or ours is not None:
                breaker.succeeded()  # it answered, if only to say no
            else:
                breaker.abandoned()
        if ours is not None:
            self.counted(ours)
        return ours


class _Attempt:
    """Around one attempt: the breaker before, wrapping and counting after."""

    def __init__(self, recovery: Recovery, attempts: _Attempts) -> None:
        self._recovery = recovery
        self._attempts = attempts

    def __enter__(self) -> None:
        self._attempts.number += 1
        breaker = self._recovery.breaker
        if breaker is None:
            return
        try:
            breaker.admit()
        except CircuitOpenError as error:
            self._recovery.counted(error)
            raise

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        ours = self._recovery._ended(error)
        if ours is not None and ours is not error:
            raise ours from error
