"""When schedules tick, through changes of the clocks, and what is done about missed ticks."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engineroom.core.triggers.missed import MAX_TICKS, plan_ticks
from engineroom.tasks import Cron, Every, InvalidTaskError, Missed, Once

BERLIN = "Europe/Berlin"  # forward on 2026-03-29 at 01:00 UTC, back on 2026-10-25 at 01:00 UTC


def utc(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def ticks(cron: Cron, start: str, end: str) -> list[str]:
    found, at = [], cron.after(utc(start), "")
    while at is not None and at <= utc(end):
        found.append(datetime.fromtimestamp(at, UTC).strftime("%d %H:%M"))
        at = cron.after(at, "")
    return found


@pytest.mark.parametrize(
    ("line", "start", "end", "expected"),
    [
        # A time that does not exist comes as much later as the clock jumps, and once.
        ("30 2 * * *", "2026-03-28", "2026-03-30T03:00", ["28 01:30", "29 01:30", "30 00:30"]),
        # Of a repeated hour the first pass.
        ("30 2 * * *", "2026-10-24", "2026-10-26T03:00", ["24 00:30", "25 00:30", "26 01:30"]),
        # By elapsed time the repeated hour is there twice, the skipped one not at all.
        ("0,30 * * * *", "2026-10-25T00:10", "2026-10-25T02:00",
         ["25 00:30", "25 01:00", "25 01:30", "25 02:00"]),
        ("0 * * * *", "2026-03-28T23:30", "2026-03-29T02:00", ["29 00:00", "29 01:00", "29 02:00"]),
        ("0 9 * * 1-5", "2026-01-02T10:00", "2026-01-06T00:00", ["05 08:00"]),
        ("0 0 29 2 *", "2026-01-01", "2028-03-01", ["28 23:00"]),
    ],
)  # fmt: skip
def test_cron_through_the_year(line: str, start: str, end: str, expected: list[str]) -> None:
    assert ticks(Cron(line, BERLIN), start, end) == expected


@settings(max_examples=60, deadline=None)
@given(
    line=st.sampled_from(["*/7 * * * *", "30 2 * * *", "0 */3 * * *", "15 1,2,3 * * *"]),
    zone=st.sampled_from([BERLIN, "America/New_York", "Australia/Lord_Howe", "UTC"]),
    at=st.integers(int(utc("2026-01-01")), int(utc("2027-01-01"))),
    later=st.integers(0, 200_000),
)
def test_the_next_tick_is_the_same_from_anywhere_before_it(
    line: str, zone: str, at: int, later: int
) -> None:
    cron = Cron(line, zone)
    first = cron.after(at, "")
    assert first is not None
    assert first > at
    between = min(at + later, first - 1)
    assert cron.after(between, "") == first


@given(
    seconds=st.floats(1, 1000),
    part=st.floats(0, 0.99),
    at=st.floats(0, 1e6),
)
def test_an_interval_ticks_once_in_each_of_its_spans(
    seconds: float, part: float, at: float
) -> None:
    every = Every(seconds, jitter=seconds * part)
    first = every.after(at, "a")
    assert first is not None
    second = every.after(first, "a")
    assert second is not None
    assert at < first <= at + 2 * seconds + 0.01
    assert 0 < second - first <= 2 * seconds + 0.01
    assert every.after(at, "a") == first


def test_jitter_spreads_schedules_of_one_interval() -> None:
    found = {Every(60, jitter=30).after(1e9, f"s{at}") for at in range(50)}
    assert len(found) > 40


@pytest.mark.parametrize(
    ("missed", "run", "following"),
    [
        (Missed.SKIP, (240.0, 300.0), 360.0),
        (Missed.RUN_ONCE, (300.0,), 360.0),
        (Missed.RUN_ALL, (60.0, 120.0, 180.0, 240.0, 300.0), 360.0),
    ],
)
def test_what_is_done_about_ticks_that_nobody_ran(
    missed: Missed, run: tuple[float, ...], following: float
) -> None:
    decision = plan_ticks(Every(60), "a", 60.0, 310.0, missed, 75.0)
    assert (decision.run, decision.next) == (run, following)
    early = plan_ticks(Every(60), "a", 360.0, 310.0, missed, 75.0)
    assert (early.run, early.next) == ((), 360.0)


def test_nothing_is_run_where_all_were_missed() -> None:
    daily = Cron("0 3 * * *")
    decision = plan_ticks(
        daily, "a", utc("2026-01-05T03:00"), utc("2026-01-07T12:00"), Missed.SKIP, 60
    )
    assert decision.run == ()
    assert decision.next == utc("2026-01-08T03:00")


def test_a_year_of_minutes_is_bounded() -> None:
    minutely, now = Cron("* * * * *"), utc("2027-01-01T00:00:30")
    due = utc("2026-01-01")
    once = plan_ticks(minutely, "a", due, now, Missed.RUN_ONCE, 60)
    assert once.run == (utc("2027-01-01"),)
    every = plan_ticks(minutely, "a", due, now, Missed.RUN_ALL, 60)
    assert len(every.run) == MAX_TICKS
    assert every.next == due + MAX_TICKS * 60


@given(
    due=st.integers(0, 500), now=st.integers(0, 5000), seconds=st.integers(1, 400),
    grace=st.integers(0, 900), missed=st.sampled_from(Missed),
)  # fmt: skip
def test_decisions_agree_with_a_list_of_all_ticks(
    due: int, now: int, seconds: int, grace: int, missed: Missed
) -> None:
    due -= due % seconds
    every = [float(at) for at in range(due, now + 1, seconds)]
    decision = plan_ticks(Every(seconds), "a", due, now, missed, grace)
    expected = {
        Missed.RUN_ALL: every[:MAX_TICKS],
        Missed.RUN_ONCE: every[-1:],
        Missed.SKIP: [at for at in every if at >= now - grace][:MAX_TICKS],
    }[missed]
    assert list(decision.run) == expected
    assert decision.next is not None
    assert decision.next > max(decision.run, default=-1)


@settings(max_examples=60, deadline=None)
@given(
    line=st.sampled_from(["*/7 * * * *", "30 2 * * *", "0 0 * * 1"]),
    jitter=st.integers(1, 3600),
    at=st.integers(int(utc("2026-01-01")), int(utc("2027-01-01"))),
    later=st.integers(0, 200_000),
)
def test_a_cron_line_with_jitter_ticks_once_for_each_of_its_times(
    line: str, jitter: int, at: int, later: int
) -> None:
    plain, scattered = Cron(line, BERLIN), Cron(line, BERLIN, jitter)
    base = plain.after(at, "a")
    assert base is not None
    following = plain.after(base, "a")
    assert following is not None
    tick = scattered.after(base - 0.001, "a")
    while tick is not None and tick < base:  # of the time before
        tick = scattered.after(tick, "a")
    assert tick is not None
    assert base <= tick <= min(base + jitter, following)
    between = min(base + later, tick - 0.001)
    if between >= base:
        assert scattered.after(between, "a") == tick
    assert (scattered.after(tick, "a") or 0) >= following


@given(
    due=st.integers(0, 500), now=st.integers(0, 5000), seconds=st.integers(1, 400),
    grace=st.integers(0, 900), missed=st.sampled_from(Missed),
)  # fmt: skip
def test_what_is_dropped_is_counted(
    due: int, now: int, seconds: int, grace: int, missed: Missed
) -> None:
    due -= due % seconds
    every = [float(at) for at in range(due, now + 1, seconds)]
    decision = plan_ticks(Every(seconds), "a", due, now, missed, grace)
    kept = [at for at in every if at in decision.run or (decision.next or 0) <= at]
    if missed is Missed.SKIP:
        kept = [at for at in every if at >= now - grace]
    assert decision.dropped == min(len(every) - len(kept), MAX_TICKS)


def test_once_is_once() -> None:
    decision = plan_ticks(Once(50), "a", 50, 60, Missed.RUN_ALL, 0)
    assert (decision.run, decision.next) == ((50,), None)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Cron("61 * * * *"), "five fields"),
        (lambda: Cron("* * * * * *"), "five fields"),
        (lambda: Cron("0 0 30 2 *"), "cron"),
        (lambda: Cron("0 0 * * *", "Mars/Olympus"), "zone"),
        (lambda: Cron("0 0 * * *", "../etc/passwd"), "zone"),
        (lambda: Every(0.5), "every"),
        (lambda: Every(10, jitter=10), "jitter"),
        (lambda: Every(float("nan")), "every"),
        (lambda: Once(-1), "at"),
    ],
)
def test_what_cannot_tick_is_refused(make: object, said: str) -> None:
    assert callable(make)
    with pytest.raises(InvalidTaskError, match=said):
        make()
