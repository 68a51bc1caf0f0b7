"""Queries and cron lines: what a server would refuse is refused here, and with the reason."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engineroom.core.errors import InvalidInputError
from engineroom.core.validation.cron import check_cron
from engineroom.core.validation.promql import (
    MAX_CHARACTERS,
    MAX_NESTING,
    MAX_OPERATORS,
    check_promql,
)


@pytest.mark.parametrize(
    ("text", "metrics", "longest"),
    [
        ("up == 0", {"up"}, timedelta()),
        ('sum by (job) (rate(http_total{code=~"5.."}[5m])) > 1', {"http_total"}, timedelta(0, 300)),
        ("a / on (x) group_left () b", {"a", "b"}, timedelta()),
        ('{__name__="x", y="1"}', {"x"}, timedelta()),
        ('{__name__!="x", y="1"}', set(), timedelta()),
        ("max_over_time(rate(x[5m])[1d:1m] offset 2d)", {"x"}, timedelta(days=3, minutes=5)),
        ("x offset -5m", {"x"}, timedelta()),
        ("vector(1)", set(), timedelta()),
        ("absent(up) # when it is gone (((", {"up"}, timedelta()),
        ('label_replace(up, "a", "((((((", "b", ".*")', {"up"}, timedelta()),
        ("(" * MAX_NESTING + "up" + ")" * MAX_NESTING, {"up"}, timedelta()),
    ],
)
def test_a_sound_query_tells_what_it_reads(
    text: str, metrics: set[str], longest: timedelta
) -> None:
    query = check_promql(text)
    assert (query.metrics, query.longest) == (metrics, longest)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("rate(up)", "expected type"),
        ("nothing(up)", "not PromQL"),
        ("up{", "not PromQL"),
        ("sum by (a (up)", "not PromQL"),
        ("up{a=~'('}", "regex"),
        ("{}", "not PromQL"),
        ("rate(up[32d])", "32 days"),
        ("max_over_time(rate(up[1m])[30d:1h] offset 2d)", "32 days"),
        ("u\x00p", "U+0000"),
        ("u\u202ep", "U+202E"),
        ("a" * (MAX_CHARACTERS + 1), "characters"),
        ("(" * (MAX_NESTING + 1) + "1" + ")" * (MAX_NESTING + 1), "nested"),
        ("1" + "+1" * (MAX_OPERATORS + 1), "operators"),
    ],
)
def test_an_unsound_query_is_refused_with_the_reason(text: str, says: str) -> None:
    began = time.monotonic()
    with pytest.raises(InvalidInputError, match=r"rule\.expr") as caught:
        check_promql(text, path="rule.expr")
    assert says in str(caught.value)
    assert time.monotonic() - began < 1.0


WORDS = st.sampled_from(
    ["up", "rate(", "sum", " by ", "(", ")", "[5m]", "[1h:1m]", " offset 1d", "{a=~'.*'}", "+", "-",
     "1e9", " and ", " unless ", "@ end()", "'", '"', "`", "#", "\n", "\\", "\u00e9", "bool ", ","]
)  # fmt: skip


@settings(max_examples=300)
@given(st.lists(WORDS, max_size=60).map("".join) | st.text(max_size=200))
def test_any_text_is_a_query_or_refused(text: str) -> None:
    try:
        check_promql(text)
    except InvalidInputError as error:
        assert len(str(error)) < 600  # noqa: PT017


@pytest.mark.parametrize("line", ["0 8 * * 1-5", "*/5 * * * *", "0 0 29 2 *"])
def test_a_cron_line_that_ticks_passes(line: str) -> None:
    check_cron(line, "Europe/Berlin")


@pytest.mark.parametrize(
    ("line", "zone", "fields"),
    [
        ("61 * * * *", "UTC", ["schedule.cron"]),
        ("0 0 31 2 *", "UTC", ["schedule.cron"]),
        ("@daily", "UTC", ["schedule.cron"]),
        ("H * * * *", "UTC", ["schedule.cron"]),
        ("* * * * * *", "UTC", ["schedule.cron"]),
        ("0," * 5000 + "0 * * * *", "UTC", ["schedule.cron"]),
        ("", "Mars/Olympus", ["schedule.cron", "schedule.zone"]),
        ("0 8 * * *", "../../etc/passwd", ["schedule.zone"]),
    ],
)
def test_one_that_never_ticks_is_refused(line: str, zone: str, fields: list[str]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        check_cron(line, zone)
    assert [problem.field for problem in caught.value.problems] == fields


@given(st.text(st.sampled_from("0123456789*/,-LW#?@ aFRIdec"), max_size=40))
def test_any_text_is_a_cron_line_or_refused(line: str) -> None:
    try:
        check_cron(line)
    except InvalidInputError as error:
        assert error.problems  # noqa: PT017
