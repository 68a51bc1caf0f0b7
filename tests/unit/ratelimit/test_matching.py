"""Which limits apply to a request, in which tier, and what its response took."""

from __future__ import annotations

import pytest

from engineroom.ratelimit.limits.errors import InvalidPolicyError
from engineroom.ratelimit.limits.matching import Condition, Operator
from engineroom.ratelimit.limits.model import Limit, Policy, Rate, Tier
from engineroom.ratelimit.limits.request import RequestView
from engineroom.ratelimit.limits.sources import (
    NOT_APPLIED,
    APIKey,
    ClientIP,
    Constant,
    Header,
    JWTClaim,
    Path,
    Route,
    Tenant,
    response_costs,
    subject_of,
)

REQUEST = RequestView(
    path="/api/items",
    headers={"x-plan": "gold", "authorization": "Bearer abc"},
    peer="10.1.2.3",
    tenant="acme",
    route="/api/{kind}",
    claims={"sub": "ann"},
)


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        (Condition(Header("X-Plan"), Operator.IN, ("gold", "silver")), True),
        (Condition(Header("X-Plan"), Operator.IN, ("silver",)), False),
        (Condition(Header("X-None"), Operator.IN, ("silver",)), False),
        (Condition(Header("X-Plan"), Operator.NOT_IN, ("gold",)), False),
        (Condition(Header("X-None"), Operator.NOT_IN, ("gold",)), True),
        (Condition(Path(), Operator.STARTS_WITH, ("/web", "/api")), True),
        (Condition(Path(), Operator.STARTS_WITH, ("/web",)), False),
        (Condition(Header("X-None"), Operator.STARTS_WITH, ("a",)), False),
        (Condition(Tenant(), Operator.EXISTS), True),
        (Condition(Header("X-None"), Operator.EXISTS), False),
        (Condition(Header("X-None"), Operator.DOES_NOT_EXIST), True),
        (Condition(ClientIP(), Operator.IN_NETWORK, ("192.168.0.0/16", "10.0.0.0/8")), True),
        (Condition(ClientIP(), Operator.IN_NETWORK, ("10.2.0.0/16", "2001:db8::/32")), False),
        (Condition(Tenant(), Operator.IN_NETWORK, ("10.0.0.0/8",)), False),
    ],
)
def test_conditions(condition: Condition, holds: bool) -> None:
    assert condition.holds(REQUEST) is holds


def test_a_network_of_version_6_is_compared_by_its_prefix() -> None:
    inside = Condition(ClientIP(), Operator.IN_NETWORK, ("2001:db8::/32",))
    assert inside.holds(RequestView(peer="2001:db8:1::7"))
    assert not inside.holds(RequestView(peer="2001:db9::7"))


@pytest.mark.parametrize(
    ("operator", "values"),
    [
        (Operator.IN, ()),
        (Operator.EXISTS, ("a",)),
        (Operator.IN_NETWORK, ("10/33",)),
        (Operator.IN, ("",)),
        (Operator.IN, ("a",) * 257),
    ],
)
def test_conditions_that_cannot_be_meant(operator: Operator, values: tuple[str, ...]) -> None:
    with pytest.raises(InvalidPolicyError):
        Condition(Path(), operator, values)


def test_new_sources_read_what_the_enforcer_knows() -> None:
    assert Tenant()(REQUEST) == "acme"
    assert Route()(REQUEST) == "/api/{kind}"
    assert JWTClaim("sub")(REQUEST) == "ann"
    assert JWTClaim("other")(REQUEST) is None
    assert [source(RequestView()) for source in (Tenant(), Route(), JWTClaim("a"), APIKey())] == [
        None
    ] * 4
    digest = APIKey("Authorization")(REQUEST)
    assert digest == APIKey()(RequestView(headers={"x-api-key": "abc"}))
    assert digest is not None
    assert "abc" not in digest


GOLD = Tier("gold", (Condition(Header("X-Plan"), Operator.IN, ("gold",)),), Rate(100))
EXEMPT = ((Condition(ClientIP(), Operator.IN_NETWORK, ("10.0.0.0/8",)),),)


def test_when_exempt_and_tiers_say_what_a_request_counts_by() -> None:
    def of(request: RequestView, **more: object) -> dict[str, object]:
        limit = Limit("a", Rate(10), key=(Constant("k"),), **more)  # type: ignore[arg-type]
        return dict(subject_of(Policy("p", (limit,)), request))

    assert of(REQUEST) == {"a": "1:k"}
    api = (Condition(Path(), Operator.STARTS_WITH, ("/api",)),)
    assert of(REQUEST, when=api) == {"a": "1:k"}
    assert of(RequestView(path="/web"), when=api) == {"a": NOT_APPLIED}
    assert of(REQUEST, exempt=EXEMPT) == {"a": NOT_APPLIED}
    assert of(RequestView(peer="8.8.8.8"), exempt=EXEMPT) == {"a": "1:k"}
    assert of(REQUEST, tiers=(GOLD,)) == {"a": NOT_APPLIED, "a/gold": "1:k"}
    assert of(RequestView(), tiers=(GOLD,)) == {"a": "1:k"}


def test_a_forged_address_exempts_nobody() -> None:
    policy = Policy("p", (Limit("a", Rate(10), key=(Constant("k"),), exempt=EXEMPT),))
    forged = {"x-forwarded-for": "10.0.0.1"}
    for hops, headers in ((0, forged), (1, {"x-forwarded-for": "10.0.0.1, 8.8.8.8"})):
        request = RequestView(peer="8.8.8.8", headers=headers, trusted_proxy_hops=hops)
        assert subject_of(policy, request) == {"a": "1:k"}


@pytest.mark.parametrize(
    ("value", "cost"),
    [("7", 7), (" 12 ", 12), ("0", 0), ("-3", 0), ("1e3", 0), ("٣", 0), ("9" * 13, 0), ("", 0)],
)
def test_a_response_costs_what_its_header_says(value: str, cost: int) -> None:
    policy = Policy("p", (Limit("a", Rate(10), response_cost="X-Cost"), Limit("b", Rate(10))))
    assert response_costs(policy, {"x-cost": value}) == ({"a": cost} if cost else {})


@pytest.mark.parametrize(
    "more",
    [
        {"tiers": (GOLD, GOLD)},
        {"exempt": ((),)},
        {"when": EXEMPT[0] * 17},
        {"cost": 20, "burst": 20, "tiers": (Tier("low", GOLD.match, Rate(10)),)},
    ],
)
def test_limits_that_cannot_be_meant(more: dict[str, object]) -> None:
    with pytest.raises(InvalidPolicyError):
        Limit("a", Rate(10), **more)  # type: ignore[arg-type]


def test_a_tier_that_matches_everything_is_refused() -> None:
    with pytest.raises(InvalidPolicyError):
        Tier("all", (), Rate(1))
