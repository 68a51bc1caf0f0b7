"""The queue's rules, told the time: nothing here waits."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from engineroom.kube.runtime.queue import NUDGE, URGENT_BURST, QueueState, TokenBucket, backoff


def new_state(**options: object) -> QueueState:
    return QueueState(random=lambda: 0.0, **options)  # type: ignore[arg-type]


def taken(state: QueueState, now: float) -> list[str]:
    """All keys due at ``now``, each run to its end at once."""
    state.promote(now)
    names = []
    while (got := state.take(now)) is not None:
        names.append(got[0])
    for name in names:
        state.done(name, now)
    return names


def test_a_key_added_often_is_due_once() -> None:
    state = new_state()
    for _ in range(5):
        state.add("a", 0.0)
    assert state.depth == 1
    assert taken(state, 0.0) == ["a"]
    assert state.depth == 0


def test_keys_are_taken_in_the_order_of_their_coming() -> None:
    state = new_state()
    for name in "cab":
        state.add(name, 0.0)
    state.add("c", 1.0)
    assert taken(state, 1.0) == ["c", "a", "b"]


def test_the_wait_counts_from_the_first_request() -> None:
    state = new_state()
    state.add("a", 1.0)
    state.add("a", 3.0)
    assert state.take(4.5) == ("a", 3.5)


def test_a_running_key_is_not_taken_again_but_once_more_after_its_end() -> None:
    state = new_state()
    state.add("a", 0.0)
    assert state.take(0.0) is not None
    state.add("a", 1.0)
    state.add("a", 2.0, urgent=True)
    assert state.take(2.0) is None
    state.done("a", 3.0)
    assert state.take(3.0) == ("a", 0.0)
    state.done("a", 4.0)
    assert state.take(4.0) is None


def test_urgent_keys_go_before_ordinary_ones() -> None:
    state = new_state()
    for name in ("slow1", "slow2"):
        state.add(name, 0.0)
    state.add("user", 0.0, urgent=True)
    state.add("slow2", 0.0, urgent=True)
    assert taken(state, 0.0) == ["user", "slow2", "slow1"]


def test_an_ordinary_key_has_its_turn_after_a_burst_of_urgent_ones() -> None:
    state = new_state()
    state.add("patient", 0.0)
    for number in range(URGENT_BURST + 5):
        state.add(f"u{number}", 0.0, urgent=True)
    order = taken(state, 0.0)
    assert order.index("patient") == URGENT_BURST


def test_a_key_is_due_at_the_earliest_time_asked_for() -> None:
    state = new_state()
    state.add_after("a", 10.0)
    state.add_after("a", 5.0)
    state.add_after("a", 7.0)
    assert state.promote(4.9) == 5.0
    assert taken(state, 4.9) == []
    assert taken(state, 5.0) == ["a"]
    assert state.promote(100.0) is None
    assert taken(state, 100.0) == []


def test_a_run_forgets_when_the_one_before_wanted_to_look_again() -> None:
    state = new_state()
    state.add("a", 0.0)
    state.take(0.0)
    state.done("a", 0.0, requeue_after=10.0)
    state.add("a", 5.0)
    state.take(5.0)
    state.done("a", 5.0, requeue_after=10.0)
    assert state.promote(14.9) == 15.0
    assert taken(state, 15.0) == ["a"]
    assert state.delayed == 0


def test_a_run_does_not_forget_what_others_asked_for_later() -> None:
    state = new_state()
    state.add_after("a", 10.0)
    state.add("a", 1.0)
    assert taken(state, 1.0) == ["a"]
    assert taken(state, 10.0) == ["a"]


def test_a_timer_that_rings_while_its_key_runs_makes_it_run_again() -> None:
    state = new_state()
    state.add_after("a", 1.0)
    state.add("a", 0.0)
    state.take(0.0)
    state.promote(2.0)
    assert state.take(2.0) is None
    state.done("a", 3.0)
    assert taken(state, 3.0) == ["a"]


def test_failures_wait_longer_each_time_up_to_the_cap_and_success_forgets_them() -> None:
    state = new_state()
    state.add("a", 0.0)
    waits = []
    now = 0.0
    for _ in range(20):
        state.promote(now)
        assert state.take(now) is not None
        wait, failures = state.failed("a", now)
        waits.append(wait)
        now += wait
    assert failures == 20
    assert waits[:4] == [0.005, 0.01, 0.02, 0.04]
    assert waits[-1] == 300.0
    state.promote(now)
    state.take(now)
    state.done("a", now)
    assert state.failing() == {}
    state.add("a", now)
    state.take(now)
    assert state.failed("a", now)[0] == 0.005


def fail(state: QueueState, name: str, times: int) -> float:
    """Let it fail so often in a row; returns the time after the last failure."""
    now = 0.0
    state.add(name, now)
    wait = 0.0
    for _ in range(times):
        now += wait
        state.promote(now)
        assert state.take(now) is not None
        wait, _ = state.failed(name, now)
    return now


def test_an_ordinary_request_does_not_break_the_backoff_of_a_failing_key() -> None:
    state = new_state()
    now = fail(state, "a", 14)
    assert (state.promote(now) or 0.0) > now + 30
    for _ in range(100):
        state.add("a", now)
    assert state.take(now) is None
    assert state.promote(now) == now + NUDGE
    assert taken(state, now + NUDGE) == ["a"]


def test_an_urgent_request_is_served_at_once_even_if_the_key_fails() -> None:
    state = new_state()
    now = fail(state, "a", 14)
    state.add("a", now, urgent=True)
    assert state.take(now) == ("a", 0.0)
    state.failed("a", now)
    assert state.depth == 0


def test_an_urgent_request_during_a_failing_run_is_served_right_after() -> None:
    state = new_state()
    state.add("a", 0.0)
    state.take(0.0)
    state.add("a", 0.0, urgent=True)
    assert state.failed("a", 1.0) == (0.0, 1)
    assert state.take(1.0) == ("a", 0.0)


def test_the_other_side_may_ask_for_more_patience() -> None:
    state = new_state()
    state.add("a", 0.0)
    state.take(0.0)
    assert state.failed("a", 0.0, at_least=7.0)[0] == 7.0


def test_many_failing_keys_share_one_bucket() -> None:
    state = new_state(bucket=TokenBucket(rate=10, burst=5))
    waits = []
    for number in range(25):
        state.add(f"k{number}", 0.0)
        state.take(0.0)
        waits.append(state.failed(f"k{number}", 0.0)[0])
    assert max(waits[:5]) == 0.005
    assert waits[-1] == 2.0


def test_forgetting_a_key_leaves_nothing_behind() -> None:
    state = new_state()
    fail(state, "a", 3)
    state.add_after("a", 50.0)
    state.forget("a")
    assert state.promote(1000.0) is None
    assert taken(state, 1000.0) == []
    assert state._keys == {}
    assert state.delayed == 0


def test_forgetting_a_running_key_lets_it_finish() -> None:
    state = new_state()
    state.add("a", 0.0)
    state.take(0.0)
    state.forget("a")
    state.done("a", 1.0)
    assert state._keys == {}


def test_replaced_timers_do_not_pile_up() -> None:
    state = new_state()
    for number in range(100_000):
        state.add("a", 0.0)
        state.take(0.0)
        state.done("a", 0.0, requeue_after=1000.0 - number / 1000)
    assert len(state._heap) <= 1100
    assert state.delayed == 1


def test_backoff_grows_from_base_to_cap_with_a_little_jitter() -> None:
    assert backoff(1, 0.005, 300, 0.0) == 0.005
    assert backoff(1000, 0.005, 300, 0.0) == 300
    assert backoff(1000, 0.005, 300, 0.999) > 240


def test_a_bucket_refills_with_time() -> None:
    bucket = TokenBucket(rate=2, burst=1)
    assert bucket.reserve(0.0) == 0.0
    assert bucket.reserve(0.0) == 0.5
    assert bucket.reserve(10.0) == 0.0
    assert not bucket.take(10.0)
    assert bucket.take(10.5)


@given(st.integers(0, 2**32))
def test_whatever_happens_keys_run_alone_and_no_request_is_lost(seed: int) -> None:
    """A random walk: each request is followed by a run that began at or after it."""
    dice = random.Random(seed)
    state = QueueState(random=dice.random)
    now = 0.0
    running: set[str] = set()
    owed: dict[str, float] = {}  # key: latest time a look was asked for
    for _ in range(200):
        now += dice.choice([0.0, 0.0, 0.1, 1.0, 30.0])
        name = dice.choice("abc")
        action = dice.randrange(6)
        if action == 0:
            state.add(name, now, urgent=dice.random() < 0.3)
            owed[name] = now
        elif action == 1:
            state.add_after(name, now + dice.choice([0.0, 5.0, 50.0]))
        elif action in (2, 3):
            state.promote(now)
            got = state.take(now)
            if got is not None:
                assert got[0] not in running
                running.add(got[0])
                owed.pop(got[0], None)
        elif running:
            ended = dice.choice(sorted(running))
            running.discard(ended)
            if action == 4:
                state.done(ended, now, dice.choice([None, 0.0, 3.0]))
            else:
                state.failed(ended, now)
        assert state.running == len(running)
    for name in sorted(running):
        state.done(name, now)
    for _ in range(1000):
        if not owed and state.promote(now) is None and not state.depth:
            break
        due = state.promote(now)
        now = max(now, due) if due is not None else now
        state.promote(now)
        got = state.take(now)
        if got is not None:
            owed.pop(got[0], None)
            state.done(got[0], now)
    assert not owed
    assert state.depth == 0
    assert state.running == 0
    assert state._keys == {}
