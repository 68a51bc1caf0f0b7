"""Enforcers of policies, documents to write, and status."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from engineroom.ratelimit.distribution.compile import CompiledNamespace, CompileResult, LostTarget
from engineroom.ratelimit.distribution.document import DocumentHead, DocumentText, Target, head_of
from engineroom.ratelimit.distribution.redis_schema import Acknowledgement, head_text, owner_of
from engineroom.ratelimit.limits.model import FailureMode
from engineroom.ratelimit.reconcile.decide import (
    CurrentDocument,
    EnforcerAssignment,
    EnforcerCount,
    EnforcerSet,
    count_enforcers,
    has_acknowledged,
    is_owner_gone,
    next_document,
)
from engineroom.ratelimit.reconcile.facts import FallbackState, PolicyFacts
from engineroom.ratelimit.reconcile.observe import Enforcer
from engineroom.ratelimit.reconcile.status import policy_status

NOW = datetime(2026, 1, 1, tzinfo=UTC)

CURRENT = CurrentDocument("h7", 7, "line")
ONE, TWO = Target("", "Service", "one"), Target("", "Service", "two")
GOOD = CompileResult("hash", (ONE,))


def enforcer(
    acknowledgement: Acknowledgement | None, name: str = "e", silent: float = 0.1
) -> Enforcer:
    return Enforcer(name, silent, acknowledgement)


@pytest.mark.parametrize(
    ("acknowledgement", "since", "expected"),
    [
        (Acknowledgement("h7", 7, "line", "r"), 7, True),
        # The same content, as after an edit and back: whatever its revision was.
        (Acknowledgement("h7", 3, "line", "r"), 5, True),
        (Acknowledgement("h6", 6, "line", "r"), 6, True),
        (Acknowledgement("h6", 6, "line", "r"), 7, False),
        (Acknowledgement("h6", 6, "other", "r"), 6, False),
        # Other content with this revision or a later one, which another client wrote.
        (Acknowledgement("hx", 7, "line", "r"), 6, False),
        (Acknowledgement("hx", 9, "line", "r"), 6, False),
        (Acknowledgement("", 0, "", "r"), 1, False),
        (None, 1, False),
    ],
)
def test_an_enforcer_has_acknowledged_a_policy(
    acknowledgement: Acknowledgement | None, since: int, expected: bool
) -> None:
    assert has_acknowledged(enforcer(acknowledgement), CURRENT, since) is expected


def test_lagging_enforcers_are_named_with_their_problem() -> None:
    observed = [
        enforcer(Acknowledgement("h7", 7, "line", "r"), "good"),
        enforcer(Acknowledgement("h6", 6, "line", "r", "cannot read"), "z"),
        enforcer(Acknowledgement("h6", 6, "line", "r"), "a"),
    ]
    crew = EnforcerSet((observed[2], observed[0], observed[1]), by_labels=False)
    assert count_enforcers(crew, CURRENT, 7) == EnforcerCount(1, 3, ("a", "z (cannot read)"))


def test_who_vanished_is_lost_unless_it_had_the_policy() -> None:
    current, older = (
        Acknowledgement("h7", 7, "line", "limiter"),
        Acknowledgement("h6", 6, "line", "limiter"),
    )
    live = enforcer(current, "live")
    had, had_not = enforcer(current, "had", 30.0), enforcer(older, "had-not", 30.0)
    assert count_enforcers(EnforcerSet((live, had), by_labels=False), CURRENT, 7) == EnforcerCount(
        1, 1
    )
    lost = count_enforcers(EnforcerSet((live, had, had_not), by_labels=False), CURRENT, 7)
    assert lost == EnforcerCount(1, 1, lost=("had-not",))
    # Without a live enforcer, a vanished one may still enforce something.
    assert count_enforcers(EnforcerSet((had,), by_labels=False), CURRENT, 7) == EnforcerCount(
        0, 0, lost=("had",)
    )


def part(name: str, **selector: str) -> tuple[dict[str, Any], str]:
    attached = {"selector": selector} if selector else {"targets": [["", "Service", name, ""]]}
    return {"name": name, **attached}, name


def test_who_enforces_what() -> None:
    def follower(name: str, role: str, **labels: str) -> Enforcer:
        return enforcer(Acknowledgement("h", 1, "l", role, "", tuple(labels.items())), name)

    parts = [part("front"), part("shop", app="shop"), part("web", tier="web"), part("both", a="b")]
    service, bare = follower("service", "limiter"), follower("bare", "middleware")
    shop = follower("shop", "middleware", app="shop", tier="web")
    web = follower("web", "middleware", app="other", tier="web")
    crews = EnforcerAssignment([service, bare, shop, web], parts)
    assert crews.of("front") == EnforcerSet((service,), by_labels=False)
    assert crews.of("shop") == EnforcerSet((shop,), by_labels=True)
    # Of two selectors that match it follows the older one.
    assert crews.of("web") == EnforcerSet((web,), by_labels=True, shadowed_by="shop")
    assert crews.of("both") == EnforcerSet((), by_labels=True)
    assert crews.of("not in the document") == EnforcerSet((), by_labels=False)
    # Whoever cannot be read may enforce any of them.
    crews = EnforcerAssignment([unread := enforcer(None), shop], parts)
    assert crews.of("front").members == (unread,)
    assert crews.of("shop").members == (shop, unread)


@pytest.mark.parametrize(
    ("watched", "silent", "gone"),
    [(0.0, None, False), (0.0, 9e9, False), (599.0, None, False), (600.0, None, True),
     (600.0, 599.0, False), (600.0, 600.0, True), (9e9, 1.0, False)],
)  # fmt: skip
def test_another_installation_is_gone_after_a_while(
    watched: float, silent: float | None, gone: bool
) -> None:
    assert is_owner_gone(watched, silent) is gone


def test_a_document_of_another_owner_is_replaced_by_a_new_line() -> None:
    parts = ((({"name": "a"}), "h"),)
    compiled = CompiledNamespace(parts, {}, {})

    def after(
        current: DocumentHead | None, lineage: str, wanted: CompiledNamespace = compiled
    ) -> DocumentText | None:
        return next_document("shop", wanted, current, least_revision=5, lineage=lineage)

    first = after(None, "a@one")
    assert first is not None
    current = head_of(first, parts)
    assert after(current, "b@one") is None, "of the same owner the same is not written again"
    taken = after(current, "c@two")
    assert taken is not None
    assert (taken.lineage, taken.hash) == ("c@two", first.hash)
    assert taken.revision > first.revision
    assert owner_of(head_text(taken.hash, taken.revision, taken.lineage)) == "two"
    emptied = after(current, "c@two", CompiledNamespace((), {}, {}))
    assert emptied is not None
    assert not emptied.since


def conditions(status: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {
        condition["type"]: (condition["status"], condition["reason"])
        for condition in status["conditions"]
    }


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (
            PolicyFacts(1, GOOD, EnforcerCount(2, 2), (ONE,)),
            {"Accepted": "Accepted", "Programmed": "Programmed", "Enforced": "Enforced",
             "Ready": "Programmed", "Stalled": "", "Reconciling": ""},
        ),
        (
            PolicyFacts(1, GOOD, EnforcerCount(0, 0), (ONE,)),
            {"Accepted": "Accepted", "Programmed": "Programmed", "Enforced": "!NoEnforcers",
             "Ready": "Programmed", "Stalled": "", "Reconciling": ""},
        ),
        (
            PolicyFacts(1, GOOD, EnforcerCount(1, 2, ("a",)), (ONE,)),
            {"Accepted": "Accepted", "Programmed": "Programmed", "Enforced": "!AwaitingEnforcers",
             "Ready": "Programmed", "Stalled": "", "Reconciling": ""},
        ),
        (
            PolicyFacts(1, GOOD, EnforcerCount(1, 1), (ONE,), (ONE,)),
            {"Accepted": "!TargetNotFound", "Programmed": "Programmed", "Enforced": "Enforced",
             "Ready": "!TargetNotFound", "Stalled": "", "Reconciling": ""},
        ),
        (
            PolicyFacts(
                1, CompileResult("", (), (LostTarget(ONE, "old"),)), EnforcerCount(1, 1), (ONE,)
            ),
            {"Accepted": "!Conflicted", "Programmed": "!NotProgrammed",
             "Enforced": "!NotProgrammed", "Ready": "!Conflicted", "Stalled": "Conflicted",
             "Reconciling": ""},
        ),
        (
            PolicyFacts(1, CompileResult("", (), (), "bytes"), EnforcerCount(1, 1), (ONE,)),
            {"Accepted": "Accepted", "Programmed": "!TooManyPolicies",
             "Enforced": "!NotProgrammed", "Ready": "!TooManyPolicies",
             "Stalled": "TooManyPolicies", "Reconciling": ""},
        ),
        (
            PolicyFacts(1, GOOD, EnforcerCount(1, 1), (ONE,), invalid="spec.limits: is empty"),
            {"Accepted": "!InvalidSpec", "Programmed": "LastValid", "Enforced": "Enforced",
             "Ready": "!InvalidSpec", "Stalled": "InvalidSpec", "Reconciling": ""},
        ),
        (
            PolicyFacts(1, GOOD, EnforcerCount(1, 1, lost=("a",)), (ONE,)),
            {"Accepted": "Accepted", "Programmed": "Programmed", "Enforced": "?EnforcerLost",
             "Ready": "Programmed", "Stalled": "", "Reconciling": ""},
        ),
        (
            PolicyFacts(1, None, None, (ONE,), foreign="another installation's"),
            {"Accepted": "Accepted", "Programmed": "!Conflicted", "Enforced": "!NotProgrammed",
             "Ready": "!Conflicted", "Stalled": "Conflicted", "Reconciling": ""},
        ),
        (
            PolicyFacts(1, GOOD, None, (ONE,), trouble=("RedisUnreachable", "no answer")),
            {"Accepted": "Accepted", "Programmed": "?RedisUnreachable",
             "Enforced": "?RedisUnreachable", "Ready": "!RedisUnreachable", "Stalled": "",
             "Reconciling": "RedisUnreachable"},
        ),
    ],
)  # fmt: skip
def test_conditions_of_a_status(facts: PolicyFacts, expected: dict[str, str]) -> None:
    written = conditions(policy_status({}, facts, NOW))
    output = {
        kind: {"True": "", "False": "!", "Unknown": "?"}[status] + reason
        for kind, (status, reason) in written.items()
        if kind != "Degraded"
    }
    wanted = {kind: text or "!Reconciled" for kind, text in expected.items()}
    for kind in ("Stalled", "Reconciling"):
        # True is the abnormal state; its reason is that of another condition.
        if written[kind][0] == "False":
            output[kind] = "!Reconciled"
    assert output == wanted
    assert not (written["Stalled"][0] == written["Reconciling"][0] == "True")


def test_the_same_again_is_equal_and_times_move_on_transitions_only() -> None:
    observed = PolicyFacts(
        1, CompileResult("h", (TWO,), (LostTarget(ONE, "old"),)), EnforcerCount(1, 1), (ONE, TWO)
    )
    first = policy_status({}, observed, NOW)
    later = NOW + timedelta(minutes=5)
    assert policy_status(first, observed, later) == first
    reasons = {
        ancestor["ancestorRef"]["name"]: ancestor["conditions"][0]["reason"]
        for ancestor in first["ancestors"]
    }
    assert reasons == {"one": "Conflicted", "two": "Accepted"}
    healed = policy_status(first, PolicyFacts(1, GOOD, EnforcerCount(1, 1), (ONE, TWO)), later)
    times = {
        ancestor["ancestorRef"]["name"]: ancestor["conditions"][0]["lastTransitionTime"]
        for ancestor in healed["ancestors"]
    }
    assert times == {"one": "2026-01-01T00:05:00Z", "two": "2026-01-01T00:00:00Z"}


def test_enforcers_stay_in_status_while_redis_is_unreachable() -> None:
    before = policy_status({}, PolicyFacts(1, GOOD, EnforcerCount(2, 2), (ONE,)), NOW)
    blind = policy_status(before, PolicyFacts(1, GOOD, None, (ONE,), trouble=("R", "m")), NOW)
    assert blind["enforcers"] == before["enforcers"]


@pytest.mark.parametrize(
    ("counted", "words"),
    [
        (EnforcerCount(0, 0), "no decision service follows this namespace"),
        (
            EnforcerCount(0, 0, by_labels=True),
            "no application with the middleware and labels that match",
        ),
        (EnforcerCount(0, 0, by_labels=True, shadowed_by="older"), "of the older policy older"),
    ],
)
def test_the_message_explains_missing_enforcers(counted: EnforcerCount, words: str) -> None:
    status = policy_status({}, PolicyFacts(1, GOOD, counted, (ONE,)), NOW)
    assert words in next(c["message"] for c in status["conditions"] if c["type"] == "Enforced")


def test_since_is_the_time_of_the_current_content() -> None:
    def after(
        minutes: int, hash_: str, counted: EnforcerCount, old: dict[str, Any]
    ) -> dict[str, Any]:
        observed = PolicyFacts(1, CompileResult(hash_, (ONE,)), counted, (ONE,))
        return policy_status(old, observed, NOW + timedelta(minutes=minutes))

    first = after(0, "h1", EnforcerCount(2, 2), {})
    assert first["enforcers"]["since"] == "2026-01-01T00:00:00Z"
    assert (
        after(1, "h1", EnforcerCount(3, 3), first)["enforcers"]["since"] == "2026-01-01T00:00:00Z"
    )
    # An edit that is enforced at once: the condition was True before and is after.
    edited = after(2, "h2", EnforcerCount(2, 2), first)
    assert edited["enforcers"]["since"] == "2026-01-01T00:02:00Z"
    lagging = after(3, "h2", EnforcerCount(1, 2), edited)
    assert "since" not in lagging["enforcers"]
    again = after(4, "h2", EnforcerCount(2, 2), lagging)
    assert again["enforcers"]["since"] == "2026-01-01T00:04:00Z"


@pytest.mark.parametrize(
    ("mode", "reason"),
    [("Open", "FailingOpen"), ("Closed", "FailingClosed"), ("Local", "DecidingLocally")],
)
def test_decisions_without_redis_degrade_a_policy(mode: str, reason: str) -> None:
    def degraded(fallbacks: FallbackState) -> dict[str, Any]:
        facts = PolicyFacts(1, GOOD, EnforcerCount(1, 1), (ONE,), fallbacks=fallbacks)
        return policy_status({}, facts, NOW)

    status = degraded(FallbackState(7, recent=True, mode=FailureMode(mode)))
    assert conditions(status)["Degraded"] == ("True", reason)
    assert status["enforcers"]["withoutRedis"] == 7
    over = degraded(FallbackState(7, recent=False, mode=FailureMode(mode)))
    assert conditions(over)["Degraded"] == ("False", "RedisDecides")
    assert over["enforcers"]["withoutRedis"] == 7


def test_a_published_policy_is_not_reconciling_while_redis_is_unreachable() -> None:
    trouble = ("RedisUnreachable", "no answer")
    published = policy_status({}, PolicyFacts(1, GOOD, EnforcerCount(1, 1), (ONE,)), NOW)
    unreachable = policy_status(published, PolicyFacts(1, GOOD, None, (ONE,), trouble=trouble), NOW)
    for kind in ("Ready", "Stalled", "Reconciling"):
        assert conditions(unreachable)[kind][0] == "False", kind
    assert conditions(unreachable)["Ready"][1] == "RedisUnreachable"
    again = policy_status(unreachable, PolicyFacts(1, GOOD, None, (ONE,), trouble=trouble), NOW)
    assert again == unreachable
    edited = policy_status(again, PolicyFacts(2, GOOD, None, (ONE,), trouble=trouble), NOW)
    assert conditions(edited)["Reconciling"] == ("True", "RedisUnreachable")
    still = policy_status(edited, PolicyFacts(2, GOOD, None, (ONE,), trouble=trouble), NOW)
    assert still == edited


def test_a_missing_secret_stalls_a_policy_after_the_deadline() -> None:
    trouble = ("SecretNotFound", "Secret redis does not exist")
    waiting = policy_status(
        {"observedGeneration": -1}, PolicyFacts(1, None, None, (ONE,), trouble=trouble), NOW
    )
    assert conditions(waiting)["Reconciling"] == ("True", "SecretNotFound")
    assert conditions(waiting)["Stalled"][0] == "False"
    facts = PolicyFacts(1, None, None, (ONE,), trouble=trouble, overdue=True)
    stalled = policy_status(waiting, facts, NOW)
    assert conditions(stalled)["Reconciling"][0] == "False"
    assert conditions(stalled)["Stalled"] == ("True", "SecretNotFound")
    fixed = policy_status(stalled, PolicyFacts(1, GOOD, EnforcerCount(0, 0), (ONE,)), NOW)
    assert conditions(fixed)["Ready"] == ("True", "Programmed")
