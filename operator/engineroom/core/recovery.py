"""Declared recovery of failed calls: retry, circuit breaker, fallback, dead letter.

A ``Recovery`` belongs to one dependency. Its retry policy comes from the error's category and may
be replaced per call::

    stock = Recovery("stock")
    count = stock.call(fetch_count, "sku-1")
    count = await stock.call_async(fetch_count_async, "sku-1", policy=RetryPolicy(attempts=1))

Waits have full jitter: uniform between 0 and the exponential bound, which spreads concurrent
clients best (M. Brooker, "Exponential Backoff And Jitter", AWS 2015). All calls share a budget of
retries, so retries do not multiply the load on a failing dependency. Tenacity runs the attempts.
"""

from __future__ import annotations

import asyncio
import math
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
class RetryPolicy:
    """The number and timing of attempts; times are in seconds.

    ``attempts`` includes the first one. The wait before attempt n+1 is uniform in
    [0, min(``longest``, ``base`` * 2**(n-1))], plus the error's ``retry_after`` if it has one. No
    attempt begins later than ``total`` seconds after the first.
    """

    attempts: int = 1
    base: float = 0.1
    longest: float = 5.0
    total: float = 30.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or min(self.base, self.longest, self.total) < 0:
            raise ValueError("a retry policy needs attempts >= 1 and no negative time")


ONCE = RetryPolicy()

#: Default policies by category. A call that failed with ``retryable`` False is never retried.
POLICIES: Mapping[Category, RetryPolicy] = MappingProxyType(
    {
        Category.VALIDATION: ONCE,
        Category.AUTHENTICATION: ONCE,
        Category.PERMISSION: ONCE,
        Category.NOT_FOUND: ONCE,
        Category.CONFLICT: RetryPolicy(attempts=5, base=0.02, longest=0.5, total=5.0),
        Category.LIMIT: RetryPolicy(attempts=3, base=0.5, longest=10.0, total=30.0),
        Category.DEPENDENCY: RetryPolicy(attempts=4, base=0.1, longest=5.0, total=30.0),
        Category.TRANSIENT: RetryPolicy(attempts=4, base=0.1, longest=5.0, total=30.0),
        Category.PERMANENT: ONCE,
        Category.BUG: ONCE,
    }
)

#: Categories that mean a failing dependency; all others mean a bad request.
_DEPENDENCY_FAILURES = frozenset({Category.DEPENDENCY, Category.TRANSIENT})


class BreakerState(StrEnum):
    """The state of a circuit breaker."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


# Globals: reading a member of an enumeration costs more, and a limiter asks for every request.
_CLOSED, _OPEN, _HALF_OPEN = BreakerState


class RecoveryMetrics(Protocol):
    """A sink of the metrics ``engineroom_errors_total`` and ``engineroom_breaker_state``."""

    def failed(self, code: str, category: str) -> None:
        """Count a failed attempt."""
        ...

    def breaker(self, name: str, state: BreakerState) -> None:
        """Set the state of the breaker ``name``."""
        ...


class NullMetrics:
    """Metrics that are discarded."""

    def failed(self, code: str, category: str) -> None:
        """Ignore a failed attempt."""

    def breaker(self, name: str, state: BreakerState) -> None:
        """Ignore a state."""


class Budget:
    """A budget of retries that all calls to a dependency share. Thread-safe.

    Each call adds ``ratio`` of a retry and each retry takes one. The budget starts at ``reserve``
    and never exceeds it.
    """

    def __init__(self, *, ratio: float = 0.2, reserve: float = 10.0) -> None:
        self._ratio = ratio
        self._reserve = reserve
        self._left = reserve
        self._lock = threading.Lock()

    def called(self) -> None:
        """Add a call's share to the budget."""
        with self._lock:
            self._left = min(self._reserve, self._left + self._ratio)

    def take(self) -> bool:
        """Take one retry; return False if the budget is empty."""
        with self._lock:
            if self._left < 1.0:
                return False
            self._left -= 1.0
            return True


@dataclass(slots=True)
class Circuit:
    """The state of a circuit breaker, without a lock and without a clock.

    It opens after ``failures`` consecutive failures within ``window`` seconds. After ``pause``
    seconds it admits one trial call, whose result closes or reopens it. A trial without a result
    permits another one after ``trial_timeout`` seconds. While the circuit is open, ``late_results``
    decides whether the results of calls that began earlier count: a success then closes it, and a
    failure prolongs the pause. Times are monotonic seconds.
    """

    failures: int
    pause: float
    window: float = math.inf
    trial_timeout: float = math.inf
    late_results: bool = False
    state: BreakerState = field(default=_CLOSED, init=False)
    #: Times of the latest failures since the last success.
    failed_at: deque[float] = field(init=False)
    #: The end of the pause after the last failure.
    retry_at: float = field(default=0.0, init=False)
    _trial_until: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.failed_at = deque(maxlen=self.failures)

    def admits(self, now: float) -> bool:
        """Return whether a call may be made at ``now``; the caller reports its result."""
        if self.state is _CLOSED:
            return True
        if self.wait(now) > 0:
            return False
        self.state = _HALF_OPEN
        self._trial_until = now + self.trial_timeout
        return True

    def wait(self, now: float) -> float:
        """Return the seconds until the next trial of a circuit that is not closed."""
        is_open = self.state is _OPEN
        return (self.retry_at if is_open else self._trial_until) - now

    def record_success(self) -> None:
        """Close the circuit after an answer of the dependency."""
        if self.failed_at and (self.late_results or self.state is not _OPEN):
            self.failed_at.clear()
            self.state = _CLOSED

    def record_failure(self, now: float) -> None:
        """Count a failure of the dependency at ``now``."""
        if self.state is _OPEN and not self.late_results:
            return
        self.failed_at.append(now)
        self.retry_at = now + self.pause
        is_full = len(self.failed_at) == self.failures
        if self.state is not _CLOSED or (is_full and now - self.failed_at[0] <= self.window):
            self.state = _OPEN

    def abandon(self) -> None:
        """End a call without a result; if it was the trial, the next call becomes the trial."""
        if self.state is _HALF_OPEN:
            self.state = _OPEN


class Breaker:
    """A circuit breaker: stops calls to a dependency that keeps failing. Thread-safe.

    It opens after ``failures`` consecutive failures within ``window`` seconds. After ``pause``
    seconds it lets one trial call through, and closes if that succeeds.
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
        self._circuit = Circuit(failures, pause, window, trial_timeout=pause)
        self._clock = clock or SystemClock()
        self._metrics = metrics or NullMetrics()
        self._lock = threading.Lock()
        self._reported = self.state
        self._metrics.breaker(name, self.state)

    @property
    def state(self) -> BreakerState:
        """The state after the last call; an open breaker becomes half open at the next call."""
        return self._circuit.state

    def admit(self) -> None:
        """Let a call through, or raise CircuitOpenError with the seconds until the next trial.

        An admitted caller reports the result by ``succeeded``, ``failed`` or ``abandoned``.
        """
        with self._lock:
            circuit = self._circuit
            if circuit.state is _CLOSED:
                return
            now = self._clock.monotonic()
            if not circuit.admits(now):
                wait = circuit.wait(now)
                raise CircuitOpenError(
                    f"{self.name} kept failing; no calls for {wait:.1f} s",
                    context={"breaker": self.name},
                    retry_after=wait,
                )
            self._report()

    def succeeded(self) -> None:
        """Report an answer of the dependency."""
        with self._lock:
            self._circuit.record_success()
            self._report()

    def failed(self) -> None:
        """Report a failure of the dependency."""
        with self._lock:
            self._circuit.record_failure(self._clock.monotonic())
            self._report()

    def abandoned(self) -> None:
        """Report a call without a result of the dependency (cancelled, or a bug of the caller)."""
        with self._lock:
            self._circuit.abandon()
            self._report()

    def _report(self) -> None:
        """Report a changed state to the metrics."""
        state = self._circuit.state
        if state is not self._reported:
            self._reported = state
            self._metrics.breaker(self.name, state)


@dataclass(slots=True)
class _Attempts:
    """The state of one call's attempts."""

    recovery: Recovery
    policy: RetryPolicy | None
    began: float
    number: int = 0
    delay: float = field(default=0.0)

    def should_retry(self, error: EngineroomError | None) -> bool:
        """Return whether to try again; set ``delay``."""
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

    After the last attempt ``dead_letter`` is called with the error, then ``fallback``, whose result
    replaces the call's. Both are sync functions and may be passed per call too. Without a
    ``breaker`` calls are never held back.
    """

    def __init__(
        self,
        name: str,
        *,
        policies: Mapping[Category, RetryPolicy] = POLICIES,
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
        policy: RetryPolicy | None = None,
        fallback: Callable[[EngineroomError], _T] | None = None,
        dead_letter: Callable[[EngineroomError], None] | None = None,
    ) -> _T:
        """Call ``function(*arguments)`` with recovery and return its result.

        Raises the last EngineroomError if there is no fallback. Library errors are wrapped; other
        exceptions propagate at once, unchanged.
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
            return self._give_up(error, fallback, dead_letter)
        raise AssertionError("tenacity ends with an answer or an error")

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Report a call in the block to the breaker and the metrics.

        Errors propagate unchanged and nothing is retried. The caller asks ``breaker.admit`` first.
        """
        try:
            yield
        except BaseException as error:
            self._report_end(error)
            raise
        self._report_end(None)

    async def call_async(
        self,
        function: Callable[..., Awaitable[_T]],
        *arguments: Any,
        policy: RetryPolicy | None = None,
        fallback: Callable[[EngineroomError], _T] | None = None,
        dead_letter: Callable[[EngineroomError], None] | None = None,
    ) -> _T:
        """Call a coroutine function as ``call`` does; a cancellation is never retried."""
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
            return self._give_up(error, fallback, dead_letter)
        raise AssertionError("tenacity ends with an answer or an error")

    def _begin(self, policy: RetryPolicy | None) -> _Attempts:
        self.budget.called()
        return _Attempts(self, policy, self.clock.monotonic())

    def _options(self, attempts: _Attempts) -> dict[str, Any]:
        import tenacity

        def should_retry(state: tenacity.RetryCallState) -> bool:
            outcome = state.outcome
            error = None if outcome is None else outcome.exception()
            return isinstance(error, EngineroomError) and attempts.should_retry(error)

        return {
            "retry": should_retry,
            "stop": tenacity.stop_never,
            "wait": lambda _: attempts.delay,
            "reraise": True,
        }

    def _give_up(
        self,
        error: EngineroomError,
        fallback: Callable[[EngineroomError], _T] | None,
        dead_letter: Callable[[EngineroomError], None] | None,
    ) -> _T:
        report = dead_letter or self._dead_letter
        if report is not None:
            report(error)
        if fallback is None:
            raise error
        return fallback(error)

    def count(self, error: EngineroomError) -> None:
        """Count a failed attempt."""
        self._metrics.failed(error.code, error.category.value)

    def _report_end(self, error: BaseException | None) -> EngineroomError | None:
        """Report a call's end to breaker and metrics; return its error as an EngineroomError."""
        breaker = self.breaker
        ours = None if error is None else wrap(error, operation=self.name)
        if breaker is not None:
            if ours is not None and ours.category in _DEPENDENCY_FAILURES:
                breaker.failed()
            elif error is None or ours is not None:
                breaker.succeeded()  # a refusal is an answer too
            else:
                breaker.abandoned()
        if ours is not None:
            self.count(ours)
        return ours


class _Attempt:
    """The context of one attempt: asks the breaker before, wraps and counts errors after."""

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
            self._recovery.count(error)
            raise

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        ours = self._recovery._report_end(error)
        if ours is not None and ours is not error:
            raise ours from error
