"""Deny by default, per namespace, with a reason; and the matrix that walks it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engineroom.auth.permissions import (
    ADMIN,
    EVERYWHERE,
    OPERATOR,
    VIEWER,
    Access,
    AccessPolicy,
    Grant,
    Permission,
    Principal,
    Role,
    RouteRule,
    intersect_grants,
    matrix,
    routes_without_rule,
    scope_of,
)
from engineroom.core.errors import PermissionDeniedError

POLICY = AccessPolicy()
READ = Permission.NAMESPACE_JOBS_READ


def test_permissions_are_sorted_and_have_the_form() -> None:
    assert [p.value for p in Permission] == sorted(p.value for p in Permission)
    for permission in Permission:
        assert scope_of(permission) in {"namespace", "cluster", "self"}
        assert permission.name == permission.value.replace(":", "_").replace("-", "_").upper()


def test_a_role_is_worth_something_only_where_it_was_given() -> None:
    principal = Principal("ada", (Grant("viewer", frozenset({"shop"})),))
    assert POLICY.decide(principal, READ, "shop").allowed
    refused = POLICY.decide(principal, READ, "bank")
    assert not refused.allowed
    assert refused.reason == "role viewer gives namespace:jobs:read, but not in bank"


def test_nothing_is_allowed_to_nobody_nor_without_grants_nor_by_an_unknown_role() -> None:
    for permission in Permission:
        assert not POLICY.decide(None, permission, "shop").allowed
        assert not POLICY.decide(Principal("ada"), permission, "shop").allowed
        unknown = Principal("ada", (Grant.everywhere("emperor"),))
        assert not POLICY.decide(unknown, permission, "shop").allowed


def test_a_namespace_must_be_named() -> None:
    assert not POLICY.decide(Principal("root", (Grant.everywhere("admin"),)), READ).allowed
    assert not POLICY.decide(Principal("root", (Grant.everywhere("admin"),)), READ, "").allowed


def test_an_admin_of_one_namespace_is_not_one_of_the_installation() -> None:
    principal = Principal("ada", (Grant("admin", frozenset({"shop"})),))
    assert not POLICY.decide(principal, Permission.CLUSTER_USERS_MANAGE).allowed
    assert not POLICY.decide(principal, Permission.CLUSTER_USERS_MANAGE, "shop").allowed


def test_scopes_narrow_and_never_widen() -> None:
    grants = (Grant("viewer", frozenset({"shop"})),)
    key = Principal("ada", grants, "key", scopes=frozenset({Permission.NAMESPACE_JOBS_DELETE}))
    assert not POLICY.decide(key, READ, "shop").allowed
    assert not POLICY.decide(key, Permission.NAMESPACE_JOBS_DELETE, "shop").allowed


def test_what_is_refused_says_why() -> None:
    with pytest.raises(PermissionDeniedError, match="no role of ada gives namespace:jobs:read"):
        POLICY.demand(Principal("ada"), READ, "shop")


def test_a_word_that_is_no_permission_is_a_mistake_of_the_caller() -> None:
    for word in ("jobs:read", "namespace:*:read", "namespace:jobs:read:x", "", "NAMESPACE:a:b"):
        with pytest.raises(ValueError, match="scope:resource:action"):
            POLICY.decide(Principal("ada"), word, "shop")
        with pytest.raises(ValueError, match="scope:resource:action"):
            Role("custom", frozenset({word}))


def test_roles_contain_each_other_and_custom_ones_join() -> None:
    assert VIEWER.permissions < OPERATOR.permissions < ADMIN.permissions
    assert Permission.NAMESPACE_MANIFESTS_APPLY not in OPERATOR.permissions
    policy = AccessPolicy.of(Role("retrier", frozenset({Permission.NAMESPACE_JOBS_RETRY})))
    ada = Principal("ada", (Grant("retrier", frozenset({"shop"})),))
    assert policy.may(ada, "shop") == [Permission.NAMESPACE_JOBS_RETRY]
    with pytest.raises(ValueError, match="exists already"):
        AccessPolicy.of(Role("admin", frozenset()))


_NAMES = st.sampled_from(["shop", "bank", "mill"])
_GRANTS = st.lists(
    st.builds(
        Grant,
        st.sampled_from(["viewer", "operator", "admin", "nobody"]),
        st.frozensets(st.sampled_from(["shop", "bank", EVERYWHERE])),
    ),
    max_size=4,
).map(tuple)


@given(_GRANTS, st.sampled_from(list(Permission)), _NAMES)
def test_a_yes_is_always_owed_to_one_grant(
    grants: tuple[Grant, ...], permission: Permission, namespace: str
) -> None:
    allowed = POLICY.decide(Principal("ada", grants), permission, namespace).allowed
    scope = permission.split(":")[0]
    owed = any(
        grant.role in POLICY.roles
        and permission in POLICY.roles[grant.role].permissions
        and (
            scope == "self"
            or EVERYWHERE in grant.namespaces
            or (scope == "namespace" and namespace in grant.namespaces)
        )
        for grant in grants
    )
    assert allowed == owed


def test_the_matrix_agrees_with_the_decision_in_every_cell() -> None:
    rules = [RouteRule("GET", f"/{p}", p) for p in Permission]
    rules += [RouteRule("GET", "/health", Access.PUBLIC), RouteRule("GET", "/me", Access.SIGNED_IN)]
    cases = list(matrix(rules, POLICY, namespace="shop"))
    assert len(cases) == len(rules) * (1 + 3 * 3)
    for case in cases:
        if case.rule.needs in (Access.PUBLIC, Access.SIGNED_IN) or case.principal is None:
            continue
        decision = POLICY.decide(case.principal, case.rule.needs, "shop")
        assert case.expected == (200 if decision.allowed else 403), case


def test_a_route_without_a_rule_is_found() -> None:
    rules = [RouteRule("GET", "/jobs", READ)]
    assert routes_without_rule([("get", "/jobs"), ("DELETE", "/jobs")], rules) == [
        ("DELETE", "/jobs")
    ]


_CUSTOM = AccessPolicy.of(
    Role("retrier", frozenset({Permission.NAMESPACE_JOBS_RETRY, Permission.NAMESPACE_JOBS_READ})),
    Role("auditor", frozenset({Permission.CLUSTER_AUDIT_READ, Permission.NAMESPACE_JOBS_READ})),
)
_ROLES = st.sampled_from([*_CUSTOM.roles, "unknown"])
_PLACES = st.sampled_from(["shop", "bank", EVERYWHERE])
_GRANTS = st.lists(
    st.builds(Grant, _ROLES, st.frozensets(_PLACES, min_size=1, max_size=2)), max_size=3
).map(tuple)


def _allowed(grants: tuple[Grant, ...]) -> set[tuple[str, str]]:
    asking = Principal("ada", grants)
    return {
        (permission, place)
        for permission in Permission
        for place in ("shop", "bank", "elsewhere")
        if _CUSTOM.decide(asking, permission, place).allowed
    }


@given(_GRANTS, _GRANTS)
def test_what_two_sets_of_grants_share_is_in_both(
    one: tuple[Grant, ...], other: tuple[Grant, ...]
) -> None:
    shared = _allowed(intersect_grants(one, other, _CUSTOM))
    assert shared <= _allowed(one) & _allowed(other)
    assert _allowed(intersect_grants(one, one, _CUSTOM)) == _allowed(one)
    # Of roles that are within one another nothing is lost.
    chain = {"viewer", "operator", "admin"}
    if {g.role for g in (*one, *other)} <= chain:
        # But for what any grant gives of oneself, where they share none.
        lost = (_allowed(one) & _allowed(other)) - shared
        assert all(permission.startswith("self:") for permission, _ in lost)
        assert not lost or not intersect_grants(one, other, _CUSTOM)


def test_who_was_raised_keeps_what_he_had_and_who_was_lowered_does_not() -> None:
    shop = frozenset({"shop"})
    viewer, admin = Grant("viewer", shop), Grant.everywhere("admin")
    assert intersect_grants([viewer], [admin], POLICY) == (viewer,)
    assert intersect_grants([admin], [viewer], POLICY) == (viewer,)
    assert intersect_grants([viewer], [Grant("viewer", frozenset({"bank"}))], POLICY) == ()
    assert intersect_grants([admin], [], POLICY) == ()
