"""The script in Redis and the same in Python agree; the bounds hold; nothing is half done."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
from typing import TYPE_CHECKING, Any

import pytest
import redis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from engineroom.ratelimit.limits import algorithms
from engineroom.ratelimit.limits.algorithms import (
    LimitCheck,
    LimitResult,
    LimitStatus,
    LimitTerms,
    bucket_key,
)
from engineroom.ratelimit.limits.model import Algorithm, Limit, Policy, Rate
from engineroom.ratelimit.limits.redis_calls import lua_scripts
from tests.integration.ratelimit.scripts import timed
from tests.support import free_port

if TYPE_CHECKING:
    from collections.abc import Sequence

#: On further servers fewer do: they say whether the commands mean the same there.
SETTINGS = settings(
    max_examples=40 if os.environ.get("ENGINEROOM_TEST_REDIS") else 150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
START = 1_790_000_000_123_456
TIMED = timed(lua_scripts.DECIDE)


def run(
    store: redis.Redis,
    terms: Sequence[LimitTerms],
    requests: Sequence[Sequence[LimitCheck]],
    now: int,
) -> list[list[LimitResult]]:
    keys, arguments = lua_scripts.decide_arguments(terms, requests)
    reply: Any = store.eval(TIMED, len(keys), *keys, *arguments, now)
    return lua_scripts.parse_results(reply, requests)


def run_now(
    store: redis.Redis, terms: Sequence[LimitTerms], requests: Sequence[Sequence[LimitCheck]]
) -> list[list[LimitResult]]:
    keys, arguments = lua_scripts.decide_arguments(terms, requests)
    reply: Any = store.eval(lua_scripts.DECIDE.source, len(keys), *keys, *arguments)
    return lua_scripts.parse_results(reply, requests)


@st.composite
def some_terms(draw: st.DrawFn) -> LimitTerms:
    code = draw(st.sampled_from("tsf"))
    unit = draw(st.integers(1, 2_000_000))
    burst = draw(st.integers(1, 30))
    return LimitTerms(code, unit, burst * unit if code == "t" else burst, draw(st.booleans()))


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[LimitTerms], list[tuple[int, list[list[LimitCheck]]]]]:
    terms = draw(st.lists(some_terms(), min_size=1, max_size=4))
    check = st.integers(0, len(terms) - 1).flatmap(
        lambda place: st.builds(
            lambda subject, tokens: LimitCheck(f"{{p}}:{place}:{subject}", place, tokens),
            st.sampled_from("ab"),
            st.integers(0, 32),
        )
    )
    request = st.lists(check, min_size=1, max_size=4, unique_by=lambda each: each.key)
    # Time goes on by anything from nothing to several periods, and now and then jumps back.
    step = st.one_of(st.integers(0, 1000), st.integers(0, 10_000_000), st.integers(-7_000_000, -1))
    steps = st.tuples(step, st.lists(request, min_size=1, max_size=4))
    return terms, draw(st.lists(steps, min_size=1, max_size=12))


@SETTINGS
@given(histories())
def test_script_and_model_agree(
    store: redis.Redis, history: tuple[list[LimitTerms], list[tuple[int, list[list[LimitCheck]]]]]
) -> None:
    store.flushall()
    terms, steps = history
    model: dict[str, str] = {}
    now = START
    for step, requests in steps:
        now += step
        expected = [algorithms.decide(model, terms, checks, now) for checks in requests]
        assert run(store, terms, requests, now) == expected
        for key, state in model.items():
            assert algorithms._evaluate(_of(terms, key), state, 0, now) == algorithms._evaluate(
                _of(terms, key), store.get(key) or "", 0, now
            )


def _of(terms: Sequence[LimitTerms], key: str) -> LimitTerms:
    return terms[int(key.split(":")[1])]


def most_ratio(admitted: Sequence[tuple[int, int]], burst: int, rate: float) -> float:
    """The largest of admitted / (burst + rate * window) over all windows; rate a microsecond."""
    worst = 0.0
    for first in range(len(admitted)):
        total = 0
        for at, tokens in admitted[first:]:
            total += tokens
            worst = max(worst, total / (burst + rate * (at - admitted[first][0])))
    return worst


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 50),
    st.integers(1000, 3_000_000),
    st.integers(1, 20),
    st.lists(st.tuples(st.integers(0, 300_000), st.integers(1, 5)), min_size=5, max_size=120),
)
@example(requests=7, period=1_000_000, burst=7, arrivals=[(0, 1)] * 100)
def test_no_window_admits_more_than_burst_and_rate(
    requests: int, period: int, burst: int, arrivals: list[tuple[int, int]]
) -> None:
    limit = Limit("a", Rate(requests, period / 1e6), burst)
    terms = [LimitTerms.of(limit)]
    store: dict[str, str] = {}
    now, admitted = START, []
    for step, tokens in arrivals:
        now += step
        (answer,) = algorithms.decide(store, terms, [LimitCheck("k", 0, tokens)], now)
        if answer.status == LimitStatus.ADMITTED:
            admitted.append((now, tokens))
    assert most_ratio(admitted, burst, requests / period) <= 1.0


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 20),
    st.integers(16, 1_000_000),
    st.lists(st.integers(0, 200_000), min_size=5, max_size=150),
)
def test_no_window_of_a_period_slides_over_more_than_requests(
    requests: int, period: int, steps: list[int]
) -> None:
    terms = [LimitTerms("s", period, requests)]
    store: dict[str, str] = {}
    now, admitted = START, list[int]()
    for step in steps:
        now += step
        (answer,) = algorithms.decide(store, terms, [LimitCheck("k", 0, 1)], now)
        if answer.status == LimitStatus.ADMITTED:
            admitted.append(now)
        assert store["k"].count(";") <= algorithms.SLICES * 2 + 2
    for at in admitted:
        assert sum(at <= other < at + period for other in admitted) <= requests


def test_the_edge_of_a_window_doubles_a_fixed_window_and_nothing_else() -> None:
    # Ten just before a tick and ten just after: why FixedWindow is not the default.
    tick = START - START % 1_000_000 + 1_000_000
    admitted = {}
    for algorithm in Algorithm:
        terms = [LimitTerms.of(Limit("a", Rate(10, 1), algorithm=algorithm))]
        store: dict[str, str] = {}
        answers = [
            algorithms.decide(store, terms, [LimitCheck("k", 0, 1)], at)[0]
            for at in (tick - 1000, tick + 1000)
            for _ in range(20)
        ]
        admitted[algorithm] = sum(answer.status == LimitStatus.ADMITTED for answer in answers)
    assert admitted == {
        Algorithm.TOKEN_BUCKET: 10,
        Algorithm.SLIDING_WINDOW: 10,
        Algorithm.FIXED_WINDOW: 20,
    }


@pytest.mark.parametrize("algorithm", Algorithm)
def test_hundred_a_second_with_burst_ten_does_not_let_everything_through(
    algorithm: Algorithm,
) -> None:
    burst = 10 if algorithm is Algorithm.TOKEN_BUCKET else 0
    terms = [LimitTerms.of(Limit("a", Rate(100, 1), burst=burst, algorithm=algorithm))]
    store: dict[str, str] = {}
    begin = START - START % 1_000_000
    # A thousand a second, for two seconds.
    count = sum(
        algorithms.decide(store, terms, [LimitCheck("k", 0, 1)], begin + at * 1000)[0].status
        == LimitStatus.ADMITTED
        for at in range(2000)
    )
    assert 190 <= count <= 210


@pytest.mark.parametrize("algorithm", Algorithm)
def test_refused_requests_consume_nothing(store: redis.Redis, algorithm: Algorithm) -> None:
    terms = [LimitTerms.of(Limit("a", Rate(3, 1), algorithm=algorithm))]
    ask = [[LimitCheck("k", 0, 1)]]
    begin = START - START % 1_000_000
    for _ in range(3):
        run(store, terms, ask, begin)
    remaining = store.get("k")
    for at in range(100):
        assert run(store, terms, ask, begin + at)[0][0].status == LimitStatus.REFUSED
    assert store.get("k") == remaining


@pytest.mark.parametrize("algorithm", Algorithm)
def test_waiting_as_long_as_told_is_enough_and_needed(
    store: redis.Redis, algorithm: Algorithm
) -> None:
    terms = [LimitTerms.of(Limit("a", Rate(3, 1), algorithm=algorithm))]
    model: dict[str, str] = {}
    ask = [LimitCheck("k", 0, 1)]

    def both(now: int) -> LimitResult:
        (answer,) = algorithms.decide(model, terms, ask, now)
        assert run(store, terms, [ask], now) == [[answer]]
        return answer

    now = START
    answer = both(now)
    while answer.status == LimitStatus.ADMITTED:
        now += 1000
        answer = both(now)
    assert both(now + answer.retry - 1).status == LimitStatus.REFUSED
    assert both(now + answer.retry).status == LimitStatus.ADMITTED


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize("jump", [-86_400_000_000, 86_400_000_000])
def test_a_jump_of_the_clock_heals_within_a_period(
    store: redis.Redis, algorithm: Algorithm, jump: int
) -> None:
    terms = [LimitTerms.of(Limit("a", Rate(5, 1), algorithm=algorithm))]
    ask = [[LimitCheck("k", 0, 1)]]
    begin = START - START % 1_000_000
    for _ in range(9):
        run(store, terms, ask, begin)
    after = begin + jump
    at_once = sum(run(store, terms, ask, after)[0][0].status for _ in range(9))
    assert at_once == (0 if jump < 0 else 5)
    later = sum(run(store, terms, ask, after + 1_000_001)[0][0].status for _ in range(9))
    assert later == 5


def test_several_limits_are_all_or_nothing(store: redis.Redis) -> None:
    terms = [
        LimitTerms("t", 1_000_000, 10_000_000),
        LimitTerms("s", 1_000_000, 2),
        LimitTerms("f", 10**9, 10),
    ]
    ask = [[LimitCheck("{p}:a", 0, 1), LimitCheck("{p}:b", 1, 1), LimitCheck("{p}:c", 2, 1)]]
    for _ in range(2):
        assert [entry.status for entry in run(store, terms, ask, START)[0]] == [1, 1, 1]
    before = {key: store.get(key) for key in store.scan_iter()}
    refused = run(store, terms, ask, START)[0]
    assert [entry.status for entry in refused] == [1, 0, 1]
    assert (refused[0].remaining, refused[2].remaining) == (8, 8)
    assert {key: store.get(key) for key in store.scan_iter()} == before


def test_a_limit_in_the_shadow_says_so_and_refuses_nothing(store: redis.Redis) -> None:
    terms = [
        LimitTerms("t", 1_000_000, 1_000_000, enforced=False),
        LimitTerms("t", 1_000_000, 5_000_000),
    ]
    ask = [[LimitCheck("{p}:a", 0, 1), LimitCheck("{p}:b", 1, 1)]]
    statuses = [[entry.status for entry in run(store, terms, ask, START)[0]] for _ in range(3)]
    assert statuses == [[1, 1], [0, 1], [0, 1]]
    assert run(store, terms, [[LimitCheck("{p}:b", 1, 0)]], START)[0][0].remaining == 2


def test_cost_above_burst_is_refused_for_ever_and_said_apart(store: redis.Redis) -> None:
    terms = [LimitTerms("t", 1000, 5000), LimitTerms("s", 1000, 5), LimitTerms("f", 1000, 5)]
    for place in range(3):
        answer = run(store, terms, [[LimitCheck(f"k{place}", place, 6)]], START)[0][0]
        assert (answer.status, answer.remaining, answer.retry) == (LimitStatus.NEVER, 5, 0)


def test_cost_zero_looks_and_writes_nothing(store: redis.Redis) -> None:
    terms = [LimitTerms("t", 1000, 5000), LimitTerms("s", 1000, 5), LimitTerms("f", 1000, 5)]
    asks = [[LimitCheck(f"k{place}", place, 0)] for place in range(3)]
    assert [row[0].remaining for row in run(store, terms, asks, START)] == [5, 5, 5]
    assert store.keys() == []


def test_a_batch_counts_each_of_its_requests(store: redis.Redis) -> None:
    answers = run(store, [LimitTerms("t", 1000, 3000)], [[LimitCheck("k", 0, 1)]] * 5, START)
    assert [row[0].status for row in answers] == [1, 1, 1, 0, 0]


def test_changed_algorithms_meet_neither_each_other_nor_a_wrong_type(store: redis.Redis) -> None:
    keys = set()
    for algorithm in Algorithm:
        limit = Limit("a", Rate(5, 1), algorithm=algorithm)
        key = bucket_key(Policy("p", (limit,)), limit, "me")
        keys.add(key)
        store.rpush(key, "somebody's list")
        run_now(store, [LimitTerms.of(limit)], [[LimitCheck(key, 0, 1)]])
        assert store.type(key) == "string"
    assert len(keys) == 3


@pytest.mark.parametrize("garbage", ["nan", "inf", "-5", "0x10", "1e300", ";;", "9" * 5000, "1,"])
@pytest.mark.parametrize("code", "tsf")
def test_a_state_that_is_none_is_overwritten(store: redis.Redis, code: str, garbage: str) -> None:
    store.set("k", garbage)
    terms = LimitTerms(code, 1000, 3000 if code == "t" else 3)
    answers = run(store, [terms], [[LimitCheck("k", 0, 1)]] * 4, START)
    assert [row[0].status for row in answers] == [1, 1, 1, 0]


def test_an_edited_rate_keeps_what_was_consumed(store: redis.Redis) -> None:
    slow, quick = Limit("a", Rate(5, 10)), Limit("a", Rate(5, 5))
    key = bucket_key(Policy("p", (slow,)), slow, "me")
    assert key == bucket_key(Policy("p", (quick,)), quick, "me")
    run(store, [LimitTerms.of(slow)], [[LimitCheck(key, 0, 1)]] * 5, START)
    assert run(store, [LimitTerms.of(quick)], [[LimitCheck(key, 0, 1)]], START)[0][0].status == 0
    # Never longer than the new burst takes to come back.
    later = run(store, [LimitTerms.of(quick)], [[LimitCheck(key, 0, 5)]], START + 5_000_000)
    assert later[0][0].status == 1


def test_states_expire_when_they_no_longer_matter(store: redis.Redis) -> None:
    run_now(store, [LimitTerms("t", 2_000_000, 20_000_000)], [[LimitCheck("long", 0, 3)]])
    assert 5_000 < store.pttl("long") <= 6_000
    run_now(store, [LimitTerms("t", 1, 1)], [[LimitCheck("short", 0, 1)]])
    assert store.pttl("short") <= 1  # at least a millisecond, so SET itself does not fail


def test_microseconds_are_stored_to_the_last_digit(store: redis.Redis) -> None:
    run(store, [LimitTerms("t", 7, 70)], [[LimitCheck("k", 0, 1)]], START)
    assert store.get("k") == str(START + 7)


def test_the_script_takes_the_time_from_redis_alone(store: redis.Redis) -> None:
    assert lua_scripts.DECIDE.source.count("local now =") == 1
    terms = [LimitTerms("t", 1_000_000, 1_000_000)]
    keys, arguments = lua_scripts.decide_arguments(terms, [[LimitCheck("k", 0, 1)]])
    assert store.eval(lua_scripts.DECIDE.source, 1, *keys, *arguments)[0] == 1  # type: ignore[index]
    assert store.eval(lua_scripts.DECIDE.source, 1, *keys, *arguments)[0] == 0  # type: ignore[index]
    # A number more, as the tests' variant would take it for the time, is no time here.
    with pytest.raises(redis.ResponseError):
        store.eval(lua_scripts.DECIDE.source, 1, *keys, *arguments, START * 2)
    assert store.eval(lua_scripts.DECIDE.source, 1, *keys, *arguments)[0] == 0  # type: ignore[index]


def test_a_subject_is_kept_as_a_digest() -> None:
    limit = Limit("a", Rate(5, 1))
    key = bucket_key(Policy("p", (limit,)), limit, "secret-api-key" * 1000)
    assert "secret" not in key
    assert len(key) < 100


def test_a_cluster_takes_all_limits_of_a_policy_in_one_call() -> None:
    limits = tuple(
        Limit(f"l{place}", Rate(5, 1), algorithm=algorithm)
        for place, algorithm in enumerate(itertools.islice(itertools.cycle(Algorithm), 64))
    )
    policy = Policy("wide", limits)
    port, directory = free_port(), tempfile.mkdtemp(prefix="engineroom-cluster-")
    process = subprocess.Popen(
        [
            "redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "",
            "--dir", directory, "--cluster-enabled", "yes", "--loglevel", "warning",
            "--cluster-port", str(free_port()),
        ],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        retry = redis.retry.Retry(redis.backoff.ConstantBackoff(0.05), 100)  # type: ignore[attr-defined]
        client = redis.Redis(port=port, retry=retry, retry_on_error=[redis.ConnectionError])
        client.ping()
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        while b"cluster_state:ok" not in client.execute_command("CLUSTER", "INFO", NEVER_DECODE=1):
            pass
        with pytest.raises(redis.ResponseError, match=r"CROSSSLOT|same slot"):
            client.mget("a", "b")
        checks = [
            LimitCheck(bucket_key(policy, entry, "me"), place, 1)
            for place, entry in enumerate(limits)
        ]
        answers = run_now(client, [LimitTerms.of(limit) for limit in limits], [checks])
        assert [answer.status for answer in answers[0]] == [1] * 64
        client.close()
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(directory, ignore_errors=True)


def test_redis_restarted_or_flushed_starts_with_full_buckets(store: redis.Redis) -> None:
    terms = [LimitTerms("t", 1_000_000, 1_000_000)]
    assert [run_now(store, terms, [[LimitCheck("k", 0, 1)]])[0][0].status for _ in "12"] == [1, 0]
    store.flushall()
    assert run_now(store, terms, [[LimitCheck("k", 0, 1)]])[0][0].status == 1


BUCKETS_TIMED = timed(lua_scripts.DECIDE_BUCKETS)


@st.composite
def bucket_histories(
    draw: st.DrawFn,
) -> tuple[LimitTerms, list[tuple[int, dict[str, str], list[tuple[str, int]]]]]:
    unit, burst = draw(st.integers(1, 2_000_000)), draw(st.integers(1, 30))
    request = st.tuples(st.sampled_from("abc"), st.integers(0, burst))
    step = st.one_of(st.integers(0, 1000), st.integers(0, 10_000_000), st.integers(-7_000_000, -1))
    # Sometimes another client has written something there.
    junk = st.one_of(
        st.sampled_from(["", "nan", "-5", "1e300", "0x10", "17,4", "9" * 17]),
        st.integers(0, 2 * START).map(str),
    )
    written = st.dictionaries(st.sampled_from("abc"), junk, max_size=1)
    steps = st.tuples(step, written, st.lists(request, min_size=1, max_size=8))
    return LimitTerms("t", unit, burst * unit), draw(st.lists(steps, min_size=1, max_size=12))


@SETTINGS
@given(bucket_histories(), st.booleans())
# Somebody only looks at a state from the future, and the next one has to draw it in.
@example(
    history=(LimitTerms("t", 1000, 5000), [(0, {"a": str(2 * START)}, [("a", 0), ("a", 5)])]),
    once=False,
)
def test_the_script_of_buckets_and_the_model_agree(
    store: redis.Redis,
    history: tuple[LimitTerms, list[tuple[int, dict[str, str], list[tuple[str, int]]]]],
    once: bool,
) -> None:
    store.flushall()
    terms, steps = history
    model: dict[str, str] = {}
    now = START
    for step, written, query in steps:
        now += step
        requests = [(key, query[0][1]) for key, _ in query] if once else query
        for key, state in written.items():
            model[key] = state
            store.set(key, state)
        expected = [
            algorithms.decide(model, [terms], [LimitCheck(key, 0, tokens)], now)[0]
            for key, tokens in requests
        ]
        taken = [tokens * terms.unit for _, tokens in requests]
        if once:
            del taken[1:]
        keys = [key for key, _ in requests]
        reply: Any = store.eval(BUCKETS_TIMED, len(keys), *keys, terms.capacity, *taken, now)
        answers = [
            lua_scripts.bucket_result(terms, tokens, value)
            for (_, tokens), value in zip(requests, reply, strict=True)
        ]
        assert answers == expected
        for key, state in model.items():
            actual: Any = store.get(key)
            assert algorithms._evaluate(terms, state, 0, now) == algorithms._evaluate(
                terms, actual or "", 0, now
            )


def test_a_bucket_that_is_no_string_counts_as_full(store: redis.Redis) -> None:
    store.lpush("k", "x")
    keys = ["k", "other", "k"]
    reply: Any = store.eval(lua_scripts.DECIDE_BUCKETS.source, 3, *keys, 1_000_000, 1_000_000)
    assert reply[:2] == [1_000_000, 1_000_000]
    assert reply[2] < 0
    assert store.type("k") == "string"
    assert 0 < store.pttl("k") <= 1000  # type: ignore[operator]
