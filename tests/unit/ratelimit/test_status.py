"""Who enforces what, and what status says of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from engineroom.ratelimit.channel import Word
from engineroom.ratelimit.compile import Lost, Verdict
from engineroom.ratelimit.decide import Count, Standing, count, has
from engineroom.ratelimit.document import Target
from engineroom.ratelimit.observe import Enforcer
from engineroom.ratelimit.status import Seen, policy_status

NOW = datetime(2026, 1, 1, tzinfo=UTC)
STANDING = Standing("h7", 7, "line")
ONE, TWO = Target("", "Service", "one"), Target("", "Service", "two")
GOOD = Verdict("hash", (ONE,))


def enforcer(word: Word | None, name: str = "e") -> Enforcer:
    return Enforcer(name, 0.1, word)


@pytest.mark.parametrize(
    ("word", "since", "expected"),
    [
        (Word("h7", 7, "line", "r"), 7, True),
        # The same content, as after an edit and back: whatever its revision was.
        (Word("h7", 3, "line", "r"), 5, True),
        (Word("h6", 6, "line", "r"), 6, True),
        (Word("h6", 6, "line", "r"), 7, False),
        (Word("h6", 6, "other", "r"), 6, False),
        # Other content under this revision or a later one: written by somebody, and lost since.
        (Word("hx", 7, "line", "r"), 6, False),
        (Word("hx", 9, "line", "r"), 6, False),
        (Word("", 0, "", "r"), 1, False),
        (None, 1, False),
    ],
)
def test_who_has_a_policy(word: Word | None, since: int, expected: bool) -> None:
    assert has(enforcer(word), STANDING, since) is expected


def test_those_who_lag_are_named_with_their_trouble() -> None:
    seen = [
        enforcer(Word("h7", 7, "line", "r"), "good"),
        enforcer(Word("h6", 6, "line", "r", "cannot read"), "z"),
        enforcer(Word("h6", 6, "line", "r"), "a"),
    ]
    assert count(seen, STANDING, 7) == Count(1, 3, ("a", "z (cannot read)"))


def conditions(status: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {each["type"]: (each["status"], each["reason"]) for each in status["conditions"]}


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (
            Seen(1, GOOD, Count(2, 2), (ONE,)),
            {"Accepted": "Accepted", "Programmed": "Programmed", "Enforced": "Enforced",
             "Ready": "Enforced", "Stalled": "", "Reconciling": ""},
        ),
        (
            Seen(1, GOOD, Count(0, 0), (ONE,)),
            {"Accepted": "Accepted", "Programmed": "Programmed", "Enforced": "!NoEnforcers",
             "Ready": "!NoEnforcers", "Stalled": "", "Reconciling": ""},
        ),
        (
            Seen(1, GOOD, Count(1, 2, ("a",)), (ONE,)),
            {"Accepted": "Accepted", "Programmed": "Programmed", "Enforced": "!AwaitingEnforcers",
             "Ready": "!AwaitingEnforcers", "Stalled": "", "Reconciling": "AwaitingEnforcers"},
        ),
        (
            Seen(1, GOOD, Count(1, 1), (ONE,), (ONE,)),
            {"Accepted": "!TargetNotFound", "Programmed": "Programmed", "Enforced": "Enforced",
             "Ready": "!TargetNotFound", "Stalled": "", "Reconciling": ""},
        ),
        (
            Seen(1, Verdict("", (), (Lost(ONE, "old"),)), Count(1, 1), (ONE,)),
            {"Accepted": "!Conflicted", "Programmed": "!NotProgrammed",
             "Enforced": "!NotProgrammed", "Ready": "!Conflicted", "Stalled": "Conflicted",
             "Reconciling": ""},
        ),
        (
            Seen(1, Verdict("", (), (), "bytes"), Count(1, 1), (ONE,)),
            {"Accepted": "Accepted", "Programmed": "!TooManyPolicies",
             "Enforced": "!NotProgrammed", "Ready": "!TooManyPolicies",
             "Stalled": "TooManyPolicies", "Reconciling": ""},
        ),
        (
            Seen(1, GOOD, Count(1, 1), (ONE,), invalid="spec.limits: is empty"),
            {"Accepted": "!InvalidSpec", "Programmed": "LastValid", "Enforced": "Enforced",
             "Ready": "!InvalidSpec", "Stalled": "InvalidSpec", "Reconciling": ""},
        ),
        (
            Seen(1, GOOD, None, (ONE,), trouble=("RedisUnreachable", "no answer")),
            {"Accepted": "Accepted", "Programmed": "?RedisUnreachable",
             "Enforced": "?RedisUnreachable", "Ready": "!RedisUnreachable", "Stalled": "",
             "Reconciling": "RedisUnreachable"},
        ),
    ],
)  # fmt: skip
def test_what_status_says(seen: Seen, expected: dict[str, str]) -> None:
    found = conditions(policy_status({}, seen, NOW))
    told = {
        kind: {"True": "", "False": "!", "Unknown": "?"}[status] + reason
        for kind, (status, reason) in found.items()
    }
    wanted = {kind: word or "!Reconciled" for kind, word in expected.items()}
    for kind in ("Stalled", "Reconciling"):
        # These are bad when True, and then for the reason of another.
        if found[kind][0] == "False":
            told[kind] = "!Reconciled"
    assert told == wanted
    assert not (found["Stalled"][0] == found["Reconciling"][0] == "True")


def test_the_same_again_is_equal_and_times_move_on_transitions_only() -> None:
    seen = Seen(1, Verdict("h", (TWO,), (Lost(ONE, "old"),)), Count(1, 1), (ONE, TWO))
    first = policy_status({}, seen, NOW)
    later = NOW + timedelta(minutes=5)
    assert policy_status(first, seen, later) == first
    reasons = {
        each["ancestorRef"]["name"]: each["conditions"][0]["reason"] for each in first["ancestors"]
    }
    assert reasons == {"one": "Conflicted", "two": "Accepted"}
    healed = policy_status(first, Seen(1, GOOD, Count(1, 1), (ONE, TWO)), later)
    times = {
        each["ancestorRef"]["name"]: each["conditions"][0]["lastTransitionTime"]
        for each in healed["ancestors"]
    }
    assert times == {"one": "2026-01-01T00:05:00Z", "two": "2026-01-01T00:00:00Z"}


def test_while_redis_is_away_the_figures_stay() -> None:
    before = policy_status({}, Seen(1, GOOD, Count(2, 2), (ONE,)), NOW)
    blind = policy_status(before, Seen(1, GOOD, None, (ONE,), trouble=("R", "m")), NOW)
    assert blind["enforcers"] == before["enforcers"]
