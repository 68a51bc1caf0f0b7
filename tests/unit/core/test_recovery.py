"""Recovery: by category, bounded in every direction, the same for plain and async calls."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
import redis.exceptions
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from engineroom.core import errors
from engineroom.core.clock import FakeClock
from engineroom.core.errors import Category, EngineroomError
from engineroom.core.prometheus import PrometheusRecovery
from engineroom.core.recovery import (
    POLICIES,
    Breaker,
    BreakerState,
    Budget,
    Circuit,
    Recovery,
    RetryPolicy,
)


class Bench:
    """A recovery on a clock of its own; ``waits`` are the seconds slept."""

    def __init__(self, **options: Any) -> None:
        self.clock = FakeClock()
        self.waits: list[float] = []
        self.registry = CollectorRegistry()
        self.metrics = PrometheusRecovery(self.registry)
        options.setdefault("random", lambda: 1.0)
        breaker = options.pop("breaker", None)
        self.breaker = (
            None
            if breaker is None
            else Breaker("stock", clock=self.clock, metrics=self.metrics, **breaker)
        )
        self.recovery = Recovery(
            "stock",
            clock=self.clock,
            metrics=self.metrics,
            breaker=self.breaker,
            sleep=self._sleep,
            sleep_async=self._sleep_async,
            **options,
        )
        self.calls = 0

    def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.clock.advance(seconds)

    async def _sleep_async(self, seconds: float) -> None:
        self._sleep(seconds)

    def failing(self, error: BaseException, times: int = 10**6) -> Any:
        def function(answer: str = "ok") -> str:
            self.calls += 1
            if self.calls <= times:
                raise error
            return answer

        return function

    def run(self, function: Any, how: str, **options: Any) -> Any:
        if how == "plain":
            return self.recovery.call(function, **options)

        async def coroutine() -> Any:
            return function()

        return asyncio.run(self.recovery.call_async(coroutine, **options))


HOW = pytest.mark.parametrize("how", ["plain", "async"])


@HOW
def test_what_heals_is_tried_again_with_growing_bounds(how: str) -> None:
    bench = Bench()
    assert bench.run(bench.failing(errors.TransientError("x"), 3), how) == "ok"
    assert bench.waits == pytest.approx([0.1, 0.2, 0.4])


@HOW
@pytest.mark.parametrize(
    "error", [errors.PermanentError("x"), errors.MissingError("x"), errors.RedisRefusedError("x")]
)
def test_what_does_not_heal_is_tried_once(how: str, error: EngineroomError) -> None:
    bench = Bench()
    with pytest.raises(type(error)):
        bench.run(bench.failing(error), how)
    assert bench.calls == 1


@HOW
def test_library_errors_are_wrapped_and_counted_and_others_pass(how: str) -> None:
    bench = Bench()
    with pytest.raises(errors.RedisUnavailableError):
        bench.run(bench.failing(redis.exceptions.ConnectionError("x")), how)
    labels = {"code": "redis_unavailable", "category": "dependency"}
    assert bench.registry.get_sample_value("engineroom_errors_total", labels) == 4
    other = Bench()
    with pytest.raises(ValueError, match="bug"):
        other.run(other.failing(ValueError("bug")), how)
    assert other.calls == 1


@HOW
def test_a_policy_may_be_given_per_call(how: str) -> None:
    bench = Bench()
    with pytest.raises(errors.TransientError):
        bench.run(bench.failing(errors.TransientError("x")), how, policy=RetryPolicy(attempts=2))
    assert bench.calls == 2


@HOW
def test_the_total_time_ends_it(how: str) -> None:
    bench = Bench()
    policy = RetryPolicy(attempts=1000, base=1.0, longest=1.0, total=5.0)
    with pytest.raises(errors.TransientError):
        bench.run(bench.failing(errors.TransientError("x")), how, policy=policy)
    assert bench.calls == 5
    assert bench.clock.monotonic() < 5


@HOW
def test_fallback_and_dead_letter(how: str) -> None:
    told: list[EngineroomError] = []
    bench = Bench(dead_letter=told.append)
    answer = bench.run(
        bench.failing(errors.PermanentError("x")), how, fallback=lambda error: error.code
    )
    assert answer == "permanent"
    assert [error.code for error in told] == ["permanent"]


def test_a_retry_after_is_waited_for() -> None:
    bench = Bench(random=lambda: 0.0)
    assert bench.run(bench.failing(errors.LimitError("x", retry_after=7), 1), "plain") == "ok"
    assert bench.waits == [7]


def test_the_budget_is_shared_by_all_calls() -> None:
    bench = Bench(budget=Budget(ratio=0.1, reserve=5))
    for _ in range(100):
        with pytest.raises(errors.TransientError):
            bench.run(bench.failing(errors.TransientError("x")), "plain")
    # Five were saved up and a hundred calls earn ten; without a budget it would be 400.
    assert 110 <= bench.calls <= 116


def test_cancelling_is_not_retried() -> None:
    async def main() -> tuple[int, bool]:
        bench, calls = Bench(breaker={}), []

        async def endless() -> None:
            calls.append(1)
            await asyncio.sleep(60)

        task = asyncio.create_task(bench.recovery.call_async(endless))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        return len(calls), task.cancelled()

    assert asyncio.run(main()) == (1, True)


@HOW
def test_a_breaker_opens_tries_once_and_closes(how: str) -> None:
    once = {"policy": RetryPolicy()}
    bench = Bench(breaker={"failures": 3, "pause": 10.0})
    failing = bench.failing(errors.DependencyError("x"), 4)
    for _ in range(3):
        with pytest.raises(errors.DependencyError):
            bench.run(failing, how, **once)
    with pytest.raises(errors.CircuitOpenError) as held:
        bench.run(failing, how)
    assert (bench.calls, held.value.retry_after) == (3, 10)
    bench.clock.advance(10)
    with pytest.raises(errors.DependencyError):
        bench.run(failing, how, **once)
    assert bench.breaker is not None
    assert bench.breaker.state is BreakerState.OPEN
    bench.clock.advance(10)
    assert bench.run(failing, how) == "ok"
    assert bench.breaker.state is BreakerState.CLOSED
    value = bench.registry.get_sample_value
    assert value("engineroom_breaker_state", {"name": "stock", "state": "closed"}) == 1
    assert value("engineroom_breaker_state", {"name": "stock", "state": "open"}) == 0


def test_half_open_lets_one_call_through() -> None:
    clock = FakeClock()
    breaker = Breaker("stock", failures=1, pause=1.0, clock=clock)
    breaker.failed()
    clock.advance(1)
    breaker.admit()
    with pytest.raises(errors.CircuitOpenError):
        breaker.admit()
    breaker.abandoned()
    breaker.admit()
    breaker.succeeded()
    breaker.admit()


def test_a_refusal_is_no_reason_to_open_and_old_failures_are_forgotten() -> None:
    bench = Bench(breaker={"failures": 2, "window": 5.0})
    for _ in range(5):
        with pytest.raises(errors.MissingError):
            bench.run(bench.failing(errors.MissingError("x")), "plain")
    assert bench.breaker is not None
    assert bench.breaker.state is BreakerState.CLOSED
    for _ in range(3):
        bench.breaker.failed()
        bench.clock.advance(6)
    assert bench.breaker.state is BreakerState.CLOSED


def test_late_results_that_count_close_the_circuit_or_prolong_its_pause() -> None:
    circuit = Circuit(failures=1, pause=1.0, late_results=True)
    circuit.record_failure(0.0)
    circuit.record_failure(0.5)
    assert not circuit.admits(1.4)
    circuit.record_success()
    assert circuit.state is BreakerState.CLOSED


def test_late_results_that_do_not_count_leave_the_trial_to_decide() -> None:
    circuit = Circuit(failures=1, pause=1.0)
    circuit.record_failure(0.0)
    circuit.record_failure(0.5)
    circuit.record_success()
    assert circuit.state is BreakerState.OPEN
    assert circuit.admits(1.0)


def test_a_trial_without_a_result_permits_another_one_after_its_timeout() -> None:
    bounded, unbounded = (Circuit(1, 1.0, trial_timeout=limit) for limit in (2.0, math.inf))
    for circuit in (bounded, unbounded):
        circuit.record_failure(0.0)
        assert circuit.admits(1.0)
        assert not circuit.admits(2.9)
    assert bounded.admits(3.0)
    assert not unbounded.admits(1000.0)
    unbounded.abandon()
    assert unbounded.admits(1000.0)


def test_every_category_has_a_policy() -> None:
    assert set(POLICIES) == set(Category)


@given(st.integers(1, 20), st.floats(0, 2), st.floats(0, 5), st.floats(0, 50), st.floats(0, 0.999))
def test_waits_are_within_their_bounds(
    attempts: int, base: float, longest: float, total: float, drawn: float
) -> None:
    bench = Bench(random=lambda: drawn, budget=Budget(reserve=100))
    policy = RetryPolicy(attempts, base, longest, total)
    with pytest.raises(errors.TransientError):
        bench.run(bench.failing(errors.TransientError("x")), "plain", policy=policy)
    assert bench.calls <= attempts
    assert all(
        0 <= wait <= min(longest, base * 2**number) for number, wait in enumerate(bench.waits)
    )
    assert sum(bench.waits) <= total
