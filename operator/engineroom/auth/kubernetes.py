"""Authentication and authorization by a Kubernetes cluster.

The API server checks each token (TokenReview) and each action (SubjectAccessReview), so a user gets
no more rights through Engineroom than with kubectl. Jobs and queues, which have no object in the
cluster, are resources of the group ``engineroom.dev`` with the action as verb; a ClusterRole can
grant them.
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
from engineroom.auth.permissions import AccessDecision, Permission, Principal, scope_of
from engineroom.core.async_cache import AsyncCache

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engineroom.core.clock import Clock

GROUP = "engineroom.dev"
#: Seconds for which an answer is cached; a revoked right stays usable that long.
CACHE_SECONDS = 1.0
#: Seconds for which the refusal of a token is cached.
REFUSAL_SECONDS = 10.0
#: Most concurrent TokenReviews, which protects the API server from floods of invalid tokens.
CONCURRENT_REVIEWS = 8
#: Most bytes of a token; those of service accounts have about 1 KiB.
MAX_TOKEN = 8_192


class Reviewer(Protocol):
    """A client of the API server's reviews. Raises DependencyError if it does not answer."""

    async def review_token(self, token: str, audiences: Sequence[str]) -> Mapping[str, Any]:
        """Return the ``status`` of a TokenReview."""
        ...

    async def review_access(self, spec: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the ``status`` of a SubjectAccessReview."""
        ...


@dataclass(frozen=True, slots=True)
class KubernetesPrincipal(Principal):
    """An identity of the cluster; ``extra`` is JSON text, passed on unchanged."""

    username: str = ""
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: str = field(default="{}", repr=False)
    #: The token's expiry in Unix seconds, if it has one.
    expires: float | None = None


@dataclass(frozen=True, slots=True)
class ResourceAttributes:
    """The resource attributes of a SubjectAccessReview."""

    verb: str
    resource: str
    subresource: str = ""
    group: str = GROUP
    name: str = ""


_READS = "get"
_OBJECTS: Mapping[str, ResourceAttributes] = {
    Permission.NAMESPACE_EVENTS_READ: ResourceAttributes("watch", "workerpools"),
    Permission.NAMESPACE_LOGS_READ: ResourceAttributes(_READS, "pods", "log", group=""),
    Permission.NAMESPACE_MANIFESTS_APPLY: ResourceAttributes("patch", "workerpools"),
    Permission.NAMESPACE_MANIFESTS_READ: ResourceAttributes(_READS, "workerpools"),
    Permission.NAMESPACE_POOLS_DRAIN: ResourceAttributes("patch", "workerpools"),
    Permission.NAMESPACE_POOLS_PAUSE: ResourceAttributes("patch", "workerpools"),
    Permission.NAMESPACE_POOLS_READ: ResourceAttributes(_READS, "workerpools"),
    Permission.NAMESPACE_POOLS_SCALE: ResourceAttributes("patch", "workerpools", "scale"),
}


def attributes_of(permission: str) -> ResourceAttributes:
    """Map a permission to the cluster's RBAC; raise ValueError for an invalid one."""
    scope_of(permission)
    attributes = _OBJECTS.get(permission)
    if attributes is not None:
        return attributes
    _, resource, action = permission.split(":")
    return ResourceAttributes(_READS if action == "read" else action, resource)


def expiry(token: str) -> float | None:
    """Return the expiry of a token that the cluster accepted, or None without one.

    The API server has checked the signature, and the result can only shorten a session.
    """
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        padded = parts[1] + "=" * (-len(parts[1]) % 4)
        claims = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (ValueError, binascii.Error, RecursionError):
        return None
    expires = claims.get("exp") if isinstance(claims, dict) else None
    if isinstance(expires, bool) or not isinstance(expires, int | float):
        return None
    return float(expires) if 0 <= expires < 1e11 else None


def pack_identity(principal: KubernetesPrincipal) -> str:
    """Serialize an identity of the cluster for a session."""
    fields = [principal.username, principal.uid, list(principal.groups), principal.extra]
    return json.dumps(fields, separators=(",", ":"))


def unpack_identity(person: str, subject: str, reference: str) -> KubernetesPrincipal:
    """Return the principal of a session with an identity of the cluster."""
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
    """Authenticates tokens of the cluster and authorizes their principals."""

    def __init__(
        self,
        reviewer: Reviewer,
        clock: Clock,
        *,
        audiences: Sequence[str] = (),
        keep: float = CACHE_SECONDS,
        objects: Mapping[str, ResourceAttributes] | None = None,
    ) -> None:
        """Set up reviews; a token needs one of ``audiences``, by default the API server's.

        ``keep`` is the time in seconds for which answers are cached. ``objects`` maps further
        permissions to what RBAC is asked, see ``attributes_of``.
        """
        self._objects = dict(objects or {})
        self._reviewer = reviewer
        self._audiences = tuple(audiences)
        self._keep = keep
        self._principals: AsyncCache[KubernetesPrincipal | None] = AsyncCache(clock)
        self._decisions: AsyncCache[AccessDecision] = AsyncCache(clock)
        self._slots = asyncio.Semaphore(CONCURRENT_REVIEWS)

    async def authenticate(self, token: str) -> KubernetesPrincipal:
        """Return the principal of a token; raise TokenError if the API server rejects it."""
        if len(token) > MAX_TOKEN:
            raise TokenError("too_long", f"token: is longer than {MAX_TOKEN} bytes")
        # The cache holds the digest, never the token.
        key = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()

        async def fetch() -> tuple[KubernetesPrincipal | None, float]:
            async with self._slots:
                status = await self._reviewer.review_token(token, self._audiences)
            principal = self._principal(status, key.hex()[:16])
            if principal is not None:
                principal = replace(principal, expires=expiry(token))
            return principal, REFUSAL_SECONDS if principal is None else self._keep

        principal = await self._principals.get(key, fetch)
        if principal is None:
            raise TokenError("kubernetes", "token: the cluster rejects it; get a new one")
        return principal

    def _principal(self, status: Mapping[str, Any], name: str) -> KubernetesPrincipal | None:
        user = status.get("user")
        if status.get("authenticated") is not True or not isinstance(user, dict):
            return None
        username = user.get("username")
        if not isinstance(username, str) or not username:
            return None
        # An API server without support for audiences returns none and has checked none.
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
    ) -> AccessDecision:
        """Decide by the cluster's RBAC whether ``principal`` has ``permission``."""
        scope = scope_of(permission)
        if scope == "self":
            # API keys would outlive the token and its groups; sessions end with the token.
            if permission != Permission.SELF_KEYS_MANAGE:
                return AccessDecision(True, "it is the caller's own")
            reason = f"{permission} is not for identities of the cluster: use kubectl create token"
            return AccessDecision(False, reason)
        if scope == "namespace" and not namespace:
            return AccessDecision(
                False, f"{permission} is decided per namespace and none was named"
            )
        wanted = self._objects.get(permission) or attributes_of(permission)
        return await self.allows(principal, wanted, namespace)

    async def allows(
        self,
        principal: KubernetesPrincipal,
        wanted: ResourceAttributes,
        namespace: str | None = None,
    ) -> AccessDecision:
        """Ask RBAC about ``wanted`` in a namespace, or in the whole cluster without one."""
        resource = f"{wanted.resource}/{wanted.subresource}".rstrip("/")
        where = f" in {namespace}" if namespace else ""
        action = f"{wanted.verb} {resource}{'.' if wanted.group else ''}{wanted.group}{where}"
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

        async def fetch() -> tuple[AccessDecision, float]:
            status = await self._reviewer.review_access(spec)
            allowed = status.get("allowed") is True and status.get("denied") is not True
            verb = "may" if allowed else "may not"
            return AccessDecision(allowed, f"{principal.username} {verb} {action}"), self._keep

        return await self._decisions.get(json.dumps(spec, sort_keys=True), fetch)
