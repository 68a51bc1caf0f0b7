"""Rights of authors, from the API server: an object of ours must not give its author more."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from engineroom.api.shared_redis import is_shared
from engineroom.api.validation.pod_security import PodSecurityLevel
from engineroom.core.async_cache import AsyncCache
from engineroom.kube.client.errors import NotFound
from engineroom.kube.client.resources import NAMESPACES, SUBJECT_ACCESS_REVIEWS
from engineroom_webhooks import metrics

if TYPE_CHECKING:
    from engineroom.core.clock import Clock
    from engineroom.kube.client.client import Client

#: Seconds for which answers are cached. A revoked right works this much longer here: a tenth of the
#: default of the API server's own webhook authorizer.
_KEEP_ALLOWED = 30.0
_KEEP_DENIED = 5.0
_KEEP_LEVEL = 10.0
#: Below the webhook's time-out of 3 s, so that the author gets our message.
_TIMEOUT = 2.0


@dataclass(frozen=True, slots=True)
class RequestUser:
    """The user that sent the request."""

    username: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    #: JSON text, because it is only forwarded.
    extra: str = field(default="{}", repr=False)

    @classmethod
    def of(cls, user: Any) -> RequestUser:
        """Read ``request.userInfo``; accepts any JSON."""
        info = user if isinstance(user, dict) else {}
        groups = info.get("groups")
        extra = info.get("extra")
        return cls(
            username=str(info.get("username") or ""),
            uid=str(info.get("uid") or ""),
            groups=tuple(str(group) for group in groups) if isinstance(groups, list) else (),
            extra=json.dumps(extra if isinstance(extra, dict) else {}, sort_keys=True),
        )


class Authorizer(Protocol):
    """Source of namespaces' levels and authors' rights. Raises DependencyError or ApiError."""

    async def level(self, namespace: str) -> PodSecurityLevel:
        """Return the Pod Security level of the namespace's label; restricted without one."""
        ...

    async def may_use_shared_redis(self, namespace: str) -> bool:
        """Return whether the namespace may use the installation's Redis."""
        ...

    async def may_create_pods(self, author: RequestUser, namespace: str) -> bool:
        """Return whether the author may create pods in the namespace."""
        ...

    async def may_get_secret(self, author: RequestUser, namespace: str, name: str) -> bool:
        """Return whether the author may get the Secret."""
        ...


class AllowAll:
    """The twin for ``review_authors=false``: namespaces are restricted, authors have all rights."""

    async def level(self, namespace: str) -> PodSecurityLevel:
        """Return restricted."""
        del namespace
        return PodSecurityLevel.RESTRICTED

    async def may_use_shared_redis(self, namespace: str) -> bool:
        """Return True."""
        del namespace
        return True

    async def may_create_pods(self, author: RequestUser, namespace: str) -> bool:
        """Return True."""
        del author, namespace
        return True

    async def may_get_secret(self, author: RequestUser, namespace: str, name: str) -> bool:
        """Return True."""
        del author, namespace, name
        return True


class ClusterAuthorizer:
    """Asks the API server and caches the answers for seconds; equal questions share a request."""

    def __init__(
        self,
        client: Client,
        clock: Clock,
        trusted: frozenset[str] = frozenset(),
        system_namespace: str = "",
    ) -> None:
        """``trusted``: names of authors that check the rights of the people they write for.

        ``system_namespace`` is that of Engineroom's own processes.
        """
        self._client = client
        self._system_namespace = system_namespace
        self._trusted = trusted
        self._clock = clock
        self._levels: AsyncCache[PodSecurityLevel] = AsyncCache(clock)
        self._rights: AsyncCache[bool] = AsyncCache(clock)

    async def level(self, namespace: str) -> PodSecurityLevel:
        """See Authorizer."""

        async def ask() -> tuple[PodSecurityLevel, float]:
            try:
                labelled = await self._client.get(NAMESPACES, None, namespace, timeout=_TIMEOUT)
            except NotFound:
                return PodSecurityLevel.RESTRICTED, _KEEP_LEVEL
            return PodSecurityLevel.of(labelled["metadata"].get("labels")), _KEEP_LEVEL

        return await self._levels.get(namespace, ask)

    async def may_use_shared_redis(self, namespace: str) -> bool:
        """See Authorizer. The label is read at each call."""
        if namespace == self._system_namespace:
            return True
        try:
            labelled = await self._client.get(NAMESPACES, None, namespace, timeout=_TIMEOUT)
        except NotFound:
            return False
        return is_shared(labelled)

    async def may_create_pods(self, author: RequestUser, namespace: str) -> bool:
        """See Authorizer."""
        return await self._allowed(author, namespace, verb="create", resource="pods")

    async def may_get_secret(self, author: RequestUser, namespace: str, name: str) -> bool:
        """See Authorizer."""
        return await self._allowed(author, namespace, verb="get", resource="secrets", name=name)

    async def _allowed(self, author: RequestUser, namespace: str, **attributes: str) -> bool:
        if author.username in self._trusted:
            return True

        async def ask() -> tuple[bool, float]:
            metrics.AUTHOR_REVIEWS.labels(source="api").inc()
            review = await self._client.create(
                SUBJECT_ACCESS_REVIEWS,
                {
                    "spec": {
                        "user": author.username,
                        "uid": author.uid,
                        "groups": list(author.groups),
                        "extra": json.loads(author.extra),
                        "resourceAttributes": {
                            "namespace": namespace,
                            "version": "v1",
                            **attributes,
                        },
                    }
                },
                timeout=_TIMEOUT,
            )
            allowed = (review.get("status") or {}).get("allowed") is True
            return allowed, _KEEP_ALLOWED if allowed else _KEEP_DENIED

        return await self._rights.get((author, namespace, *sorted(attributes.items())), ask)
