"""What becomes of a job that raised, by what it raised."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engineroom.core.errors import ConflictError, InvalidSpecError, Problem
from engineroom.tasks import FailureCategory, InvalidTaskError, Rule
from engineroom.tasks.retrying import RetryDecision, decide

PERMANENT, TRANSIENT = FailureCategory.PERMANENT, FailureCategory.TRANSIENT


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConflictError("changed"), RetryDecision(TRANSIENT, None)),
        (InvalidSpecError([Problem("a", "b", "c")]), RetryDecision(PERMANENT, 0)),
        (TypeError(), RetryDecision(PERMANENT, 0)),
        (KeyError("x"), RetryDecision(PERMANENT, 0)),
        (ConnectionError(), RetryDecision(TRANSIENT, None)),
        (RuntimeError(), RetryDecision(TRANSIENT, None)),
    ],
)
def test_without_a_rule_the_kind_of_error_decides(
    error: Exception, expected: RetryDecision
) -> None:
    assert decide(error, 0, (), 0) == expected


def test_the_first_rule_that_fits_wins() -> None:
    rules = (Rule((TimeoutError,), maximum=1), Rule((OSError,), PERMANENT), Rule((OSError,)))
    assert decide(TimeoutError(), 0, rules, 0) == RetryDecision(TRANSIENT, 1, 1)
    assert decide(OSError(), 0, rules, 0) == RetryDecision(PERMANENT, 0)


def test_waits_grow_to_the_longest_and_tries_end() -> None:
    rules = (Rule((OSError,), maximum=5, first=2, factor=3, longest=50, jitter=0),)
    decisions = [decide(OSError(), tried, rules, 0.7) for tried in range(6)]
    assert [each.delay for each in decisions[:4]] == [2, 6, 18, 50]
    assert [each.retries_left for each in decisions] == [5, 4, 3, 2, 1, 0]


@given(
    tried=st.integers(0, 10_000),
    maximum=st.integers(0, 1000),
    first=st.floats(0, 1e6),
    factor=st.floats(1, 1e4),
    longest=st.floats(0, 1e7),
    jitter=st.floats(0, 1),
    chance=st.floats(0, 1),
)
def test_a_wait_is_never_beyond_its_bounds(
    tried: int, maximum: int, first: float, factor: float, longest: float, jitter: float,
    chance: float,
) -> None:  # fmt: skip
    rule = Rule((OSError,), TRANSIENT, maximum, first, factor, longest, jitter)
    decision = decide(OSError(), tried, (rule,), chance)
    assert 0 <= decision.delay <= longest + 1
    assert decision.delay >= min(longest, first) * (1 - jitter) - 1e-6
    assert decision.retries_left == max(0, maximum - tried)


@pytest.mark.parametrize("wrong", [{"maximum": -1}, {"jitter": 2}, {"factor": 0.5}, {"first": -1}])
def test_a_rule_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidTaskError, match="use"):
        Rule((OSError,), **wrong)  # type: ignore[arg-type]
