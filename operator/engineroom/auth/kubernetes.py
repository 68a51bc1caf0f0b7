"""People and programs of a Kubernetes cluster: who they are, and what its own RBAC lets them do.

A token is shown to the API server (TokenReview), and each thing that somebody wants to do is asked
of it (SubjectAccessReview): nobody gets more through Engineroom than with kubectl. What has no
object in the cluster (jobs, queues) is asked as a resource of the group ``engineroom.dev`` with the
action as its verb, so that a ClusterRole can grant it.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from engineroom.auth.errors import TokenError
from engineroom.auth.permissions import Decision, Permission, Principal, scope_of
from engineroom.core.async_cache import AsyncCache

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engineroom.core.clock import Clock

GROUP = "engineroom.dev"
#: Seconds for which an answer is good: so long after a right was taken away it may still be used.
KEEP = 1.0
#: Seconds for which a refused token stays refused without asking again.
KEEP_REFUSED = 10.0
#: Tokens that are under review at one time: made-up ones must not drown the API server.
REVIEWS_AT_ONCE = 8
#: Longer ones are refused unseen; those of service accounts have about 1 KiB.
MAX_TOKEN = 8_192


class Reviewer(Protocol):
    """Who asks the API server. Raises DependencyError or its like when there is no answer."""

    async def review_token(self, token: str, audiences: Sequence[str]) -> Mapping[str, Any]:
        """The ``status`` of a TokenReview."""
        ...

    async def review_access(self, spec: Mapping[str, Any]) -> Mapping[str, Any]:
        """The ``status`` of a SubjectAccessReview."""
        ...


@dataclass(frozen=True, slots=True)
class KubernetesPrincipal(Principal):
    """Somebody whom the cluster knows; ``extra`` is JSON text, for it is only passed on."""

    username: str = ""
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: str = field(default="{}", repr=False)
    #: When the token is over (Unix seconds), as far as it says so.
    expires: float | None = None


@dataclass(frozen=True, slots=True)
class Attributes:
    """What is asked of RBAC."""

    verb: str
    resource: str
    subresource: str = ""
    group: str = GROUP
    name: str = ""


_READS = "get"
_OBJECTS: Mapping[str, Attributes] = {
    Permission.NAMESPACE_EVENTS_READ: Attributes("watch", "workerpools"),
    Permission.NAMESPACE_LOGS_READ: Attributes(_READS, "pods", "log", group=""),
    Permission.NAMESPACE_MANIFESTS_APPLY: Attributes("patch", "workerpools"),
    Permission.NAMESPACE_MANIFESTS_READ: Attributes(_READS, "workerpools"),
    Permission.NAMESPACE_POOLS_DRAIN: Attributes("patch", "workerpools"),
    Permission.NAMESPACE_POOLS_PAUSE: Attributes("patch", "workerpools"),
    Permission.NAMESPACE_POOLS_READ: Attributes(_READS, "workerpools"),
    Permission.NAMESPACE_POOLS_SCALE: Attributes("patch", "workerpools", "scale"),
}


def attributes_of(permission: str) -> Attributes:
    """What a permission is in the cluster's own RBAC. Raises ValueError for what is none."""
    scope_of(permission)
    known = _OBJECTS.get(permission)
    if known is not None:
        return known
    _, resource, action = permission.split(":")
    return Attributes(_READS if action == "read" else action, resource)


def expiry(token: str) -> float | None:
    """When a token that the cluster has accepted is over; None where it does not say so.

    Its signature was the API server's to check, and only a shorter life can come of this.
    """
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        padded = parts[1] + "=" * (-len(parts[1]) % 4)
        claims = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (ValueError, binascii.Error, RecursionError):
        return None
    said = claims.get("exp") if isinstance(claims, dict) else None
    if isinstance(said, bool) or not isinstance(said, int | float):
        return None
    return float(said) if 0 <= said < 1e11 else None


def packed(principal: KubernetesPrincipal) -> str:
    """Who somebody is in the cluster, as a session keeps it."""
    said = [principal.username, principal.uid, list(principal.groups), principal.extra]
    return json.dumps(said, separators=(",", ":"))


def unpacked(person: str, subject: str, reference: str) -> KubernetesPrincipal:
    """The principal of a session of somebody whom the cluster knows."""
    username, uid, groups, extra = json.loads(person)
    return KubernetesPrincipal(
        subject=subject,
        how="session",
        reference=reference,
        username=username,
        uid=uid,
        groups=tuple(groups),
        extra=extra,
    )


class KubernetesIdentity:
    """Recognises tokens of the cluster and decides for those who came with one."""

    def __init__(
        self,
        reviewer: Reviewer,
        clock: Clock,
        *,
        audiences: Sequence[str] = (),
        keep: float = KEEP,
    ) -> None:
        """``audiences``: of which a token must have one; none means the API server's own."""
        self._reviewer = reviewer
        self._audiences = tuple(audiences)
        self._keep = keep
        self._principals: AsyncCache[KubernetesPrincipal | None] = AsyncCache(clock)
        self._decisions: AsyncCache[Decision] = AsyncCache(clock)
        self._places = asyncio.Semaphore(REVIEWS_AT_ONCE)

    async def authenticate(self, token: str) -> KubernetesPrincipal:
        """Who the token belongs to. Raises TokenError when the API server does not know it."""
        if len(token) > MAX_TOKEN:
            raise TokenError("too_long", f"token: is longer than {MAX_TOKEN} bytes")
        # The token itself is nowhere kept.
        key = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()

        async def ask() -> tuple[KubernetesPrincipal | None, float]:
            async with self._places:
                status = await self._reviewer.review_token(token, self._audiences)
            principal = self._principal(status, key.hex()[:16])
            if principal is not None:
                principal = replace(principal, expires=expiry(token))
            return principal, KEEP_REFUSED if principal is None else self._keep

        principal = await self._principals.get(key, ask)
        if principal is None:
            raise TokenError("kubernetes", "token: the cluster does not know it; get a new one")
        return principal

    def _principal(self, status: Mapping[str, Any], name: str) -> KubernetesPrincipal | None:
        user = status.get("user")
        if status.get("authenticated") is not True or not isinstance(user, dict):
            return None
        username = user.get("username")
        if not isinstance(username, str) or not username:
            return None
        # An API server that knows nothing of audiences answers without: then it checked none.
        if self._audiences and not set(status.get("audiences") or ()) & set(self._audiences):
            return None
        groups, extra = user.get("groups"), user.get("extra")
        return KubernetesPrincipal(
            subject=f"kubernetes:{username}",
            how="kubernetes",
            reference=name,
            username=username,
            uid=str(user.get("uid") or ""),
            groups=tuple(map(str, groups)) if isinstance(groups, list) else (),
            extra=json.dumps(extra if isinstance(extra, dict) else {}, sort_keys=True),
        )

    async def decide(
        self, principal: KubernetesPrincipal, permission: str, namespace: str | None = None
    ) -> Decision:
        """Whether the cluster's RBAC gives ``permission`` there."""
        scope = scope_of(permission)
        if scope == "self":
            # Keys would outlive the token and its groups; a session ends with it.
            if permission != Permission.SELF_KEYS_MANAGE:
                return Decision(True, "it is one's own")
            reason = f"{permission} is not for identities of the cluster: use kubectl create token"
            return Decision(False, reason)
        if scope == "namespace" and not namespace:
            return Decision(False, f"{permission} is decided per namespace and none was named")
        return await self.allows(principal, attributes_of(permission), namespace)

    async def allows(
        self, principal: KubernetesPrincipal, wanted: Attributes, namespace: str | None = None
    ) -> Decision:
        """Whether RBAC lets ``principal`` do ``wanted``; without a namespace: in the cluster."""
        resource = f"{wanted.resource}/{wanted.subresource}".rstrip("/")
        where = f" in {namespace}" if namespace else ""
        told = f"{wanted.verb} {resource}{'.' if wanted.group else ''}{wanted.group}{where}"
        attributes = {
            "verb": wanted.verb,
            "group": wanted.group,
            "resource": wanted.resource,
            "subresource": wanted.subresource,
            "namespace": namespace or "",
            "name": wanted.name,
        }
        spec = {
            "user": principal.username,
            "uid": principal.uid,
            "groups": list(principal.groups),
            "extra": json.loads(principal.extra),
            "resourceAttributes": {key: value for key, value in attributes.items() if value},
        }

        async def ask() -> tuple[Decision, float]:
            status = await self._reviewer.review_access(spec)
            allowed = status.get("allowed") is True and status.get("denied") is not True
            verb = "may" if allowed else "may not"
            return Decision(allowed, f"{principal.username} {verb} {told}"), self._keep

        return await self._decisions.get(json.dumps(spec, sort_keys=True), ask)
