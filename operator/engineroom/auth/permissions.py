"""Who may do what, decided purely: grants and a permission in, yes or no with the reason out.

A permission reads ``scope:resource:action``. The scope says where it holds: ``namespace`` in the
namespaces of the grant, ``cluster`` in the whole installation, ``self`` for what is one's own.
What no rule allows is denied.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from engineroom.core.errors import PermissionDeniedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

#: In a grant: every namespace, those of tomorrow too, and what is of the whole installation.
EVERYWHERE = "*"

_FORM = re.compile(r"(namespace|cluster|self):[a-z][a-z0-9-]{0,62}:[a-z][a-z0-9-]{0,62}")


class Permission(StrEnum):
    """All that can be permitted in Engineroom. Applications have an enum of their own beside it."""

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
    """``namespace``, ``cluster`` or ``self``. Raises ValueError for what is no permission."""
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

#: Sees everything in its namespaces, changes nothing but its own keys and sessions.
VIEWER = Role("viewer", _READING | _SELF)
#: Runs what is there: pauses, scales, retries, acknowledges; does not change what is declared.
OPERATOR = Role("operator", _OPERATING | _SELF)
#: May do everything that has a permission.
ADMIN = Role("admin", frozenset(Permission))


@dataclass(frozen=True, slots=True)
class Grant:
    """A role in some namespaces; ``EVERYWHERE`` is all of them and the installation itself."""

    role: str
    namespaces: frozenset[str]

    @classmethod
    def everywhere(cls, role: str) -> Grant:
        """The role in all namespaces."""
        return cls(role, frozenset({EVERYWHERE}))

    def covers(self, scope: str, namespace: str | None) -> bool:
        """Whether it reaches there. What is one's own is covered by any grant."""
        if scope == "self" or EVERYWHERE in self.namespaces:
            return True
        return scope == "namespace" and namespace is not None and namespace in self.namespaces


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. ``how`` he was recognised: token, key or session; ``reference`` names which one."""

    subject: str
    grants: tuple[Grant, ...] = ()
    how: str = ""
    reference: str = ""
    #: None: all that the grants give. Else no more than these, however much the grants give.
    scopes: frozenset[str] | None = None
    #: Requests in a second that what he came with may make; None: as many as anybody.
    rate: int | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """Yes or no, and one sentence that says why."""

    allowed: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Policy:
    """The roles that there are; ``Policy.of`` adds custom ones to the three."""

    roles: Mapping[str, Role] = field(
        default_factory=lambda: {role.name: role for role in (VIEWER, OPERATOR, ADMIN)}
    )

    @classmethod
    def of(cls, *custom: Role) -> Policy:
        """The three roles and custom ones. Raises ValueError where a name is taken."""
        roles = dict(cls().roles)
        for role in custom:
            if role.name in roles:
                msg = f"role: {role.name!r} exists already; give it another name"
                raise ValueError(msg)
            roles[role.name] = role
        return cls(roles)

    def decide(
        self, principal: Principal | None, permission: str, namespace: str | None = None
    ) -> Decision:
        """Whether ``principal`` may, in ``namespace`` where the permission is per namespace."""
        scope = scope_of(permission)
        if principal is None:
            return Decision(False, f"nobody is signed in; {permission} needs somebody")
        if scope == "namespace" and not namespace:
            return Decision(False, f"{permission} is decided per namespace and none was named")
        if principal.scopes is not None and permission not in principal.scopes:
            return Decision(False, f"{permission} is outside the scopes of this {principal.how}")
        where = f" in {namespace}" if scope == "namespace" else ""
        elsewhere = ""
        for grant in principal.grants:
            role = self.roles.get(grant.role)
            if role is None or permission not in role.permissions:
                continue
            if grant.covers(scope, namespace):
                return Decision(True, f"role {grant.role} gives {permission}{where}")
            elsewhere = grant.role
        if elsewhere:
            return Decision(
                False, f"role {elsewhere} gives {permission}, but not{where or ' here'}"
            )
        return Decision(False, f"no role of {principal.subject} gives {permission}{where}")

    def demand(
        self, principal: Principal, permission: str, namespace: str | None = None
    ) -> Decision:
        """The decision, if it is yes. Raises PermissionDeniedError with the reason."""
        decision = self.decide(principal, permission, namespace)
        if not decision.allowed:
            raise PermissionDeniedError(
                f"permission: {decision.reason}; ask for a role that has it"
            )
        return decision

    def may(self, principal: Principal, namespace: str | None = None) -> list[str]:
        """Every permission of the roles that ``principal`` has there, sorted: what-may-I."""
        known = {p for role in self.roles.values() for p in role.permissions}
        return sorted(p for p in known if self.decide(principal, p, namespace).allowed)


def meet(one: Iterable[Grant], other: Iterable[Grant], policy: Policy) -> tuple[Grant, ...]:
    """Grants that give nothing but what both give: of what a credential was made with and what its
    owner has now.

    Of two roles the one that is within the other is taken, where both hold; of two of which neither
    is within the other nothing is, since no role says what they share.
    """
    found: dict[str, set[str]] = {}
    others = tuple(other)
    for left in one:
        for right in others:
            role = _smaller(left.role, right.role, policy)
            if role:
                found.setdefault(role, set()).update(_both(left.namespaces, right.namespaces))
    return tuple(
        Grant(role, frozenset({EVERYWHERE}) if EVERYWHERE in names else frozenset(names))
        for role, names in found.items()
        if names
    )


def _smaller(left: str, right: str, policy: Policy) -> str:
    """Whichever of two roles is within the other, or ""."""
    if left not in policy.roles or right not in policy.roles:
        return ""
    mine, theirs = policy.roles[left].permissions, policy.roles[right].permissions
    if mine <= theirs:
        return left
    return right if theirs <= mine else ""


def _both(left: frozenset[str], right: frozenset[str]) -> frozenset[str]:
    if EVERYWHERE in left:
        return right
    return left if EVERYWHERE in right else left & right


class Access(StrEnum):
    """What a route asks for that needs no permission."""

    PUBLIC = "public"
    SIGNED_IN = "signed-in"


@dataclass(frozen=True, slots=True)
class Rule:
    """What one route needs: a permission, or one of Access said out loud."""

    method: str
    path: str
    needs: str


@dataclass(frozen=True, slots=True)
class Case:
    """One cell of the route x role matrix: ``role`` is "" for nobody."""

    rule: Rule
    role: str
    #: Where the role is granted: the namespace of the request, another one, or ``*``.
    where: str
    expected: int
    principal: Principal | None


def matrix(
    rules: Iterable[Rule], policy: Policy, *, namespace: str, other: str = "elsewhere"
) -> Iterator[Case]:
    """Every rule for nobody and for each role, granted in ``namespace``, in ``other``, everywhere.

    ``expected`` is 200 (let in, whatever the handler answers then), 401 or 403.
    """
    for rule in rules:
        public = rule.needs == Access.PUBLIC
        yield Case(rule, "", "", 200 if public else 401, None)
        for role in policy.roles.values():
            for where in (namespace, other, EVERYWHERE):
                grant = Grant(role.name, frozenset({where}))
                principal = Principal(f"matrix-{role.name}", (grant,), "test")
                if rule.needs in (Access.PUBLIC, Access.SIGNED_IN):
                    allowed = True
                else:
                    # Told from the role's own set and not by decide(): a matrix that asked what
                    # it checks would agree with any mistake.
                    scope = scope_of(rule.needs)
                    reaches = scope == "self" or where == EVERYWHERE
                    reaches = reaches or (scope == "namespace" and where == namespace)
                    allowed = rule.needs in role.permissions and reaches
                yield Case(rule, role.name, where, 200 if allowed else 403, principal)


def unruled(routes: Iterable[tuple[str, str]], rules: Sequence[Rule]) -> list[tuple[str, str]]:
    """Those (method, path) of ``routes`` that no rule names: a test fails when there is one."""
    ruled = {(rule.method.upper(), rule.path) for rule in rules}
    return sorted({(method.upper(), path) for method, path in routes} - ruled)
