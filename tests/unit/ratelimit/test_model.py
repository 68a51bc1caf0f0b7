"""Policies that cannot be meant are refused, with field, problem and fix."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from engineroom.core.errors import InvalidSpecError
from engineroom.ratelimit.limits.errors import InvalidPolicyError
from engineroom.ratelimit.limits.model import (
    Algorithm,
    Distribution,
    DistributionMode,
    Failure,
    Limit,
    Mode,
    Policy,
    Rate,
)

if TYPE_CHECKING:
    from collections.abc import Callable

GOOD = Limit("good", Rate(10, 1))
LEASED = Distribution(DistributionMode.LEASED)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Rate(0, 1), "rate.requests"),
        (lambda: Rate(-5, 1), "rate.requests"),
        (lambda: Rate(True, 1), "rate.requests"),
        (lambda: Rate(10, 0), "rate.period"),
        (lambda: Rate(10, -1), "rate.period"),
        (lambda: Rate(10, 0.0004), "rate.period"),
        (lambda: Rate(10, float("nan")), "rate.period"),
        (lambda: Rate(10, float("inf")), "rate.period"),
        (lambda: Rate(10, timedelta(microseconds=3)), "rate.period"),
        (lambda: Rate(10, 400 * 86400), "rate.period"),
        (lambda: Rate(5000, 0.001), "rate"),
        (lambda: Limit("Per User", Rate(1, 1)), "limits[].name"),
        (lambda: Limit("a", Rate(10, 1), burst=-1), "limits['a'].burst"),
        (lambda: Limit("a", Rate(10, 1), burst=3, cost=4), "limits['a'].burst"),
        (lambda: Limit("a", Rate(10, 1), cost=0), "limits['a'].cost"),
        (lambda: Limit("a", Rate(1, 86400), burst=367), "limits['a'].burst"),
        (
            lambda: Limit("a", Rate(10, 1), burst=20, algorithm=Algorithm.FIXED_WINDOW),
            "limits['a'].burst",
        ),
        (lambda: Policy("p", ()), "limits"),
        (lambda: Policy("p", tuple(Limit(f"l{n}", Rate(1, 1)) for n in range(65))), "limits"),
        (lambda: Policy("p", (GOOD, GOOD)), "limits"),
        (lambda: Policy("{p}", (GOOD,)), "name"),
        (lambda: Failure(timeout=0), "failure.timeout"),
        (lambda: Failure(breaker_failures=0), "failure.breaker_failures"),
        (lambda: Distribution(max_lease_fraction="1.1"), "distribution.max_lease_fraction"),
        (lambda: Distribution(max_lease_fraction="ten"), "distribution.max_lease_fraction"),
        (lambda: Distribution(lease_ttl=0), "distribution.lease_ttl"),
        (lambda: Policy("p", (Limit("a", Rate(9, 1)),), distribution=LEASED), "limits['a'].burst"),
        (
            lambda: Policy("p", (Limit("a", Rate(99, 1), mode=Mode.SHADOW),), distribution=LEASED),
            "limits['a'].mode",
        ),
        (
            lambda: Policy(
                "p",
                (Limit("a", Rate(99, 1), algorithm=Algorithm.SLIDING_WINDOW),),
                distribution=LEASED,
            ),
            "limits['a'].algorithm",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(make: Callable[[], object], field: str) -> None:
    with pytest.raises(InvalidPolicyError) as caught:
        make()
    assert [problem.field for problem in caught.value.problems] == [field]
    for problem in caught.value.problems:
        assert problem.problem
        assert problem.fix
    assert isinstance(caught.value, InvalidSpecError)


def test_a_burst_is_the_requests_of_a_period_unless_said() -> None:
    assert Limit("a", Rate(7, 1)).burst == 7


def test_sixty_four_limits_are_allowed() -> None:
    assert len(Policy("p", tuple(Limit(f"l{n}", Rate(1, 1)) for n in range(64))).limits) == 64


def test_a_period_below_a_second_is_not_cut_to_zero() -> None:
    assert Rate(1, 0.25).period_us == 250_000
    assert Rate(1, timedelta(milliseconds=1)).interval_us == 1000


def test_intervals_round_up_so_that_no_rate_is_faster_than_declared() -> None:
    assert Rate(7, 1).interval_us == 142_858


def test_a_policy_does_not_change() -> None:
    policy = Policy("p", (GOOD,))
    with pytest.raises(FrozenInstanceError):
        policy.name = "q"  # type: ignore[misc]
