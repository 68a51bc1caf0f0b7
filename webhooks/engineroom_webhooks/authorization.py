"""What an author may do, asked of the API server: never more through a pool than without one."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from engineroom.api.validation.pod_security import Level
from engineroom.core.async_cache import AsyncCache
from engineroom.kube.client.errors import NotFound
from engineroom.kube.client.resources import NAMESPACES, SUBJECT_ACCESS_REVIEWS
from engineroom_webhooks import metrics

if TYPE_CHECKING:
    from engineroom.core.clock import Clock
    from engineroom.kube.client.client import Client

#: How long (seconds) answers are kept. A right that was taken away works this much longer here,
#: a tenth of what the API server's own webhook authorizer allows itself by default.
_KEEP_ALLOWED = 30.0
_KEEP_DENIED = 5.0
_KEEP_LEVEL = 10.0
#: Below the webhook's own time-out of 3 s, so that the author reads our reason.
_TIMEOUT = 2.0


@dataclass(frozen=True, slots=True)
class Author:
    """Who sent the request."""

    username: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    #: JSON text, for it is only passed on.
    extra: str = field(default="{}", repr=False)

    @classmethod
    def of(cls, user: Any) -> Author:
        """From ``request.userInfo``; tolerates anything."""
        info = user if isinstance(user, dict) else {}
        groups = info.get("groups")
        extra = info.get("extra")
        return cls(
            username=str(info.get("username") or ""),
            uid=str(info.get("uid") or ""),
            groups=tuple(str(one) for one in groups) if isinstance(groups, list) else (),
            extra=json.dumps(extra if isinstance(extra, dict) else {}, sort_keys=True),
        )


class Authority(Protocol):
    """Who knows what is allowed where. Raises DependencyError or ApiError when it cannot tell."""

    async def level(self, namespace: str) -> Level:
        """The Pod Security level that the namespace is labelled with; restricted without one."""
        ...

    async def may_create_pods(self, author: Author, namespace: str) -> bool:
        """Whether the author could create a pod there without us."""
        ...


class NoAuthority:
    """The twin for ``review_authors=false``: every namespace is restricted, every author may."""

    async def level(self, namespace: str) -> Level:
        """Restricted."""
        del namespace
        return Level.RESTRICTED

    async def may_create_pods(self, author: Author, namespace: str) -> bool:
        """Yes: nobody was asked."""
        del author, namespace
        return True


class ClusterAuthority:
    """Asks the API server, each question once at a time, and keeps the answers for seconds."""

    def __init__(self, client: Client, clock: Clock, trusted: frozenset[str] = frozenset()) -> None:
        """``trusted``: names of authors that have asked already, for whom they write."""
        self._client = client
        self._trusted = trusted
        self._clock = clock
        self._levels: AsyncCache[Level] = AsyncCache(clock)
        self._rights: AsyncCache[bool] = AsyncCache(clock)

    async def level(self, namespace: str) -> Level:
        """See Authority."""

        async def ask() -> tuple[Level, float]:
            try:
                found = await self._client.get(NAMESPACES, None, namespace, timeout=_TIMEOUT)
            except NotFound:
                return Level.RESTRICTED, _KEEP_LEVEL
            return Level.of(found["metadata"].get("labels")), _KEEP_LEVEL

        return await self._levels.get(namespace, ask)

    async def may_create_pods(self, author: Author, namespace: str) -> bool:
        """See Authority."""
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
                            "verb": "create",
                            "version": "v1",
                            "resource": "pods",
                        },
                    }
                },
                timeout=_TIMEOUT,
            )
            allowed = (review.get("status") or {}).get("allowed") is True
            return allowed, _KEEP_ALLOWED if allowed else _KEEP_DENIED

        return await self._rights.get((author, namespace), ask)
