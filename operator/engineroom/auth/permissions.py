"""Permissions, roles and grants, with pure decisions.

A permission has the form ``scope:resource:action``. Its scope is ``namespace`` (the namespaces of
the grant), ``cluster`` (the whole installation) or ``self`` (the caller's own keys and sessions).
Everything that no grant allows is denied.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from engineroom.core.errors import PermissionDeniedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

#: In a grant: all present and future namespaces, and the whole installation.
EVERYWHERE = "*"

_FORM = re.compile(r"(namespace|cluster|self):[a-z][a-z0-9-]{0,62}:[a-z][a-z0-9-]{0,62}")


class Permission(StrEnum):
    """The permissions of Engineroom. An application may define an enum of its own."""

    CLUSTER_AUDIT_READ = "cluster:audit:read"
    CLUSTER_KEYS_MANAGE = "cluster:keys:manage"
    CLUSTER_KEYS_READ = "cluster:keys:read"
    CLUSTER_SESSIONS_END = "cluster:sessions:end"
    CLUSTER_SESSIONS_READ = "cluster:sessions:read"
    CLUSTER_SIGNING_ROTATE = "cluster:signing:rotate"
    CLUSTER_USERS_MANAGE = "cluster:users:manage"
    CLUSTER_USERS_READ = "cluster:users:read"
    NAMESPACE_ALERTS_ACKNOWLEDGE = "namespace:alerts:acknowledge"
    NAMESPACE_ALERTS_READ = "namespace:alerts:read"
    NAMESPACE_ALERTS_SILENCE = "namespace:alerts:silence"
    NAMESPACE_EVENTS_READ = "namespace:events:read"
    NAMESPACE_JOBS_CANCEL = "namespace:jobs:cancel"
    NAMESPACE_JOBS_DELETE = "namespace:jobs:delete"
    NAMESPACE_JOBS_ENQUEUE = "namespace:jobs:enqueue"
    NAMESPACE_JOBS_READ = "namespace:jobs:read"
    NAMESPACE_JOBS_RETRY = "namespace:jobs:retry"
    NAMESPACE_LIMITS_READ = "namespace:limits:read"
    NAMESPACE_LIMITS_TEST = "namespace:limits:test"
    NAMESPACE_LOGS_READ = "namespace:logs:read"
    NAMESPACE_MAINTENANCE_READ = "namespace:maintenance:read"
    NAMESPACE_MAINTENANCE_RESTORE = "namespace:maintenance:restore"
    NAMESPACE_MAINTENANCE_RUN = "namespace:maintenance:run"
    NAMESPACE_MANIFESTS_APPLY = "namespace:manifests:apply"
    NAMESPACE_MANIFESTS_READ = "namespace:manifests:read"
    NAMESPACE_POOLS_DRAIN = "namespace:pools:drain"
    NAMESPACE_POOLS_PAUSE = "namespace:pools:pause"
    NAMESPACE_POOLS_READ = "namespace:pools:read"
    NAMESPACE_POOLS_SCALE = "namespace:pools:scale"
    NAMESPACE_QUEUES_LIMIT = "namespace:queues:limit"
    NAMESPACE_QUEUES_PAUSE = "namespace:queues:pause"
    NAMESPACE_QUEUES_READ = "namespace:queues:read"
    NAMESPACE_SCHEDULES_READ = "namespace:schedules:read"
    NAMESPACE_SCHEDULES_WRITE = "namespace:schedules:write"
    NAMESPACE_TRANSACTIONS_READ = "namespace:transactions:read"
    SELF_IDENTITY_READ = "self:identity:read"
    SELF_KEYS_MANAGE = "self:keys:manage"
    SELF_SESSIONS_END = "self:sessions:end"
    SELF_SESSIONS_READ = "self:sessions:read"


def scope_of(permission: str) -> str:
    """Return ``namespace``, ``cluster`` or ``self``; raise ValueError for an invalid permission."""
    match = _FORM.fullmatch(permission)
    if match is None:
        msg = f"permission: {permission!r} is not scope:resource:action; write namespace:jobs:read"
        raise ValueError(msg)
    return match[1]


@dataclass(frozen=True, slots=True)
class Role:
    """A named set of permissions."""

    name: str
    permissions: frozenset[str]

    def __post_init__(self) -> None:
        for permission in self.permissions:
            scope_of(permission)


_SELF = frozenset(p for p in Permission if p.startswith("self:"))
_READING = frozenset(p for p in Permission if p.startswith("namespace:") and p.endswith(":read"))
_OPERATING = frozenset(
    p
    for p in Permission
    if p.startswith("namespace:")
    and p not in {Permission.NAMESPACE_MANIFESTS_APPLY, Permission.NAMESPACE_MAINTENANCE_RESTORE}
)

#: Reads everything in its namespaces; changes only its own keys and sessions.
VIEWER = Role("viewer", _READING | _SELF)
#: Pauses, scales, retries, acknowledges; does not change declared objects.
OPERATOR = Role("operator", _OPERATING | _SELF)
#: Has every permission.
ADMIN = Role("admin", frozenset(Permission))


@dataclass(frozen=True, slots=True)
class Grant:
    """A role in some namespaces; ``EVERYWHERE`` is all of them and the installation."""

    role: str
    namespaces: frozenset[str]

    @classmethod
    def everywhere(cls, role: str) -> Grant:
        """Return a grant of the role in all namespaces."""
        return cls(role, frozenset({EVERYWHERE}))

    def covers(self, scope: str, namespace: str | None) -> bool:
        """Return whether the grant covers a scope; any grant covers ``self``."""
        if scope == "self" or EVERYWHERE in self.namespaces:
            return True
        return scope == "namespace" and namespace is not None and namespace in self.namespaces


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller.

    ``how`` is the kind of credential (token, key or session), ``reference`` its id.
    """

    subject: str
    grants: tuple[Grant, ...] = ()
    how: str = ""
    reference: str = ""
    #: Permissions to which the credential is limited; None for no limit beyond the grants.
    scopes: frozenset[str] | None = None
    #: Requests in a second that the credential permits; None for the general limit.
    rate: int | None = None


@dataclass(frozen=True, slots=True)
class AccessDecision:
    """The result of an access check, with its reason."""

    allowed: bool
    reason: str


@dataclass(frozen=True, slots=True)
class AccessPolicy:
    """The set of roles; ``AccessPolicy.of`` adds custom roles to the three built-in ones."""

    roles: Mapping[str, Role] = field(
        default_factory=lambda: {role.name: role for role in (VIEWER, OPERATOR, ADMIN)}
    )

    @classmethod
    def of(cls, *custom: Role) -> AccessPolicy:
        """Return a policy with custom roles; raise ValueError for a duplicate name."""
        roles = dict(cls().roles)
        for role in custom:
            if role.name in roles:
                msg = f"role: {role.name!r} exists already; give it another name"
                raise ValueError(msg)
            roles[role.name] = role
        return cls(roles)

    def decide(
        self, principal: Principal | None, permission: str, namespace: str | None = None
    ) -> AccessDecision:
        """Decide whether ``principal`` has ``permission``; a namespaced one needs ``namespace``."""
        scope = scope_of(permission)
        if principal is None:
            return AccessDecision(False, f"{permission} needs a signed-in caller")
        if scope == "namespace" and not namespace:
            return AccessDecision(
                False, f"{permission} is decided per namespace and none was named"
            )
        if principal.scopes is not None and permission not in principal.scopes:
            return AccessDecision(
                False, f"{permission} is outside the scopes of this {principal.how}"
            )
        where = f" in {namespace}" if scope == "namespace" else ""
        elsewhere = ""
        for grant in principal.grants:
            role = self.roles.get(grant.role)
            if role is None or permission not in role.permissions:
                continue
            if grant.covers(scope, namespace):
                return AccessDecision(True, f"role {grant.role} gives {permission}{where}")
            elsewhere = grant.role
        if elsewhere:
            return AccessDecision(
                False, f"role {elsewhere} gives {permission}, but not{where or ' here'}"
            )
        return AccessDecision(False, f"no role of {principal.subject} gives {permission}{where}")

    def demand(
        self, principal: Principal, permission: str, namespace: str | None = None
    ) -> AccessDecision:
        """Return a positive decision; raise PermissionDeniedError with the reason otherwise."""
        decision = self.decide(principal, permission, namespace)
        if not decision.allowed:
            raise PermissionDeniedError(
                f"permission: {decision.reason}; ask for a role that has it"
            )
        return decision

    def may(self, principal: Principal, namespace: str | None = None) -> list[str]:
        """Return the sorted permissions that ``principal`` has in ``namespace``."""
        permissions = {p for role in self.roles.values() for p in role.permissions}
        return sorted(p for p in permissions if self.decide(principal, p, namespace).allowed)


def intersect_grants(
    first: Iterable[Grant], second: Iterable[Grant], policy: AccessPolicy
) -> tuple[Grant, ...]:
    """Return grants that give only what both sides give.

    Used for the grants of a credential and the present grants of its owner. Of two roles the
    smaller one counts, in the namespaces of both. If neither role contains the other, the result
    has neither, because no role describes their common part.
    """
    common: dict[str, set[str]] = {}
    right_grants = tuple(second)
    for left in first:
        for right in right_grants:
            role = _smaller_role(left.role, right.role, policy)
            if role:
                common.setdefault(role, set()).update(
                    _common_namespaces(left.namespaces, right.namespaces)
                )
    return tuple(
        Grant(role, frozenset({EVERYWHERE}) if EVERYWHERE in names else frozenset(names))
        for role, names in common.items()
        if names
    )


def _smaller_role(left: str, right: str, policy: AccessPolicy) -> str:
    """Return the role that the other one contains, or ""."""
    if left not in policy.roles or right not in policy.roles:
        return ""
    mine, theirs = policy.roles[left].permissions, policy.roles[right].permissions
    if mine <= theirs:
        return left
    return right if theirs <= mine else ""


def _common_namespaces(left: frozenset[str], right: frozenset[str]) -> frozenset[str]:
    if EVERYWHERE in left:
        return right
    return left if EVERYWHERE in right else left & right


class Access(StrEnum):
    """The needs of a route without a permission."""

    PUBLIC = "public"
    SIGNED_IN = "signed-in"


@dataclass(frozen=True, slots=True)
class RouteRule:
    """The access rule of a route: a permission, or a value of ``Access``."""

    method: str
    path: str
    needs: str


@dataclass(frozen=True, slots=True)
class MatrixCase:
    """One cell of the route x role matrix; ``role`` is "" for an unauthenticated caller."""

    rule: RouteRule
    role: str
    #: The namespace of the grant: that of the request, another one, or ``*``.
    where: str
    expected: int
    principal: Principal | None


def matrix(
    rules: Iterable[RouteRule], policy: AccessPolicy, *, namespace: str, other: str = "elsewhere"
) -> Iterator[MatrixCase]:
    """Yield each rule for an unauthenticated caller and for each role.

    Each role is granted in ``namespace``, in ``other`` and everywhere. ``expected`` is 200
    (admitted, whatever the handler returns), 401 or 403.
    """
    for rule in rules:
        public = rule.needs == Access.PUBLIC
        yield MatrixCase(rule, "", "", 200 if public else 401, None)
        for role in policy.roles.values():
            for where in (namespace, other, EVERYWHERE):
                grant = Grant(role.name, frozenset({where}))
                principal = Principal(f"matrix-{role.name}", (grant,), "test")
                if rule.needs in (Access.PUBLIC, Access.SIGNED_IN):
                    allowed = True
                else:
                    # Computed without decide(), which this matrix is meant to check.
                    scope = scope_of(rule.needs)
                    reaches = scope == "self" or where == EVERYWHERE
                    reaches = reaches or (scope == "namespace" and where == namespace)
                    allowed = rule.needs in role.permissions and reaches
                yield MatrixCase(rule, role.name, where, 200 if allowed else 403, principal)


def routes_without_rule(
    routes: Iterable[tuple[str, str]], rules: Sequence[RouteRule]
) -> list[tuple[str, str]]:
    """Return the (method, path) pairs of ``routes`` without a rule, for use in a test."""
    with_rule = {(rule.method.upper(), rule.path) for rule in rules}
    return sorted({(method.upper(), path) for method, path in routes} - with_rule)
